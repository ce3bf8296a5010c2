// Values that several messages have: generations, reports, sets of blocks, shapes. Sets are written in
// ascending order and read in no other, so that each has one form.

import BlockCore

extension WireWriter {
    mutating func put(id: String, _ field: StaticString) throws(WireError) {
        try put(text: id, longestBytes: WireFormat.longestIDBytes, field)
    }

    mutating func put(_ generation: Generation, _ field: StaticString) throws(WireError) {
        put(generation.number)
        try put(id: generation.id, field)
        put(UInt8(generation.parentID == nil ? 0 : 1))
        if let parent = generation.parentID { try put(id: parent, field) }
        put(generation.startSequence.rawValue)
    }

    mutating func put(_ entry: GenerationHistory.Entry) throws(WireError) {
        try put(entry.generation, "history")
        try put(id: entry.poolID, "history")
        put(entry.begunNs)
        put(entry.cause.wireCode)
    }

    mutating func put(_ info: SnapshotInfo) throws(WireError) {
        try put(text: info.name, longestBytes: WireFormat.longestNameBytes, "snapshot")
        put(info.createdNs)
        try put(text: info.origin, longestBytes: WireFormat.longestNameBytes, "snapshot")
        put(info.sequence.rawValue)
    }

    mutating func put(_ blocks: [ImageID: BlockSet], _ field: StaticString) throws(WireError) {
        try put(count: blocks.count, field)
        for (image, set) in blocks.sorted(by: { $0.key < $1.key }) {
            put(image.rawValue)
            try put(count: set.regionCount, field)
            set.forEachRegion { region, words in
                put(UInt32(region))
                if words.allSatisfy({ $0 == .max }) { return put(UInt8(1)) }
                put(UInt8(2))
                for word in words { put(word) }
            }
        }
    }

    mutating func put(_ report: ReplicaReport) throws(WireError) {
        var flags: UInt8 = report.incarnationID == nil ? 0 : 1
        flags |= report.generation == nil ? 0 : 2
        flags |= report.staging == nil ? 0 : 4
        flags |= report.keptAllReceived ? 8 : 0
        flags |= report.diverged == nil ? 0 : 16
        flags |= report.poolID == nil ? 0 : 32
        put(flags)
        if let id = report.incarnationID { try put(id: id, "incarnationID") }
        if let generation = report.generation { try put(generation, "generation") }
        put(report.checkpoint.rawValue)
        try put(count: report.snapshots.count, "snapshots")
        for snapshot in report.snapshots { try put(snapshot) }
        if let staging = report.staging {
            put(staging.id)
            put(staging.durableBatch)
        }
        if let diverged = report.diverged { try put(diverged) }
        if let poolID = report.poolID { try put(id: poolID, "poolID") }
    }

    private mutating func put(_ diverged: Divergence) throws(WireError) {
        put(diverged.common.rawValue)
        put(UInt8(diverged.isComplete ? 1 : 0) | (diverged.hasNameChanges ? 2 : 0))
        try put(diverged.blocks, "diverged")
        try put(diverged.suspects, "diverged")
        try put(count: diverged.images.count, "diverged")
        for image in diverged.images.sorted() { put(image.rawValue) }
    }

    mutating func put(_ shape: PoolShape) throws(WireError) {
        put(shape.sequence.rawValue)
        try put(count: shape.images.count, "images")
        for image in shape.images {
            put(image.id.rawValue)
            put(image.sizeBytes)
            put(image.modifiedNs)
        }
        try put(count: shape.names.count, "names")
        put(bytes: shape.names)
    }
}

extension WireReader {
    mutating func takeID(_ field: StaticString) throws(WireError) -> String {
        try takeText(longestBytes: WireFormat.longestIDBytes, field)
    }

    mutating func takeSequence(_ field: StaticString) throws(WireError) -> SequenceNumber {
        let at = position
        let sequence = SequenceNumber(rawValue: try take(field))
        guard sequence <= .highestTold else {
            throw error(.malformed, field, at: at, "\(sequence.rawValue) is no sequence")
        }
        return sequence
    }

    mutating func takeGeneration(_ field: StaticString) throws(WireError) -> Generation {
        let at = position
        let number: UInt64 = try take(field)
        guard number <= Generation.highestNumberTold else {
            throw error(.malformed, field, at: at, "\(number) is no generation's number")
        }
        let id = try takeID(field)
        let parent = try takeFlags(1, field) == 0 ? nil : try takeID(field)
        return Generation(
            number: number, id: id, parentID: parent, startSequence: try takeSequence(field))
    }

    mutating func takeHistoryEntry() throws(WireError) -> GenerationHistory.Entry {
        let generation = try takeGeneration("history")
        let poolID = try takeID("history")
        let begunNs: Int64 = try take("history")
        let at = position
        guard let cause = GenerationHistory.Cause(wireCode: try take("history")) else {
            throw error(.unknown, "history", at: at, "no such cause")
        }
        return .init(generation: generation, poolID: poolID, begunNs: begunNs, cause: cause)
    }

    mutating func takeSnapshot() throws(WireError) -> SnapshotInfo {
        let at = position
        let name = try takeText(longestBytes: WireFormat.longestNameBytes, "snapshot")
        guard !name.isEmpty else { throw error(.malformed, "snapshot", at: at, "it has no name") }
        let createdNs: Int64 = try take("snapshot")
        let origin = try takeText(longestBytes: WireFormat.longestNameBytes, "snapshot")
        return SnapshotInfo(
            name: name, createdNs: createdNs, origin: origin,
            sequence: try takeSequence("snapshot"))
    }

