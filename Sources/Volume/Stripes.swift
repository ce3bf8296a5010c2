import BlockCore
import SystemIO

/// Locks over an image's blocks: one of 64 for each MiB in turn, always taken in ascending order.
struct Stripes: Sendable {
    private static let count = 64
    private static let chunkShift: UInt64 = 8
    private let locks: [Lock] = (0..<count).map { _ in Lock() }

    @inline(__always)
    func lock(_ range: BlockRange) {
        forEach(range) { $0.lock() }
    }

    @inline(__always)
    func unlock(_ range: BlockRange) {
        forEach(range) { $0.unlock() }
    }

    func lockAll() { for lock in locks { lock.lock() } }
    func unlockAll() { for lock in locks { lock.unlock() } }

    @inline(__always)
    private func forEach(_ range: BlockRange, _ body: (Lock) -> Void) {
        let first = Int(range.start >> Self.chunkShift)
        let last = Int((range.end - 1) >> Self.chunkShift)
        if last - first + 1 >= Self.count {
            for lock in locks { body(lock) }
            return
        }
        let low = first & (Self.count - 1)
        let high = last & (Self.count - 1)
        if low <= high {
            for index in low...high { body(locks[index]) }
        } else {
            for index in 0...high { body(locks[index]) }
            for index in low..<Self.count { body(locks[index]) }
        }
    }
}
