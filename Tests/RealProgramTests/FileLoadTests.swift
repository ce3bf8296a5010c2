import Glibc
import TestSupport
import Testing

/// Random load on files of the mount, in the style of fsx: everything a program may do with a file,
/// several at once, each file beside the bytes that it has to hold.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct FileLoadTests {
    @Test(arguments: ["none", "read", "writeback"], Seeds.run(1))
    func filesHoldWhatWasDoneToThem(cache: String, seed: UInt64) throws {
        print("seed \(seed), cache \(cache)")
        try Sandbox.with { box in
            try box.ok("init", box.pool)
            try box.mount("--cache", cache)
            let folder = box.mountPoint
            for round in 1...2 {
                var files = try (0..<4).map { index -> FileExercise in
                    let path = "\(folder)/\(round)-\(index).img"
                    _ = try TestFile(path)
                    return FileExercise(
                        path: path,
                        random: SeededRandom(seed: seed &* 1000 &+ UInt64(round * 10 + index)))
                }
                for part in 0..<4 {
                    files = try inParallel(files) { file in
                        for _ in 0..<60 { try file.step() }
                    }
                    try box.ok("snapshot", "create", box.pool, "s\(round)\(part)")
                    for file in files { try file.verify("after a snapshot") }
                    let frozen = files
                    // While the files go on changing, the snapshot's do not.
                    files = try inParallel(files) { file in
                        for _ in 0..<20 { try file.step() }
                    }
                    for file in frozen {
                        try file.verify(in: "\(folder)/.snapshots/s\(round)\(part)")
                    }
                    if part == 2 { try box.ok("snapshot", "delete", box.pool, "s\(round)0") }
                }
                try box.ok("unmount", folder)
                try box.mount("--cache", cache)
                for file in files { try file.verify("after a remount") }
            }
        }
    }

    private func inParallel(
        _ files: [FileExercise], _ body: @escaping @Sendable (inout FileExercise) throws -> Void
    ) throws -> [FileExercise] {
        let threads = files.map { file in
            TestThread {
                var file = file
                try body(&file)
                return file
            }
        }
        let results = threads.map { thread in Result { try thread.join() } }
        return try results.map { try $0.get() }
    }
}

extension FileExercise {
    /// The same file as a snapshot has it.
    func verify(in folder: String) throws {
        let name = path.split(separator: "/").last!
        if let objection = model.objection(
            to: try contents("\(folder)/\(name)"), afterCrash: false)
        {
            throw Failure("\(folder)/\(name): \(objection)")
        }
    }
}
