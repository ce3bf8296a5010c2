// A folder is served by one run of the server at a time: locked from before it listens until its last pool is closed.
//
// What a run has under way, a promotion above all, goes on after it stopped listening. A run beside it would be asked
// how that ended, say that it did not begin, and there would be two primaries a moment later. So the next run waits
// for this one; of one that was killed nothing is under way any more, and the lock is gone with it.

import BlockCore
import Logging
import SystemIO

enum ServedRoot {
    /// - Parameters:
    ///   - timeoutMs: how long a run that ends is waited for.
    ///   - isOver: nobody waits any more.
    /// - Returns: nil where it was over before the folder was free.
    static func take(
        _ root: String, timeoutMs: Int64, unless isOver: () -> Bool = { false }
    ) throws -> DiskLock? {
        let disk = LinuxDisk()
        let deadlineNs = disk.monotonic() + timeoutMs * 1_000_000
        var isTold = false
        while true {
            if let lock = try disk.tryLockDirectory(root) { return lock }
            let holders = disk.lockHolders(ofDirectory: root)
            let who =
                holders.count == 1
                ? "another server (process \(holders[0]))" : "another server"
            guard disk.monotonic() < deadlineNs else {
                throw ControlFailure(
                    .inUse,
                    "\(root) is served by \(who), which may be finishing what came: wait for it to end, or "
                        + "end it with SIGTERM, then start this one again")
            }
            if isOver() { return nil }
            if !isTold {
                isTold = true
                Logger(label: "doppel.serve").notice(
                    "\(root) is served by \(who): it is waited for, up to \(timeoutMs / 1000) s")
            }
            Pause.microseconds(50_000)
        }
    }
}
