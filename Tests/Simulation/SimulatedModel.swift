// What a pool has to show, as plain values: whole states, each at its place in the sequence.

import BlockCore
import Pool
import TestSupport

package struct Violation: Error, CustomStringConvertible {
    package var description: String
    package init(_ description: String) { self.description = description }
}

/// One image, in whole blocks; those that are not here are zeros.
struct ModelImage {
    private(set) var sizeBytes = 0
    private var blocks: [[UInt8]?] = []

    static let blockBytes = 4096
    static let zeros = [UInt8](repeating: 0, count: blockBytes)

    init() {}

    /// What was read somewhere.
    init(_ bytes: [UInt8]) {
        sizeBytes = bytes.count
        blocks = stride(from: 0, to: bytes.count, by: Self.blockBytes).map { start in
            let part = bytes[start..<min(start + Self.blockBytes, bytes.count)]
            if sameBytes(part, Self.zeros[..<part.count]) { return nil }
            return Array(part) + Self.zeros[part.count...]
        }
    }

    func block(_ index: Int) -> [UInt8] {
        index < blocks.count ? blocks[index] ?? Self.zeros : Self.zeros
    }
    var blockCount: Int { (sizeBytes + Self.blockBytes - 1) / Self.blockBytes }

    mutating func write(_ bytes: ArraySlice<UInt8>, at offset: Int) {
        resize(to: max(sizeBytes, offset + bytes.count))
        var rest = bytes
        while !rest.isEmpty {
            let position = offset + (rest.startIndex - bytes.startIndex)
            let (index, inside) = (position / Self.blockBytes, position % Self.blockBytes)
            let part = rest.prefix(Self.blockBytes - inside)
            if part.count == Self.blockBytes {
                blocks[index] = Array(part)
            } else {
                var content = blocks[index] ?? Self.zeros
                blocks[index] = nil
                content.replaceSubrange(inside..<inside + part.count, with: part)
                blocks[index] = content
            }
            rest = rest.dropFirst(part.count)
        }
    }

    mutating func zero(from start: Int, to end: Int) {
        let end = min(end, sizeBytes)
        guard start < end else { return }
        for index in start / Self.blockBytes...(end - 1) / Self.blockBytes {
            guard var content = blocks[index] else { continue }
            blocks[index] = nil
            let low = max(start - index * Self.blockBytes, 0)
            let high = min(end - index * Self.blockBytes, Self.blockBytes)
            if low == 0, high == Self.blockBytes { continue }
            content.replaceSubrange(low..<high, with: Self.zeros[low..<high])
            blocks[index] = content
        }
    }

    mutating func resize(to size: Int) {
        if size < sizeBytes { zero(from: size, to: sizeBytes) }
        sizeBytes = size
        if blockCount < blocks.count {
            blocks.removeLast(blocks.count - blockCount)
        } else if blockCount > blocks.count {
            blocks += repeatElement(nil, count: blockCount - blocks.count)
        }
    }

    /// Whether a block holds these bytes; where they are fewer, the image ends there.
    func holds(_ bytes: ArraySlice<UInt8>, inBlock index: Int) -> Bool {
        let mine = index < blocks.count ? blocks[index] ?? Self.zeros : Self.zeros
        return sameBytes(mine[..<bytes.count], bytes)
    }
}

struct ModelPool {
    var images: [ImageID: ModelImage] = [:]
    /// Times of modification are lazy, and not compared.
    var names: [NodeID: NodeRecord] = [:]

    /// The first thing in which `shown` differs.
    func difference(from shown: ModelPool) -> String? {
        if let text = namesDifference(from: shown) { return text }
        // Images without a name may be there or not: nobody sees them.
        for id in Set(names.values.compactMap(\.imageID)).sorted() {
            guard let mine = images[id] else { continue }
            guard let other = shown.images[id] else { return "image \(id.rawValue) is missing" }
            if let text = mine.difference(from: other) { return "image \(id.rawValue) \(text)" }
        }
        return nil
    }

    func namesDifference(from shown: ModelPool) -> String? {
        let (mine, other) = (plainNames, shown.plainNames)
        guard mine != other else { return nil }
        func text(_ names: [NodeID: NodeRecord]) -> String {
            names.values.sorted { $0.id < $1.id }.map {
                "\($0.id.rawValue) '\(String(decoding: $0.name, as: UTF8.self))' \($0.mode)"
            }.joined(separator: ", ")
        }
        return "has the names [\(text(other))] instead of [\(text(mine))]"
    }

