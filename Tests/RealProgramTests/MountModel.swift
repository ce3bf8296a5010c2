// A mounted pool beside what it has to hold: files, names, snapshots; and what a crash may leave.
//
// Invariants that are checked
//   Names after a crash are those after some operation not older than the last durable one.
//   Content after a crash is, sector by sector, what it was at its last flush or became since. An
//   image that was in no snapshot yet is a plain file: after SIGKILL all that was written is there.
//   A snapshot is byte for byte what the files were at its cut, before and after any crash.

import Glibc
import MountCalls
import TestSupport

final class MountModel {
    private struct Entry {
        var file: FileExercise
        /// No snapshot has it: its head is the one plain file.
        var isPlain = true
        /// The number of the last change of its name.
        var lastChange = 0
    }
    private let box: Sandbox
    private let losePower: (() throws -> Void)?
    private var random: SeededRandom
    private var entries: [Int: Entry] = [:]
    private var nextID = 0
    /// Names after each change since the last durable one; the last is now.
    private var states: [[String: Int]] = [[:]]
    /// The number of the change that led to the first of `states`.
    private var firstChange = 0
    private var snapshots: [String: [String: [UInt8]]] = [:]
    private var history: [String] = []
    private(set) var counts: [String: Int] = [:]

    /// - Parameter losePower: makes the store forget, while nobody serves it.
    init(_ box: Sandbox, seed: UInt64, losePower: (() throws -> Void)? = nil) {
        self.box = box
        self.losePower = losePower
        random = SeededRandom(seed: seed)
    }

    private var names: [String: Int] { states[states.count - 1] }
    private func path(_ name: String) -> String { "\(box.mountPoint)/\(name)" }

    private func note(_ kind: String, _ text: String = "") {
        counts[kind, default: 0] += 1
        history.append("\(kind) \(text)")
        if history.count > 25 { history.removeFirst() }
    }

    /// Adds what led here to a failure.
    func explained<T>(_ body: () throws -> T) throws -> T {
        do { return try body() } catch {
            throw Failure("\(error)\n  after: \(history.joined(separator: "; "))")
        }
    }

    // MARK: Steps

    func step() throws {
        switch random.below(100) {
        case ..<62: try changeFile()
        case ..<70: try changeNames()
        case ..<73: try create()
        case ..<75: try syncFolder()
        case ..<82: try snapshot()
        case ..<86: try deleteSnapshot()
        case ..<89: try restore()
        case ..<92: try clone()
        case ..<95: try resize()
        case ..<96: try deleteByVerb()
        case ..<98: try crash()
        default: try reopen()
        }
    }

    private func anyName() -> String? { names.keys.sorted().randomElement(using: &random) }

    private func newName() -> String? {
        let free = (0..<9).map { "f\($0).img" }.filter { names[$0] == nil }
        return free.randomElement(using: &random)
    }

    private func changeFile() throws {
        guard let name = anyName(), let id = names[name] else { return try create() }
        var entry = entries[id]!
        entry.file.path = path(name)
        note("file", name)
        if try entry.file.step() { namesDurable(upTo: entry.lastChange) }
        entries[id] = entry
    }

    // MARK: Names

    private func changed(_ ids: Int?..., body: (inout [String: Int]) -> Void) {
        var next = names
        body(&next)
        states.append(next)
        for id in ids { if let id { entries[id]?.lastChange = firstChange + states.count - 1 } }
    }

    private func namesDurable(upTo change: Int) {
        let count = change - firstChange
        guard count > 0 else { return }
        states.removeFirst(count)
        firstChange += count
    }

    private func allNamesDurable() { namesDurable(upTo: firstChange + states.count - 1) }

    private func insert(_ name: String, content: [UInt8]? = nil) {
        let id = nextID
        nextID += 1
        var file = FileExercise(path: path(name), random: SeededRandom(seed: random.next()))
        if let content { file.take(content, "made") }
        entries[id] = Entry(file: file, isPlain: content == nil)
        changed(id) { $0[name] = id }
    }

