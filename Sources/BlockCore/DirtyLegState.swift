/// One leg of a target's dirty set as its durable file has it, or as it is to be added to it.
package struct DirtyLegState: Sendable, Equatable {
    /// Never used twice in the life of a target.
    package var number: UInt64
    /// The cut that the leg ends in; nil for the head.
    package var cut: SequenceNumber?
    package var hasNameChanges: Bool
    /// Its blocks may be equal on both sides: they are compared before anything is shipped.
    package var isUnknown: Bool
    package var blocks: [ImageID: BlockSet]

    package init(
        number: UInt64, cut: SequenceNumber? = nil, hasNameChanges: Bool = false,
        isUnknown: Bool = false, blocks: [ImageID: BlockSet] = [:]
    ) {
        self.number = number
        self.cut = cut
        self.hasNameChanges = hasNameChanges
        self.isUnknown = isUnknown
        self.blocks = blocks
    }
}

extension [ImageID: BlockSet] {
    package mutating func formUnion(_ other: Self) {
        for (image, set) in other where !set.isEmpty {
            self[image, default: BlockSet()].formUnion(set)
        }
    }

    package mutating func subtract(_ other: Self) {
        for (image, set) in other {
            guard var mine = removeValue(forKey: image) else { continue }
            mine.subtract(set)
            if !mine.isEmpty { self[image] = mine }
        }
    }

    package mutating func insert(_ range: BlockRange, of image: ImageID) {
        guard !range.isEmpty else { return }
        // In place: the dictionary holds the set's only reference.
        self[image, default: BlockSet()].insert(range)
    }

    package mutating func remove(_ range: BlockRange, of image: ImageID) {
        self[image]?.remove(range)
        if self[image]?.isEmpty ?? false { self[image] = nil }
    }

    package var blockCount: UInt64 { values.reduce(0) { $0 + $1.count } }
}
