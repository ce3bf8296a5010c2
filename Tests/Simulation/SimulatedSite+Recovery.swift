import BlockCore
import Pool
import TestSupport
import Volume

extension SimulatedSite {
    // MARK: What the next open finds

    func recoverModel(_ volume: Volume, wasUnclean: Bool) throws {
        let images = try readImages(volume)
        let names = try pool.catalog.read { try $0.nodes() }
        pendingNames = []
        var state = ModelPool()
        state.images = images
        state.names = Dictionary(uniqueKeysWithValues: names.map { ($0.id, $0) })
        if let text = durable(state.names) { throw Violation("the primary " + text) }
        let restored = try findRestored(volume)
        for (id, image) in images where !deleted.contains(id) {
            // What a mirror shows has a name; the rest goes when it is opened as a primary.
            if isNew, floorState.images[id] == nil, sinceFloor[id] == nil { continue }
            let source = restored?.id == id ? restored?.source : nil
            if recovery.names == nil {
                try check(id, image)
            } else {
                try checkAnswered(id, image, restored: source)
            }
            try checkPromised(id, image, restored: source)
        }
        cloning = nil
        for (id, image) in floorState.images where images[id] == nil && image.sizeBytes > 0 {
            guard deleted.contains(id) else {
                throw Violation("image \(id.rawValue) is gone after a crash")
            }
        }
        try findSnapshots(volume)
        endRecovery(state, at: volume.sequence.rawValue)
        branch.history.append(state, through: volume.sequence.rawValue)
        if end == .killed {
            // What it wrote is in the machine's memory still, and may be lost with it.
            for (id, image) in images { sinceFloor[id, default: []].append(image) }
        } else {
            floorState = state
            sinceFloor = [:]
            answered = [:]
        }
        durableNames = state.names
        deleted = []
        isNew = false
        try removeUnnamed(volume)
    }

    private func durable(_ names: [NodeID: NodeRecord]) -> String? {
        var (mine, other) = (ModelPool(), ModelPool())
        mine.names = durableNames
        other.names = names
        guard mine.namesDifference(from: other) != nil else { return nil }
        // A commit that failed for want of power may have been done: then all of it.
        var after = ModelPool()
        after.names = branch.history.current.names
        guard after.namesDifference(from: other) != nil else { return nil }
        if let names = recovery.names {
            after.names = names
            if after.namesDifference(from: other) == nil { return nil }
        }
        return mine.namesDifference(from: other)
    }

    func check(_ id: ImageID, _ found: ModelImage) throws {
        var states = [floorState.images[id] ?? ModelImage()] + (sinceFloor[id] ?? [])
        // A clone that was cut short has the content or has nothing; nobody knows its name.
        if floorState.images[id] == nil, sinceFloor[id] == nil, let cloning {
            states.append(cloning)
        }
        if end == .clean, let last = states.last, let text = last.difference(from: found) {
            throw Violation("image \(id.rawValue) of a primary that was closed \(text)")
        }
        try check(id, found, among: states)
    }

    /// Each sector is that of one of these states.
    func check(_ id: ImageID, _ found: ModelImage, among states: [ModelImage]) throws {
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
    private func findRestored(_ volume: Volume) throws -> (id: ImageID, source: ModelImage)? {
        guard let (id, source, keepAs) = restoring else { return nil }
        restoring = nil
        guard let record = try volume.snapshots().first(where: { $0.name == keepAs }) else {
            return nil
        }
        floorState.images[id] = source
        sinceFloor[id] = []
        settleCut(record, branch.history.current, isWhole: false)
        return (id, source)
    }

    private func findSnapshots(_ volume: Volume) throws {
        let found = try volume.snapshots()
        if let (name, state) = underWay {
            underWay = nil
            if let record = found.first(where: { $0.name == name }) {
                settleCut(record, state, isWhole: true)
            } else {
                branch.unfinished[name]?.through = volume.sequence.rawValue
                count("snapshot.dropped")
            }
        }
        let names = Set(found.map(\.name))
        for record in found where snapshots[record.name] == nil && kept[record.name] == nil {
            try findPulled(record, volume)
        }
        for name in kept.keys where !names.contains(name) {
            throw Violation("\(path) has lost what it kept as \(name)")
        }
        // A deletion may have been cut short before it happened; it stays, then, and is known.
        snapshots = snapshots.filter { names.contains($0.key) }
    }

    /// As the owner of the names does.
    private func removeUnnamed(_ volume: Volume) throws {
        let named = Set(branch.history.current.names.values.compactMap(\.imageID))
        for id in volume.imageIDs.sorted() where !named.contains(id) {
            // The power may go when it is gone.
            deleted.insert(id)
            forgetImage(id)
            try volume.deleteImage(id)
            var state = branch.history.current
            state.images[id] = nil
            branch.history.append(state, through: volume.sequence.rawValue)
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
