// A primary and a target with everything between them that a session does, in one thread: it streams,
// resyncs leg by leg, goes away and comes back; and the power goes at any sync. What the target shows is
// what the primary showed at the target's checkpoint, always.

import BlockCore
import Replication
import SystemIO
import TestSupport

final class TargetWorld {
    let fixture: any TargetFixture
    let can: TargetCapabilities
    var random: SeededRandom
    var primary: PrimaryModel
    var target: (any ReplicaTarget)?
    /// The last one given to the target.
    var sent = SequenceNumber.zero
    /// Durable at the target, as it said.
    var acknowledged = SequenceNumber.zero
    /// Cuts that the target must show once its checkpoint is at or after them.
    var owed: Set<SequenceNumber> = []
    private var nextStaging: UInt64 = 1
    private(set) var resync: Resync?
    private var isTracing: Bool
    /// A session connects again with the object it has.
    var reusesTarget = false
    private var lastTarget: (any ReplicaTarget)?
    /// The checkpoint that an unfinished commit would make.
    private var committing: SequenceNumber?
    /// The target was not let go of in step: it may say that it is torn.
    var mayBeTorn = true
    /// It is not known what it has.
    private var isUnknown = false

    struct Resync {
        var id: UInt64
        var batch: UInt64 = 0
        var remaining: [(ImageID, UInt64)]
        /// Set where the leg ends in a snapshot.
        var end: SnapshotInfo?
        var unsynced: [(ImageID, UInt64)] = []
    }

    convenience init(seed: UInt64, _ kind: TargetKind) throws {
        self.init(seed: seed, fixture: try kind.make(), can: kind.can)
    }

    init(
        seed: UInt64, fixture: any TargetFixture,
        can: TargetCapabilities = [.keepsCheckpoint, .snapshots]
    ) {
        self.fixture = fixture
        self.can = can
        random = SeededRandom(seed: seed)
        let clock = Clock(fixture)
        primary = PrimaryModel(seed: seed &* 31 &+ 7) { clock.now }
        isTracing = Environment.isTracing
    }

    private final class Clock {
        private let fixture: any TargetFixture
        private var last: Int64 = 0
        init(_ fixture: any TargetFixture) { self.fixture = fixture }
        var now: Int64 {
            last = max(last + 1, fixture.disk.now())
            return last
        }
    }

    func trace(_ text: @autoclosure () -> String) {
        if isTracing { print("[\(fixture.disk.syncCount)] \(text())") }
    }

    // MARK: One thing after the other

    func step() throws {
        guard target != nil else { return try connect() }
        switch random.below(100) {
        case ..<30: for _ in 0..<1 + random.below(4) { primary.step() }
        case ..<50: try goOn()
        case ..<62: try confirm()
        case ..<82: try fixture.stepBehind(target!)
        case ..<86: try check()
        case ..<88: try checkHashes()
        case ..<90: try goAway(cleanly: random.chance(50))
        case ..<92 where target != nil && resync == nil: try startResync()
        case ..<93: primary.restart()
        default: try goOn()
        }
    }

    func connect() throws {
        trace("connect")
        let target = lastTarget ?? fixture.open()
        lastTarget = nil
        self.target = target
        let report = try target.connect(primary.hello)
        try checkReport(report)
        isUnknown = report.checkpoint == .zero && report.incarnationID != nil
        acknowledged = report.checkpoint
        sent = report.checkpoint
        if random.chance(70) { try check() }
        if report.incarnationID == primary.hello.incarnationID, report.staging == nil,
            !primary.records.isEmpty, resync == nil, !isUnknown
        {
            trace("stream from \(sent.rawValue)")
            return
        }
        if let staging = report.staging, let resync, resync.id == staging.id, resync.end == nil,
            random.chance(70)
        {
            return try resume(resync)
        }
        resync = nil
        try startResync()
    }

    private func checkReport(_ report: ReplicaReport) throws {
        let may = committing.map { [$0] } ?? []
        committing = nil
        let isTorn = !can.contains(.keepsCheckpoint) && report.checkpoint == .zero && mayBeTorn
        guard report.checkpoint >= acknowledged || may.contains(report.checkpoint) || isTorn else {
            throw Violation(
                "the target is at \(report.checkpoint.rawValue) and confirmed "
                    + "\(acknowledged.rawValue)")
        }
        guard primary.history[report.checkpoint] != nil else {
            throw Violation("the target is at \(report.checkpoint.rawValue), which never was")
        }
        if report.staging != nil, report.checkpoint != acknowledged, !isTorn {
            throw Violation("in a staging the checkpoint moved to \(report.checkpoint.rawValue)")
        }
        for info in report.snapshots where primary.cuts[info.sequence] != info {
            throw Violation("there is a snapshot \(info) that never was")
        }
        try checkSnapshots()
    }

