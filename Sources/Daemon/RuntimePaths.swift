// Where daemons keep what lives no longer than the machine runs: sockets and logs.
//
//   <pool uuid>.sock   removed by its daemon; of one that was killed, by the next start of any
//   <pool path>.log    at most two files of 1 MiB a pool; removed a week after its last word, unless
//                      the pool is mounted
//   .lock              held while sockets are made and swept: one that is bound and does not listen
//                      yet looks like a dead one

import SystemIO

package enum RuntimePaths {
    package static let logLimitBytes: UInt64 = 1 << 20
    private static let logLifetimeNs: Int64 = 7 * 86_400 * 1_000_000_000

    /// `/run/doppel` for root, else under `$XDG_RUNTIME_DIR`, else under /tmp by user id.
    package static func directory(disk: Disk) throws(SystemError) -> String {
        let path: String
        if ProcessControl.isRoot {
            path = "/run/doppel"
        } else if let runtime = ProcessControl.environment("XDG_RUNTIME_DIR"),
            try disk.status(runtime) != nil
        {
            path = runtime + "/doppel"
        } else {
            path = "/tmp/doppel-\(ProcessControl.userID)"
        }
        if let status = try disk.status(path) {
            guard status.kind == .directory, status.uid == ProcessControl.userID else {
                throw SystemError(operation: "trust", path: path, errno: 13)
            }
        } else {
            try disk.createDirectory(path, mode: 0o700)
        }
        return path
    }

    /// The log of a pool's daemon. An older one that grew too long is kept beside it, once.
    package static func log(
        of poolPath: String, in directory: String, disk: Disk
    ) throws(SystemError) -> String {
        let path = "\(directory)/\(logName(poolPath))"
        if let status = try disk.status(path), status.sizeBytes > logLimitBytes {
            try disk.rename(path, to: path + ".1")
        }
        return path
    }

    /// The control socket of the daemon that has this pool.
    static func socket(of poolID: String, in directory: String) -> String {
        "\(directory)/\(poolID).sock"
    }

    static func logName(_ poolPath: String) -> String {
        let name = poolPath.split(separator: "/").joined(separator: "-")
        // A file's name has 255 bytes; the end of a path tells more than its beginning.
        return String(decoding: name.utf8.suffix(200), as: UTF8.self) + ".log"
    }

    /// Runs `body`, which makes a socket, after the sockets of dead daemons were swept away.
    package static func withSweptSockets<T>(
        in directory: String, disk: Disk, _ body: () throws(SystemError) -> T
    ) throws(SystemError) -> T {
        let path = directory + "/.lock"
        var lock = try disk.tryLock(path)
        while lock == nil {
            Pause.microseconds(5000)
            lock = try disk.tryLock(path)
        }
        defer { lock?.release() }
        sweepSockets(directory, disk)
        return try body()
    }

    private static func sweepSockets(_ directory: String, _ disk: Disk) {
        for entry in (try? disk.list(directory)) ?? [] where entry.name.hasSuffix(".sock") {
            let path = directory + "/" + entry.name
            do throws(SystemError) { _ = try UnixSocket.connect(to: path) } catch {
                // Refused: nobody listens, and nobody is about to.
                if error.isConnectionRefused { try? disk.removeFile(path) }
            }
        }
    }

    /// Removes logs whose pool has been silent for long and is not mounted.
    package static func sweepLogs(in directory: String, disk: Disk, mounted: [String]) {
        let living = Set(mounted.map(logName))
        for entry in (try? disk.list(directory)) ?? [] {
            let base = entry.name.hasSuffix(".1") ? String(entry.name.dropLast(2)) : entry.name
            guard base.hasSuffix(".log"), !living.contains(base) else { continue }
            let path = directory + "/" + entry.name
            guard let status = (try? disk.status(path)) ?? nil,
                disk.now() - status.modifyNs > logLifetimeNs
            else { continue }
            try? disk.removeFile(path)
        }
    }
}
