// A pool whose machine went down is served when it is known what its targets have beyond it (RecoveryPull).
//
//   who opens it                        a source answers    none does
//   mount, more than flushes promised   pulled from         waits, and says what for
//   mount, flushes promised alone       pulled from         goes on
//   --on-recovery wait                  pulled from         waits
//   --on-recovery start                 not asked           goes on; the targets keep what they have
//   a verb                              pulled from         refuses where more than flushes was promised
//   status, list, events …              not asked           opened for reading
//
// A source is a target that was in step when the machine went down. Where one that promises more is silent,
// another does not take its place: what was acknowledged may be on that one alone.

import BlockCore
import Logging
import Pool
import Replication
import SystemIO
import Targets

package enum RecoveryPolicy: Sendable {
    case wait, start
    /// A mount's, unless somebody says otherwise.
    case automatic
    /// Of a verb, which does not wait.
    case attempt
}

/// Who hears what an open waits for, and may end it.
package struct RecoveryListener: Sendable {
    /// Called about once a second while waiting; news or nothing. False: nobody waits any more.
    package var tell: @Sendable (String?) -> Bool
    package var isCancelled: @Sendable () -> Bool

    package init(
        tell: @escaping @Sendable (String?) -> Bool = { _ in true },
        isCancelled: @escaping @Sendable () -> Bool = { false }
    ) {
        self.tell = tell
        self.isCancelled = isCancelled
    }
}

enum PoolRecovery {
    private static let log = Logger(label: "doppel.recovery")
    /// Opening a mirror may replay what its journal holds.
    private static let longestAnswerMs: Int64 = 60_000

    private struct Round {
        var ahead: [RecoveryPull.Asked] = []
        var silent: [(record: TargetRecord, reason: String)] = []

        func best(for pull: RecoveryPull) -> Int? {
            pull.best(of: ahead.map { ($0.record, $0.report) }, silent: silent.map(\.record))
        }
    }

    static func problem(of store: PoolStore) -> String? {
        guard let pull = try? RecoveryPull(store) else { return nil }
        let names = pull.sources.map(\.address).joined(separator: ", ")
        return pull.sources.isEmpty
            ? nil
            : "the machine went down while the pool was in use: before it is changed, \(names) is asked "
                + "for what this disk may have lost; `doppel mount` does it"
    }

    /// Before the pool takes its first change.
    static func run(_ store: PoolStore, _ options: PoolSession.Options) throws {
        guard let pull = try RecoveryPull(store) else { return }
        if pull.sources.isEmpty { return try pull.goOn() }
        if options.recovery == .start { return try pull.goOnWithout("as was asked for") }
        let waits =
            switch options.recovery {
            case .wait: true
            case .start, .attempt: false
            case .automatic: pull.promisesWrites
            }
        defer { store.updateOwner { $0.waitsFor = nil } }
        var told: String?
        let since = CivilTime(store.disk.now()).readable
        while true {
            var round = ask(pull, store, options, waits: waits)
            if try take(&round, pull, store, options) { return }
            let names = round.silent.map { "\($0.record.address) (\($0.reason))" }
                .joined(separator: ", ")
            guard !round.silent.isEmpty else { return try pull.goOn() }
            guard waits else {
                guard options.recovery == .automatic || !pull.promisesWrites else {
                    throw ControlFailure(.degraded, refusal(store, names))
                }
                log.warning("\(store.path) goes on without \(names)")
                return try pull.goOnWithout("no answer from \(names)")
            }
            let news =
                "waits for \(names) since \(since) UTC: the machine went down, and it may have what "
                + "this disk lost; `--on-recovery start` goes on without"
            store.updateOwner { $0.waitsFor = news }
            try pause(options.recoveryListener, told == news ? nil : "\(store.path) \(news)")
            told = news
        }
    }

    private static func refusal(_ store: PoolStore, _ names: String) -> String {
        "\(store.path) is not changed: the machine went down while it was in use, and \(names) may have "
            + "what its disk lost. Make it reachable; or `doppel mount --on-recovery start` goes on "
            + "without it"
    }

    /// A second, in which anybody may end it.
    private static func pause(_ listener: RecoveryListener, _ news: String?) throws {
        var isWaitedFor = listener.tell(news)
        for _ in 0..<50 where isWaitedFor {
            Pause.microseconds(20_000)
            if listener.isCancelled() { isWaitedFor = false }
        }
        guard isWaitedFor else {
            throw ControlFailure(.failed, "it was not waited for any longer; nothing was changed")
        }
    }

    private static func ask(
        _ pull: RecoveryPull, _ store: PoolStore, _ options: PoolSession.Options, waits: Bool
    ) -> Round {
        var round = Round()
        for record in pull.sources {
            let source: any ReplicaTarget
            do throws(TargetError) { source = try PoolReplication.source(record, of: store) } catch
            {
                round.silent.append((record, error.message))
                continue
            }
            let target = PatientTarget(
                source,
                limitMs: waits ? longestAnswerMs : max(record.timeoutMs, 5000), disk: store.disk,
                isCancelled: options.recoveryListener.isCancelled)
            switch pull.ask(record, target) {
            case .ahead(let target, let report): round.ahead.append((record, target, report))
            case .nothing(let reason): log.notice("\(record.address): \(reason)")
            case .silent(let reason): round.silent.append((record, reason))
            }
        }
        return round
    }

    /// Pulls from whom it can.
    /// - Returns: false where it has to be tried again, or gone on without.
    private static func take(
        _ round: inout Round, _ pull: RecoveryPull, _ store: PoolStore,
        _ options: PoolSession.Options
    ) throws -> Bool {
        defer { for each in round.ahead { each.target.disconnect() } }
        guard let index = round.best(for: pull) else {
            // Those that are there do not count while one that promises more is not.
            return false
        }
        let record = round.ahead[index].record
        let began = store.disk.monotonic()
        var toldNs = began
        do throws(TargetError) {
            let summary = try pull.pull(from: round.ahead, best: index) { done, all in
                guard all > 0, store.disk.monotonic() - toldNs > 2_000_000_000 else { return }
                toldNs = store.disk.monotonic()
                let news =
                    "takes \(ByteSize(bytes: all * Geometry.blockSizeBytes)) back from "
                    + "\(record.address): \(done * 100 / all) %"
                store.updateOwner { $0.waitsFor = news }
                _ = options.recoveryListener.tell("\(store.path) \(news)")
            }
            log.notice(
                "\(store.path): \(summary.blocks) blocks came back from \(record.address)")
            return true
        } catch {
            log.error("\(record.address): \(error)")
            round.silent.append((record, error.message))
            return false
        }
    }
}
