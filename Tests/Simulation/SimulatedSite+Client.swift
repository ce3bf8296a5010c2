import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

extension SimulatedSite {
    static let maxBlocks = 24

    // MARK: Client operations

    func clientStep() throws {
        guard let volume = primary?.volume, volume.fenceReason == nil, try hasRoom() else { return }
        let ids = branch.history.current.images.keys.sorted()
        guard let id = ids.isEmpty ? nil : ids[random.below(ids.count)] else {
            return try create(volume)
        }
        count("client")
        let kind = random.below(100)
        // What a change does not go on without is lost: it is held, or refused.
        if kind < 60 || (78..<82).contains(kind), let obstacle = volume.gate.obstacle(for: id) {
            return count("client.\(obstacle == .fail ? "refused" : "held")")
        }
        switch kind {
        case ..<44: try write(volume, id)
        case ..<53: try zero(volume, id)
        case ..<60: try resize(volume, id)
        case ..<78: try flush(volume, id)
        case ..<82: if ids.count < 4 { try create(volume) } else { try write(volume, id) }
        case ..<84: try delete(volume, id)
        case ..<90: try rename(volume)
        case ..<94: try snapshot(volume)
        case ..<96: try deleteSnapshot(volume)
        case ..<98: try restore(volume, id)
        default: try clone(volume)
        }
        // Who is waited for may be others before this step is over.
        try checkAnswers()
    }

    /// A writer that is held back would wait for what only this thread can do.
    private func hasRoom() throws -> Bool {
        guard let primary else { return false }
        // The largest write, with its edges, and a few records more.
        let bytes = 64 << 10
        for target in primary.hub.all where target.policy.isWaitedFor {
            let lag = primary.stream.standing(target.record.id)?.lagBytes ?? 0
            guard lag + UInt64(bytes) > world.options.ringBytes / 4 * 3 else { continue }
            count("client.heldBack")
            return false
        }
        guard primary.stream.hasRoom(bytes: bytes) else {
            throw Violation("those who write wait for a target that nobody waits for")
        }
        return true
    }

    /// Notes what an operation did, also where it failed half way: then either may be.
    private func did(_ volume: Volume, _ change: (inout ModelPool) -> Void) {
        var state = branch.history.current
        change(&state)
        branch.history.append(state, through: volume.sequence.rawValue)
    }

    private func changed(_ id: ImageID) {
        guard let image = branch.history.current.images[id] else { return }
        sinceFloor[id, default: []].append(image)
    }

    private func write(_ volume: Volume, _ id: ImageID) throws {
        let limit = Self.maxBlocks * 4096
        var length = 1 + random.below(random.chance(20) ? 40_000 : 9000)
        var offset = random.below(limit - length)
        if random.chance(60) {
            offset &= ~4095
            length = min((length + 4095) & ~4095, limit - offset)
        }
        let bytes = random.bytes(length)
        trace("\(path): write \(id.rawValue) \(offset)+\(length)")
        let image = try volume.image(id)
        var after = branch.history.current.images[id]!
        after.write(bytes[...], at: offset)
        sinceFloor[id, default: []].append(after)
        try bytes.withUnsafeBytes { try image.write($0, at: UInt64(offset)) }
        did(volume) { $0.images[id] = after }
        finishWrite(volume, id)
    }

    private func zero(_ volume: Volume, _ id: ImageID) throws {
        let size = branch.history.current.images[id]!.sizeBytes
        guard size > 0 else { return }
        let offset = random.below(size)
        let length = 1 + random.below(30_000)
        trace("\(path): trim \(id.rawValue) \(offset)+\(length)")
        let image = try volume.image(id)
        var after = branch.history.current.images[id]!
        after.zero(from: offset, to: offset + length)
        sinceFloor[id, default: []].append(after)
        try image.trim(at: UInt64(offset), length: UInt64(length))
        did(volume) { $0.images[id] = after }
        finishWrite(volume, id)
    }