    /// A session's next piece of work.
    func goOn() throws {
        guard resync == nil else { return try goOnWithResync() }
        let rest = primary.records.filter { $0.sequence > sent }.prefix(1 + random.below(8))
        guard let first = rest.first, let last = rest.last else { return }
        // A new incarnation of the primary does not go on with the stream of the one before.
        guard primary.history[last.sequence] != nil, streamsOn(from: sent, to: first) else {
            return try goAway(cleanly: true)
        }
        trace("append \(first.sequence.rawValue)...\(last.sequence.rawValue)")
        let split = random.chance(30) ? random.below(rest.count) : nil
        try withBatch(
            rest.map(\.bytes), first: first.sequence, last: last.sequence, split: split
        ) { try target!.append($0) }
        sent = last.sequence
    }

    private func streamsOn(from sent: SequenceNumber, to next: ModelRecord) -> Bool {
        next.sequence.rawValue == sent.rawValue + 1
    }

    func confirm() throws {
        if resync != nil {
            trace("sync staging")
            try target!.syncStaging()
            resync!.unsynced = []
            return
        }
        let through = try target!.flush()
        trace("flushed \(through.rawValue)")
        guard through == sent else {
            throw Violation("\(through.rawValue) is durable and \(sent.rawValue) was sent")
        }
        for cut in primary.cuts.keys where cut > acknowledged && cut <= through {
            owed.insert(cut)
        }
        acknowledged = through
    }

    func goAway(cleanly: Bool) throws {
        trace("disconnect")
        if !cleanly { suspend() }
        target?.disconnect()
        mayBeTorn = resync != nil
        if reusesTarget { lastTarget = target }
        target = nil
        suspend()
        if cleanly, !reusesTarget, random.chance(50) { try checkAlone() }
    }

    private func suspend() {
        guard resync != nil else { return }
        resync!.remaining += resync!.unsynced
        resync!.unsynced = []
    }

    // MARK: Resync

    func startResync() throws {
        if sent > acknowledged { try confirm() }
        let checkpoint = acknowledged
        var remaining = primary.difference(
            to: primary.history[checkpoint]!, from: primary.pool)
        if !can.contains(.keepsCheckpoint) {
            remaining += isUnknown ? try compared() : primary.touched(after: checkpoint)
        }
        for (id, image) in primary.pool.images where image.sizeBytes > 0 {
            // Dirty is a superset.
            remaining.append((id, UInt64(random.below(image.sizeBytes / 4096 + 1))))
        }
        remaining = remaining.filter { id, block in
            Int(block) * 4096 < primary.pool.images[id]!.sizeBytes
        }
        let leg = Resync(id: nextStaging, remaining: remaining)
        nextStaging += 1
        trace("staging \(leg.id) from \(checkpoint.rawValue): \(remaining.count) blocks")
        resync = leg
        try target!.beginStaging(id: leg.id, shape: primary.shape)
        sent = primary.last
    }

    /// What a comparison by hash finds to differ, as a session makes it.
    private func compared() throws -> [(ImageID, UInt64)] {
        var held = try target!.allocatedBlocks()
        for (id, block) in primary.difference(to: ModelPool(), from: primary.pool) {
            held[id, default: BlockSet()].insert(BlockRange(start: block, count: 1))
        }
        return try primary.pool.images.sorted { $0.key < $1.key }.flatMap { id, image in
            try (held[id] ?? BlockSet()).ranges.flatMap { range in
                zip(range.start..<range.end, try target!.blockHashes(of: id, in: range))
                    .filter { hashOf(image.bytes(of: $0)) != $1 }.map { (id, $0.0) }
            }
        }
    }

    /// The stream of meanwhile is dirty; here it is simply staged, as it is all still known.
    private func resume(_ leg: Resync) throws {
        trace("resume staging \(leg.id)")
        resync = leg
        try target!.beginStaging(id: leg.id, shape: primary.shape)
        let base = primary.history[acknowledged]!
        resync!.remaining =
            primary.difference(to: base, from: primary.pool)
            + primary.pool.images.flatMap { id, image in
                (0..<UInt64((image.sizeBytes + 4095) / 4096)).map { (id, $0) }
            }
        sent = primary.last
    }

    private func goOnWithResync() throws {
        var leg = resync!
        // Records since then, with whatever they do; a cut may end the leg.
        if leg.end == nil {
            let rest = primary.records.filter { $0.sequence > sent }.prefix(1 + random.below(6))
            var part: [ModelRecord] = []
            for record in rest {
                part.append(record)
                if let cut = primary.cuts[record.sequence], random.chance(60) {
                    leg.end = cut
                    break
                }
            }
            if let first = part.first, let last = part.last {
                try stage(part.map(\.bytes), first.sequence, last.sequence, &leg)
                sent = last.sequence
                resync = leg
                return
            }
        }
        let source = leg.end.map { primary.history[$0.sequence]! } ?? primary.pool
        let at = leg.end?.sequence ?? primary.last
        if leg.end == nil, sent < primary.last { return }
        var blocks: [(ImageID, UInt64)] = []
        while blocks.count < 5, let next = leg.remaining.popLast() {
            guard let image = source.images[next.0], Int(next.1) * 4096 < image.sizeBytes else {
                continue
            }
            blocks.append(next)
        }
        if !blocks.isEmpty {
            let records = blocks.map { primary.blockRecord($0, $1, of: source, at: at) }
            try stage(records, at, at, &leg)
            leg.unsynced += blocks
            resync = leg
            return
        }
        resync = leg
        try commit(leg, at: at)
    }

