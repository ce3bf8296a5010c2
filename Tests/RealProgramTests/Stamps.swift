// Writers that stamp sectors over several images with one counter, and what must be found of it.
//
// The counter gives a number to each beginning and each end of a write. A write that ended before
// another began came before it; of two that overlap nobody knows. Each sector has one writer.

import Glibc
import Synchronization
import TestSupport

final class Stamps: @unchecked Sendable {  // what was written is under `lock`
    static let imageCount = 3
    private static let writerCount = 4
    private static let sectorsPerImage = 2048
    private static let sectorBytes = 512

    struct Write: Sendable {
        /// What is in the sector: the counter when it began.
        var stamp: UInt64
        /// nil: it was not acknowledged, and may be there or not.
        var ended: UInt64?
        var image: Int
        var sector: Int
    }

    private let counter = Atomic<UInt64>(0)
    private let isOver = Atomic<Bool>(false)
    private let lock = Mutex<(writes: [Write], flushes: [(image: Int, began: UInt64)])>(([], []))

    var writeCount: Int { lock.withLock { $0.writes.count } }
    var flushCount: Int { lock.withLock { $0.flushes.count } }

    func note(_ write: Write) { lock.withLock { $0.writes.append(write) } }
    /// What had ended before `began`, of this image, was acknowledged as flushed.
    func noteFlush(image: Int, began: UInt64) {
        lock.withLock { $0.flushes.append((image, began)) }
    }

    private func tick() -> UInt64 { counter.add(1, ordering: .sequentiallyConsistent).newValue }

    // MARK: Writing

    /// What returns is a promise of the mirror, too.
    enum Promise { case nothing, flushes, writes }

    /// Writes until `body` has returned, or nobody takes it any more.
    func write(
        _ paths: [String], seed: UInt64, promise: Promise, pauseUs: UInt32 = 0,
        until body: () throws -> Void
    ) throws {
        isOver.store(false, ordering: .sequentiallyConsistent)
        let writers = (0..<Self.writerCount).map { writer in
            TestThread<Void> { [self] in
                var random = SeededRandom(seed: seed &+ UInt64(writer))
                try run(writer, paths, promise, pauseUs, &random)
            }
        }
        defer {
            isOver.store(true, ordering: .sequentiallyConsistent)
            for writer in writers { try? writer.join() }
        }
        try body()
    }

    /// What had ended before is promised once `body` has returned.
    func promising(_ body: () throws -> Void) rethrows {
        let began = tick()
        try body()
        for image in 0..<Self.imageCount { noteFlush(image: image, began: began) }
    }

    private func run(
        _ writer: Int, _ paths: [String], _ promise: Promise, _ pauseUs: UInt32,
        _ random: inout SeededRandom
    ) throws {
        let files = try paths.map { try TestFile($0, O_RDWR) }
        while !isOver.load(ordering: .sequentiallyConsistent) {
            if pauseUs > 0 { usleep(pauseUs) }
            let image = random.below(Self.imageCount)
            let slots = Self.sectorsPerImage / Self.writerCount
            // Half of the writes meet in a few blocks.
            let slot = random.chance(50) ? random.below(16) : random.below(slots)
            var write = Write(
                stamp: tick(), ended: nil, image: image,
                sector: slot * Self.writerCount + writer)
            let bytes = Self.sector(write.stamp)
            let isWritten =
                pwrite(files[image].fd, bytes, bytes.count, write.sector * Self.sectorBytes)
                == bytes.count
            if isWritten { write.ended = tick() }
            note(write)
            guard isWritten else { return }
            if promise == .writes { noteFlush(image: image, began: tick()) }
            if random.chance(15) {
                let began = tick()
                guard fsync(files[image].fd) == 0 else { return }
                if promise != .nothing { noteFlush(image: image, began: began) }
            }
        }
    }

    static func sector(_ stamp: UInt64) -> [UInt8] {
        (0..<sectorBytes).map { UInt8(truncatingIfNeeded: stamp >> UInt64($0 % 8 * 8)) }
    }

    // MARK: Checking

    /// - Returns: what is wrong with these contents of the images; nil where nothing is.
    func violation(of images: [[UInt8]]) -> String? {
        let (writes, flushes) = lock.withLock { $0 }
        var found: [[UInt64]] = []
        for (image, bytes) in images.enumerated() {
            var stamps: [UInt64] = []
            for start in stride(from: 0, to: bytes.count, by: Self.sectorBytes) {
                let sector = bytes[start..<start + Self.sectorBytes]
                // The stamp again and again: each byte is the one eight before it.
                guard sameBytes(sector.dropFirst(8), sector.dropLast(8)) else {
                    return "sector \(start / Self.sectorBytes) of image \(image) is torn"
                }
                stamps.append(
                    sector.withUnsafeBytes {
                        UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self))
                    })
            }
            found.append(stamps)
        }
        let known = Dictionary(uniqueKeysWithValues: writes.map { ($0.stamp, $0) })
        for (image, stamps) in found.enumerated() {
            for (sector, stamp) in stamps.enumerated() where stamp != 0 {
                guard let write = known[stamp], write.image == image, write.sector == sector else {
                    return "sector \(sector) of image \(image) holds \(stamp), never written there"
                }
            }
        }
        let newest = found.joined().max() ?? 0
        for write in writes {
            guard let ended = write.ended, found[write.image][write.sector] < write.stamp else {
                continue
            }
            let missing =
                "write \(write.stamp) (ended \(ended), image \(write.image), sector \(write.sector))"
            if ended < newest { return "\(missing) is missing, and write \(newest) is there" }
            if let flush = flushes.first(where: { $0.image == write.image && $0.began > ended }) {
                return "\(missing) is missing, and was promised at \(flush.began)"
            }
        }
        return nil
    }
}
