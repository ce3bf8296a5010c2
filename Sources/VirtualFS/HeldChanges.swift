// Changes of images that may not begin yet, because a target that the image does not go on without is
// lost or must not fall further behind, or the write stream has no room (docs/decisions/0010-held-writes.md).
//
//   hold ──► parked, by image ── the image may go on ──► begun, on the thread of this table
//                    └────────── the mount ends ───────► given up
//
// The mount's threads are free meanwhile: reads, and other images, are served. What is parked is bounded
// for each image; who comes beyond that waits in its thread.

import BlockCore
import SystemIO
import Volume

package final class HeldChanges: @unchecked Sendable {  // fields are under `lock`
    private struct Change {
        var bytes: Int
        var body: @Sendable (_ isGivenUp: Bool) -> Void
    }
    private struct Line {
        var image: Image
        var changes: [Change] = []
        var bytes = 0
    }

    private static let maxBytesPerImage = 64 << 20
    private static let maxChangesPerImage = 4096
    /// How often it is looked whether an image may go on.
    private static let lookMs: Int64 = 5

    private let lock = Lock()
    private let changed = Condition()
    private var lines: [ImageID: Line] = [:]
    /// Whose change began last.
    private var lastServed = ImageID(rawValue: 0)
    private var thread: WorkerThread?
    private var hasEnded = false

    init() {}

    package var count: Int { lock.withLock { lines.values.reduce(0) { $0 + $1.changes.count } } }

    /// Runs `body` once, when the image may go on, or is told that it never will.
    /// - Parameter bytes: what is kept for it meanwhile.
    func hold(
        _ image: Image, bytes: Int, _ body: @escaping @Sendable (_ isGivenUp: Bool) -> Void
    ) {
        let isOver = lock.withLock {
            while !hasEnded, let line = lines[image.id],
                line.changes.count >= Self.maxChangesPerImage
                    || line.bytes + bytes > Self.maxBytesPerImage
            {
                changed.wait(lock)
            }
            guard !hasEnded else { return true }
            lines[image.id, default: Line(image: image)].changes.append(
                Change(bytes: bytes, body: body))
            lines[image.id]!.bytes += bytes
            if thread == nil {
                thread = WorkerThread.start("doppel-held") { [weak self] in
                    while self?.beginNext() ?? false {}
                }
            }
            changed.broadcast()
            return false
        }
        if isOver { body(true) }
    }

    /// - Returns: false when the table has ended.
    private func beginNext() -> Bool {
        var next: Change?
        let goesOn: Bool = lock.withLock {
            guard !hasEnded else { return false }
            next = takeNext()
            guard next == nil else { return true }
            _ = changed.wait(lock, timeoutMs: lines.isEmpty ? 60_000 : Self.lookMs)
            return true
        }
        next?.body(false)
        return goesOn
    }

    private func takeNext() -> Change? {
        // In turn: where a few may begin at a time, every image has its share of them.
        let images = lines.keys.sorted()
        let next = images.firstIndex { $0 > lastServed } ?? 0
        for id in images[next...] + images[..<next] {
            let change = lines[id]!.changes[0]
            if lines[id]!.image.mustHold(change.bytes) { continue }
            lastServed = id
            lines[id]!.changes.removeFirst()
            lines[id]!.bytes -= change.bytes
            if lines[id]!.changes.isEmpty { lines[id] = nil }
            changed.broadcast()
            return change
        }
        return nil
    }

    /// The mount is about to go: nothing of what is parked begins any more.
    package func abandon() {
        let (left, worker) = lock.withLock {
            defer { (lines, thread) = ([:], nil) }
            hasEnded = true
            changed.broadcast()
            return (lines.values.flatMap(\.changes), thread)
        }
        worker?.join()
        for change in left { change.body(true) }
    }
}
