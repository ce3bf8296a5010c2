import Daemon
import SystemIO

/// A file that gets its name when all of it is there and durable. Until then it stands beside, under a
/// name that tells; what a killed command left there, the next one takes over.
enum PartialFile {
    static let suffix = ".doppel-partial"

    /// - Parameter fill: writes the file and makes it durable.
    static func make(_ path: String, _ fill: (DiskFile) throws -> Void) throws {
        let disk = LinuxDisk()
        let partial = path + suffix
        guard try disk.status(path) == nil else {
            throw ControlFailure(.failed, "there is a \(path) already, and it is left as it is")
        }
        let file = try disk.open(partial, [.readWrite, .create], mode: 0o644)
        defer { file.close() }
        guard let lock = try disk.tryLock(partial) else {
            throw ControlFailure(.inUse, "another command is writing \(partial)")
        }
        defer { lock.release() }
        // Whoever held the lock until now may have given the file its name.
        let (own, named) = (try file.status(), try disk.status(partial))
        guard own.inode == named?.inode, own.device == named?.device else {
            throw ControlFailure(.inUse, "another command has just written \(path)")
        }
        do {
            try file.truncate(to: 0)
            try fill(file)
            try disk.rename(partial, to: path, noReplace: true)
            try disk.syncDirectory(parentPath(path))
        } catch {
            try? disk.removeFile(partial)
            throw error
        }
    }
}
