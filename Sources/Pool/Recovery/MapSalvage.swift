// What can still be read of a block map, whatever happened to it.
//
// Every record carries the hash of the one before it and is itself hashed with that as the seed: a
// record verifies on its own, also behind a damaged one. So what is lost is exactly the records
// that do not verify, and how many there were is known from the epochs around them.

import BlockCore
import SystemIO

package struct MapSalvage: Sendable {
    package struct Commit: Sendable {
        package var commit: MapCommit
        package var extents: [MapExtent]
    }

    /// The records that verify, oldest first.
    package private(set) var commits: [Commit] = []
    package private(set) var isHeaderSound = false
    /// A version that this program does not know: nothing of such a file is touched.
    package private(set) var isUnknownVersion = false
    /// The newest commit that a valid slot names: it was durable.
    package private(set) var durableEpoch: UInt64 = 0
    /// Bytes behind the last record that verifies.
    package private(set) var tailBytes: UInt64 = 0

    package init(_ bytes: [UInt8], layer: LayerID) {
        bytes.withUnsafeBytes { raw in
            readHeader(raw, layer: layer)
            guard !isUnknownVersion else { return }
            readRecords(raw)
        }
    }

    private mutating func readHeader(_ raw: UnsafeRawBufferPointer, layer: LayerID) {
        guard raw.count >= Int(LayerMapFile.recordsOffset) else { return }
        var reader = ByteReader(raw)
        let magic = reader.take(UInt64.self)
        let version = reader.take(UInt32.self)
        _ = reader.take(UInt32.self)
        let id = reader.take(Int64.self)
        let hash = blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<40]))
        let isWhole = reader.take(Int64.self) >= 0 && magic == LayerMapFile.magic
        let stored = UInt64(littleEndian: raw.loadUnaligned(fromByteOffset: 40, as: UInt64.self))
        isHeaderSound = isWhole && stored == hash && id == layer.rawValue
        isUnknownVersion = isWhole && stored == hash && version != LayerMapFile.version
        if isUnknownVersion { isHeaderSound = false }
        durableEpoch =
            [1024, 2048].compactMap { LayerMapFile.knownDurable(raw, slotAt: $0)?.epoch }.max() ?? 0
    }

    private mutating func readRecords(_ raw: UnsafeRawBufferPointer) {
        var position = Int(LayerMapFile.recordsOffset)
        var end = min(position, raw.count)
        // Records are made of 8-byte words: behind damage, the next one begins at one of them.
        while raw.count - position >= LayerMapFile.recordHeaderBytes + 8 {
            guard let (commit, length) = Self.record(raw, at: position),
                commit.commit.epoch > (commits.last?.commit.epoch ?? 0)
            else {
                position += 8
                continue
            }
            commits.append(commit)
            position += length
            end = position
        }
        tailBytes = UInt64(raw.count - end)
    }

    private static func record(
        _ raw: UnsafeRawBufferPointer, at position: Int
    ) -> (Commit, lengthBytes: Int)? {
        var reader = ByteReader(raw, at: position)
        guard reader.take(UInt32.self) == LayerMapFile.recordMagic else { return nil }
        let count = Int(reader.take(UInt32.self))
        let length = LayerMapFile.recordHeaderBytes + count * 16
        guard count <= LayerMapFile.maxExtentsPerRecord, raw.count - position >= length + 8 else {
            return nil
        }
        let epoch = reader.take(UInt64.self)
        let sequence = SequenceNumber(rawValue: reader.take())
        let sizeBytes = reader.take(UInt64.self)
        let isSealed = reader.take(UInt32.self) & 1 == 1
        _ = reader.take(UInt32.self)
        let chain = reader.take(UInt64.self)
        let hash = blockHash(
            UnsafeRawBufferPointer(rebasing: raw[position..<position + length]), seed: chain)
        let stored = raw.loadUnaligned(fromByteOffset: position + length, as: UInt64.self)
        guard UInt64(littleEndian: stored) == hash else { return nil }
        var extents: [MapExtent] = []
        for _ in 0..<count {
            let start = reader.take(UInt64.self)
            let word = reader.take(UInt64.self)
            guard let state = BlockState(rawValue: UInt8(truncatingIfNeeded: word)) else {
                return nil
            }
            extents.append(
                MapExtent(range: BlockRange(start: start, count: word >> 8), state: state))
        }
        let commit = MapCommit(
            epoch: epoch, sequence: sequence, imageSizeBytes: sizeBytes, isSealed: isSealed)
        return (Commit(commit: commit, extents: extents), length + 8)
    }

    // MARK: What it comes to

    /// No commit that was durable is missing, whatever else is wrong with the file.
    /// - Parameters:
    ///   - isSealed: the layer's row says that its map ended in a seal.
    ///   - isSettled: the pool was closed cleanly: the last bytes were no torn commit.
    package func isComplete(isSealed: Bool, isSettled: Bool) -> Bool {
        guard let last = commits.last, commits.first?.commit.epoch == 1 else { return false }
        let isContiguous = last.commit.epoch == UInt64(commits.count)
        if isSealed { return isContiguous && last.commit.isSealed }
        return isContiguous && last.commit.epoch >= durableEpoch && !(isSettled && tailBytes > 0)
    }

    /// Opening the map would find nothing wrong with it.
    package func isSound(isSealed: Bool, isSettled: Bool) -> Bool {
        isHeaderSound && isComplete(isSealed: isSealed, isSettled: isSettled)
            && !(isSealed && tailBytes > 0)
    }

    package var contents: LayerContents {
        var contents = LayerContents()
        for commit in commits { for extent in commit.extents { contents.apply(extent) } }
        return contents
    }

    /// How many commits are known to be missing, for the message.
    package var missingCommits: UInt64 {
        let highest = max(durableEpoch, commits.last?.commit.epoch ?? 0)
        return highest - UInt64(commits.count)
    }
}
