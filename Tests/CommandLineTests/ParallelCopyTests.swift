import Glibc
import SystemIO
import Testing

@testable import doppel

/// A file of bytes that says how many readers are in it at once, and holds them until as many are there
/// as are waited for.
private final class CrowdedFile: DiskFile, @unchecked Sendable {  // fields are under `lock`
    private let sizeBytes: UInt64
    private let lock = Lock()
    private let changed = Condition()
    private let awaited: Int
    private var inside = 0
    private(set) var most = 0

    init(sizeBytes: UInt64, awaited: Int) {
        self.sizeBytes = sizeBytes
        self.awaited = awaited
        super.init(path: "crowded")
    }

    override func status() throws(SystemError) -> FileStatus { FileStatus(sizeBytes: sizeBytes) }
    override func seekData(from offset: UInt64) throws(SystemError) -> UInt64? { offset }
    override func seekHole(from offset: UInt64) throws(SystemError) -> UInt64? { sizeBytes }

    override func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(SystemError) -> Int {
        lock.withLock {
            inside += 1
            most = max(most, inside)
            changed.broadcast()
            while most < awaited { changed.wait(lock) }
            inside -= 1
        }
        let count = Int(min(UInt64(buffer.count), sizeBytes - offset))
        for index in 0..<count { buffer[index] = UInt8(truncatingIfNeeded: offset >> 12) }
        return count
    }
}

/// Takes anything, at the speed of memory.
private final class Sink: DiskFile, @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private var bytes: UInt64 = 0
    var bytesTaken: UInt64 { lock.withLock { bytes } }

    override func copyRange(
        from source: DiskFile, at sourceOffset: UInt64, to offset: UInt64, length: UInt64
    ) throws(SystemError) -> UInt64 {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(length), alignment: 4096)
        defer { buffer.deallocate() }
        let got = UInt64(try source.read(into: buffer, at: sourceOffset))
        lock.withLock { bytes += got }
        return got
    }
    override func truncate(to length: UInt64) throws(SystemError) {}
    override func sync() throws(SystemError) {}
}

@Suite struct ParallelCopyTests {
    /// It ends only if so many pieces really are copied at once.
    @Test(.timeLimit(.minutes(2)), arguments: [1, 4, 16])
    func asManyPiecesAtOnceAsAreAskedFor(jobs: Int) throws {
        let source = CrowdedFile(sizeBytes: 256 << 20, awaited: jobs)
        let sink = Sink(path: "sink")
        try RawCopy.copySparse(
            from: .file(source), to: .file(sink), jobs: jobs, Progress("copying"))
        #expect(source.most == jobs)
        #expect(sink.bytesTaken == 256 << 20)
    }
}
