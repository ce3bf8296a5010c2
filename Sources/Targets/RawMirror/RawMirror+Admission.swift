// Who may write to a raw mirror: see MirrorTarget+Admission.swift, whose rules these are.

import BlockCore
import Pool
import Replication
import SystemIO

extension RawMirror {
    /// The same as of a mirror directory, but that a raw mirror keeps no snapshot of what it had and its
    /// primary has not: of a pool that went another way it takes nothing.
    func check(
        _ hello: PrimaryHello, against state: RawFolderState
    ) throws(TargetError) {
        let isOther = hello.poolID != state.primaryPoolID
        guard let known = state.generation, known.id != hello.generation.id else {
            if isOther { throw otherPool(state, hello) }
            return
        }
        let content = state.history.current?.id
        if known.number > hello.generation.number {
            guard
                !isOther || known.parentID == hello.generation.id
                    || state.history.contains(hello.generation.id)
            else { throw otherPool(state, hello) }
            throw TargetError(
                .fenced,
                "\(path) follows generation \(known.number) by now, this primary is generation "
                    + "\(hello.generation.number): it was replaced")
        }
        let saysNothing = hello.history.entries.isEmpty && !isOther
        guard known.number < hello.generation.number,
            hello.story.contains(known.id) || saysNothing
        else {
            guard !isOther else { throw otherPool(state, hello) }
            throw TargetError(
                .splitBrain,
                "split brain: \(path) follows a generation \(known.number) and this pool is in a "
                    + "generation \(hello.generation.number), and neither came from the other. A raw "
                    + "mirror keeps no snapshot of what it has: copy what is missed, then remove the target, "
                    + "and add it with --seed")
        }
        guard isOther, let content, let end = hello.story.end(of: content) else { return }
        guard state.content != .torn, state.checkpoint <= end else {
            throw TargetError(
                .absent,
                "\(path) may have what this pool never had, and a raw mirror keeps no snapshot of it: "
                    + "`doppel promote raw:\(path)` or a copy keeps it; then remove the target, and add it "
                    + "with --seed")
        }
    }

    private func otherPool(_ state: RawFolderState, _ hello: PrimaryHello) -> TargetError {
        TargetError(
            .absent,
            "\(path) is a raw mirror, but not of pool \(hello.poolID) (it follows "
                + "\(state.primaryPoolID)): nothing in it was touched")
    }

    /// The primary is followed from here on, and that is noted.
    func admit(_ hello: PrimaryHello) throws(TargetError) {
        try check(hello, against: state)
        let isSame = state.incarnationID == hello.incarnationID
        try change {
            $0.generation = hello.generation
            $0.primaryPoolID = hello.poolID
            $0.primaryAddress = hello.address ?? $0.primaryAddress
            if isSame { $0.history = hello.story }
        }
    }

    /// The primary's own later generation began before what the mirror has.
    func divergence(from hello: PrimaryHello) -> Divergence? {
        guard state.incarnationID != nil, let position, let content = state.history.current?.id,
            let end = hello.story.end(of: content), position > end
        else { return nil }
        return Divergence(common: end, isComplete: false)
    }

    /// The folder is a pool by now.
    func refuse(primary sight: PoolSight, _ hello: PrimaryHello) throws(TargetError) {
        switch sight.history.relation(to: hello.story) {
        case .replacesOther:
            throw TargetError(
                .fenced,
                "\(path) was promoted and is a pool and a primary itself: mount that, and keep this one "
                    + "until it is known to hold nothing that is missed")
        case .split:
            throw TargetError(
                .splitBrain,
                "split brain: \(path) was promoted, as this pool was, each on its own. Nothing is sent"
            )
        default:
            throw TargetError(
                .absent, "\(path) is a pool, and no raw mirror: nothing in it was touched")
        }
    }
}