    mutating func takeBlocks(_ field: StaticString) throws(WireError) -> [ImageID: BlockSet] {
        let count = try takeCount(elementBytes: 12, field)
        var blocks: [ImageID: BlockSet] = [:]
        var last: ImageID?
        for _ in 0..<count {
            let at = position
            let image = ImageID(rawValue: try take(field))
            guard last.map({ $0 < image }) ?? true else {
                throw error(.malformed, field, at: at, "images are not in order")
            }
            last = image
            blocks[image] = try takeRegions(field)
        }
        return blocks
    }

    private mutating func takeRegions(_ field: StaticString) throws(WireError) -> BlockSet {
        let count = try takeCount(elementBytes: 5, field)
        let limit = Geometry.maxImageSizeBytes >> Geometry.regionShift
        var set = BlockSet()
        var next: UInt64 = 0
        for _ in 0..<count {
            let at = position
            let region = UInt64(try take(field, as: UInt32.self))
            guard region >= next, region < limit else {
                throw error(.malformed, field, at: at, "region \(region) is not in order")
            }
            next = region + 1
            switch try take(field, as: UInt8.self) {
            case 1:
                set.insert(
                    BlockRange(
                        start: region * Geometry.blocksPerRegion, count: Geometry.blocksPerRegion))
            case 2:
                var words = BlockSet.Words()
                words.reserveCapacity(BlockSet.wordsPerRegion)
                for _ in 0..<BlockSet.wordsPerRegion { words.append(try take(field)) }
                let isWhole = words.allSatisfy { $0 == .max }
                guard !isWhole, words.contains(where: { $0 != 0 }) else {
                    throw error(.malformed, field, at: at, "region \(region) has another form")
                }
                set.insert(region: region, words: words)
            default: throw error(.unknown, field, at: at + 4, "no such form of a region")
            }
        }
        return set
    }

    mutating func takeReport() throws(WireError) -> ReplicaReport {
        let flags = try takeFlags(63, "flags")
        let incarnationID = flags & 1 == 0 ? nil : try takeID("incarnationID")
        let generation = flags & 2 == 0 ? nil : try takeGeneration("generation")
        let checkpoint = try takeSequence("checkpoint")
        let count = try takeCount(elementBytes: 24, "snapshots")
        var snapshots: [SnapshotInfo] = []
        for _ in 0..<count { snapshots.append(try takeSnapshot()) }
        var staging: ReplicaReport.Staging?
        if flags & 4 != 0 {
            staging = .init(id: try take("staging"), durableBatch: try take("staging"))
        }
        var report = ReplicaReport(
            incarnationID: incarnationID, generation: generation, checkpoint: checkpoint,
            snapshots: snapshots, staging: staging)
        report.keptAllReceived = flags & 8 != 0
        if flags & 16 != 0 { report.diverged = try takeDivergence() }
        if flags & 32 != 0 { report.poolID = try takeID("poolID") }
        return report
    }

    private mutating func takeDivergence() throws(WireError) -> Divergence {
        let common = try takeSequence("diverged")
        let flags = try takeFlags(3, "diverged")
        let blocks = try takeBlocks("diverged")
        var diverged = Divergence(
            common: common, blocks: blocks, suspects: try takeBlocks("diverged"),
            isComplete: flags & 1 != 0)
        diverged.hasNameChanges = flags & 2 != 0
        let count = try takeCount(elementBytes: 8, "diverged")
        var last: ImageID?
        for _ in 0..<count {
            let at = position
            let image = ImageID(rawValue: try take("diverged"))
            guard last.map({ $0 < image }) ?? true else {
                throw error(.malformed, "diverged", at: at, "images are not in order")
            }
            last = image
            diverged.images.insert(image)
        }
        return diverged
    }

    mutating func takeShape() throws(WireError) -> PoolShape {
        let sequence = try takeSequence("sequence")
        let count = try takeCount(elementBytes: 24, "images")
        var images: [PoolShape.Image] = []
        images.reserveCapacity(count)
        for _ in 0..<count {
            let at = position
            let image = PoolShape.Image(
                id: ImageID(rawValue: try take("images")), sizeBytes: try take("images"),
                modifiedNs: try take("images"))
            guard image.id.isPlausible else {
                throw error(.malformed, "images", at: at, "image \(image.id.rawValue)")
            }
            guard image.sizeBytes <= Geometry.maxImageSizeBytes else {
                throw error(.malformed, "images", at: at, "an image of \(image.sizeBytes) bytes")
            }
            images.append(image)
        }
        let nameBytes = try takeCount(elementBytes: 1, "names")
        return PoolShape(
            sequence: sequence, images: images, names: Array(try take(nameBytes, "names")))
    }
}

extension GenerationHistory.Cause {
    var wireCode: UInt8 {
        switch self {
        case .initial: 1
        case .promoted: 2
        case .forced: 3
        case .planned: 4
        case .resolved: 5
        case .unknown: 0
        }
    }
    init?(wireCode: UInt8) {
        let all: [Self] = [.unknown, .initial, .promoted, .forced, .planned, .resolved]
        guard Int(wireCode) < all.count else { return nil }
        self = all[Int(wireCode)]
    }
}
