// What a person asks of a pool's targets: which request it is, to change one, to wait for them; what is refused.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import VirtualFS
import Volume

extension PoolReplication {
    func perform(_ request: ControlRequest, _ result: inout ControlResult) throws {
        let arguments = request.arguments ?? ControlArguments()
        func target() throws -> TargetSpecification {
            guard let target = arguments.target else {
                throw ControlFailure(.usage, "'target' is missing")
            }
            return target
        }
        // Looking waits for nobody who changes something.
        if request.execute == .targetList {
            result.targets = status()
            return
        }
        try requireNoSuccessor()
        // What is there for a target that hangs waits for nobody who waits for it.
        if request.execute == .targetRemove, arguments.force ?? false {
            try hub?.remove(try known(try target()).id, detaches: true)
            return
        }
        try changing.withLock {
            // Of a handover that was waited for, the outcome is known.
            try requireNoSuccessor()
            switch request.execute {
            case .targetAdd: result.text = try add(try target())
            case .targetSet:
                let wanted = try target()
                if wanted.image != nil {
                    try setImage(wanted)
                } else if let address = wanted.newAddress {
                    result.text = try move(wanted, to: address)
                } else {
                    try update(wanted) { $0.take(wanted) }
                }
            case .targetPause: try update(try target()) { $0.isPaused = true }
            case .targetResume: try update(try target()) { $0.isPaused = false }
            case .targetRemove: try hub?.remove(try known(try target()).id)
            default: break
            }
        }
        if request.execute == .wait { try wait(arguments) }
    }

    func known(_ target: TargetSpecification) throws -> TargetRecord {
        guard let found = hub?.all.first(where: { $0.record.address == target.address }) else {
            throw ControlFailure(
                .failed,
                "\(target.address) is no target of this pool; `doppel target list` shows them")
        }
        return found.record
    }

    func update(
        _ target: TargetSpecification, _ change: (inout TargetRecord) -> Void
    ) throws {
        try refuseHistory(target)
        var record = try known(target)
        change(&record)
        try refuseWaiting(record.mode, record.address)
        let images = hub?.target(record.id)?.images ?? [:]
        try refuseConflict(record, hasImages: !images.isEmpty)
        try hub?.update(record.id, change)
        if let line = lock.withLock({ lines[record.id] }) { line.choice = record.compress }
    }

    private func setImage(_ wanted: TargetSpecification) throws {
        let record = try known(wanted)
        let path = wanted.image ?? ""
        let node = try lock.withLock { fileSystem }?.resolve(path)
        guard let imageID = node?.imageID else {
            throw ControlFailure(.failed, "'\(path)' is no image of this pool")
        }
        var new =
            hub?.target(record.id)?.images[imageID]
            ?? TargetImageRecord(targetID: record.id, imageID: imageID, mode: nil, onTimeout: nil)
        if wanted.inherits ?? false { (new.mode, new.onTimeout) = (nil, nil) }
        if let mode = wanted.mode.flatMap(TargetRecord.Mode.init(rawValue:)) {
            guard mode != .adaptive else {
                throw ControlFailure(
                    .usage, "mode adaptive is for a whole target, not for one image")
            }
            try refuseWaiting(mode, record.address)
            new.mode = mode.rawValue
        }
        if let reaction = wanted.onTimeout { new.onTimeout = reaction }
        try refuseConflict(record, hasImages: new.mode != nil || new.onTimeout != nil)
        try hub?.update(new)
    }

    private func wait(_ arguments: ControlArguments) throws {
        guard let hub else { return }
        let ids = try arguments.target.map { [try known($0).id] }
        let behind = hub.wait(for: ids, timeoutMs: arguments.timeoutMs)
        guard behind.isEmpty else {
            let late = hub.status().filter { behind.contains($0.record.id) }.map(\.lateness)
            throw ControlFailure(
                .degraded,
                "not there yet: \(late.joined(separator: "; ")). `doppel status` shows how they get on"
            )
        }
    }

    // MARK: What is refused

    func refuseWaiting(_ mode: TargetRecord.Mode, _ address: String) throws {
        guard allowsAsyncOnly, mode != .async else { return }
        throw ControlFailure(
            .usage,
            "--cache writeback keeps writes in the kernel, where no target gets them: it goes with "
                + "async targets alone, and \(address) is in mode \(mode.rawValue). Mount with "
                + "--cache none, or `doppel target set ... --mode async`")
    }

    /// G4: refused at once, never ignored.
    func refuseConflict(_ record: TargetRecord, hasImages: Bool = false) throws {
        if let problem = TargetAddress.problem(record.address) {
            throw ControlFailure(.usage, problem)
        }
        let times = [
            record.timeoutMs, record.historyMs, record.intervalMs ?? 0, record.rpoMs ?? 0,
            (record.latencyBudgetUs ?? 0) / 1000,
        ]
        guard times.allSatisfy({ 0...Duration.longestMs ~= $0 }) else {
            throw ControlFailure(.usage, "\(record.address): times are a century at most")
        }
        guard let conflict = record.conflict(hasImages: hasImages) else { return }
        throw ControlFailure(.usage, "\(record.address): \(conflict)")
    }

    /// Retention on a server is the server's: whoever has this machine must not be able to shorten it there.
    func refuseHistory(_ target: TargetSpecification) throws {
        guard target.historyMs != nil, TargetAddress(target.address).remote != nil else { return }
        throw ControlFailure(
            .usage,
            "how long \(target.address) keeps what was is up to its server (doppel serve --history)"
        )
    }
}

extension TargetStatus {
    /// Why it has not got everything, and since when.
    fileprivate var lateness: String {
        let since = sinceNs.map { "behind since \(CivilTime($0).readable) UTC" } ?? "behind"
        guard let reason, state != .resyncing else { return "\(record.address), \(since)" }
        return "\(record.address), \(since): \(reason)"
    }
}

extension TargetRecord {
    mutating func take(_ target: TargetSpecification) {
        if let mode = target.mode.flatMap(Mode.init(rawValue:)) { self.mode = mode }
        if let timeoutMs = target.timeoutMs { self.timeoutMs = timeoutMs }
        if let historyMs = target.historyMs { self.historyMs = historyMs }
        if let reaction = target.onTimeout.flatMap(OnTimeout.init(rawValue:)) {
            onTimeout = reaction
        }
        if let budget = target.latencyBudgetUs { latencyBudgetUs = budget == 0 ? nil : budget }
        if let age = target.rpoMs { rpoMs = age == 0 ? nil : age }
        if let bytes = target.rpoBytes { rpoBytes = bytes == 0 ? nil : Int64(exactly: bytes) }
        if let reaction = target.onRPO.flatMap(OnRPO.init(rawValue:)) { onRPO = reaction }
        if let interval = target.intervalMs { intervalMs = interval == 0 ? nil : interval }
        if let rate = target.rateBytesPerSecond {
            // The catalog has signed numbers; what is beyond them is no limit.
            rateBytesPerSecond = rate == 0 ? nil : Int64(exactly: rate)
        }
        if let choice = target.compress.flatMap(CompressionChoice.init(rawValue:)) {
            compress = choice
        }
    }
}
