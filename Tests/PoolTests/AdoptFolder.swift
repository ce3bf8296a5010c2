// A temporary folder with files of every kind that can be adopted, and what it looks like.

import Glibc
import SystemIO
import TestSupport
import Testing

@testable import Pool

struct Stopped: Error {}

/// Stops a run before one of its changes.
enum Stops {
    /// How many changes a whole run makes.
    static func count(_ run: (Adoption.BeforeChange) throws -> Void) throws -> Int {
        var count = 0
        try run { (_) throws(PoolError) in count += 1 }
        return count
    }

    static func stop(at stop: Int, _ run: (Adoption.BeforeChange) throws -> Void) {
        var count = 0
        try? run { (_) throws(PoolError) in
            if count == stop { throw PoolError(.io, "stopped") }
            count += 1
        }
    }
}

struct Folder {
    let path: String
    private let disk = LinuxDisk()

    /// A file, link or folder as a person sees it.
    struct Entry: Equatable {
        var path: String
        var kind: FileStatus.Kind
        var mode: UInt32
        var uid: UInt32
        var gid: UInt32
        var modifyNs: Int64
        var content: Content
        var attributes: [String: [UInt8]]
    }

    /// Compared as a whole: they are looked at after each kill.
    struct Content: Equatable {
        var bytes: [UInt8]
        static func == (a: Self, b: Self) -> Bool { sameBytes(a.bytes[...], b.bytes[...]) }
    }

    private init() throws {
        let base = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        var name = Array((base + "/doppel-pool-XXXXXX").utf8CString)
        try #require(mkdtemp(&name) != nil)
        path = name.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }

    static func with<T>(_ body: (Folder) throws -> T) throws -> T {
        let folder = try Folder()
        defer { folder.remove(folder.path) }
        return try body(folder)
    }

    private func remove(_ path: String) {
        _ = chmod(path, 0o700)
        for entry in (try? disk.list(path)) ?? [] {
            let inside = path + "/" + entry.name
            if entry.kind == .directory { remove(inside) } else { _ = unlink(inside) }
        }
        _ = rmdir(path)
    }

    func makeDirectory(_ name: String) throws {
        try disk.createDirectory(path + "/" + name, mode: 0o755)
    }

    func write(_ name: String, _ text: String) throws {
        try disk.writeDurably(path + "/" + name, contents: Array(text.utf8), mode: 0o644)
    }

    /// Files, folders and links, some with the names that a pool has for its own things.
    func fill() throws {
        for name in ["vms", "vms/db", "images", "images/1", "empty"] { try makeDirectory(name) }
        try write("a.img", "the first image")
        try write("vms/db/data.raw", String(repeating: "database ", count: 1000))
        try write("images/1/1.data", "not Doppel's")
        try write("lock", "somebody's lock")
        try write("README", "somebody's words")
        let sparse = try disk.open(path + "/sparse.img", [.readWrite, .create], mode: 0o640)
        try sparse.truncate(to: 9_000_001)
        sparse.close()
        try disk.makeSymlink(path + "/vms/latest", target: "../a.img")
        try disk.setAttribute(path + "/a.img", "user.note", Array("value".utf8))
        if geteuid() == 0 { try disk.setOwner(path + "/vms/db/data.raw", uid: 107, gid: 109) }
        try disk.setMode(path + "/a.img", 0o440)
        try disk.setMode(path + "/vms/db", 0o750)
        try disk.setMode(path, 0o755)
        var time: Int64 = 1_600_000_000_123_456_789
        for name in ["a.img", "vms/db/data.raw", "vms/latest", "vms/db", "vms", "images", ""] {
            time += 1_000_000_001
            try disk.setTimes(path + "/" + name, accessNs: time, modifyNs: time)
        }
    }

    func picture(ignoringTimesOfRoot: Bool = false) throws -> [Entry] {
        var entries: [Entry] = []
        try add("", to: &entries)
        return ignoringTimesOfRoot ? Self.ignoringTimesOfRoot(entries) : entries
    }

    static func ignoringTimesOfRoot(_ entries: [Entry]) -> [Entry] {
        var entries = entries
        entries[0].modifyNs = 0
        return entries
    }

    private func add(_ inside: String, to entries: inout [Entry]) throws {
        let full = path + (inside.isEmpty ? "" : "/" + inside)
        let status = try #require(try disk.status(full))
        let content: [UInt8] =
            switch status.kind {
            case .file: try disk.readAll(full)
            case .symlink: Array(try disk.readSymlink(full).utf8)
            default: []
            }
        entries.append(
            Entry(
                path: inside, kind: status.kind, mode: status.mode, uid: status.uid,
                gid: status.gid, modifyNs: status.modifyNs, content: Content(bytes: content),
                attributes: try disk.userAttributes(full)))
        guard status.kind == .directory else { return }
        let names = try disk.list(full).map(\.name)
        for name in names.sorted(by: { $0.utf8.lexicographicallyPrecedes($1.utf8) }) {
            try add(inside.isEmpty ? name : inside + "/" + name, to: &entries)
        }
    }

    /// What `doppel eject` does while it has the pool open.
    func prepareEject() throws {
        let store = try PoolStore.open(path: path, disk: disk)
        do {
            try Adoption.prepareEjection(path, try Adoption.ejectionPlan(store))
        } catch {
            try? store.close(clean: true, lastSequence: .zero)
            throw error
        }
        try store.close(clean: true, lastSequence: .zero)
    }

    func eject() throws {
        try prepareEject()
        _ = try Adoption.eject(path)
    }

    func expectRefusal(
        _ words: String..., sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let before = try picture()
        do throws(PoolError) {
            _ = try Adoption.adopt(path)
            Issue.record("it was adopted", sourceLocation: sourceLocation)
        } catch {
            #expect(error.kind == .refused, sourceLocation: sourceLocation)
            for word in words {
                #expect(error.message.contains(word), sourceLocation: sourceLocation)
            }
        }
        #expect(try picture() == before, sourceLocation: sourceLocation)
    }
}
