// Comparing by hash what an unclean end, or a lost dirty file, left unknown.

import BlockCore
import SystemIO

extension SessionDriver {
    /// Unknown blocks are held against the end of the first leg; what lies between the ends of the
    /// legs is not known for them either. Where a cut is made meanwhile, or the snapshot deleted that the leg ends
    /// in, it ends elsewhere by then: what is unknown still is compared with that.
    /// - Parameter everything: also what nobody doubted, for the target turned out to be another one
    ///   than it was.
    func performCompare(everything: Bool) throws(TargetError) -> SessionEvent {
        try everything ? enterEverything() : leaveOutWhatNobodyHas()
        let rottenBefore = tally.figures.rottenBlocks
        while try !compareWithFirst() {}
        tellRotten(tally.figures.rottenBlocks - rottenBefore)
        source.legsChanged(of: id)
        return .compared
    }

    /// - Returns: false where the first leg ended elsewhere before all was compared.
    private func compareWithFirst() throws(TargetError) -> Bool {
        // A cut that only the ring knows would end the first leg when its blocks are resolved.
        stream.stopStreaming(id)
        let first = try captureFirst()?.end
        defer { if let first { source.release(first) } }
        let readers = Readers(count: hasThreads ? 1 : 0, name: "target-\(id.rawValue)")
        defer { readers.end() }
        var stretches = unknownStretches()[...]
        var here: HashRead? = stretches.first.map { HashRead($0, of: first, source, readers) }
        while let stretch = stretches.popFirst(), let read = here {
            // This side's next are read while the target reads its own.
            here = stretches.first.map { HashRead($0, of: first, source, readers) }
            let there: [UInt64]
            do throws(TargetError) {
                there = try connected().blockHashes(of: stretch.image, in: stretch.range)
            } catch {
                _ = try? here?.wait()
                throw error
            }
            guard resolve(stretch, of: first, here: try read.wait(), there: there) else {
                _ = try? here?.wait()
                return false
            }
        }
        return true
    }

    /// All that either side has, also what the target has behind an image's end: before a shape is taken that
    /// would cut it off the image may have grown over it.
    private func enterEverything() throws(TargetError) {
        let all = try source.wholeImages()
        _ = stream.withLegs(id) { $0.enterUnknown(all) }
        let there = try connected().allocatedBlocks()
        _ = stream.withLegs(id) { $0.enterUnknown(there.filter { all[$0.key] != nil }) }
        try leaveOut(allBut: there)
    }

    /// Of much that is unknown, little may be there.
    private func leaveOutWhatNobodyHas() throws(TargetError) {
        let unknown: [ImageID: BlockSet]? = stream.withLegs(id) { $0.unknown }
        guard unknown?.isEmpty == false else { return }
        try leaveOut(allBut: try connected().allocatedBlocks())
    }

    /// What neither side ever wrote is the same on both.
    private func leaveOut(allBut there: [ImageID: BlockSet]) throws(TargetError) {
        var held = there
        held.formUnion(try source.allocatedBlocks())
        _ = stream.withLegs(id) { [held] in $0.keepUnknown(within: held) }
    }

    struct CompareStretch: Sendable {
        var image: ImageID
        var range: BlockRange
    }

    private func unknownStretches() -> [CompareStretch] {
        let unknown: [ImageID: BlockSet]? = stream.withLegs(id) { $0.unknown }
        return (unknown ?? [:]).sorted { $0.key < $1.key }.flatMap { image, blocks in
            blocks.regionNumbers.map { region in
                CompareStretch(
                    image: image,
                    range: BlockRange(
                        start: region * Geometry.blocksPerRegion, count: Geometry.blocksPerRegion))
            }
        }
    }

    private func resolve(
        _ stretch: CompareStretch, of first: SnapshotInfo?, here: [UInt64], there: [UInt64]
    ) -> Bool {
        let differing = self.differing(here, there, in: stretch.range)
        return stream.withLegs(id) {
            $0.resolve(
                stretch.range, of: stretch.image, differing: differing, end: first?.sequence)
        } ?? true
    }

    private func differing(_ here: [UInt64], _ there: [UInt64], in range: BlockRange) -> BlockSet {
        var result = BlockSet()
        var rotten: UInt64 = 0
        for (offset, hash) in here.enumerated() {
            let other = offset < there.count ? there[offset] : unreadableBlockHash
            if offset < there.count, other == unreadableBlockHash { rotten += 1 }
            guard other != hash || other == unreadableBlockHash else { continue }
            result.insert(BlockRange(start: range.start + UInt64(offset), count: 1))
        }
        tally.compared.add(range.count, ordering: .relaxed)
        tally.rotten.add(rotten, ordering: .relaxed)
        return result
    }

    private func tellRotten(_ blocks: UInt64) {
        guard blocks > 0 else { return }
        let size = ByteSize(bytes: blocks * Geometry.blockSizeBytes)
        source.tell(
            id, kind: "target-damaged",
            message: "\(size) on it did not verify and are copied anew; its disk may be failing")
    }
}

/// This side's hashes of a stretch, on their way.
private final class HashRead: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private let finished = Condition()
    private var result: Result<[UInt64], TargetError>?

    init(
        _ stretch: SessionDriver.CompareStretch, of end: SnapshotInfo?,
        _ source: any SessionSource, _ readers: Readers
    ) {
        readers.begin { [self] in
            let hashes = Result { () throws(TargetError) in
                try source.blockHashes(of: stretch.image, in: stretch.range, of: end)
            }
            lock.withLock {
                result = hashes
                finished.broadcast()
            }
        }
    }

    func wait() throws(TargetError) -> [UInt64] {
        lock.lock()
        defer { lock.unlock() }
        while result == nil { finished.wait(lock) }
        return try result!.get()
    }
}
