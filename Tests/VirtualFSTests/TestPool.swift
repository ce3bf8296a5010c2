import BlockCore
import Foundation
import Pool
import SystemIO
import Testing
import Volume

@testable import VirtualFS

/// A pool in a temporary folder, opened as a mount would, without FUSE.
final class TestPool {
    let path: String
    private(set) var store: PoolStore
    private(set) var volume: Volume
    private(set) var fs: VirtualFS
    private var isOpen = true

    static let root: UInt64 = 1

    /// Commits wait for an fsync unless a test says otherwise, so that what is durable is known.
    static var patient: VirtualFS.Options {
        var options = VirtualFS.Options()
        options.commitDelayMs = 600_000
        options.timesDelayMs = 600_000
        return options
    }

    convenience init(_ options: VirtualFS.Options = TestPool.patient) throws {
        let path = NSTemporaryDirectory() + "doppel-names-\(UUID().uuidString)"
        try PoolStore.initialize(path: path, disk: LinuxDisk())
        try self.init(existing: path, options)
    }

    init(existing path: String, _ options: VirtualFS.Options = TestPool.patient) throws {
        self.path = path
        store = try PoolStore.open(path: path, disk: LinuxDisk())
        volume = try Volume(store: store, options: Self.volumeOptions(options))
        fs = try VirtualFS(volume: volume, options: options)
    }

    private static func volumeOptions(_ options: VirtualFS.Options) -> VolumeOptions {
        VolumeOptions(runsInBackground: false, isReadOnly: options.isReadOnly)
    }

    static func with(
        _ options: VirtualFS.Options = TestPool.patient, _ body: (TestPool) throws -> Void
    ) throws {
        let pool = try TestPool(options)
        defer { pool.remove() }
        try body(pool)
    }

    func close() throws {
        guard isOpen else { return }
        isOpen = false
        try fs.close()
        try volume.close()
        try store.close(clean: true, lastSequence: volume.sequence)
    }

    func reopen(_ options: VirtualFS.Options = TestPool.patient) throws {
        try close()
        store = try PoolStore.open(path: path, disk: LinuxDisk())
        volume = try Volume(store: store, options: Self.volumeOptions(options))
        fs = try VirtualFS(volume: volume, options: options)
        isOpen = true
    }

    /// The pool as the next owner would find it if this process were killed now.
    func afterKill(_ options: VirtualFS.Options = TestPool.patient) throws -> TestPool {
        let copy = path + "-\(UUID().uuidString)"
        try FileManager.default.copyItem(atPath: path, toPath: copy)
        return try TestPool(existing: copy, options)
    }

    func remove() {
        try? close()
        try? FileManager.default.removeItem(atPath: path)
    }

    // MARK: Short forms

    func inode(_ path: String) throws -> UInt64 {
        var inode = Self.root
        for part in path.split(separator: "/") {
            inode = try fs.lookup(parent: inode, name: Array(part.utf8)).inode
        }
        return inode
    }

    private func split(_ path: String) throws -> (UInt64, [UInt8]) {
        let parts = path.split(separator: "/")
        let folder = try inode(parts.dropLast().joined(separator: "/"))
        return (folder, Array(parts.last!.utf8))
    }

    @discardableResult
    func mkdir(_ path: String, mode: UInt32 = 0o755, gid: UInt32 = 0) throws -> UInt64 {
        let (parent, name) = try split(path)
        return try fs.makeDirectory(parent: parent, name: name, mode: mode, uid: 0, gid: gid).inode
    }

    @discardableResult
    func create(
        _ path: String, _ bytes: [UInt8] = [], exclusive: Bool = true, pid: Int32 = 0
    ) throws -> UInt64 {
        let file = try open(path, exclusive: exclusive, pid: pid)
        defer { file.close() }
        if !bytes.isEmpty { try file.put(bytes, at: 0) }
        return file.inode
    }

    /// Creates the file where it is missing.
    func open(
        _ path: String, exclusive: Bool = false, truncates: Bool = false, pid: Int32 = 0
    ) throws -> OpenFile {
        let (parent, name) = try split(path)
        return try fs.createFile(
            parent: parent, name: name, mode: 0o644, uid: 0, gid: 0, isExclusive: exclusive,
            truncates: truncates, clientPID: pid
        ).1
    }

    func link(_ path: String, _ target: String) throws {
        let (parent, name) = try split(path)
        _ = try fs.makeSymlink(
            parent: parent, name: name, target: Array(target.utf8), uid: 0, gid: 0)
    }

    func unlink(_ path: String) throws {
        let (parent, name) = try split(path)
        try fs.removeFile(parent: parent, name: name)
    }

    func rmdir(_ path: String) throws {
        let (parent, name) = try split(path)
        try fs.removeDirectory(parent: parent, name: name)
    }

    func rename(_ from: String, _ to: String, _ mode: VirtualFS.RenameMode = .replace) throws {
        let (parent, name) = try split(from)
        let (toParent, toName) = try split(to)
        try fs.rename(parent: parent, name: name, toParent: toParent, toName: toName, mode: mode)
    }

    func contents(_ path: String) throws -> [UInt8] {
        let file = try fs.open(try inode(path), access: .read)
        defer { file.close() }
        return try file.get(Int(try fs.attributes(of: file.inode).sizeBytes), at: 0)
    }

    func attributes(_ path: String) throws -> Attributes {
        try fs.attributes(of: try inode(path))
    }

    func names(_ path: String = "") throws -> [String] {
        try fs.list(try inode(path)).entries.map { String(decoding: $0.name, as: UTF8.self) }
            .sorted()
    }

    func set(_ path: String, _ change: (inout AttributeChanges) -> Void) throws {
        var changes = AttributeChanges()
        change(&changes)
        _ = try fs.setAttributes(try inode(path), changes)
    }

    /// Every live name with its kind, mode and content: what a model has to agree with.
    func everything() throws -> [String: String] {
        var result: [String: String] = [:]
        for entry in fs.listAll() {
            switch entry.kind {
            case .directory: result[entry.path] = "folder"
            case .symlink:
                result[entry.path] =
                    "-> " + String(decoding: try fs.readSymlink(entry.inode), as: UTF8.self)
            case .file: result[entry.path] = "\(try contents(entry.path))"
            }
        }
        return result
    }
}

extension OpenFile {
    func put(_ bytes: [UInt8], at offset: UInt64) throws {
        try bytes.withUnsafeBytes { try write($0, at: offset) }
    }
    func get(_ count: Int, at offset: UInt64) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = try bytes.withUnsafeMutableBytes { try read(into: $0, at: offset) }
        return Array(bytes.prefix(got))
    }
}

/// Why `body` failed; nil when it did not.
func code(_ body: () throws -> Void) -> FSErrorCode? {
    do {
        try body()
        return nil
    } catch let error as FSError { return error.code } catch {
        Issue.record("not a file system's error: \(error)")
        return nil
    }
}
