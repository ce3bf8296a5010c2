import BlockCore
import Foundation
import Pool
import SystemIO
import Testing
import TestSupport

@testable import Daemon

/// A pool with every kind of file, closed cleanly, and what each of its files must read as.
///
///     a.img   root layer (snapshot one) ← layer with a map (snapshot two) ← head with a map
///     b.img   root layer (snapshots one, two) ← head, empty
///     c.img   a plain file: made after the snapshots
final class DamagedPool {
    let path: String
    private(set) var expected: [String: [UInt8]] = [:]
    private(set) var layers: [LayerRecord] = []
    private(set) var images: [String: ImageID] = [:]
    let disk = LinuxDisk()

    private static var options: PoolSession.Options {
        var options = PoolSession.Options()
        options.reserve = .bytes(1 << 20)
        return options
    }
    static let blocks = 300

    init(_ path: String, seed: UInt64 = 1) throws {
        self.path = path
        var random = SeededRandom(seed: seed)
        try PoolStore.initialize(path: path, disk: disk)
        let session = try PoolSession(path: path, options: Self.options)
        for name in ["a.img", "b.img"] { try create(name, session, &random) }
        try snapshot("one", session)
        try overwrite("a.img", session, &random, blocks: [1, 17, 100, 101, 290])
        try snapshot("two", session)
        try overwrite("a.img", session, &random, blocks: [2, 17, 55, 200, 280])
        try create("c.img", session, &random)
        #expect(session.execute(ControlRequest(.scrub)).error == nil)
        for name in ["a.img", "b.img", "c.img"] {
            images[name] = try session.fileSystem.resolve(name).imageID
        }
        try session.close()
        let catalog = try Catalog.open(at: path + "/catalog.sqlite")
        layers = try catalog.read { try $0.layers() }
        catalog.close()
    }

    /// A target that is not there now, and that lacks nothing.
    func addTarget() throws {
        let catalog = try Catalog.open(at: path + "/catalog.sqlite")
        defer { catalog.close() }
        let target = try catalog.write {
            try $0.insertTarget(
                TargetRecord(
                    address: "/nowhere", poolID: nil, mode: .async, timeoutMs: 5000, addedNs: 0))
        }
        try DirtyFile.create(
            disk: disk, path: "\(path)/targets/\(target.rawValue)/dirty", target: target,
            DirtyFileState(acknowledged: .zero, incarnation: 1, legs: [])
        ).close()
    }

    func targets() throws -> [TargetRecord] {
        let catalog = try Catalog.open(at: path + "/catalog.sqlite")
        defer { catalog.close() }
        return try catalog.read { try $0.targets() }
    }

    private func create(
        _ name: String, _ session: PoolSession, _ random: inout SeededRandom
    ) throws {
        let file = try session.fileSystem.create(path: name, sizeBytes: 0)
        let bytes = random.bytes(Self.blocks * 4096 - 100)
        try bytes.withUnsafeBytes { try file.write($0, at: 0) }
        try file.flush()
        file.close()
        expected[name] = bytes
    }

    /// A commit of its own for each block.
    private func overwrite(
        _ name: String, _ session: PoolSession, _ random: inout SeededRandom, blocks: [Int]
    ) throws {
        let inode = try session.fileSystem.resolve(name).id.rawValue
        let file = try session.fileSystem.open(inode, access: .readWrite)
        for block in blocks {
            let bytes = random.bytes(4096)
            try bytes.withUnsafeBytes { try file.write($0, at: UInt64(block) * 4096) }
            try file.flush()
            expected[name]!.replaceSubrange(block * 4096..<(block + 1) * 4096, with: bytes)
        }
        file.close()
    }

    private func snapshot(_ name: String, _ session: PoolSession) throws {
        let request = ControlRequest(.snapshotCreate) { $0.name = name }
        #expect(session.execute(request).error == nil)
        for (image, bytes) in expected where !image.contains("@") {
            expected["\(image)@\(name)"] = bytes
        }
    }

    // MARK: Its files

