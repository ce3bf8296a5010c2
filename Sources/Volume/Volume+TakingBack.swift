// What a snapshot, restore, clone or new image leaves that fails on its way: on a full disk, most of all.
//
//   before anything is shown       taken back: first one catalog transaction (the old heads again, no
//                                  pending snapshot, no new rows), then slots and files
//   after pointers were switched   forward: what was sealed stays sealed, what was restored is restored
//
// Both need the catalog, and on a full disk the reserve serves them. What cannot be done even then is
// *overdue*: until it is done nothing merges and no head is switched, for the catalog and the memory may
// differ in what they call the head. Reads, writes, flushes and deletions go on. A crash makes all of it
// pointless: the next open mends what is in the catalog (Volume+Recovery.swift).
//
// Files go only after the transaction: it may be unknown whether the one before it went through, and a row
// without its file would be damage.

import BlockCore
import Pool
import SystemIO

/// What a change of structure has made so far and nobody sees yet.
struct Prepared {
    struct Head {
        var image: ImageID
        var new: LayerID
        var old: LayerID
    }
    var rows: [LayerRecord] = []
    var slots: [(chain: LayerChain, slot: LayerSlot)] = []
    /// Noted before the transaction that switches them.
    var heads: [Head] = []
    var snapshot: SnapshotID?
    /// An image that is new itself.
    var image: ImageID?
}

extension Volume {
    /// The caller holds the structure lock.
    func takeBack(_ prepared: Prepared) {
        bringToEnd("taking back what was prepared") { [unowned self] () throws(VolumeError) in
            try commit { tx in
                for head in prepared.heads {
                    try tx.setHead(head.image, head.old, insteadOf: head.new)
                }
                if let snapshot = prepared.snapshot { try tx.deleteSnapshot(snapshot) }
                for row in prepared.rows { try tx.deleteLayer(row.id) }
                if let image = prepared.image { try tx.markImageDeleted(image) }
            }
            for (chain, slot) in prepared.slots { chain.drop(slot) }
            for row in prepared.rows {
                forget(layer: row.id)
                removeFiles(of: row)
            }
            if prepared.image != nil { try? collectGarbage() }
        }
    }

    /// Does what a failed change of structure still owes, with the reserve where there is no other
    /// space; else it is overdue. The caller holds the structure lock.
    /// - Parameter step: may be run again after it failed.
    func bringToEnd(_ what: String, _ step: @escaping () throws(VolumeError) -> Void) {
        do throws(VolumeError) { try withRoom(step) } catch {
            log.error("\(what) has to wait: \(error)")
            overdue.append(step)
            background.wake()
        }
    }

    /// For whoever is about to merge or to switch heads. The caller holds the structure lock.
    func settleOverdue() throws(VolumeError) {
        while let step = overdue.first {
            try withRoom(step)
            overdue.removeFirst()
        }
    }

    /// On a disk that is full to the last block, what gives space back or ends what was begun needs some
    /// first: the reserve is for that.
    func withRoom<T>(
        lending: PoolStore.Lending = .all, _ body: () throws(VolumeError) -> T
    ) throws(VolumeError) -> T {
        do throws(VolumeError) { return try body() } catch {
            guard error.kind == .noSpace, store.reserveBytes > 0 else { throw error }
            return try store.withReserve(lending: lending, body)
        }
    }
}
