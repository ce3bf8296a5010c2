// What a mount is asked for, and how that becomes libfuse's `-o` list.

import Glibc

/// How the kernel caches image data; named as in QEMU. Snapshot files are always cached.
package enum CacheMode: String, Sendable, CaseIterable {
    /// Direct I/O between kernel and Doppel: a guest has its own cache.
    case none
    /// The kernel's page cache, written through.
    case read
    /// write() returns before Doppel saw it; allowed where all targets are `async` only.
    case writeback
}

package struct MountOptions: Sendable {
    package var cache: CacheMode = .none
    package var isReadOnly = false
    /// Other users than the mounting one may enter; modes are then always checked by the kernel.
    package var allowsOtherUsers = false
    package var checksPermissions = false
    /// Further `-o` words as mount(8) knows them, already split.
    package var userOptions: [String] = []
    /// Requests worked on at once. A slow sync holds one thread, so there are more than busy CPUs.
    package var maxThreads: UInt32 = 32
    package var idleThreads: UInt32 = 4

    package init() {}

    /// What the one who mounts gets without asking: root shares, users keep to themselves.
    package static func defaults(forUser uid: uid_t) -> MountOptions {
        var options = MountOptions()
        options.allowsOtherUsers = uid == 0
        options.checksPermissions = uid == 0
        return options
    }

    /// Splits an `-o` argument at its commas; `\,` is a comma and `\\` a backslash.
    package static func split(_ text: String) -> [String] {
        var words: [String] = []
        var word = ""
        var escaped = false
        for character in text {
            if escaped {
                word.append(character)
                escaped = false
            } else if character == "\\" {
                escaped = true
            } else if character == "," {
                words.append(word)
                word = ""
            } else {
                word.append(character)
            }
        }
        words.append(word)
        return words.filter { !$0.isEmpty }
    }

    /// Takes one word of an `-o` list.
    /// - Returns: false when it is none of the kernel's, libfuse's or mount(8)'s, so that the
    ///   caller can look among its own before calling it an error.
    package mutating func accept(_ word: String) -> Bool {
        let name = word.prefix { $0 != "=" }
        switch word {
        case "ro":
            isReadOnly = true
            return true
        case "rw":
            isReadOnly = false
            return true
        case "allow_other":
            allowsOtherUsers = true
            return true
        case "default_permissions":
            checksPermissions = true
            return true
        default: break
        }
        if Self.ignored.contains(String(name)) || word.hasPrefix("x-") { return true }
        guard Self.passedOn.contains(String(name)) else { return false }
        if !userOptions.contains(word) { userOptions.append(word) }
        return true
    }

    /// For mount(8), systemd and fstab alone, and times of reading, which the kernel leaves to us;
    /// libfuse would stumble over them.
    private static let ignored: Set<String> = [
        "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner", "group",
        "nogroup", "_netdev", "nofail", "defaults", "comment", "silent", "loud", "uhelper",
        "helper", "relatime", "strictatime", "iversion", "noiversion", "mand", "nomand", "lazytime",
        "nolazytime", "diratime", "nodiratime", "norelatime", "nostrictatime",
    ]

    /// What libfuse 3.14 or fusermount3 takes and what makes sense for a disk.
    private static let passedOn: Set<String> = [
        "suid", "nosuid", "dev", "nodev", "exec", "noexec", "async", "sync", "dirsync", "atime",
        "noatime", "context", "fscontext", "defcontext", "rootcontext", "debug",
    ]

    /// The argument vector that libfuse parses.
    func arguments(poolPath: String) -> [String] {
        var words = ["fsname=\(Self.escape(poolPath))", "subtype=doppel"]
        words.append(isReadOnly ? "ro" : "rw")
        if allowsOtherUsers { words.append("allow_other") }
        // Nothing below the kernel checks modes, so letting others in without this would give
        // everybody every image.
        if checksPermissions || allowsOtherUsers { words.append("default_permissions") }
        words += userOptions.map(Self.escape)
        return ["doppel"] + words.flatMap { ["-o", $0] }
    }

    private static func escape(_ text: String) -> String {
        var result = ""
        for character in text {
            if character == "\\" || character == "," { result.append("\\") }
            result.append(character)
        }
        return result
    }
}
