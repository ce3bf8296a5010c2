import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

@testable import Targets

extension SimulatedWorld {
    // MARK: Faults

    func fault() throws {
        let mirror = anyMirror()
        switch random.below(100) {
        case ..<12:
            trace("the primary's power goes in a moment")
            primaryPool.disk.powerOff(atSync: 1 + random.below(12))
        case ..<24:
            trace("the power of \(mirror.path) goes in a moment")
            mirror.pool.disk.powerOff(atSync: 1 + random.below(12))
        case ..<32: killPrimary()
        case ..<40: losePower(mirror)
        case ..<44:
            for each in mirrors where each === mirror || random.chance(50) { losePower(each) }
            primaryLosesPower()
        case ..<56:
            mirror.isAway.toggle()
            trace("\(mirror.path) is \(mirror.isAway ? "away" : "back")")
            if mirror.isAway { losePower(mirror) }
        case ..<66: worsen(mirror)
        case ..<78: try restartCleanly()
        case ..<88: try pauseOrResume(mirror)
        default: try endFaults(mirror)
        }
    }

    private func worsen(_ mirror: SimulatedMirror) {
        count("fault.mirrorDisk")
        if random.chance(50) {
            let part = random.chance(50) ? "/journal" : "/images"
            trace("syncs of \(mirror.path)\(part) fail")
            mirror.failSyncs(below: part)
        } else {
            trace("the disk of \(mirror.path) is nearly full")
            mirror.pool.disk.limitSpace(toBytes: random.below(40) * 4096)
        }
    }

    func endFaults(_ mirror: SimulatedMirror) throws {
        mirror.endFaults()
        if attached(mirror)?.record.isPaused ?? false { try pauseOrResume(mirror) }
    }

    private func pauseOrResume(_ mirror: SimulatedMirror) throws {
        guard let hub = primary?.hub, let target = attached(mirror) else { return }
        trace("\(target.record.isPaused ? "resume" : "pause") \(mirror.path)")
        let before = target.driver?.snapshot.state ?? .paused
        try hub.update(mirror.id) { $0.isPaused.toggle() }
        noteTransition(
            mirror, before, attached(mirror)?.driver?.snapshot.state ?? .paused)
    }

    /// The process ends; what it wrote is in the machine's memory.
    func killPrimary() {
        guard primary != nil else { return }
        trace("the primary is killed")
        count("fault.primaryKilled")
        primary?.volume.abandon()
        primary = nil
        // They were open in the same process.
        for mirror in mirrors { mirror.target = nil }
        end = .killed
    }

    func primaryLosesPower() {
        trace("the primary loses power")
        count("fault.primaryPower")
        primary?.volume.abandon()
        primary = nil
        for mirror in mirrors { mirror.target = nil }
        end = .power
        primaryPool.losePower(&random)
    }

    func losePower(_ mirror: SimulatedMirror) {
        trace("\(mirror.path) loses power")
        count("fault.mirrorPower")
        // Whoever has it open finds that nothing works any more.
        mirror.pool.disk.powerOff(atSync: 1)
        try? mirror.pool.disk.commit("power")
        mirror.target?.disconnect()
        mirror.target = nil
        mirror.losePower(&random)
    }

    private func restartCleanly() throws {
        guard let primary else { return }
        trace("close and open the primary")
        count("restart")
        try commitNames()
        // What is on its way arrives, or is written down.
        for _ in 0..<random.below(400) {
            primary.hub.keepHouse()
            var didAnything = false
            for mirror in mirrors where attached(mirror)?.driver?.step() ?? false {
                didAnything = true
            }
            guard didAnything else { break }
        }
        let isSound = primary.hub.close()
        try primary.volume.close()
        guard isSound else { throw Violation("what mirrors lack cannot be written down") }
        try primary.store.close(clean: true, lastSequence: primary.volume.sequence)
        self.primary = nil
        for mirror in mirrors { mirror.target = nil }
        end = .clean
        try startPrimary()
    }

    /// Machines whose power went get it back.
    func comeBack() throws {
        if primaryPool.disk.isPoweredOff { primaryLosesPower() }
        for mirror in mirrors where mirror.pool.disk.isPoweredOff {
            losePower(mirror)
            if random.chance(50) { try checkMirror(mirror) }
        }
    }

    // MARK: What the next open finds

    func recoverModel(_ volume: Volume, wasUnclean: Bool) throws {
        let images = try readImages(volume)
        let names = try primaryPool.catalog.read { try $0.nodes() }
        pendingNames = []
        var state = ModelPool()
        state.images = images
        state.names = Dictionary(uniqueKeysWithValues: names.map { ($0.id, $0) })
        if let text = durable(state.names) { throw Violation("the primary " + text) }
        try findRestored(volume)
        for (id, image) in images where !deleted.contains(id) { try check(id, image) }
        cloning = nil
        for (id, image) in floor.images where images[id] == nil && image.sizeBytes > 0 {
            guard deleted.contains(id) else {
                throw Violation("image \(id.rawValue) is gone after a crash")
            }
        }
        try findSnapshots(volume)
        history.append(state, through: volume.sequence.rawValue)
        if end == .killed {
            // What it wrote is in the machine's memory still, and may be lost with it.
            for (id, image) in images { sinceFloor[id, default: []].append(image) }
        } else {
            floor = state
            sinceFloor = [:]
        }
        durableNames = state.names
        deleted = []
        try removeUnnamed(volume)
    }

