// Where a host keeps its key, and by default the list of its peers.
//
//   host.key               the key; PKCS #8 in PEM, mode 0600
//   host.next.key          a second one while the key is being changed
//   authorized_peers       who may do what
//   authorized_peers.old   what the last change by `doppel pair` replaced
//   events, events.1       what `doppel events --host` shows
//   .lock                  held while one of these is changed
//
// Only its owner may write in it, and only its owner or root may own what is read: whoever can put a line
// into authorized_peers may do everything.

import SystemIO

package struct StateDirectory: Sendable {
    package let path: String
    package let disk: Disk

    package init(path: String, disk: Disk = LinuxDisk()) {
        self.path = path
        self.disk = disk
    }

    /// `/var/lib/doppel` for root; else `$XDG_STATE_HOME/doppel`, or `~/.local/state/doppel`.
    package static var defaultPath: String {
        if ProcessControl.isRoot { return "/var/lib/doppel" }
        if let state = ProcessControl.environment("XDG_STATE_HOME"), state.hasPrefix("/") {
            return state + "/doppel"
        }
        return (ProcessControl.environment("HOME") ?? "/") + "/.local/state/doppel"
    }

    func file(_ name: String) -> String { path + "/" + name }

    /// Runs `body` while nobody else changes anything here; makes the directory where there is none.
    func withLock<T>(_ body: () throws(IdentityError) -> T) throws(IdentityError) -> T {
        try make(path)
        try checkOwner(
            of: try system { () throws(SystemError) in try disk.status(path) }, path,
            mayNot: 0o022, "write in")
        var lock: DiskLock?
        while lock == nil {
            lock = try system { () throws(SystemError) in try disk.tryLock(file(".lock")) }
            if lock == nil { Pause.microseconds(2000) }
        }
        defer { lock?.release() }
        return try body()
    }

    private func make(_ directory: String) throws(IdentityError) {
        if try system({ () throws(SystemError) in try disk.status(directory) }) != nil { return }
        let parent = parentPath(directory)
        if parent != directory, parent != "." { try make(parent) }
        do throws(SystemError) {
            try disk.createDirectory(directory, mode: 0o700)
        } catch {
            // Somebody else made it meanwhile.
            if error.isExisting { return }
            throw IdentityError(error)
        }
        try system { () throws(SystemError) in try disk.syncDirectory(parent) }
    }

    /// The content of a small file that nobody but its owner can have written.
    /// - Parameter isSecret: nobody else may read it either.
    /// - Returns: nil where there is none.
    func read(_ file: String, isSecret: Bool) throws(IdentityError) -> [UInt8]? {
        try readTrusted(file, isSecret: isSecret, disk: disk)
    }

    /// Replaces a file; after a loss of power the old or the new is there, whole.
    func write(_ file: String, _ contents: [UInt8]) throws(IdentityError) {
        try system { () throws(SystemError) in
            // One that was left by a crash may have another mode.
            if try disk.status(file + ".new") != nil { try disk.removeFile(file + ".new") }
            try disk.writeDurably(file, contents: contents, mode: 0o600)
        }
    }
}

/// Of files that decide who is who: larger ones are no such files.
private let trustedLimitBytes: UInt64 = 1 << 20

func readTrusted(_ path: String, isSecret: Bool, disk: Disk) throws(IdentityError) -> [UInt8]? {
    let file: DiskFile
    do throws(SystemError) { file = try disk.open(path, []) } catch {
        if error.isNotFound { return nil }
        throw IdentityError(error)
    }
    defer { file.close() }
    // Of the file that is open, whatever has its name by now.
    let status = try system { () throws(SystemError) in try file.status() }
    try checkOwner(
        of: status, path, mayNot: isSecret ? 0o077 : 0o022, isSecret ? "read or change" : "change")
    guard status.kind == .file, status.sizeBytes <= trustedLimitBytes else {
        throw IdentityError(.damaged, "\(path) is no file of at most 1 MiB")
    }
    return try system { () throws(SystemError) in
        var bytes = [UInt8](repeating: 0, count: Int(status.sizeBytes))
        let got = try bytes.withTypedMutableBytes { (raw) throws(SystemError) in
            try file.read(into: raw, at: 0)
        }
        bytes.removeSubrange(got...)
        return bytes
    }
}

private func checkOwner(
    of status: FileStatus?, _ path: String, mayNot bits: UInt32, _ what: String
) throws(IdentityError) {
    guard let status else { return }
    guard status.uid == ProcessControl.userID || status.uid == 0 else {
        throw IdentityError(
            .untrusted, "\(path) belongs to user \(status.uid), and is not trusted: chown it")
    }
    guard status.mode & bits == 0 else {
        let octal = String(status.mode & ~bits, radix: 8)
        throw IdentityError(
            .untrusted,
            "others can \(what) \(path), and it is not trusted: chmod \(octal) it"
                + (bits == 0o077
                    ? ", and change the key (doppel pair --rotate): it may be known" : ""))
    }
}
