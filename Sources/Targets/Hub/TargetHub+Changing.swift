// Adding, changing and removing targets of a pool that is open.

import BlockCore
import Logging
import Pool
import Replication
import SystemIO
import Volume

extension TargetHub {
    /// - Parameter hasContent: something is there, and nobody knows how much of it the pool has: all of it
    ///   is compared by hash, also what is a hole here. Snapshots from before do not travel then.
    package func add(
        _ new: TargetRecord, hasContent: Bool = false
    ) throws(TargetError) -> TargetRecord {
        var record = new
        record.stale = TargetRecord.Stale(
            sinceNs: disk.now(), sequence: .zero, reason: "it was just added")
        let inserted = record
        record.id = try write { try $0.insertTarget(inserted) }
        let id = record.id
        do throws(TargetError) {
            // Tracked first, then told what there is: a write in between is in both.
            if hasContent {
                stream.attachTracking(id)
                let all = try source.wholeImages()
                _ = stream.withLegs(id) { $0.enterUnknown(all) }
            } else {
                let legs = try source.everything { stream.attachTracking(id) }
                _ = stream.withLegs(id) { current in
                    var all = legs
                    all.enter(current.legs[0].blocks)
                    current = all
                }
            }
            let target = try AttachedTarget.create(
                record, volume: volume, stream: stream, incarnation: source.hello.incarnation)
            lock.withLock { targets[id] = target }
            launch(target)
        } catch {
            // A target whose dirty file is missing is compared as a whole: nothing is lost by trying.
            stream.detach(id)
            try? write { try $0.deleteTarget(id) }
            throw error
        }
        wakeKeeper()
        return record
    }

    /// - Parameter detaches: does not wait for the target, which may hang: its thread is left to
    ///   itself.
    package func remove(_ id: TargetID, detaches: Bool = false) throws(TargetError) {
        guard let target = target(id) else { throw TargetError(.absent, "there is no such target") }
        if !detaches { halt(target) }
        var gone = target.record
        gone.stale =
            gone.stale
            ?? TargetRecord.Stale(
                sinceNs: disk.now(), sequence: stream.standing(id)?.durable ?? .zero,
                reason: "it was removed from the targets of \(store.path)")
        // Whoever waits for it is answered when the catalog does not know it any more, and not before;
        // where the catalog takes nothing, letting go is all there is left to ask for.
        do throws(TargetError) { try write { try $0.deleteTarget(id) } } catch {
            guard detaches, store.catalog.isFailed else { throw error }
            log.error("target \(target.record.address): \(error)")
        }
        endRecoveryPoint(of: target)
        if detaches {
            target.driver?.abandon()
            target.setDriver(nil)
        }
        noteDeparted(gone)
        let place = announce(gone, isGone: true)
        stream.detach(id)
        _ = lock.withLock { targets.removeValue(forKey: id) }
        target.removeFile(store)
        releaseWhenKnown(id, at: place)
    }

    package func update(
        _ id: TargetID, _ change: (inout TargetRecord) -> Void
    ) throws(TargetError) {
        guard let target = target(id) else { throw TargetError(.absent, "there is no such target") }
        if try changeLive(target, change) { return }
        // Stopping may have to write down that the target is stale.
        halt(target)
        defer {
            launch(target)
            wakeKeeper()
        }
        try target.recording.withLock { () throws(TargetError) in
            var record = target.record
            change(&record)
            // Nobody stands still for a target that was let go of on purpose, before it is in step again.
            record.isArmed = false
            // What was answered before may have waited for less.
            record.isWhole = false
            noteAbsence(&record, target.images)
            let new = record
            try write { try $0.updateTarget(new) }
            target.update { $0 = new }
        }
    }

    /// Nobody waited for it before it was paused, and nobody noted what it lacks (H3).
    private func noteAbsence(
        _ record: inout TargetRecord, _ images: [ImageID: TargetImageRecord]
    ) {
        guard record.isPaused, record.stale == nil, record.policy(images).isWaitedFor else {
            return
        }
        record.stale = TargetRecord.Stale(
            sinceNs: disk.now(), sequence: stream.standing(record.id)?.durable ?? .zero,
            reason: "it is paused")
    }

