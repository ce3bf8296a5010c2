// Copies the data of a raw source in pieces, several at a time; holes are never touched.

import Daemon
import SystemIO

/// Hands out what the source has, in order, and remembers the first failure.
private final class Pieces: @unchecked Sendable {  // fields are under `lock`
    static let lengthBytes: UInt64 = 4 << 20

    private let source: RawCopy.End
    private let sizeBytes: UInt64
    private let lock = Lock()
    private var position: UInt64 = 0
    private var dataEnd: UInt64 = 0
    private var failure: (any Error)?

    init(_ source: RawCopy.End, sizeBytes: UInt64) {
        self.source = source
        self.sizeBytes = sizeBytes
    }

    /// - Returns: nil when all is handed out, or somebody failed.
    func next() -> Range<UInt64>? {
        lock.withLock {
            do {
                if failure != nil { return nil }
                if position >= dataEnd {
                    guard position < sizeBytes, let start = try source.seekData(position),
                        start < sizeBytes
                    else { return nil }
                    position = start
                    dataEnd = min(try source.seekHole(start) ?? sizeBytes, sizeBytes)
                }
                let end = min(position + Self.lengthBytes, dataEnd)
                defer { position = end }
                return position..<end
            } catch {
                failure = error
                return nil
            }
        }
    }

    func fail(_ error: any Error) { lock.withLock { failure = failure ?? error } }
    func check() throws { try lock.withLock { if let failure { throw failure } } }
}

extension RawCopy {
    static func copySparse(
        from source: End, to target: End, jobs: Int, _ progress: Progress
    ) throws {
        let size = try source.sizeBytes()
        let pieces = Pieces(source, sizeBytes: size)
        let workers = (1..<max(jobs, 1)).map { number in
            WorkerThread.start("doppel-copy-\(number)") {
                work(pieces, from: source, to: target) { _ in }
            }
        }
        // Pieces go out in order: where this thread is, the others are about.
        work(pieces, from: source, to: target) {
            progress.update($0, of: size)
        }
        for worker in workers { worker.join() }
        try pieces.check()
        try target.finish(sizeBytes: size)
    }

    private static func work(
        _ pieces: Pieces, from source: End, to target: End, _ report: (UInt64) -> Void
    ) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        while let piece = pieces.next() {
            do { try copy(piece, from: source, to: target, through: buffer) } catch {
                return pieces.fail(error)
            }
            report(piece.upperBound)
        }
    }

    private static func copy(
        _ piece: Range<UInt64>, from source: End, to target: End,
        through buffer: UnsafeMutableRawBufferPointer
    ) throws {
        var position = piece.lowerBound
        while position < piece.upperBound {
            let left = piece.upperBound - position
            let done: UInt64
            if case .file(let from) = source, case .file(let to) = target {
                // Shares the blocks, or copies in the kernel, where the file systems can.
                done = try to.copyRange(from: from, at: position, to: position, length: left)
            } else if case .file(let from) = source, case .image(let to) = target,
                let copied = try to.copyIn(from: from, at: position, length: left)
            {
                done = copied
            } else if case .file(let from) = source, case .image(let to) = target,
                let copied = try to.copyIn(from: from, at: position, length: left)
            {
                done = copied
            } else {
                let part = buffer[..<Int(min(left, UInt64(buffer.count)))]
                let got = try source.read(into: .init(rebasing: part), at: position)
                if got > 0 {
                    try target.write(
                        .init(rebasing: UnsafeRawBufferPointer(buffer)[..<got]), at: position)
                }
                done = UInt64(got)
            }
            guard done > 0 else {
                throw ControlFailure(.failed, "the source became shorter while it was copied")
            }
            position += done
        }
    }
}
