// Long work: numbered, with progress, and stoppable.
//
//   running ──done──────────► ended
//      └──cancel, the peer is gone, the daemon drains──► cancelled ──next progress──► ended
//
// A job runs on the thread that carries out its request; who asked hears how it goes on the same
// connection, and anybody can list and cancel it on another.

import SystemIO

/// The thread that works tells it how far it is, others ask and cancel. Unchecked, for the compiler knows nothing of
/// `lock`, under which every `var` is read and changed.
package final class Job: @unchecked Sendable {
    package typealias Listener = @Sendable (ControlEvent) -> Bool
    private static let intervalNs: Int64 = 200_000_000

    let number: Int
    private let listener: Listener
    private let disk: Disk
    private let lock = Lock()
    private var info: JobInfo
    private var startNs: Int64
    private var phaseStartNs: Int64
    private var toldNs: Int64
    private var isCancelled = false

    init(_ number: Int, kind: String, disk: Disk, listener: @escaping Listener) {
        self.number = number
        self.disk = disk
        self.listener = listener
        startNs = disk.monotonic()
        phaseStartNs = startNs
        toldNs = startNs
        info = JobInfo(
            job: number, kind: kind, phase: kind, doneBytes: 0, totalBytes: 0, elapsedMs: 0,
            etaMs: nil)
    }

    var current: JobInfo { lock.withLock { info } }
    func cancel() { lock.withLock { isCancelled = true } }
    var wasCancelled: Bool { lock.withLock { isCancelled } }

    /// - Returns: false once the job is to end.
    package func progress(phase: String, doneBytes: UInt64, totalBytes: UInt64) -> Bool {
        let now = disk.monotonic()
        let (told, goesOn) = lock.withLock { () -> (JobInfo?, Bool) in
            if info.phase != phase { phaseStartNs = now }
            info.phase = phase
            info.doneBytes = doneBytes
            info.totalBytes = max(totalBytes, doneBytes)
            info.elapsedMs = (now - startNs) / 1_000_000
            let ms = Double(now - phaseStartNs) / 1e6
            info.etaMs =
                doneBytes > 0
                ? Int64(ms * Double(info.totalBytes - doneBytes) / Double(doneBytes)) : nil
            guard now - toldNs >= Self.intervalNs else { return (nil, !isCancelled) }
            toldNs = now
            return (info, !isCancelled)
        }
        // A listener that is gone wants no more of it.
        if let told, !listener(ControlEvent(event: .progress, data: told)) { cancel() }
        return goesOn
    }

    func tell(_ event: ControlEvent.Name) {
        if !listener(ControlEvent(event: event, data: current)) { cancel() }
    }
}

/// The jobs of one session, for all its connections. Unchecked as ``Job`` is: every `var` is under `lock`.
package final class JobTable: @unchecked Sendable {
    private let disk: Disk
    private let lock = Lock()
    private var jobs: [Int: Job] = [:]
    private var lastNumber = 0
    private var isClosed = false

    package init(disk: Disk) { self.disk = disk }

    package var list: [JobInfo] {
        lock.withLock { jobs.values.sorted { $0.number < $1.number } }.map(\.current)
    }

    /// - Throws: ``ControlFailure`` of class "cancelled" when the job was stopped.
    package func run<T>(
        _ kind: String, _ listener: @escaping Job.Listener, _ body: (Job) throws -> T
    ) throws -> T {
        let job = lock.withLock { () -> Job in
            lastNumber += 1
            let job = Job(lastNumber, kind: kind, disk: disk, listener: listener)
            jobs[lastNumber] = job
            if isClosed { job.cancel() }
            return job
        }
        defer { lock.withLock { jobs[job.number] = nil } }
        job.tell(.started)
        let result = Result { try body(job) }
        if job.wasCancelled {
            var failure = ControlFailure(.failed, "the \(kind) was cancelled")
            failure.kind = "cancelled"
            throw failure
        }
        job.tell(.ended)
        return try result.get()
    }

    package func cancel(_ number: Int) throws {
        guard let job = lock.withLock({ jobs[number] }) else {
            throw ControlFailure(.failed, "there is no job \(number)")
        }
        job.cancel()
    }

    /// The pool is going to be closed: nothing that takes long may keep it.
    package func close() {
        let running = lock.withLock { () -> [Job] in
            isClosed = true
            return Array(jobs.values)
        }
        for job in running { job.cancel() }
    }
}
