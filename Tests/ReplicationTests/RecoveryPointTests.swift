import Replication
import TestSupport
import Testing

@Suite struct RecoveryPointTests {
    private static let second: Int64 = 1_000_000_000

    /// What was known of the target holds for what is asked for now, from the next look on.
    @Test func anotherGoalIsTakenUpWhereItStands() {
        var point = RecoveryPoint(
            goal: RecoveryGoal(ageMs: nil, bytes: 1 << 20, reaction: .alarm))
        func sight(_ bytes: UInt64, isInStep: Bool = false) -> RecoveryPoint.Sight {
            .init(ageMs: 0, bytes: bytes, sentBytes: 0, isShipping: false, isInStep: isInStep)
        }
        _ = point.look(sight(0, isInStep: true), nowNs: 0)
        #expect(point.look(sight(2 << 20), nowNs: Self.second) == .passed)
        #expect(point.pace == .free)
        // It was in step before: whoever asks for it now need not wait until it is again.
        point.goal.reaction = .stop
        #expect(point.look(sight(2 << 20), nowNs: 2 * Self.second) == nil)
        #expect(point.pace == .held)
        point.goal.bytes = 4 << 20
        #expect(point.look(sight(2 << 20), nowNs: 3 * Self.second) == .kept)
        #expect(point.pace == .limited(bytes: 2 << 20))
    }

    // MARK: Throttling

    /// A target that takes so much in a second, and has it durable at its flushes; a writer that writes
    /// as fast as it may; looks at both as the keeper has them.
    private struct Line {
        var takesPerSecond: Double
        let fullTakesPerSecond: Double
        var flushNs: Int64
        var writeBytes: Int
        var point: RecoveryPoint
        var pacer = Pacer()
        var nowNs: Int64 = 0
        /// Of each moment, those before `first` are durable.
        private var written: [(atNs: Int64, bytes: Int)] = []
        private var first = 0
        var admittedBytes = 0
        var lastBeginNs: Int64 = 0
        var longestGapNs: Int64 = 0
        private var sent = 0.0
        private var durableBytes = 0
        private var flushedNs: Int64 = 0

        init(_ goal: RecoveryGoal, takesPerSecond: Double, flushNs: Int64, writeBytes: Int) {
            self.takesPerSecond = takesPerSecond
            fullTakesPerSecond = takesPerSecond
            self.flushNs = flushNs
            self.writeBytes = writeBytes
            point = RecoveryPoint(goal: goal)
        }

        var ageMs: Int64 { first < written.count ? (nowNs - written[first].atNs) / 1_000_000 : 0 }
        var bytes: UInt64 { UInt64(admittedBytes - durableBytes) }

        /// Changes that are held are looked at each 5 ms.
        mutating func step(isWriting: Bool = true) {
            nowNs += 5_000_000
            sent = min(sent + takesPerSecond * 0.005, Double(admittedBytes))
            if nowNs - flushedNs >= flushNs {
                flushedNs = nowNs
                while first < written.count, durableBytes + written[first].bytes <= Int(sent) {
                    durableBytes += written[first].bytes
                    first += 1
                }
            }
            if nowNs % 100_000_000 == 0 {
                _ = point.look(
                    .init(
                        ageMs: ageMs, bytes: bytes, sentBytes: UInt64(sent), isShipping: true,
                        isInStep: true), nowNs: nowNs)
                pacer.set(point.pace, nowNs: nowNs)
            }
            // Ten times what the target can take.
            var left = isWriting ? Int(fullTakesPerSecond / 20) : 0
            let before = admittedBytes
            while left > 0, pacer.admits(nowNs: nowNs) {
                pacer.take(writeBytes)
                admittedBytes += writeBytes
                left -= writeBytes
                longestGapNs = max(longestGapNs, nowNs - lastBeginNs)
                lastBeginNs = nowNs
            }
            if admittedBytes > before { written.append((nowNs, admittedBytes - before)) }
        }
    }