    private func resize(_ volume: Volume, _ id: ImageID) throws {
        let size = random.below(Self.maxBlocks * 4096)
        trace("\(path): resize \(id.rawValue) to \(size)")
        var after = branch.history.current.images[id]!
        after.resize(to: size)
        sinceFloor[id, default: []].append(after)
        try volume.image(id).resize(to: UInt64(size))
        did(volume) { $0.images[id] = after }
        finishWrite(volume, id)
    }

    private func finishWrite(_ volume: Volume, _ id: ImageID) {
        let sequence = volume.sequence
        volume.gate.finishWrite(
            sequence, of: id,
            PendingAnswer(self, sequence, at: sequence, of: id, isFlush: false).reply)
    }

    // MARK: Flushes

    private func flush(_ volume: Volume, _ id: ImageID) throws {
        let place = volume.sequence
        let sequence = volume.gate.begin(place)
        trace("\(path): fsync \(id.rawValue) at \(sequence?.rawValue ?? 0)")
        try commitNames()
        try volume.image(id).flush()
        if let image = branch.history.current.images[id] {
            floorState.images[id] = image
            sinceFloor[id] = []
        }
        volume.gate.finish(
            sequence, of: id,
            PendingAnswer(self, sequence, at: place, of: id, isFlush: true).reply)
    }

    // MARK: Names

    func changeNames(_ volume: Volume, _ changes: [NameChange]) throws {
        volume.withNameChange { place in
            pendingSequence = place.take(changes)
            pendingNames += changes
        }
        did(volume) { state in
            for change in changes {
                switch change {
                case .put(let node): state.names[node.id] = node
                case .remove(let id): state.names[id] = nil
                }
            }
        }
    }

    func commitNames() throws {
        guard primary != nil, !pendingNames.isEmpty else { return }
        let (changes, sequence) = (pendingNames, pendingSequence)
        try pool.catalog.write { tx in
            try tx.apply(changes)
            try tx.setNamesSequence(sequence)
        }
        pendingNames = []
        durableNames = branch.history.current.names
    }

    private func node(_ image: ImageID) -> NodeRecord {
        nextName += 1
        nextNode += 1
        return NodeRecord(
            id: NodeID(rawValue: nextNode), parentID: .root, name: Array("image \(nextName)".utf8),
            kind: .file, mode: 0o600, uid: 1, gid: 2, accessNs: 3, modifyNs: 4, changeNs: 5,
            imageID: image, xattrs: ["user.a": random.bytes(random.below(20))])
    }

    private func create(_ volume: Volume) throws {
        trace("\(path): create")
        let image = try volume.createImage()
        did(volume) { $0.images[image.id] = ModelImage() }
        changed(image.id)
        try changeNames(volume, [.put(node(image.id))])
    }

    private func delete(_ volume: Volume, _ id: ImageID) throws {
        guard branch.history.current.images.count > 1 else { return }
        trace("delete \(id.rawValue)")
        let nodes = branch.history.current.names.values.filter { $0.imageID == id }.map(\.id)
            .sorted()
        try changeNames(volume, nodes.map { .remove($0) })
        try commitNames()
        deleted.insert(id)
        forgetImage(id)
        try volume.deleteImage(id)
        did(volume) { $0.images[id] = nil }
    }

    func forgetImage(_ id: ImageID) {
        floorState.images[id] = nil
        sinceFloor[id] = nil
    }

    private func rename(_ volume: Volume) throws {
        let nodes = branch.history.current.names.values.filter { $0.id != .root }.sorted {
            $0.id < $1.id
        }
        guard var node = nodes.isEmpty ? nil : nodes[random.below(nodes.count)] else { return }
        if nodes.count > 1, random.chance(30) {
            var other = nodes.first { $0.id != node.id }!
            (node.name, other.name) = (other.name, node.name)
            trace("exchange names")
            return try changeNames(volume, [.put(node), .put(other)])
        }
        nextName += 1
        node.name = Array("renamed \(nextName)".utf8)
        node.mode = UInt32(random.below(0o1000))
        trace("rename \(node.id.rawValue)")
        try changeNames(volume, [.put(node)])
    }

    // MARK: Snapshots

