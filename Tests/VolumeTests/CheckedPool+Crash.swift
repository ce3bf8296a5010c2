import BlockCore
import Pool
import TestSupport
import Volume

extension CheckedPool {
    /// Runs random operations until the power goes at the n-th sync or commit, then checks what the
    /// next open finds.
    func runToCrash(atSync count: Int, stepLimit: Int) throws {
        _ = try run(toCrashAtSync: count) { for _ in 0..<stepLimit { try step() } }
    }

    /// Runs `body` until the power goes at its n-th sync or commit, then checks what the next open
    /// finds.
    /// - Returns: whether it came to its end before.
    func run(toCrashAtSync count: Int, _ body: () throws -> Void) throws -> Bool {
        disk.powerOff(atSync: count)
        do { try body() } catch {
            guard disk.isPoweredOff else { throw error }
        }
        let isDone = !disk.isPoweredOff
        disk.cancelPowerOff()
        try recover()
        return isDone
    }

    /// The next open, which may itself be cut short, and what it has to find.
    func recover() throws {
        while true {
            trace("power is off")
            try losePower()
            if random.chance(30) { disk.powerOff(atSync: 1 + random.below(6)) }
            do {
                try openAgain()
                disk.cancelPowerOff()
                if !disk.isPoweredOff { break }
            } catch {
                guard disk.isPoweredOff else {
                    throw Violation("the pool does not open after a crash: \(error)")
                }
            }
        }
        try checkRecovered()
    }

    private func checkRecovered() throws {
        if !store.wasUnclean { throw Violation("an unclean end was taken for a clean one") }
        // What is left must be in the past of what comes.
        let told = max(lastCleanSequence, try volume.snapshots().map(\.sequence).max() ?? .zero)
        guard volume.sequence >= told else {
            throw Violation("the sequence went back to \(volume.sequence), \(told) was told")
        }
        for note in volume.recoveryNotes { trace("recovery: \(note)") }
        try findOutWhatHappened()
        try checkImages()
        try compareSnapshots()
        try checkHouse()
        underWay = .nothing
        for id in images.keys.sorted() { try writeOnce(id) }
    }

    /// What was under way happened or did not; the model follows.
    func findOutWhatHappened() throws {
        let names = Set(try volume.snapshots().map(\.name))
        let known = Set(volume.imageIDs)
        switch underWay {
        case .nothing: break
        case .newImage:
            // No name refers to it: the owner of the names deletes it.
            for id in known.sorted() where images[id] == nil { try volume.deleteImage(id) }
        case .deleteImage(let id): if !known.contains(id) { images[id] = nil }
        case .deleteSnapshot(let name): if !names.contains(name) { snapshots[name] = nil }
        case .restore(let id, let keepAs, let content):
            guard names.contains(keepAs) else { break }
            // G5: what was replaced is kept, as far as it was durable.
            guard let kept = try readSnapshot(keepAs)[id] else {
                throw Violation("\(keepAs) does not keep what the restore replaced")
            }
            try images[id]!.check(recovered: kept, "image \(id.rawValue) kept by a restore")
            snapshots[keepAs] = [id: kept]
            images[id]!.replace(with: content)
        }
        let expected = Set(snapshots.keys)
        guard names == expected else {
            throw Violation("snapshots \(names.sorted()) instead of \(expected.sorted())")
        }
        let now = Set(volume.imageIDs)
        guard now == Set(images.keys) else {
            throw Violation("images \(now.map(\.rawValue)) instead of \(images.keys)")
        }
    }

    private func checkImages() throws {
        for id in images.keys.sorted() {
            let what = "image \(id.rawValue)"
            let found = try read(id)
            try images[id]!.check(recovered: found, what)
            images[id]!.replace(with: found)
            guard let active = try activeRegions(id) else {
                throw Violation("\(what) has no activity log that verifies")
            }
            try images[id]!.check(activeRegions: active, what)
            images[id]!.settle(activeRegions: active)
        }
    }

    private func writeOnce(_ id: ImageID) throws {
        let length = 1 + random.below(5000)
        try write(
            id, at: options.originBytes + random.below(options.maxBytes - length), length: length)
        try flush(id)
        try compareLive(id)
    }
}
