/// Ids that the catalog hands out. None is ever used twice in the life of a pool.
package struct ImageID: RawRepresentable, Hashable, Codable, Sendable, Comparable {
    package var rawValue: Int64
    package init(rawValue: Int64) { self.rawValue = rawValue }
    package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    /// What another pool may say; above it there is room for what promotions add, and for stand-ins of nodes.
    package var isPlausible: Bool { 1...1 << 61 ~= rawValue }
}

package struct LayerID: RawRepresentable, Hashable, Codable, Sendable, Comparable {
    package var rawValue: Int64
    package init(rawValue: Int64) { self.rawValue = rawValue }
    package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

package struct SnapshotID: RawRepresentable, Hashable, Codable, Sendable, Comparable {
    package var rawValue: Int64
    package init(rawValue: Int64) { self.rawValue = rawValue }
    package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A place that the pool is replicated to.
package struct TargetID: RawRepresentable, Hashable, Codable, Sendable, Comparable {
    package var rawValue: Int64
    package init(rawValue: Int64) { self.rawValue = rawValue }
    package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A name in the pool's tree; also its inode number, which therefore survives remounts.
package struct NodeID: RawRepresentable, Hashable, Codable, Sendable, Comparable {
    package var rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
    package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    package static let root = NodeID(rawValue: 1)
    /// As ``ImageID/isPlausible``.
    package var isPlausible: Bool { 1...1 << 61 ~= rawValue }
}

/// A place in the one order of everything that happens to a pool.
package struct SequenceNumber: RawRepresentable, Hashable, Codable, Sendable, Comparable {
    package var rawValue: UInt64
    @inlinable package init(rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable package static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    package static let zero = SequenceNumber(rawValue: 0)
    /// No pool comes this far. Catalogs keep signed numbers.
    package static let highest = SequenceNumber(rawValue: 1 << 62)
    /// What another pool may say: who says more lies, and who believed as much as this can still be promoted.
    package static let highestTold = SequenceNumber(rawValue: 1 << 61)

    package init(from decoder: any Decoder) throws {
        let value = try decoder.singleValueContainer()
        rawValue = try value.decode(UInt64.self)
        guard self <= .highest else {
            throw DecodingError.dataCorruptedError(
                in: value, debugDescription: "\(rawValue) is no sequence")
        }
    }
}

/// New at each promotion; fences the older primary.
package struct Generation: Hashable, Codable, Sendable {
    /// As ``SequenceNumber/highest`` and ``SequenceNumber/highestTold``.
    package static let highestNumber: UInt64 = 1 << 62
    package static let highestNumberTold: UInt64 = 1 << 61

    package var number: UInt64
    package var id: String
    package var parentID: String?
    package var startSequence: SequenceNumber

    package init(number: UInt64, id: String, parentID: String?, startSequence: SequenceNumber) {
        self.number = number
        self.id = id
        self.parentID = parentID
        self.startSequence = startSequence
    }

    private enum CodingKeys: CodingKey { case number, id, parentID, startSequence }

    package init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        number = try fields.decode(UInt64.self, forKey: .number)
        id = try fields.decode(String.self, forKey: .id)
        parentID = try fields.decodeIfPresent(String.self, forKey: .parentID)
        startSequence = try fields.decode(SequenceNumber.self, forKey: .startSequence)
        guard number <= Self.highestNumber else {
            throw DecodingError.dataCorruptedError(
                forKey: .number, in: fields,
                debugDescription: "\(number) is no generation's number")
        }
    }
}
