// All that a mirror shows, for somebody who makes a copy of it elsewhere: its snapshots, one after the other, then its
// checkpoint. It stays what it is until it is let go of, whatever is written to the mirror meanwhile, whoever writes
// it, and whatever is deleted there.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

package final class MirrorCopy: @unchecked Sendable {  // one caller at a time
    package struct Leg: Sendable {
        /// nil: the checkpoint.
        package var snapshot: SnapshotInfo?
        /// What it may have that the one before has not.
        package var blocks: [ImageID: BlockSet]
        fileprivate var view: MirrorView
    }

    package let legs: [Leg]
    /// As the primary introduces itself, whose content it is.
    package let primary: PrimaryHello
    /// Of the mirror itself.
    package let poolID: String
    package let sequence: SequenceNumber
    /// When the last operation in it was made.
    package let shownNs: Int64
    private var open: [Int: [ImageID: LayerView]] = [:]

    /// - Throws: `.absent` where it shows nothing yet.
    init(_ pool: MirrorPool) throws(TargetError) {
        primary = try Self.primary(of: pool)
        poolID = pool.store.identity.id
        let views = try pool.allViews()
        let newest = views[views.count - 1].view
        (sequence, shownNs) = (newest.sequence, newest.atNs)
        do throws(TargetError) {
            let tops = views.map { each in
                let layers = each.view.nodes.compactMap { node in
                    node.node.imageID.flatMap { image in node.layerID.map { (image, $0) } }
                }
                return Dictionary(layers, uniquingKeysWith: { a, _ in a })
            }
            let steps = try TargetError.volume { () throws(VolumeError) in
                try pool.volume.steps(through: tops)
            }
            legs = zip(views, steps).map { each, blocks in
                Leg(
                    snapshot: each.snapshot.map(PoolSource.info), blocks: blocks, view: each.view)
            }
        } catch {
            for each in views { each.view.release() }
            throw error
        }
    }

    private static func primary(of pool: MirrorPool) throws(TargetError) -> PrimaryHello {
        let record = pool.state
        guard let incarnationID = record.incarnationID, pool.checkpoint > .zero else {
            throw TargetError(
                .absent,
                "\(pool.store.path) has no checkpoint yet: its primary has not shipped all of it")
        }
        let history = try pool.rows { try $0.history() }
        let content = history.entries.last { $0.generation.id == record.contentGenerationID }
        guard let generation = content?.generation ?? record.generation else {
            throw TargetError(.damaged, "\(pool.store.path) says of no generation that it is of")
        }
        return PrimaryHello(
            poolID: record.primaryPoolID, generation: generation, incarnation: 0,
            incarnationID: incarnationID, history: history, address: record.primaryAddress)
    }

    package func release() {
        open = [:]
        for leg in legs { leg.view.release() }
    }

    // MARK: Reading

    private func leg(_ number: Int) throws(TargetError) -> Leg {
        guard legs.indices.contains(number) else {
            throw TargetError(.io, "there is no leg \(number)")
        }
        return legs[number]
    }

    package func blocks(_ number: Int) throws(TargetError) -> [ImageID: BlockSet] {
        try leg(number).blocks
    }

    package func shape(_ number: Int) throws(TargetError) -> PoolShape {
        let view = try leg(number).view
        return PoolShape(
            sequence: view.sequence,
            images: view.nodes.compactMap { node in
                node.node.imageID.map {
                    .init(id: $0, sizeBytes: node.sizeBytes, modifiedNs: node.node.modifyNs)
                }
            }, names: NamesCodec.encode(view.nodes.map { .put($0.node) }))
    }

    /// - Returns: nil for an image that is not there.
    private func content(_ number: Int, _ image: ImageID) throws(TargetError) -> LayerView? {
        if let known = open[number]?[image] { return known }
        let view = try leg(number).view
        guard let node = view.nodes.first(where: { $0.node.imageID == image }),
            let content = try view.open(node)
        else { return nil }
        // Of one leg after the other.
        if open[number] == nil { open = [:] }
        open[number, default: [:]][image] = content
        return content
    }

    /// ``unreadableBlockHash`` for a block that does not verify.
    package func hashes(
        _ number: Int, of image: ImageID, in range: BlockRange
    ) throws(TargetError) -> [UInt64] {
        let content = try content(number, image)
        return try BlockHashes.of(range, toleratesRot: true) {
            (buffer, offset) throws(VolumeError) in
            try content?.read(into: buffer, at: offset) ?? 0
        }
    }

    /// - Returns: how many bytes there are; behind them are zeros.
    /// - Throws: `.damaged` where one of the blocks does not verify.
    package func read(
        _ number: Int, _ range: BlockRange, of image: ImageID,
        into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) -> Int {
        let content = try content(number, image)
        return try TargetError.volume { () throws(VolumeError) in
            try content?.read(into: buffer, at: range.startByte) ?? 0
        }
    }
}