    @Test(arguments: Seeds.run(24))
    func writersComeToRestAtWhatTheTargetTakes(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        let takes = Double(2 << 20) * Double(1 + random.below(16))
        let isByAge = random.chance(50)
        let ageMs = Int64(2000 + random.below(10_000))
        let bytes = UInt64(takes) * UInt64(2 + random.below(5))
        let writeBytes = [16384, 65536, 1 << 20][random.below(3)]
        var line = Line(
            RecoveryGoal(
                ageMs: isByAge ? ageMs : nil, bytes: isByAge ? nil : bytes, reaction: .throttle),
            takesPerSecond: takes, flushNs: isByAge ? ageMs * 1_000_000 / 8 : 200_000_000,
            writeBytes: writeBytes)
        let about: Comment = "seed \(seed): \(Int(takes)) B/s, \(line.point.goal), \(writeBytes)"
        while line.nowNs < 40 * Self.second { line.step() }
        (line.longestGapNs, line.lastBeginNs) = (0, line.nowNs)
        let before = line.admittedBytes
        var (least, most) = (Double.infinity, 0.0)
        while line.nowNs < 80 * Self.second {
            line.step()
            let share =
                isByAge ? Double(line.ageMs) / Double(ageMs) : Double(line.bytes) / Double(bytes)
            (least, most) = (min(least, share), max(most, share))
        }
        // As much as the target takes, near what was asked for, and never beyond it …
        let throughput = Double(line.admittedBytes - before) / 40
        #expect(abs(throughput - takes) < takes * 0.05, about)
        #expect(least > 0.4 && most < 1, "\(about): \(least) to \(most)")
        // … and evenly: no longer than what a write and the looks at it take, and a little.
        let evenNs = Double(writeBytes) / takes * 1e9
        #expect(Double(line.longestGapNs) < 3 * evenNs + 30_000_000, about)
    }

    /// One that is slow enough is not slowed.
    @Test func whoWritesLittleIsLeftAlone() {
        var line = Line(
            RecoveryGoal(ageMs: 10_000, bytes: nil, reaction: .throttle), takesPerSecond: 50e6,
            flushNs: Self.second, writeBytes: 4096)
        for number in 0..<4000 {
            line.step(isWriting: number % 40 == 0)
            #expect(line.point.pace == .free)
        }
    }

    /// Writers are never stopped, and never let go in a burst when it is there again.
    @Test func aTargetThatTakesNothingLeavesWritersALittle() {
        var line = Line(
            RecoveryGoal(ageMs: 5000, bytes: nil, reaction: .throttle), takesPerSecond: 40e6,
            flushNs: 500_000_000, writeBytes: 16384)
        while line.nowNs < 30 * Self.second { line.step() }
        line.takesPerSecond = 0
        while line.nowNs < 90 * Self.second { line.step() }
        #expect(line.point.pace == .slowed(bytesPerSecond: 1 << 20))
        line.longestGapNs = 0
        let before = line.admittedBytes
        while line.nowNs < 100 * Self.second { line.step() }
        #expect(abs(line.admittedBytes - before - 10 << 20) < 1 << 20)
        #expect(line.longestGapNs < 30_000_000)
        line.takesPerSecond = 40e6
        while line.nowNs < 160 * Self.second { line.step() }
        #expect(line.point.passedSinceNs == nil)
    }

    // MARK: Alarm and stop

    private func check(
        _ point: inout RecoveryPoint, _ sight: RecoveryPoint.Sight, nowNs: Int64,
        _ expected: RecoveryPoint.Change?, at place: SourceLocation = #_sourceLocation
    ) {
        let change = point.look(sight, nowNs: nowNs)
        #expect(change == expected, sourceLocation: place)
    }

    private func sight(
        ageMs: Int64 = 0, bytes: UInt64 = 0, isInStep: Bool = true
    ) -> RecoveryPoint.Sight {
        .init(ageMs: ageMs, bytes: bytes, sentBytes: 0, isShipping: true, isInStep: isInStep)
    }