    private func create() throws {
        guard let name = newName() else { return }
        note("create", name)
        if random.chance(50) {
            _ = try TestFile(path(name), O_RDWR | O_CREAT | O_EXCL)
            insert(name)
        } else {
            let size = random.below(100_000)
            try box.ok("create", box.pool, name, "--size", "\(size)")
            insert(name)
            let id = names[name]!
            entries[id]!.file.resized(to: size)
            entries[id]!.file.allIsDurable()
            allNamesDurable()
        }
    }

    private func changeNames() throws {
        guard let name = anyName(), let id = names[name] else { return try create() }
        switch random.below(4) {
        case 0:
            note("unlink", name)
            // It lives on while it is open, and its space goes with the last close.
            let open = try TestFile(path(name))
            guard unlink(path(name)) == 0 else { throw Failure("unlink: errno \(errno)") }
            changed { $0[name] = nil }
            guard try open.read(1 << 20, at: 0) == entries[id]!.file.model.bytes else {
                throw Failure("\(name), unlinked while open, reads otherwise")
            }
        case 1:
            guard let other = anyName(), other != name, let otherID = names[other] else { return }
            note("exchange", "\(name) \(other)")
            let result = mc_rename(path(name), path(other), UInt32(MC_EXCHANGE))
            guard result == 0 else { throw Failure("exchange: \(result)") }
            changed(id, otherID) { ($0[name], $0[other]) = (otherID, id) }
        default:
            let target = random.chance(50) ? anyName() : newName()
            guard let target, target != name else { return }
            note("rename", "\(name) \(target)")
            guard rename(path(name), path(target)) == 0 else {
                throw Failure("rename: errno \(errno)")
            }
            changed(id) {
                $0[name] = nil
                $0[target] = id
            }
        }
    }

    private func syncFolder() throws {
        note("fsync folder")
        try TestFile(box.mountPoint, O_RDONLY | O_DIRECTORY).sync()
        allNamesDurable()
    }

    private func deleteByVerb() throws {
        guard let name = anyName() else { return }
        note("delete", name)
        try box.ok("delete", box.pool, name)
        changed { $0[name] = nil }
        allNamesDurable()
    }

    private func resize() throws {
        guard let name = anyName(), let id = names[name] else { return }
        let size = random.below(FileExercise.maxBytes)
        note("resize", "\(name) \(size)")
        try box.ok("resize", box.pool, name, "\(size)", "--shrink")
        entries[id]!.file.resized(to: size)
        let seen = try status(path(name)).st_size
        guard seen == size else { throw Failure("\(name) has \(seen) bytes after a resize") }
    }

    // MARK: Snapshots

    private func snapshot() throws {
        guard snapshots.count < 6 else { return try deleteSnapshot() }
        let name = "s\(random.next() % 100_000_000)"
        note("snapshot", name)
        try box.ok("snapshot", "create", box.pool, name)
        snapshots[name] = names.mapValues { entries[$0]!.file.model.bytes }
        wereCut()
    }

    /// All of every image is in a sealed layer now, which is durable, and so are the names.
    private func wereCut() {
        for id in names.values {
            entries[id]!.isPlain = false
            entries[id]!.file.allIsDurable()
        }
        allNamesDurable()
    }

    private func deleteSnapshot() throws {
        guard let name = snapshots.keys.sorted().randomElement(using: &random) else { return }
        note("delete snapshot", name)
        try box.ok("snapshot", "delete", box.pool, name)
        snapshots[name] = nil
    }

    private func anySource() -> (snapshot: String, name: String, content: [UInt8])? {
        guard let name = snapshots.keys.sorted().randomElement(using: &random),
            let image = snapshots[name]!.keys.sorted().randomElement(using: &random)
        else { return nil }
        return (name, image, snapshots[name]![image]!)
    }

