// A resync of a raw mirror: in place, and so it shows no moment of the pool until the commit (W2).

import BlockCore
import Pool
import Replication
import SystemIO

extension RawMirror {
    package func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try guarded { (tree) throws(TargetError) in
            staging = nil
            try requireInPlace()
            // W2: what it is based on is durable first.
            _ = try flushFiles()
            let (base, now) = (position, disk.now())
            try change {
                if $0.staging?.id != id { $0.staging = .init(id: id, durableBatch: 0) }
                $0.content = base == nil ? .torn : .based
                $0.checkpoint = base ?? .zero
                $0.sinceNs = $0.sinceNs ?? now
            }
            isPartial = true
            try bring(tree, into: shape)
            staging = Staging(
                id: id, shapeSequence: shape.sequence, structure: shape.sequence,
                lastBatch: state.staging?.durableBatch ?? 0)
        }
    }

    private func bring(_ tree: RawTree, into shape: PoolShape) throws(TargetError) {
        guard let puts = shape.names.withUnsafeBytes(NamesCodec.decode),
            puts.contains(where: {
                if case .put(let node) = $0 { node.id == .root } else { false }
            })
        else { throw TargetError(.damaged, "the names that arrived are no tree") }
        var wanted: Set<NodeID> = []
        for case .put(let node) in puts { wanted.insert(node.id) }
        let changes =
            tree.nodes.keys.filter { !wanted.contains($0) }.sorted().map { .remove($0) } + puts
        let images = Set(shape.images.map(\.id))
        let gone = tree.images.keys.filter { !images.contains($0) }.sorted()
        try log(try tree.prepare(changes, creating: shape.images.map(\.id), deleting: gone))
        try tree.arrange(changes)
        for image in shape.images {
            try files.resize(image.id, to: image.sizeBytes, ns: image.modifiedNs)
        }
        for image in gone {
            files.forget(image)
            try tree.delete(image)
        }
    }

    package func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try guarded { (tree) throws(TargetError) in
            var staging = try begun()
            try prepare(batch, after: staging.structure)
            let applier = RawApplier(tree, files, isStaging: true)
            try forEach(in: batch) { (record, payload) throws(TargetError) in
                guard record.kind != .barrier else { return }
                staging.highest = max(staging.highest, record.sequence)
                if record.isStructural {
                    guard record.sequence > staging.structure else { return }
                    staging.structure = record.sequence
                }
                try applier.apply(record, payload)
            }
            staging.lastBatch = max(staging.lastBatch, number)
            self.staging = staging
        }
    }

    package func syncStaging() throws(TargetError) {
        try guarded { (_) throws(TargetError) in
            let staging = try begun()
            try requireInPlace()
            _ = try flushFiles()
            try change { $0.staging?.durableBatch = staging.lastBatch }
        }
    }

    package func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try guarded { (_) throws(TargetError) in
            let staging = try begun()
            guard let hello, staging.id == id, sequence >= staging.shapeSequence,
                sequence >= staging.highest
            else {
                throw TargetError(
                    .io,
                    "\(path) has no staging \(id) that could be committed at \(sequence.rawValue)")
            }
            try requireInPlace()
            try becomeClean(at: sequence) {
                $0.generation = hello.generation
                $0.incarnationID = hello.incarnationID
                $0.history = hello.story
            }
            self.staging = nil
        }
    }

    private func begun() throws(TargetError) -> Staging {
        guard let staging else {
            throw TargetError(.io, "\(path) has no staging under way on this connection")
        }
        return staging
    }

}
