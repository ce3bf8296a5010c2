// Serves a pool at a mount point for the tests of the mount, in a process of its own: a test that
// touched a mapping served by its own process could wait for itself.
//
//     MountFixture POOL MOUNTPOINT [none|read|writeback] [OPTION...]
//
// Says `ready`, then obeys one command a line and answers `ok …` or `error …`. The end of its
// input, so also the death of the test, takes the mount away whatever is open in it.

import Glibc

signal(SIGPIPE, SIG_IGN)
exit(FixtureServer.main(Array(CommandLine.arguments.dropFirst())))