    private var plainNames: [NodeID: NodeRecord] {
        names.mapValues { node in
            var node = node
            node.modifyNs = 0
            node.changeNs = 0
            return node
        }
    }
}

extension ModelImage {
    func difference(from shown: ModelImage) -> String? {
        if sizeBytes != shown.sizeBytes {
            return "has \(shown.sizeBytes) bytes instead of \(sizeBytes)"
        }
        for index in 0..<blockCount where !holds(shown.block(index)[...], inBlock: index) {
            let (mine, other) = (block(index), shown.block(index))
            let at = firstDifference(mine, other) ?? 0
            return "differs in block \(index): \(other[at]) at byte \(at) instead of \(mine[at])"
        }
        return nil
    }
}

/// The states of a pool along its sequence.
struct History {
    struct Entry {
        /// After the operation; its records have the places from `first` to `last`.
        var first: UInt64
        var last: UInt64
        var state: ModelPool
        var before: ModelPool
    }

    private(set) var entries: [Entry]
    var current: ModelPool { entries[entries.count - 1].state }
    var last: UInt64 { entries[entries.count - 1].last }

    init(_ state: ModelPool, at sequence: UInt64) {
        entries = [Entry(first: sequence, last: sequence, state: state, before: state)]
    }

    mutating func append(_ state: ModelPool, through sequence: UInt64) {
        // What took no place changed nothing that anybody could see.
        guard sequence > last else {
            entries[entries.count - 1].state = state
            return
        }
        entries.append(
            Entry(first: last + 1, last: sequence, state: state, before: current))
    }

    /// What comes after is another story; there may be an operation under way.
    mutating func cut(after sequence: UInt64, showing shown: ModelPool) {
        while entries.count > 1, entries[entries.count - 1].first > sequence {
            entries.removeLast()
        }
        entries[entries.count - 1].last = sequence
        entries[entries.count - 1].state = shown
    }

    /// The state at a place of the sequence; inside an operation that of before it.
    func state(at sequence: UInt64) -> ModelPool? {
        guard let entry = entry(at: sequence) else { return nil }
        return sequence < entry.last ? entry.before : entry.state
    }

    /// Nobody asks for what was before.
    mutating func forget(before sequence: UInt64) {
        let count = entries.prefix { $0.last < sequence }.count
        if count > 64 { entries.removeFirst(min(count, entries.count - 1)) }
    }

    /// Whether `shown` is the state at a place of the sequence.
    /// - Returns: what is wrong; nil where nothing is.
    func check(_ shown: ModelPool, at sequence: UInt64) -> String? {
        guard let entry = entry(at: sequence) else {
            return "is at \(sequence), which is longer ago than anybody may ask for"
        }
        return entry.check(shown, at: sequence)
    }

    func entry(at sequence: UInt64) -> Entry? { entries.last { $0.first <= sequence } }
}

extension History.Entry {
    func check(_ shown: ModelPool, at sequence: UInt64) -> String? {
        // Between an operation's records: each block from before or after it.
        sequence < last ? isBetween(shown) : state.difference(from: shown)
    }

    fileprivate func isBetween(_ shown: ModelPool) -> String? {
        if before.namesDifference(from: shown) != nil,
            let text = state.namesDifference(from: shown)
        {
            return "inside an operation " + text
        }
        for (id, image) in shown.images {
            let (old, new) = (before.images[id], state.images[id])
            if old == nil, new == nil { return "has image \(id.rawValue), which never was" }
            let (a, b) = (old ?? ModelImage(), new ?? ModelImage())
            guard
                (min(a.sizeBytes, b.sizeBytes)...max(a.sizeBytes, b.sizeBytes)).contains(
                    image.sizeBytes)
            else { return "inside an operation image \(id.rawValue) has \(image.sizeBytes) bytes" }
            for index in 0..<image.blockCount {
                let content = image.block(index)[...]
                if !a.holds(content, inBlock: index), !b.holds(content, inBlock: index) {
                    return "inside an operation image \(id.rawValue) differs in block \(index)"
                }
            }
        }
        return nil
    }
}
