import Foundation
import TestSupport
import Testing

/// The power goes at one of the syncs of a verb, and takes all that was not synced or some of it. What the verb
/// said it did is done; what it was at can be done again, and nothing is lost that was there before.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct PowerTests {
    private func withLossy(
        _ seed: UInt64, _ body: (LossyMount, Sandbox, inout SeededRandom) throws -> Void
    ) throws {
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in try body(lossy, box, &random) }
        }
    }

    /// What a person sees of a folder, but for the husk of the verb's own folder that the power may leave at
    /// its very end.
    private func picture(_ path: String) throws -> String {
        let script = """
            cd "$1" && find . -path ./.doppel-eject -prune -o -printf '%P %y %m %l\\n' | sort
            find . -path ./.doppel-eject -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
            """
        let outcome = try run(["sh", "-c", script, "sh", path])
        guard outcome.code == 0 else { throw Failure("\(outcome)") }
        return outcome.output
    }

    /// Files, folders and a link, durable.
    private func fill(_ path: String) throws {
        mkdir(path, 0o755)
        mkdir(path + "/sub", 0o750)
        for (name, count) in [("a.img", 50_001), ("sub/b.img", 8192), ("sub/empty", 0)] {
            let file = try TestFile(path + "/" + name)
            try file.write(pattern(count), at: 0)
            try file.sync()
        }
        try #require(symlink("../a.img", path + "/sub/link") == 0)
        for folder in [path + "/sub", path] {
            try TestFile(folder, O_RDONLY | O_DIRECTORY).sync()
        }
    }

    private func isPool(_ box: Sandbox, _ path: String) throws -> Bool {
        try box.run("list", path).code == 0
    }

    @Test(arguments: Seeds.run(3)) func adoptAndEjectAreResumed(seed: UInt64) throws {
        try withLossy(seed) { lossy, box, random in
            try fill(box.pool)
            try lossy.syncFolder()
            let before = try picture(box.pool)
            for _ in 0..<2 {
                func cutOff(_ verb: String, limit: Int) throws -> Bool {
                    try lossy.tell("off \(random.below(limit))")
                    let outcome = try box.run(verb, box.pool)
                    try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
                    return outcome.code == 0
                }
                if try cutOff("adopt", limit: 60) {
                    #expect(try isPool(box, box.pool), "seed \(seed)")
                } else if try !isPool(box, box.pool) {
                    try box.ok("adopt", box.pool)
                }
                try box.ok("check", box.pool)
                var again = ""
                if try !cutOff("eject", limit: 60) { again = "\(try box.run("eject", box.pool))" }
                let after = try picture(box.pool)
                #expect(after == before, "seed \(seed): \(again): \(after)")
                try lossy.tell("drop")
                #expect(try picture(box.pool) == before, "seed \(seed), later")
            }
        }
    }

    @Test(arguments: Seeds.run(3)) func anImportIsThereWholeOrNotAtAll(seed: UInt64) throws {
        try withLossy(seed) { lossy, box, random in
            try box.ok("init", box.pool)
            try lossy.syncFolder()
            let source = try box.makeFile("source.raw", count: 300_001)
            var done: [String] = []
            for round in 0..<3 {
                let name = "new\(round).img"
                let isMounted = round == 1
                if isMounted { try box.mount() }
                try lossy.tell("off \(random.below(40))")
                let outcome = try box.run("import", box.pool, source, "--as", name)
                if isMounted { try box.killDaemon() }
                try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
                if isMounted { try box.ok("unmount", box.mountPoint) }
                if outcome.code == 0 { done.append(name) }
                let there = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
                if there.contains(where: { $0.path == name }) {
                    done.append(name)
                } else {
                    try box.ok("import", box.pool, source, "--as", name)
                }
                for name in Set(done) {
                    let copy = box.folder + "/copy.raw"
                    unlink(copy)
                    try box.ok("export", box.pool, name, copy)
                    #expect(try box.bytes(copy) == box.bytes(source), "seed \(seed): \(name)")
                }
                try box.ok("check", box.pool)
            }
        }
    }

    /// As programs replace a file: written and synced under another name, then renamed over it.
    @Test(arguments: Seeds.run(3)) func aFileThatIsReplacedIsTheOldOneOrTheNewOne(seed: UInt64)
        throws
    {
        try withLossy(seed) { lossy, box, random in
            try box.ok("init", box.pool)
            try lossy.syncFolder()
            try box.mount()
            let (file, other) = (box.mountPoint + "/file", box.mountPoint + "/file.tmp")
            func replace(_ round: Int) throws {
                do {
                    let new = try TestFile(other, O_RDWR | O_CREAT | O_TRUNC)
                    try new.write(pattern(70_000, seed: UInt8(round)), at: 0)
                    try new.sync()
                }
                guard rename(other, file) == 0 else { throw Failure("rename: errno \(errno)") }
                try TestFile(box.mountPoint, O_RDONLY | O_DIRECTORY).sync()
            }
            try replace(0)
            var known = 0
            for round in 1...4 {
                try lossy.tell("off \(random.below(12))")
                let isDone = (try? replace(round)) != nil
                try box.killDaemon()
                try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
                try box.mount()
                let found = try contents(file)
                let isNew = found == pattern(70_000, seed: UInt8(round))
                #expect(isNew || found == pattern(70_000, seed: UInt8(known)), "seed \(seed)")
                #expect(isNew || !isDone, "seed \(seed), round \(round): it was durable")
                if isNew { known = round }
                unlink(other)
            }
            try box.ok("check", box.pool)
        }
    }
}
