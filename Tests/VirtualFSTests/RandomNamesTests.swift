// Seeded random operations on names against a plain dictionary of paths, with reopens and kills.
// A failure names its seed; DOPPEL_SEED=n replays it, DOPPEL_SOAK=n runs n times as many.

import BlockCore
import Foundation
import TestSupport
import Testing

@testable import VirtualFS

private func setting(_ name: String) -> Int? {
    ProcessInfo.processInfo.environment[name].flatMap { Int($0) }
}
private let soak = max(setting("DOPPEL_SOAK") ?? 1, 1)
private let seeds = setting("DOPPEL_SEED").map { [$0] } ?? Array(1...(6 * soak))

private enum Thing: Equatable {
    case folder
    case link(String)
    case file([UInt8])

    var text: String {
        switch self {
        case .folder: "folder"
        case .link(let target): "-> " + target
        case .file(let bytes): "\(bytes)"
        }
    }
}

/// The names as plain paths, with POSIX's rules written a second time.
private struct Model {
    var things: [String: Thing] = [:]

    func parent(_ path: String) -> String {
        path.split(separator: "/").dropLast().joined(separator: "/")
    }
    func isFolder(_ path: String) -> Bool { path.isEmpty || things[path] == .folder }
    func hasParent(_ path: String) -> Bool { isFolder(parent(path)) }
    func isEmpty(_ path: String) -> Bool { !things.keys.contains { $0.hasPrefix(path + "/") } }

    mutating func move(_ from: String, _ to: String) {
        for (path, thing) in things where path == from || path.hasPrefix(from + "/") {
            things[path] = nil
            things[to + path.dropFirst(from.count)] = thing
        }
    }

    /// What rename(2) answers; nil where it works.
    func renameError(_ from: String, _ to: String, _ mode: VirtualFS.RenameMode) -> FSErrorCode? {
        guard let source = things[from] else { return .notFound }
        if source == .folder, to.hasPrefix(from + "/") || parent(to) == from { return .invalid }
        guard let target = things[to] else { return mode == .exchange ? .notFound : nil }
        if from == to { return nil }
        if mode == .noReplace { return .exists }
        if mode == .exchange { return from.hasPrefix(to + "/") ? .invalid : nil }
        if target == .folder {
            if source != .folder { return .isDirectory }
            return isEmpty(to) ? nil : .notEmpty
        }
        return source == .folder ? .notDirectory : nil
    }

    mutating func rename(_ from: String, _ to: String, _ mode: VirtualFS.RenameMode) {
        guard from != to else { return }
        if mode == .exchange {
            move(from, "\u{1}")
            move(to, from)
            move("\u{1}", to)
        } else {
            things[to] = nil
            move(from, to)
        }
    }

    var texts: [String: String] { things.mapValues(\.text) }
}

@Suite struct RandomNamesTests {
    @Test(.timeLimit(.minutes(10)), arguments: seeds)
    func namesAreAsTheModelSays(seed: Int) throws {
        let run = Run(seed: seed, pool: try TestPool())
        defer { run.pool.remove() }
        for step in 0..<400 {
            try run.step()
            if step % 40 == 0 { try run.compare() }
        }
        try run.compare()
    }
}

private final class Run {
    let seed: Int
    let pool: TestPool
    var random: SeededRandom
    var model = Model()
    /// The model after each change since the last sync: a kill may leave any of them.
    var history: [[String: String]] = [[:]]
    var snapshots: [String: [String: String]] = [:]
    var count = 0
    var log: [String] = []

    init(seed: Int, pool: TestPool) {
        self.seed = seed
        self.pool = pool
        random = SeededRandom(seed: UInt64(seed))
    }

    func pick(_ limit: Int) -> Int { Int.random(in: 0..<limit, using: &random) }
    func context(_ what: String) -> Comment {
        "seed \(seed): \(what); last: \(log.suffix(6).joined(separator: ", "))"
    }

    /// Few names, so that operations meet.
    func anyPath() -> String {
        var parts = ["abc"[pick(3)]]
        while parts.count < 3, pick(2) == 0 { parts.append("xyz"[pick(3)]) }
        return parts.joined(separator: "/")
    }

    func step() throws {
        count += 1
        switch pick(100) {
        case 0..<18: try makeFolder()
        case 18..<38: try makeFile()
        case 38..<44: try makeLink()
        case 44..<56: try remove()
        case 56..<78: try rename()
        case 78..<84: try overwrite()
        case 84..<89: try sync()
        case 89..<93: try snapshot()
        case 93..<95: try deleteSnapshot()
        case 95..<98: try kill()
        default: try reopen()
        }
    }

    /// - Parameter expected: what the model says this gives.
    func check(_ name: String, _ expected: FSErrorCode?, _ body: () throws -> Void) -> Bool {
        log.append(name)
        let got = code(body)
        #expect(got == expected, context(name))
        if got == nil { history.append([:]) }
        return got == nil
    }
    func changed() { history[history.count - 1] = model.texts }

    func makeFolder() throws {
        let path = anyPath()
        guard model.hasParent(path) else { return }
        if check(
            "mkdir \(path)", model.things[path] == nil ? nil : .exists, { try pool.mkdir(path) })
        {
            model.things[path] = .folder
            changed()
        }
    }

