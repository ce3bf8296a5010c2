import Foundation
import Glibc
import Pool
import TestSupport

/// A pool on the lossy disk whose machine goes down.
extension Sandbox {
    /// The pool was last in use before the machine started.
    func pretendRestart() throws {
        // The locks of the process that was killed may go a moment after it.
        for attempt in 0... {
            do {
                let catalog = try Catalog.open(at: pool + "/catalog.sqlite")
                defer { catalog.close() }
                return try catalog.write { try $0.setSetting("boot", "the start before") }
            } catch {
                guard attempt < 200 else { throw error }
                usleep(20_000)
            }
        }
    }

    func goDown(_ lossy: LossyMount, drop: String = "drop") throws {
        try killDaemon()
        try lossy.tell(drop)
        try pretendRestart()
    }

    /// The snapshots of what somebody had alone.
    static func diverged(_ folder: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: folder + "/.snapshots").filter {
            $0.hasPrefix("diverged-")
        }
    }
}
