import BlockCore
import Replication
import Testing

/// What a target far away says of itself, and who acts on it.
@Suite struct SessionNewsTests {
    /// Nobody is woken for it: when the call is over, whoever waited is answered.
    @Test func whoBringsTheLastNewsAnswersThoseWhoWait() throws {
        let scene = NewsScene()
        try scene.comeInStep()
        let sequence = scene.write()
        scene.runAll()
        #expect(scene.line.given == sequence)
        #expect(scene.acknowledged.isEmpty)
        scene.line.tell(written: sequence)
        #expect(scene.acknowledged == [.init(.written, sequence)])
        #expect(scene.answers == 1)
        scene.line.tell(written: sequence)
        #expect(scene.acknowledged.count == 1)
    }

    @Test func durableNewsAnswersAFlush() throws {
        let scene = NewsScene()
        try scene.comeInStep()
        let sequence = scene.write()
        scene.driver.wantFlush(sequence)
        scene.runAll()
        #expect(scene.line.flushes == 1)
        // More is to come: the session's own thread hears of it.
        scene.line.tell(written: sequence)
        #expect(scene.acknowledged.isEmpty)
        scene.line.tell(written: sequence, durable: sequence)
        #expect(scene.acknowledged == [.init(.written, sequence), .init(.durable, sequence)])
    }

    /// Where more is under way the session's own thread answers many at a time.
    @Test func newsInTheMiddleWaitsForTheSession() throws {
        let scene = NewsScene()
        try scene.comeInStep()
        let first = scene.write()
        scene.runAll()
        let second = scene.write()
        scene.runAll()
        scene.line.tell(written: first)
        #expect(scene.acknowledged.isEmpty)
        scene.runAll()
        #expect(scene.acknowledged == [.init(.written, first)])
        scene.line.tell(written: second)
        #expect(scene.acknowledged.last == .init(.written, second))
    }

    /// Where many wait they are answered together, and send what follows together: that is the session's own thread's.
    @Test func whereManyWaitTheSessionAnswers() throws {
        let scene = NewsScene()
        try scene.comeInStep()
        scene.waitingCount = 5
        let first = scene.write()
        scene.runAll()
        scene.line.tell(written: first)
        #expect(scene.acknowledged.isEmpty)
        scene.runAll()
        #expect(scene.acknowledged == [.init(.written, first)])
        scene.waitingCount = 4
        let second = scene.write()
        scene.runAll()
        scene.line.tell(written: second)
        #expect(scene.acknowledged.last == .init(.written, second))
    }

    /// What a connection said that is over is said of nothing that was given since.
    @Test func whatAnEarlierConnectionSaysIsNotBelieved() throws {
        let scene = NewsScene()
        try scene.comeInStep()
        let old = scene.line
        scene.driver.connectAnew("another address")
        try scene.comeInStep()
        #expect(scene.line !== old)
        let sequence = scene.write()
        scene.runAll()
        #expect(scene.line.given == sequence)
        old.tell(written: sequence, durable: sequence)
        scene.runAll()
        #expect(scene.acknowledged.isEmpty)
        scene.line.tell(written: sequence)
        #expect(scene.acknowledged == [.init(.written, sequence)])
    }

    /// That something failed is the session's own to look into.
    @Test func aFailureEndsTheConnection() throws {
        let scene = NewsScene()
        try scene.comeInStep()
        let sequence = scene.write()
        scene.runAll()
        scene.line.fail(TargetError(.absent, "the line is cut"))
        #expect(scene.driver.snapshot.state == .streaming)
        scene.driver.step()
        #expect(scene.driver.snapshot.state != .streaming)
        #expect(scene.acknowledged.allSatisfy { $0.sequence < sequence })
    }
}

/// A pool of one image, and a session with a target that says only what a test has it say.
private final class NewsScene: SessionSource, @unchecked Sendable {  // one thread
    struct Acknowledgement: Equatable {
        var point: AckPoint
        var sequence: SequenceNumber
        init(_ point: AckPoint, _ sequence: SequenceNumber) {
            self.point = point
            self.sequence = sequence
        }
    }

    static let image = ImageID(rawValue: 1)
    let id = TargetID(rawValue: 1)
    let stream = WriteStream(capacityBytes: 256 << 10, lastSequence: .zero)
    private(set) var line = ToldLine(at: .zero)
    private(set) var driver: SessionDriver!
    private(set) var acknowledged: [Acknowledgement] = []
    private(set) var answers = 0
    var waitingCount = 1
    private var nowNs: Int64 = 1

    init() {
        stream.attachTracking(id)
        var options = SessionOptions()
        options.mode = .sync
        driver = SessionDriver(
            id: id, options: options, seed: 1, counts: true, stream: stream, source: self,
            clock: { [unowned self] in nowNs }
        ) { [unowned self] () throws(TargetError) in
            line = ToldLine(at: stream.lastSequence)
            return line
        }
        driver.start(onThread: false)
    }

