// What requests that were answered promise, and how targets are waited for.

import BlockCore
import Pool
import Replication
import TestSupport
import Volume

@testable import Targets

/// How a target is waited for, or shipped to.
struct SimulatedTargetKind: CustomStringConvertible {
    var mode: TargetRecord.Mode
    var intervalMs: Int64?
    var onTimeout = TargetRecord.OnTimeout.degrade

    init(_ mode: TargetRecord.Mode) { self.mode = mode }

    /// One of all there are.
    static func any(_ random: inout SeededRandom) -> SimulatedTargetKind {
        let modes: [TargetRecord.Mode] = [
            .flush, .async, .sync, .semiSync, .flush, .sync, .adaptive, .async,
        ]
        let index = random.below(modes.count)
        var kind = SimulatedTargetKind(modes[index])
        if index == modes.count - 1 { kind.intervalMs = 3000 }
        if kind.mode != .async, kind.mode != .adaptive, random.chance(20) {
            kind.onTimeout = random.chance(50) ? .block : .fail
        }
        return kind
    }

    func set(_ record: inout TargetRecord) {
        (record.mode, record.intervalMs, record.onTimeout) = (mode, intervalMs, onTimeout)
    }

    var description: String {
        let name = intervalMs == nil ? mode.rawValue : "interval"
        return onTimeout == .degrade ? name : "\(name).\(onTimeout.rawValue)"
    }
}

/// A write or an fsync that was answered.
struct SimulatedAnswer {
    struct Asked {
        unowned var site: SimulatedSite
        /// As it was set, and what was in force for the image.
        var policy: TargetPolicy
        var mode: ReplicationMode
        /// When the request came.
        var powerLosses: Int
        /// Who does not go on without it does not.
        var isArmed: Bool
        var target: TargetID
        /// It was waited for when the request came: who comes later keeps nobody waiting who was there before.
        var counted: Bool
        /// When it was answered: it may have been left behind, and counted again, by the time that one looks.
        var wasWaitedFor = false
        /// When it was answered: it was waited for, or held what is waited for.
        var wasThere = false
        /// As the catalog said of the target when the answer went.
        var wasOnRecord = false
    }
    /// nil: nobody was waited for when it came.
    var sequence: SequenceNumber?
    /// What it covers.
    var place: UInt64
    var image: ImageID
    var isFlush: Bool
    var targets: [Asked]
    var errno: Int32
    /// The pool was told before that it was replaced.
    var isAfterFence: Bool
}

extension SimulatedAnswer {
    fileprivate func waits(for mode: ReplicationMode) -> Bool {
        (isFlush ? mode.flushPoint : mode.writePoint) != nil
    }

    /// What holds of a request that one mode was in force for when it came, and another when it was answered.
    fileprivate func promised(_ before: ReplicationMode, _ now: ReplicationMode) -> ReplicationMode
    {
        before == now ? now : waits(for: before) && waits(for: now) ? .semiSync : .async
    }
}

extension SimulatedSite {
    /// Writes and fsyncs were answered: a target that is waited for holds what they cover; of one that
    /// is not any more, the catalog says that it is stale.
    func checkAnswers() throws {
        guard !answers.isEmpty else { return }
        defer { answers = [] }
        for answer in answers where answer.errno == 0 {
            if answer.isAfterFence {
                throw Violation("\(path) answered a request after it was told that it was replaced")
            }
            if answer.isFlush {
                answered[answer.image] = max(answered[answer.image] ?? 0, answer.place)
            }
            for asked in answer.targets where answer.waits(for: asked.mode) {
                // Of one that was let go of meanwhile, or is set otherwise now, nothing is promised.
                guard let target = attached(asked.site), target.policy == asked.policy else {
                    continue
                }
                try check(answer, asked, target)
            }
        }
    }

