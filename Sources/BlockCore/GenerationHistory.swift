// The generations that led to a pool's content, the oldest first. Two pools that were one once share a
// beginning; where their stories part is where one of them was promoted.
//
//     P   1 ────────────────────────►          what P did after C, and M never had: diverged
//              └─ C ── 2 ───────────►   M      2 has the parent 1 and starts at C
//
// A story is compared by ids alone: numbers only say which of two pools was replaced.

package struct GenerationHistory: Hashable, Codable, Sendable {
    package enum Cause: String, Codable, Sendable {
        /// The pool was made.
        case initial
        /// Its primary had ended, and nothing was missing.
        case promoted
        /// Its primary may have gone on, or had more.
        case forced
        /// Handed over by its primary.
        case planned
        /// Kept where two pools both were primaries.
        case resolved
        /// From before this was noted.
        case unknown
    }

    package struct Entry: Hashable, Codable, Sendable {
        package var generation: Generation
        /// The pool that it began in.
        package var poolID: String
        package var begunNs: Int64
        package var cause: Cause

        package init(generation: Generation, poolID: String, begunNs: Int64, cause: Cause) {
            self.generation = generation
            self.poolID = poolID
            self.begunNs = begunNs
            self.cause = cause
        }
    }

    /// Ascending by number; each is the parent of the next.
    package var entries: [Entry]

    package init(_ entries: [Entry] = []) {
        self.entries = entries.sorted { $0.generation.number < $1.generation.number }
    }

    package var current: Generation? { entries.last?.generation }
    package func contains(_ id: String) -> Bool { entries.contains { $0.generation.id == id } }

    /// How far the story follows a generation; nil where it is in it still, or never was. A copy that was
    /// promoted in the middle of a resync may begin before the generation that it followed did, and leaves
    /// older ones earlier than that one:
    ///
    ///     1 ──────── C ────────── B ───►
    ///                │            └── 2 ────►     the copy follows 2, and is at C
    ///                └── 3 ───────────────────►   its story is 1, 2, 3: and has nothing of 1 after C
    package func end(of id: String) -> SequenceNumber? {
        guard let index = entries.firstIndex(where: { $0.generation.id == id }) else { return nil }
        return entries[(index + 1)...].map(\.generation.startSequence).min()
    }

    /// The last generation that both went through, and how much of it both have.
    package struct Fork: Hashable, Sendable {
        package var generationID: String
        /// Where the first of the two left it; nil: both are in it still.
        package var sequence: SequenceNumber?

        package init(generationID: String, sequence: SequenceNumber?) {
            self.generationID = generationID
            self.sequence = sequence
        }
    }

    /// - Returns: nil where the two have nothing in common.
    package func fork(from other: GenerationHistory) -> Fork? {
        guard let last = entries.last(where: { other.contains($0.generation.id) }) else {
            return nil
        }
        let id = last.generation.id
        let ends = [end(of: id), other.end(of: id)].compactMap { $0 }
        return Fork(generationID: id, sequence: ends.min())
    }

    /// What two pools that meet are to each other.
    package enum Relation: Hashable, Sendable {
        /// Both are of the same generation.
        case same
        /// The other one was promoted from here, or from what came from here.
        case replacedByOther
        /// The other one's generation is one of ours, from before.
        case replacesOther
        /// Both went on from the same place, each on its own.
        case split
        case unrelated
    }

    package func relation(to other: GenerationHistory) -> Relation {
        guard let ours = current, let theirs = other.current else { return .unrelated }
        if ours.id == theirs.id { return .same }
        if other.contains(ours.id) { return .replacedByOther }
        if contains(theirs.id) { return .replacesOther }
        return fork(from: other) == nil ? .unrelated : .split
    }
}