    func comeInStep() throws {
        runAll()
        try #require(driver.snapshot.state == .streaming)
        acknowledged = []
        answers = 0
    }

    func runAll() {
        while driver.step() { nowNs += 1000 }
    }

    func write() -> SequenceNumber {
        stream.append(
            .data, image: Self.image, range: BlockRange(start: 3, count: 1),
            imageSizeBytes: 1 << 20, payloadBytes: 4096
        ) { $0.initializeMemory(as: UInt8.self, repeating: 7) }
    }

    // MARK: The source

    func hello(for target: TargetID, having incarnationID: String?) -> PrimaryHello {
        ToldLine.hello
    }
    func captureHead(
        for target: TargetID
    ) throws(TargetError) -> (shape: PoolShape, streamFrom: SequenceNumber) {
        throw TargetError(.io, "nothing is to be shipped")
    }
    func hasNews(for target: TargetID) -> Bool { false }
    func capture(_ snapshot: SnapshotInfo) throws(TargetError) -> PoolShape? { nil }
    func release(_ snapshot: SnapshotInfo) {}
    func read(
        _ chunk: BlockChunk, in snapshot: SnapshotInfo?, at sequence: SequenceNumber,
        into records: RecordBuffer
    ) throws(TargetError) -> SequenceNumber { stream.lastSequence }
    func blockHashes(
        of image: ImageID, in range: BlockRange, of snapshot: SnapshotInfo?
    ) throws(TargetError) -> [UInt64] { [] }
    func wholeImages() throws(TargetError) -> [ImageID: BlockSet] { [:] }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] { [:] }
    func legsChanged(of target: TargetID) {}
    func recordStale(_ target: TargetID, since sequence: SequenceNumber, reason: String) {}
    func tell(_ target: TargetID, kind: String, message: String) {}
    func fence(_ target: TargetID, reason: String) {}
    func withhold(_ target: TargetID, _ isWithheld: Bool) {}
    func acknowledged(_ target: TargetID, _ point: AckPoint, _ sequence: SequenceNumber) {
        acknowledged.append(.init(point, sequence))
    }
    func answer() { answers += 1 }
    func retracted(_ target: TargetID) {}
    func counts(_ target: TargetID, _ policy: TargetPolicy, durable: SequenceNumber) {}
    func policyChanged(_ target: TargetID, _ policy: TargetPolicy) {}
    func lost(_ target: TargetID) {}
    func found(_ target: TargetID) {}
    func releaseWaiters(of target: TargetID) {}
}

/// A connection that takes everything, and says what it is told to.
private final class ToldLine: PipelinedTarget, @unchecked Sendable {  // one thread
    static let hello = PrimaryHello(
        poolID: "pool",
        generation: Generation(number: 1, id: "first", parentID: nil, startSequence: .zero),
        incarnation: 1, incarnationID: "incarnation")

    private(set) var given = SequenceNumber.zero
    private(set) var flushes = 0
    private(set) var knownFailure: TargetError?
    private(set) var progress: TargetProgress
    private var hear: (@Sendable (TargetProgress?) -> Void)?

    init(at sequence: SequenceNumber) {
        progress = TargetProgress(written: sequence, durable: sequence, hasRoom: true)
    }

    func tell(written: SequenceNumber, durable: SequenceNumber = .zero) {
        progress.written = max(progress.written, written)
        progress.durable = max(progress.durable, durable)
        hear?(progress)
    }
    func fail(_ error: TargetError) {
        knownFailure = error
        hear?(nil)
    }

    let roomBytes = 1 << 20
    func onNews(_ hear: @escaping @Sendable (TargetProgress?) -> Void) { self.hear = hear }
    func give(_ batch: RecordBatch) throws(TargetError) { given = batch.lastSequence }
    func askFlush() throws(TargetError) { flushes += 1 }
    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        var report = ReplicaReport(
            incarnationID: Self.hello.incarnationID, generation: Self.hello.generation,
            checkpoint: progress.durable, snapshots: [], staging: nil)
        report.keptAllReceived = true
        return report
    }
    func disconnect() {}

    // MARK: What a session in step asks for of no target

    private var notAsked: TargetError { TargetError(.io, "it is not asked for that") }
    var durableThrough: SequenceNumber? { progress.durable }
    func append(_ batch: RecordBatch) throws(TargetError) { throw notAsked }
    func flush() throws(TargetError) -> SequenceNumber { throw notAsked }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) { throw notAsked }
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) { throw notAsked }
    func syncStaging() throws(TargetError) { throw notAsked }
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) { throw notAsked }
    func blockHashes(
        of image: ImageID, in range: BlockRange
    ) throws(TargetError) -> [UInt64] { throw notAsked }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] { throw notAsked }
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) { throw notAsked }
    func shape() throws(TargetError) -> PoolShape { throw notAsked }
}