    private func check(
        _ answer: SimulatedAnswer, _ asked: SimulatedAnswer.Asked, _ target: AttachedTarget
    ) throws {
        let what = answer.isFlush ? "fsync" : "write"
        let session = target.driver?.snapshot
        if let session, session.counts, asked.wasWaitedFor, let sequence = answer.sequence {
            let now = session.policy.policy(for: answer.image).mode
            let mode = answer.promised(asked.mode, now)
            count("\(what).\(mode.rawValue)")
            if !answer.isFlush, asked.counted, !asked.wasOnRecord {
                // After a loss of power it is asked for what was answered on its strength.
                throw Violation(
                    "\(what) was answered on the strength of \(asked.site.path), and the catalog does "
                        + "not say that it has everything")
            }
            trace("\(what) up to \(sequence.rawValue) is answered for \(asked.site.path): \(mode)")
            return asked.site.promise(
                sequence.rawValue, mode, isFlush: answer.isFlush, powerLosses: asked.powerLosses)
        }
        count("\(what).withoutTarget")
        let reaction = asked.policy.policy(for: answer.image).onTimeout
        guard reaction == .degrade else {
            let durable = primary?.stream.standing(target.record.id)?.durable ?? .zero
            guard asked.isArmed, !asked.wasThere, session?.isLost ?? false,
                durable < answer.sequence ?? .zero
            else { return }
            throw Violation(
                "\(what) was answered without \(asked.site.path), and nothing is to go on without it"
            )
        }
        let known = try pool.catalog.read { try $0.targets() }
        guard let row = known.first(where: { $0.address == asked.site.path }), row.stale == nil
        else { return }
        // It has all of it by now, and is not stale any more.
        let durable = primary?.stream.standing(target.record.id)?.durable ?? .zero
        guard durable < answer.sequence ?? .zero else { return }
        throw Violation(
            "\(what) was answered without \(asked.site.path), and the catalog does not say that it is "
                + "stale")
    }

    /// One image, or all of them again, wait for a target in another way.
    func changeImage(_ target: AttachedTarget) throws {
        let record = target.record
        guard record.intervalMs == nil, record.mode != .adaptive else { return }
        let ids = branch.history.current.images.keys.sorted()
        guard !ids.isEmpty else { return }
        let id = ids[random.below(ids.count)]
        let modes: [ReplicationMode] = [.async, .flush, .semiSync, .sync]
        let mode = random.chance(70) ? modes[random.below(modes.count)] : nil
        trace(
            "\(path): image \(id.rawValue) waits for \(record.address) as \(mode?.rawValue ?? "others")"
        )
        count("target.image")
        try primary?.hub.update(
            TargetImageRecord(
                targetID: record.id, imageID: id, mode: mode?.rawValue, onTimeout: nil))
    }
}

/// A request that waits; kept alive by the reply that it waits for.
final class PendingAnswer {
    private unowned let site: SimulatedSite
    private var answer: SimulatedAnswer

    init(
        _ site: SimulatedSite, _ sequence: SequenceNumber?, at place: SequenceNumber,
        of image: ImageID, isFlush: Bool
    ) {
        self.site = site
        let targets = site.targets.map { other, target in
            let policy = target.policy
            let session = target.driver?.snapshot
            return SimulatedAnswer.Asked(
                site: other, policy: policy,
                mode: (session?.policy ?? policy).policy(for: image).mode,
                powerLosses: other.powerLosses, isArmed: target.record.isArmed,
                target: target.record.id, counted: session?.counts ?? false)
        }
        answer = SimulatedAnswer(
            sequence: sequence, place: place.rawValue, image: image, isFlush: isFlush,
            targets: targets, errno: 0, isAfterFence: false)
    }

    var reply: PendingReply {
        PendingReply(context: UInt(bitPattern: Unmanaged.passRetained(self).toOpaque())) {
            context, _, errno in
            let pending = Unmanaged<PendingAnswer>.fromOpaque(
                UnsafeRawPointer(bitPattern: context)!
            ).takeRetainedValue()
            pending.answer.errno = errno
            pending.answer.isAfterFence = pending.site.wasToldOfFence
            for index in pending.answer.targets.indices {
                let target = pending.answer.targets[index].target
                let standing = pending.site.primary?.volume.gate.standing(of: target)
                pending.answer.targets[index].wasWaitedFor = standing == .counting
                pending.answer.targets[index].wasThere =
                    standing == .counting || standing == .inStep
                let record = pending.site.attached(pending.answer.targets[index].site)?.record
                pending.answer.targets[index].wasOnRecord = record?.isWhole ?? false
            }
            pending.site.answers.append(pending.answer)
        }
    }
}