    private func restore() throws {
        guard let source = anySource() else { return }
        note("restore", "\(source.name)@\(source.snapshot)")
        let replaced = names[source.name]
        let said = try box.ok(
            "restore", box.pool, source.name, "--snapshot", source.snapshot)
        guard let id = replaced else {
            insert(source.name, content: source.content)
            return allNamesDurable()
        }
        // What it had is kept as a snapshot of this image alone.
        let kept = said.split(whereSeparator: \.isWhitespace).last.map(String.init) ?? ""
        snapshots[kept] = [source.name: entries[id]!.file.model.bytes]
        entries[id]!.file.take(source.content, "restored")
        entries[id]!.isPlain = false
        allNamesDurable()
    }

    private func clone() throws {
        guard let new = newName() else { return }
        if random.chance(50), let source = anySource() {
            note("clone", "\(source.name)@\(source.snapshot) \(new)")
            try box.ok("clone", box.pool, "\(source.name)@\(source.snapshot)", new)
            insert(new, content: source.content)
        } else {
            guard let name = anyName(), let id = names[name] else { return }
            note("clone", "\(name) \(new)")
            try box.ok("clone", box.pool, name, new)
            wereCut()
            insert(new, content: entries[id]!.file.model.bytes)
        }
        allNamesDurable()
    }

    // MARK: Ends

    private func crash() throws {
        note("crash")
        try box.killDaemon()
        try losePower?()
        try box.mount()
        try adoptSurvivors()
        try verify("after a crash")
    }

    /// The model becomes what the crash left, where that is allowed.
    private func adoptSurvivors() throws {
        let found = try TestSupport.names(in: box.mountPoint)
        var objections: [String] = []
        for state in states.reversed() where state.keys.sorted() == found {
            let contents = try state.mapValues { _ in [UInt8]() }.map { name, _ in
                (name, try TestSupport.contents(path(name)))
            }
            let objection = contents.lazy.compactMap { name, bytes in
                self.objection(to: bytes, of: state[name]!).map { "\(name): \($0)" }
            }.first
            if let objection {
                objections.append(objection)
                continue
            }
            states = [state]
            firstChange = 0
            for (name, bytes) in contents {
                entries[state[name]!]!.file.take(bytes, "crash")
                entries[state[name]!]!.lastChange = 0
            }
            return
        }
        guard let objection = objections.first else {
            throw Failure("after a crash the names are \(found), none of \(states.map(\.keys))")
        }
        throw Failure("after a crash: \(objection)")
    }

    private func objection(to bytes: [UInt8], of id: Int) -> String? {
        let entry = entries[id]!
        let isExact = entry.isPlain && losePower == nil && !entry.file.hasDirtyPages
        return entry.file.model.objection(to: bytes, afterCrash: !isExact).map {
            "\($0); it did \(entry.file.history.joined(separator: ", "))"
        }
    }

    private func reopen() throws {
        note("reopen")
        try box.ok("unmount", box.mountPoint)
        try box.mount()
        for id in names.values { entries[id]!.file.allIsDurable() }
        allNamesDurable()
        try verify("after a remount")
    }

    /// All names, all bytes, all snapshots.
    func verify(_ when: String) throws {
        let found = try TestSupport.names(in: box.mountPoint)
        guard found == names.keys.sorted() else {
            throw Failure("\(when): the names are \(found) instead of \(names.keys.sorted())")
        }
        for (name, id) in names {
            entries[id]!.file.path = path(name)
            try entries[id]!.file.verify(when)
        }
        let kept = try TestSupport.names(in: path(".snapshots"))
        guard kept == snapshots.keys.sorted() else {
            throw Failure("\(when): the snapshots are \(kept), not \(snapshots.keys.sorted())")
        }
        for (snapshot, images) in snapshots {
            let folder = path(".snapshots/\(snapshot)")
            guard try TestSupport.names(in: folder) == images.keys.sorted() else {
                throw Failure("\(when): snapshot \(snapshot) has other names")
            }
            for (name, bytes) in images {
                guard try TestSupport.contents("\(folder)/\(name)") == bytes else {
                    throw Failure("\(when): \(name) of snapshot \(snapshot) has other bytes")
                }
            }
        }
    }
}