    @Test func anAlarmIsGivenOnceAndTakenBackWhenItIsWellBelow() {
        var point = RecoveryPoint(goal: RecoveryGoal(ageMs: 1000, bytes: 100, reaction: .alarm))
        check(&point, sight(ageMs: 900), nowNs: 1, nil)
        check(&point, sight(ageMs: 1001), nowNs: 2, .passed)
        check(&point, sight(ageMs: 950), nowNs: 3, nil)
        #expect(point.passedSinceNs == 2)
        check(&point, sight(ageMs: 10, bytes: 101), nowNs: 4, nil)
        check(&point, sight(ageMs: 10, bytes: 10), nowNs: 5, .kept)
        check(&point, sight(bytes: 100), nowNs: 6, .passed)
        #expect(point.pace == .free)
    }

    @Test func changesAreHeldWhileTooMuchIsAtRisk() {
        var point = RecoveryPoint(goal: RecoveryGoal(ageMs: nil, bytes: 1000, reaction: .stop))
        _ = point.look(sight(bytes: 300), nowNs: 1)
        #expect(point.pace == .limited(bytes: 700))
        check(&point, sight(bytes: 1000), nowNs: 2, .passed)
        #expect(point.pace == .held)
        _ = point.look(sight(bytes: 900), nowNs: 3)
        #expect(point.pace == .held)
        check(&point, sight(bytes: 800), nowNs: 4, .kept)
        #expect(point.pace == .limited(bytes: 200))
    }

    /// Nobody is kept from anything by a target that was not in step yet.
    @Test(arguments: RecoveryReaction.allCases)
    func whatWasNeverInStepHoldsNobody(reaction: RecoveryReaction) {
        let goal = RecoveryGoal(ageMs: 1000, bytes: nil, reaction: reaction)
        var point = RecoveryPoint(goal: goal)
        for tick in 1...50 {
            let nowNs = Int64(tick) * 100_000_000
            check(&point, sight(ageMs: 90_000, isInStep: false), nowNs: nowNs, nil)
            #expect(point.pace == .free)
        }
        check(&point, sight(ageMs: 90_000), nowNs: 10 * Self.second, .passed)
        // What was in step when the pool was closed still counts after it was opened anew.
        var known = RecoveryPoint(goal: goal, isArmed: true)
        check(&known, sight(ageMs: 90_000, isInStep: false), nowNs: 1, .passed)
    }

    // MARK: Pacing

    @Test func aNewPaceHoldsForWhoWaitsAlready() {
        var pacer = Pacer()
        pacer.set(.slowed(bytesPerSecond: 1 << 20), nowNs: 0)
        func admits(_ nowNs: Int64) -> Bool { pacer.admits(nowNs: nowNs) }
        #expect(admits(0))
        pacer.take(64 << 20)
        #expect(!admits(Self.second))
        pacer.set(.slowed(bytesPerSecond: 63 << 20), nowNs: Self.second)
        #expect(admits(2 * Self.second))
        pacer.set(.held, nowNs: 2 * Self.second)
        #expect(!admits(900 * Self.second))
        pacer.set(.limited(bytes: 10_000), nowNs: 900 * Self.second)
        var begun = 0
        while pacer.admits(nowNs: 900 * Self.second) {
            pacer.take(0)
            begun += 1
        }
        #expect(begun == 3)
        pacer.set(.free, nowNs: 900 * Self.second)
        #expect(pacer.isFree && admits(900 * Self.second))
    }

    @Test func aPauseIsNoLicenceForABurst() {
        var pacer = Pacer()
        pacer.set(.slowed(bytesPerSecond: 10 << 20), nowNs: 0)
        var passed = 0
        while pacer.admits(nowNs: 3600 * Self.second) {
            pacer.take(4096)
            passed += 4096
        }
        #expect(passed <= (10 << 20) / 50 + 8192)
    }
}
