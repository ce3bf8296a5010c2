// A file system that forgets on command what was not synced: what lies between a program that says
// "durable" and a disk that lost power. SIGKILL proves nothing here, for the page cache outlives
// the process.
//
//     LossyFS MOUNTPOINT
//
// Everything is in memory, in two states: what programs see, and what a journaling file system
// would bring back. Commands are lines written to `.lossy` in the root (not listed):
//
//     drop            forget all that was not synced
//     drop SEED       forget some of it: any set of pages and sectors, any prefix of the changes
//                     of names, as the seed has it
//     off N           after N more syncs nothing is done any more, as without power, until `drop`
//     sync-fails N    the next N syncs fail with EIO and lose what they were to write
//     sync-passes N   after N more syncs one fails
//     write-fails N   the next N writes fail with EIO
//     hang, go        reads, writes and syncs wait for `go`
//     slow MS         each write takes so long; `slow 0` ends it
//     space BYTES     writes beyond so much data get ENOSPC; `space -` lifts the limit
//
// Says `ready`; the end of its input takes the mount away.

import Glibc

signal(SIGPIPE, SIG_IGN)
exit(LossyServer.main(Array(CommandLine.arguments.dropFirst())))
