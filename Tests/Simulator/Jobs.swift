// Seeds shared out to processes of this program: what one seed makes of a machine's memory, or a trap,
// ends that process alone, and its last line tells which seed it was.

import Foundation
import SystemIO

final class Jobs: @unchecked Sendable {  // under `lock`
    struct Batch {
        var firstSeed: UInt64
        var count: UInt64
    }

    private let steps: Int
    private let arguments: [String]
    private let lock = Lock()
    private var rest: Range<UInt64>
    private let total: UInt64
    private let batchSize: UInt64
    private var done: UInt64 = 0
    private var coverage: [String: Int] = [:]
    private var failure: String?

    init(seeds: Range<UInt64>, steps: Int, jobs: Int, arguments: [String]) {
        rest = seeds
        total = UInt64(seeds.count)
        self.steps = steps
        self.arguments = arguments
        batchSize = min(max(total / UInt64(jobs * 8), 1), 100)
    }

    /// - Returns: what was covered.
    /// - Throws: what a process said of a violation.
    func run(_ jobs: Int) throws -> [String: Int] {
        let threads = (0..<jobs).map { number in
            WorkerThread.start("job-\(number)") { [self] in while let next = take() { run(next) } }
        }
        for thread in threads { thread.join() }
        if let failure { throw JobFailure(text: failure) }
        return coverage
    }

    private func take() -> Batch? {
        lock.withLock {
            guard failure == nil, !rest.isEmpty else { return nil }
            let count = min(batchSize, UInt64(rest.count))
            defer { rest = (rest.lowerBound + count)..<rest.upperBound }
            return Batch(firstSeed: rest.lowerBound, count: count)
        }
    }

    private func run(_ batch: Batch) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        process.arguments =
            [
                "--seed", "\(batch.firstSeed)", "--seeds", "\(batch.count)", "--steps", "\(steps)",
                "--is-job",
            ] + arguments
        // Buffers come and go by the thousand: without this each is mapped, and its pages cleared, anew.
        process.environment = ProcessInfo.processInfo.environment.merging([
            "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824",
        ]) { mine, _ in mine }
        let pipe = Pipe()
        process.standardOutput = pipe
        do { try process.run() } catch { return fail("cannot start a process: \(error)") }
        let output = String(
            decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        let lines = output.split(separator: "\n").map(String.init)
        guard process.terminationReason == .exit, process.terminationStatus == 0 else {
            let seed = lines.last { $0.hasPrefix(JobOutput.seed) } ?? "no seed"
            let text = lines.filter { !$0.hasPrefix(JobOutput.seed) }.joined(separator: "\n")
            return fail(
                process.terminationReason == .exit
                    ? text : "the process of \(seed) ended by signal \(process.terminationStatus)")
        }
        note(batch, lines)
    }

    private func fail(_ text: String) { lock.withLock { if failure == nil { failure = text } } }

    private func note(_ batch: Batch, _ lines: [String]) {
        lock.withLock {
            for line in lines where line.hasPrefix(JobOutput.covered) {
                let parts = line.dropFirst(JobOutput.covered.count).split(separator: "\t")
                guard parts.count == 2, let times = Int(parts[1]) else { continue }
                coverage[String(parts[0]), default: 0] += times
            }
            let before = done * 20 / total
            done += batch.count
            guard done * 20 / total > before else { return }
            let text = "\(Int(done) * steps) of \(Int(total) * steps) steps\n"
            FileHandle.standardError.write(Data(text.utf8))
        }
    }
}

struct JobFailure: Error {
    var text: String
}

/// What a process of ``Jobs`` prints.
enum JobOutput {
    static let seed = "seed "
    static let covered = "covered\t"
}