    func makeFile() throws {
        let path = anyPath()
        guard model.hasParent(path) else { return }
        let bytes = (0..<pick(5)).map { _ in UInt8(pick(256)) }
        if check(
            "create \(path)", model.things[path] == nil ? nil : .exists,
            {
                let file = try pool.open(path, exclusive: true)
                defer { file.close() }
                if !bytes.isEmpty { try file.put(bytes, at: 0) }
                // Names are what is tested here: contents are always durable.
                try file.image().flush()
            })
        {
            model.things[path] = .file(bytes)
            changed()
        }
    }

    func makeLink() throws {
        let path = anyPath()
        guard model.hasParent(path) else { return }
        let target = anyPath()
        if check(
            "symlink \(path)", model.things[path] == nil ? nil : .exists,
            { try pool.link(path, target) })
        {
            model.things[path] = .link(target)
            changed()
        }
    }

    func remove() throws {
        let path = anyPath()
        guard model.hasParent(path) else { return }
        let thing = model.things[path]
        let isDone: Bool
        if pick(2) == 0 {
            let expected: FSErrorCode? =
                thing == nil ? .notFound : thing == .folder ? .isDirectory : nil
            isDone = check("unlink \(path)", expected) { try pool.unlink(path) }
            // Deleting data waits for the catalog: all before it is durable too.
            if isDone, case .file = thing { history.removeFirst(history.count - 1) }
        } else {
            let expected: FSErrorCode? =
                thing == nil
                ? .notFound
                : thing != .folder ? .notDirectory : model.isEmpty(path) ? nil : .notEmpty
            isDone = check("rmdir \(path)", expected) { try pool.rmdir(path) }
        }
        if isDone {
            model.things[path] = nil
            changed()
        }
    }

    func rename() throws {
        let (from, to) = (anyPath(), anyPath())
        guard model.hasParent(from), model.hasParent(to) else { return }
        let mode = [VirtualFS.RenameMode.replace, .noReplace, .exchange][pick(3)]
        let replaced = model.things[to]
        let expected = model.renameError(from, to, mode)
        if check("rename \(from) \(to) \(mode)", expected, { try pool.rename(from, to, mode) }) {
            model.rename(from, to, mode)
            if mode == .replace, from != to, case .file = replaced {
                history.removeFirst(history.count - 1)
            }
            changed()
        }
    }

    func overwrite() throws {
        guard
            let path = model.things.keys.sorted().filter({
                if case .file = model.things[$0] { true } else { false }
            }).randomElement(using: &random)
        else { return }
        log.append("write \(path)")
        let bytes = (0..<4).map { _ in UInt8(pick(256)) }
        // With its name: an older state of the names has the new content under an older name.
        let file = try pool.open(path, truncates: true)
        try file.put(bytes, at: 0)
        file.close()
        model.things[path] = .file(bytes)
        try sync()
    }

    func sync() throws {
        log.append("sync")
        try pool.fs.syncDirectory(TestPool.root)
        try pool.volume.flushAll()
        history = [model.texts]
    }

    func snapshot() throws {
        let name = "s\(count)"
        log.append("snapshot \(name)")
        _ = try pool.fs.createSnapshot(name: name)
        snapshots[name] = model.texts
        history = [model.texts]
    }

    func deleteSnapshot() throws {
        guard let name = snapshots.keys.sorted().randomElement(using: &random) else { return }
        log.append("delete snapshot \(name)")
        try pool.fs.deleteSnapshot(name)
        snapshots[name] = nil
        while try pool.volume.mergeStep() {}
    }

    func reopen() throws {
        log.append("reopen")
        try pool.reopen()
        history = [model.texts]
        try compare()
    }

    /// The state a kill leaves is one that was there, not older than the last sync.
    func kill() throws {
        log.append("kill")
        let killed = try pool.afterKill()
        defer { killed.remove() }
        let found = try killed.everything()
        #expect(history.contains(found), context("\(found) was never there"))
        for (name, texts) in snapshots {
            #expect(try self.texts(of: name, in: killed) == texts, context("snapshot \(name)"))
        }
    }

    func compare() throws {
        let found = try pool.everything()
        #expect(found == model.texts, context("names differ"))
        #expect(
            pool.volume.imageIDs.count
                == model.things.values.count { if case .file = $0 { true } else { false } },
            context("images without a name, or the reverse"))
        for (name, expected) in snapshots {
            #expect(try texts(of: name, in: pool) == expected, context("snapshot \(name)"))
        }
        let folders = [""] + model.things.filter { $0.value == .folder }.map(\.key)
        for folder in folders {
            let inner = model.things.filter {
                $0.value == .folder && model.parent($0.key) == folder
            }
            #expect(
                try pool.attributes(folder).linkCount == UInt32(2 + inner.count),
                context("links of '\(folder)'"))
        }
    }

    private func texts(of snapshot: String, in pool: TestPool) throws -> [String: String] {
        var result: [String: String] = [:]
        func walk(_ folder: String) throws {
            let base = ".snapshots/\(snapshot)" + (folder.isEmpty ? "" : "/" + folder)
            for entry in try pool.fs.list(try pool.inode(base)).entries {
                let name = String(decoding: entry.name, as: UTF8.self)
                let path = folder.isEmpty ? name : folder + "/" + name
                switch entry.kind {
                case .directory:
                    result[path] = "folder"
                    try walk(path)
                case .symlink:
                    let target = try pool.fs.readSymlink(entry.inode)
                    result[path] = "-> " + String(decoding: target, as: UTF8.self)
                case .file: result[path] = "\(try pool.contents(base + "/" + name))"
                }
            }
        }
        try walk("")
        return result
    }
}

extension String {
    fileprivate subscript(_ index: Int) -> String {
        String(self[self.index(startIndex, offsetBy: index)])
    }
}
