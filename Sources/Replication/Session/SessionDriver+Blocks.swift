// Staging blocks that were read from the pool.

import BlockCore

extension SessionDriver {
    /// Blocks of the head are read without a lock. What was written meanwhile may be in them, wholly or
    /// in part; it is in the stream between the moments before and after. So the stream is staged up to
    /// the first, then the blocks, then the stream up to the second: what they have too much of by the
    /// order of things is made good before anything can be committed.
    func stageBlocks(
        _ chunk: BlockChunk, ahead next: BlockChunk?
    ) throws(TargetError) -> SessionEvent {
        guard let end = leg?.end else { throw TargetError(.io, "no leg is under way") }
        let reading = readAhead()
        let isAlone = courtesy.isWritten
        var begun: ChunkRead?
        defer { if let begun { reading.recycle(begun) } }
        let through = try timingBlocks { () throws(TargetError) in
            begun = reading.take(chunk, of: end, alone: isAlone)
            return try begun!.wait()
        }
        let read = begun!
        if let next, !isAlone { reading.begin(next, of: end) }
        guard end == .head else {
            try stage(read)
            return .blocksStaged(chunk, StagedStretch())
        }
        var stretch = try stageStream(upTo: read.from)
        if stretch.cut != nil { return .streamStaged(stretch) }
        let before = stretch.dirtied
        do throws(TargetError) {
            guard try stage(read) else { return .blocksStaged(chunk, stretch) }
            try stageStream(upTo: through, into: &stretch)
            if let cut = stretch.cut {
                // They may be newer than the cut, whatever the stream had of them before it.
                stretch.covered[chunk.image]?.subtract(chunk.blocks)
                try cutBack(chunk.image, to: cut)
            }
        } catch {
            putBack(stretch.dirtied)
            throw error
        }
        // What a cut or a barrier came between has to be read again.
        if stretch.cut != nil || stretch.dirtied != before { return .streamStaged(stretch) }
        return .blocksStaged(chunk, stretch)
    }

    private func readAhead() -> ReadAhead {
        if let reads { return reads }
        let new = ReadAhead(
            source, stream, readers: hasThreads ? snapshot.options.readers : 0,
            name: "target-\(id.rawValue)")
        reads = new
        return new
    }

    /// - Returns: false where there is nothing: images that are gone, or end before.
    @discardableResult
    private func stage(_ read: ChunkRead) throws(TargetError) -> Bool {
        var isAny = false
        for part in read.parts where !part.records.isEmpty {
            try timingBlocks { () throws(TargetError) in try stage(part.records.batch) }
            isAny = true
        }
        return isAny
    }

    /// Blocks that were read after a cut may have made the image longer than it is in the snapshot.
    private func cutBack(_ image: ImageID, to cut: SnapshotInfo) throws(TargetError) {
        guard let shape = try source.capture(cut) else { return }
        source.release(cut)
        guard let sizeBytes = shape.images.first(where: { $0.id == image })?.sizeBytes else {
            return
        }
        records.clear()
        records.append(
            StreamRecord(.size, sequence: cut.sequence, image: image, imageSizeBytes: sizeBytes)
        ) { _ in }
        try stage(records.batch)
    }
}