    /// The layers of an image, oldest first.
    func chain(_ image: String) -> [LayerRecord] {
        layers.filter { $0.imageID == images[image] }.sorted { $0.id < $1.id }
    }
    func file(_ row: LayerRecord, _ suffix: String) -> String {
        "\(path)/images/\(row.imageID.rawValue)/\(row.id.rawValue).\(suffix)"
    }

    /// Every file with its size and a hash of its content.
    func state() throws -> [String: String] {
        var result: [String: String] = [:]
        let all = FileManager.default.enumerator(atPath: path)
        while let name = all?.nextObject() as? String {
            if ["lock", "owner"].contains(name) { continue }
            guard let data = FileManager.default.contents(atPath: path + "/" + name) else {
                result[name] = "folder"
                continue
            }
            var hash: UInt64 = 14_695_981_039_346_656_037
            data.withUnsafeBytes {
                for byte in $0 { hash = (hash ^ UInt64(byte)) &* 1_099_511_628_211 }
            }
            result[name] = "\(data.count) \(hash)"
        }
        return result
    }

    func flip(_ path: String, at offset: Int) throws {
        let file = try disk.open(path, .readWrite, mode: 0)
        defer { file.close() }
        var byte: [UInt8] = [0]
        _ = try byte.withUnsafeMutableBytes { try file.read(into: $0, at: UInt64(offset)) }
        byte[0] ^= 0x40
        try byte.withUnsafeBytes { try file.write($0, at: UInt64(offset)) }
    }
    func cut(_ path: String, to sizeBytes: UInt64) throws {
        let file = try disk.open(path, .readWrite, mode: 0)
        defer { file.close() }
        try file.truncate(to: sizeBytes)
    }
    func size(_ path: String) throws -> Int { Int(try disk.status(path)?.sizeBytes ?? 0) }

    // MARK: Using it

    func check(repairs: Bool = false) throws -> CheckReport {
        try PoolCheck.run(path: path, disk: disk, repairs: repairs)
    }

    func withSession<T>(_ body: (PoolSession) throws -> T) throws -> T {
        let session = try PoolSession(path: path, options: Self.options)
        let result = Result { try body(session) }
        try session.close()
        return try result.get()
    }

    /// What each name reads as; nil for one that gives an error.
    func contents() throws -> [String: [UInt8]?] {
        try withSession { session in
            var result: [String: [UInt8]?] = [:]
            for entry in session.fileSystem.listAll() where entry.kind == .file {
                result[entry.path] = .some(try? read(session, entry.inode))
            }
            for snapshot in try session.volume.snapshots() {
                let folder = try session.fileSystem.lookup(
                    parent: try session.fileSystem.lookup(
                        parent: 1, name: Array(".snapshots".utf8)
                    ).inode, name: Array(snapshot.name.utf8))
                for entry in try session.fileSystem.list(folder.inode).entries {
                    let name = String(decoding: entry.name, as: UTF8.self)
                    result["\(name)@\(snapshot.name)"] = .some(try? read(session, entry.inode))
                }
            }
            return result
        }
    }

    private func read(_ session: PoolSession, _ inode: UInt64) throws -> [UInt8] {
        let file = try session.fileSystem.open(inode, access: .read)
        defer { file.close() }
        let size = Int(try session.fileSystem.attributes(of: inode).sizeBytes)
        var bytes = [UInt8](repeating: 0, count: size + 1)
        let got = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: 0) }
        return Array(bytes.prefix(got))
    }

    /// Never older or other data under a name that is not marked.
    func expectNoLie(_ note: String) throws {
        for (name, bytes) in try contents() where !name.contains("-salvaged") {
            guard let bytes else { continue }
            #expect(bytes == expected[name], "\(name) reads as something else: \(note)")
        }
    }

    func expectAllSound(but concerned: Set<String> = []) throws {
        let contents = try contents()
        for (name, bytes) in expected where !concerned.contains(name) {
            #expect(contents[name] == .some(bytes), "\(name)")
        }
    }
}