    private func durable(_ names: [NodeID: NodeRecord]) -> String? {
        var (mine, other) = (ModelPool(), ModelPool())
        mine.names = durableNames
        other.names = names
        guard mine.namesDifference(from: other) != nil else { return nil }
        // A commit that failed for want of power may have been done: then all of it.
        var after = ModelPool()
        after.names = history.current.names
        return after.namesDifference(from: other).map { _ in mine.namesDifference(from: other)! }
    }

    private func check(_ id: ImageID, _ found: ModelImage) throws {
        var states = [floor.images[id] ?? ModelImage()] + (sinceFloor[id] ?? [])
        // A clone that was cut short has the content or has nothing; nobody knows its name.
        if floor.images[id] == nil, sinceFloor[id] == nil, let cloning { states.append(cloning) }
        if end == .clean, let last = states.last, let text = last.difference(from: found) {
            throw Violation("image \(id.rawValue) of a primary that was closed \(text)")
        }
        // The end of a torn write that made the image longer is where the last sector of it ended.
        let sizes = states.map(\.sizeBytes)
        guard sizes.min()! <= found.sizeBytes, found.sizeBytes <= sizes.max()! else {
            throw Violation("image \(id.rawValue) has \(found.sizeBytes) bytes after a crash")
        }
        for index in 0..<found.blockCount {
            let content = found.block(index)
            if states.contains(where: { $0.holds(content[...], inBlock: index) }) { continue }
            let old = states.map { $0.block(index) }
            // A torn write's last sector ends where the image does.
            let end = min(found.sizeBytes - index * 4096, 4096)
            for sector in stride(from: 0, to: end, by: 512) {
                let range = sector..<min(sector + 512, end)
                let part = content[range]
                if old.contains(where: { sameBytes($0[range], part) }) { continue }
                // A trim or an end inside a sector: what is on either side may be kept or lost.
                guard range.allSatisfy({ at in old.contains { $0[at] == content[at] } })
                else {
                    throw Violation(
                        "block \(index) of image \(id.rawValue) holds after a crash what was never "
                            + "written there, or not since the last fsync: sector at \(sector), "
                            + "\(Self.runs(Array(part), old.map { Array($0[range]) })), "
                            + "image of \(found.sizeBytes) bytes, \(states.map(\.sizeBytes))")
                }
            }
        }
    }

    /// Which of the states each stretch of a sector is from, for people.
    private static func runs(_ part: [UInt8], _ states: [[UInt8]]) -> String {
        var text: [String] = []
        for (index, byte) in part.enumerated() {
            let from = states.indices.filter { states[$0][index] == byte }
            let word = from.isEmpty ? "new" : from.map(String.init).joined(separator: "|")
            if text.last?.hasSuffix(word) != true { text.append("\(index):\(word)") }
        }
        return text.prefix(12).joined(separator: " ")
    }

    /// A restore that was under way happened or did not.
    private func findRestored(_ volume: Volume) throws {
        guard let (id, source, keepAs) = restoring else { return }
        restoring = nil
        guard let record = try volume.snapshots().first(where: { $0.name == keepAs }) else {
            return
        }
        floor.images[id] = source
        sinceFloor[id] = []
        settleCut(record, history.current, isWhole: false)
    }

    private func findSnapshots(_ volume: Volume) throws {
        let found = try volume.snapshots()
        if let (name, state) = underWay {
            underWay = nil
            if let record = found.first(where: { $0.name == name }) {
                settleCut(record, state, isWhole: true)
            }
        }
        let names = Set(found.map(\.name))
        for name in names where snapshots[name] == nil {
            throw Violation("there is a snapshot \(name) that nobody made")
        }
        // A deletion may have been cut short before it happened; it stays, then, and is known.
        snapshots = snapshots.filter { names.contains($0.key) }
    }

    /// As the owner of the names does.
    private func removeUnnamed(_ volume: Volume) throws {
        let named = Set(history.current.names.values.compactMap(\.imageID))
        for id in volume.imageIDs.sorted() where !named.contains(id) {
            try volume.deleteImage(id)
            forgetImage(id)
            var state = history.current
            state.images[id] = nil
            history.append(state, through: volume.sequence.rawValue)
        }
    }

    func readImages(_ volume: Volume) throws -> [ImageID: ModelImage] {
        var result: [ImageID: ModelImage] = [:]
        for id in volume.imageIDs {
            let image = try volume.image(id)
            result[id] = try Self.model(sizeBytes: image.sizeBytes) {
                try image.read(into: $0, at: 0)
            }
        }
        return result
    }

    static func model(
        sizeBytes: UInt64, _ read: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws -> ModelImage {
        var bytes = [UInt8](repeating: 0xee, count: Int(sizeBytes))
        let got = try bytes.withUnsafeMutableBytes { try read($0) }
        guard got == bytes.count else { throw Violation("read \(got) of \(sizeBytes) bytes") }
        return ModelImage(bytes)
    }
}
