// What other copies of a pool know of one that is to be promoted: they were told when the primary went on
// without it, and they may hold more.
//
// A copy that nobody uses is opened, so that what is in its journal counts; of one that is in use what its
// catalog says cannot be had.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets

struct OtherCopies {
    struct Told {
        /// The copy that knows it.
        var address: String
        var stale: TargetRecord.Stale
    }

    /// Those of the same story that are at a later checkpoint.
    var ahead: [String] = []
    /// What the first that knows it says of this one.
    var stale: Told?

    static func ask(
        _ mirror: RecoveredMirror, _ checkpoint: SequenceNumber, _ store: PoolStore
    ) throws -> OtherCopies {
        let own = store.identity.id
        let content = mirror.record.contentGenerationID
        var result = OtherCopies()
        for peer in try store.catalog.read({ try $0.peers() })
        where peer.poolID != own && !peer.address.isEmpty {
            guard let copy = look(at: peer) else { continue }
            if copy.content == content, copy.checkpoint > checkpoint {
                result.ahead.append(peer.address)
            }
            if result.stale == nil, let stale = copy.peers.first(where: { $0.poolID == own })?.stale
            {
                result.stale = Told(address: peer.address, stale: stale)
            }
        }
        return result
    }

    private struct Copy {
        var content: String?
        var checkpoint: SequenceNumber
        var peers: [PeerRecord]
    }

    /// - Returns: nil for what is no mirror, another pool, or in use.
    private static func look(at peer: PeerRecord) -> Copy? {
        guard let sight = PoolSight.look(at: peer.address, disk: LinuxDisk()), sight.isReplica,
            sight.poolID == peer.poolID, !sight.isInUse,
            let store = try? PoolStore.open(
                path: peer.address, disk: LinuxDisk(), drainTimeoutMs: 0)
        else { return nil }
        let mirror: RecoveredMirror
        do { mirror = try RecoveredMirror(store: store, runsInBackground: false) } catch {
            try? store.close(clean: false, lastSequence: .zero)
            return nil
        }
        defer { mirror.close() }
        guard let peers = try? store.catalog.read({ try $0.peers() }) else { return nil }
        return Copy(
            content: mirror.record.contentGenerationID, checkpoint: mirror.checkpoint, peers: peers)
    }
}