    private func snapshot(_ volume: Volume) throws {
        guard snapshots.count < 5 else { return }
        nextName += 1
        let name = "s\(nextName)"
        trace("\(path): snapshot \(name)")
        try commitNames()
        let state = branch.history.current
        let nodes = Array(state.names.values)
        underWay = (name, state)
        branch.unfinished[name] = UnfinishedCut(state: state, after: volume.sequence.rawValue)
        let record = try volume.createSnapshot(name: name) { { nodes } }
        did(volume) { _ in }
        underWay = nil
        settleCut(record, state, isWhole: true)
    }

    func settleCut(_ record: SnapshotRecord, _ state: ModelPool, isWhole: Bool) {
        snapshots[record.name] = (record.sequence.rawValue, state, isWhole)
        branch.cuts[record.sequence.rawValue] = state
        branch.unfinished[record.name] = nil
    }

    private func deleteSnapshot(_ volume: Volume) throws {
        let names = snapshots.keys.sorted()
        guard let name = names.isEmpty ? nil : names[random.below(names.count)] else { return }
        trace("delete snapshot \(name)")
        // Whether it is gone after a crash is found out then.
        try volume.deleteSnapshot(name: name)
        snapshots[name] = nil
        did(volume) { _ in }
    }

    private func restore(_ volume: Volume, _ id: ImageID) throws {
        guard snapshots.count < 5, let (name, source) = anySnapshot(with: id) else { return }
        nextName += 1
        let keepAs = "kept\(nextName)"
        trace("restore \(id.rawValue) from \(name)")
        try commitNames()
        let layer = try layer(of: id, in: name, volume)
        let before = branch.history.current
        var node = before.names.values.filter { $0.imageID == id }
        node.append(before.names[.root]!)
        restoring = (id, source, keepAs)
        try volume.restore(
            image: id, to: layer.id, sizeBytes: layer.sizeBytes, keepAs: keepAs,
            nodes: node)
        restoring = nil
        did(volume) { $0.images[id] = source }
        floorState.images[id] = source
        sinceFloor[id] = []
        answered[id] = volume.sequence.rawValue
        let record = try volume.snapshot(named: keepAs)
        settleCut(record, before, isWhole: false)
    }

    private func clone(_ volume: Volume) throws {
        guard branch.history.current.images.count < 4,
            let (name, _) = snapshots.filter({ !$0.value.state.images.isEmpty }).sorted(by: {
                $0.key < $1.key
            }).first,
            let (id, source) = snapshots[name]!.state.images.sorted(by: { $0.key < $1.key })
                .first(where: { id, _ in
                    snapshots[name]!.state.names.values.contains { $0.imageID == id }
                })
        else { return }
        guard snapshots[name]!.isWhole else { return }
        trace("clone \(id.rawValue) of \(name)")
        let layer = try layer(of: id, in: name, volume)
        cloning = source
        let image = try volume.clone(layer: layer.id, sizeBytes: layer.sizeBytes)
        cloning = nil
        did(volume) { $0.images[image.id] = source }
        floorState.images[image.id] = source
        answered[image.id] = volume.sequence.rawValue
        try changeNames(volume, [.put(node(image.id))])
    }

    private func anySnapshot(with id: ImageID) -> (String, ModelImage)? {
        for (name, value) in snapshots.sorted(by: { $0.key < $1.key }) where value.isWhole {
            if let image = value.state.images[id],
                value.state.names.values.contains(where: { $0.imageID == id })
            {
                return (name, image)
            }
        }
        return nil
    }

    private func layer(
        of id: ImageID, in name: String, _ volume: Volume
    ) throws -> (id: LayerID, sizeBytes: UInt64) {
        let record = try volume.snapshot(named: name)
        let nodes = try pool.catalog.read { try $0.snapshotNodes(record.id) }
        guard let node = nodes.first(where: { $0.node.imageID == id }), let layer = node.layerID
        else { throw Violation("snapshot \(name) has no image \(id.rawValue)") }
        return (layer, node.sizeBytes)
    }
}