    /// Changes how one image waits for a target; the others do not notice.
    package func update(_ new: TargetImageRecord) throws(TargetError) {
        guard let target = target(new.targetID) else {
            throw TargetError(.absent, "there is no such target")
        }
        halt(target)
        defer {
            launch(target)
            wakeKeeper()
        }
        let id = target.record.id
        var images = target.images
        images[new.imageID] = new
        try target.recording.withLock { () throws(TargetError) in
            var record = target.record
            (record.isArmed, record.isWhole) = (false, false)
            noteAbsence(&record, images)
            let changed = record
            try write {
                try $0.setTargetImage(new)
                try $0.updateTarget(changed)
            }
            target.update { $0 = changed }
        }
        target.setImages(
            try Self.read(store) { try $0.targetImages() }.filter { $0.targetID == id })
    }

    /// A session need not end for that.
    /// - Returns: false where something else is to be changed, too.
    private func changeLive(
        _ target: AttachedTarget, _ change: (inout TargetRecord) -> Void
    ) throws(TargetError) -> Bool {
        let isRunning = target.driver != nil && isInStep(target)
        let new = try target.recording.withLock { () throws(TargetError) -> TargetRecord? in
            let old = target.record
            var new = old
            change(&new)
            var same = old
            same.rateBytesPerSecond = new.rateBytesPerSecond
            same.compress = new.compress
            (same.rpoMs, same.rpoBytes, same.onRPO) = (new.rpoMs, new.rpoBytes, new.onRPO)
            guard same == new, new != old else { return nil }
            if isRunning { new.isArmed = target.policy.hasStandstill || new.stopsWhenBehind }
            let record = new
            try write { try $0.updateTarget(record) }
            target.update { $0 = record }
            return record
        }
        guard let new else { return false }
        guard let driver = target.driver else { return true }
        driver.setRate(bytesPerSecond: new.rateBytesPerSecond.map(UInt64.init))
        var bounds = options.session
        bounds.boundFlushes(new)
        driver.setFlushBounds(intervalMs: bounds.flushIntervalMs, bytes: bounds.flushBytes)
        changeRecoveryPoint(of: target)
        return true
    }

    /// Ends the session, as if the target had gone.
    func halt(_ target: AttachedTarget) {
        endRecoveryPoint(of: target)
        guard let driver = target.driver else { return }
        // It stops counting only when that is written down: the keeper does it meanwhile.
        if !driver.stop(timeoutMs: target.record.timeoutMs) {
            log.warning("target \(target.record.address) hangs; its thread is left to itself")
        }
        finishStale(target)
        target.setDriver(nil)
    }

    /// The session is over: what it asked for is done now. Others that hang are waited for as long as they
    /// may make no progress.
    private func finishStale(_ target: AttachedTarget) {
        let limitMs = all.map(\.record.timeoutMs).max() ?? 0
        let deadlineNs = disk.monotonic() + limitMs * 1_000_000
        recordStale(target)
        while target.staleWork?.isRecorded == true, options.runsInBackground,
            disk.monotonic() < deadlineNs
        {
            Pause.microseconds(5000)
            recordStale(target)
        }
        if target.staleWork?.isRecorded == true { recordStale(target, tellsOthers: false) }
    }

    /// Begins a generation of the pool's own: nobody else goes on with the one before. Every target hears
    /// of it.
    package func beginGeneration(after number: UInt64) throws {
        let generation = try volume.holdingChanges {
            try store.catalog.write { tx in
                var state = try tx.poolState()
                state.generation = Generation(
                    number: max(number, state.generation.number) + 1, id: PoolStore.randomID(),
                    parentID: state.generation.id, startSequence: volume.sequence)
                try tx.setPoolState(state)
                try tx.addGeneration(
                    .init(
                        generation: state.generation, poolID: store.identity.id,
                        begunNs: store.disk.now(), cause: .resolved))
                try tx.setHandover(nil)
                try tx.clearFence()
                return state.generation
            }
        }
        log.notice("generation \(generation.number) begins")
        try source.readHello()
        try? store.writeRole()
        // One that went on in the generation before would, promoted, begin this one's number once more.
        for target in all { target.driver?.connectAnew("the pool has a new generation") }
    }

    /// Lets go of the target, which is as it should be: to be opened by somebody else.
    package func release(_ id: TargetID) throws(TargetError) {
        guard let target = target(id) else { throw TargetError(.absent, "there is no such target") }
        target.setHandedTo(true)
        halt(target)
    }

    /// The opposite of ``release(_:)``.
    package func takeBack(_ id: TargetID) {
        guard let target = target(id) else { return }
        target.setHandedTo(false)
        launch(target)
        wakeKeeper()
    }
}