    private func stage(
        _ records: [[UInt8]], _ first: SequenceNumber, _ last: SequenceNumber, _ leg: inout Resync
    ) throws {
        leg.batch += 1
        trace("stage \(leg.batch): \(first.rawValue)...\(last.rawValue), \(records.count)")
        let split = random.chance(30) ? random.below(records.count) : nil
        try withBatch(records, first: first, last: last, split: split) {
            try target!.stage($0, number: leg.batch)
        }
    }

    private func commit(_ leg: Resync, at sequence: SequenceNumber) throws {
        trace("commit \(leg.id) at \(sequence.rawValue) as \(leg.end?.name ?? "head")")
        committing = sequence
        try target!.commitStaging(id: leg.id, at: sequence, snapshot: leg.end)
        committing = nil
        resync = nil
        isUnknown = false
        acknowledged = sequence
        sent = sequence
        if let end = leg.end { owed.insert(end.sequence) }
        try check()
    }

    /// Whatever was before: the primary does nothing more, and the target becomes what it is.
    func converge() throws {
        if target == nil { try connect() }
        for _ in 0..<10_000 where acknowledged < primary.last || resync != nil {
            if target == nil { try connect() }
            try goOn()
            if resync == nil, sent == primary.last { try confirm() }
        }
        guard acknowledged == primary.last, resync == nil else {
            throw Violation("it does not get in step: \(acknowledged) of \(primary.last)")
        }
        try check()
        target?.disconnect()
        mayBeTorn = false
        target = nil
        try checkAlone()
    }

    // MARK: Power

    /// Runs until the power goes at the n-th sync or commit, then looks what is left.
    func run(toPowerOffAtSync count: Int, stepLimit: Int) throws {
        fixture.disk.powerOff(atSync: count)
        do { for _ in 0..<stepLimit { try step() } } catch {
            guard fixture.disk.isPoweredOff else { throw error }
        }
        fixture.disk.cancelPowerOff()
        try losePower()
    }

    func losePower() throws {
        trace("power is off")
        mayBeTorn = true
        target = nil
        suspend()
        fixture.losePower(&random)
        while true {
            if random.chance(30) { fixture.disk.powerOff(atSync: 1 + random.below(8)) }
            do {
                if random.chance(40) {
                    try checkAlone()
                } else {
                    try connect()
                }
                fixture.disk.cancelPowerOff()
                if !fixture.disk.isPoweredOff { return }
            } catch {
                guard fixture.disk.isPoweredOff else { throw error }
            }
            target = nil
            suspend()
            fixture.losePower(&random)
        }
    }

    // MARK: Checks

    func check() throws {
        // What is between two checkpoints is nothing that the primary ever showed.
        guard can.contains(.keepsCheckpoint) || resync == nil && !isUnknown else { return }
        let shown = try fixture.show(target!)
        try check(shown, "beside its primary")
    }

    private func checkAlone() throws {
        guard let shown = try fixture.showAlone() else {
            guard mayBeTorn, !can.contains(.keepsCheckpoint) else {
                throw Violation("it says that it is torn")
            }
            return
        }
        let may = committing.map { [$0] } ?? []
        guard shown.sequence >= acknowledged || may.contains(shown.sequence) else {
            throw Violation(
                "a mount shows \(shown.sequence.rawValue), \(acknowledged.rawValue) was confirmed")
        }
        try check(shown, "alone")
        acknowledged = max(acknowledged, shown.sequence)
    }

    private func check(_ shown: ShownPool, _ what: String) throws {
        trace("shows \(shown.sequence.rawValue) \(what)")
        guard let model = primary.history[shown.sequence] else {
            throw Violation("\(what): shows \(shown.sequence.rawValue), which never was")
        }
        try shown.check(against: model, "\(what), at \(shown.sequence.rawValue)")
    }

    private func checkSnapshots() throws {
        guard can.contains(.snapshots) else { return }
        let shown = try fixture.snapshots(target!)
        for cut in owed where !shown.contains(primary.cuts[cut]!) {
            throw Violation(
                "snapshot \(primary.cuts[cut]!.name) at \(cut.rawValue) is not there")
        }
        guard !shown.isEmpty else { return }
        let info = shown[random.below(shown.count)]
        try fixture.showSnapshot(target!, info)
            .check(against: primary.history[info.sequence]!, "snapshot \(info.name)")
    }

    /// The hashes are those of the checkpoint, or of the staging that is under way.
    private func checkHashes() throws {
        guard resync == nil else { return }
        _ = try target!.flush()
        try confirm()
        let model = primary.history[acknowledged]!
        for (id, image) in model.images {
            let range = BlockRange(
                start: UInt64(random.below(8)), count: UInt64(1 + random.below(20)))
            let found = try target!.blockHashes(of: id, in: range)
            let expected = (range.start..<range.end).map { hashOf(image.bytes(of: $0)) }
            guard found == expected else {
                throw Violation("hashes of image \(id.rawValue) are not its blocks'")
            }
        }
    }
}
