import BlockCore
import Testing

@Suite struct GenerationHistoryTests {
    /// - Parameter story: such as "a0 b70": ids with the sequence they start at.
    private func history(_ story: String) -> GenerationHistory {
        var parent: String?
        return GenerationHistory(
            story.split(separator: " ").enumerated().map { index, word in
                let id = String(word.prefix(1))
                defer { parent = id }
                return GenerationHistory.Entry(
                    generation: Generation(
                        number: UInt64(index + 1), id: id, parentID: parent,
                        startSequence: SequenceNumber(rawValue: UInt64(word.dropFirst())!)),
                    poolID: "p", begunNs: 0, cause: .forced)
            })
    }

    @Test(arguments: [
        ("a0", "a0", GenerationHistory.Relation.same),
        ("a0", "a0 b70", .replacedByOther),
        ("a0", "a0 b70 c90", .replacedByOther),
        ("a0 b70", "a0", .replacesOther),
        ("a0 b70", "a0 c50", .split),
        ("a0 b70 d80", "a0 c50", .split),
        ("a0", "b0", .unrelated),
        ("", "a0", .unrelated),
    ])
    func whatTwoPoolsAreToEachOther(
        ours: String, theirs: String, relation: GenerationHistory.Relation
    ) {
        #expect(history(ours).relation(to: history(theirs)) == relation)
    }

    @Test(
        arguments: [
            ("a0", "a0", "a", nil),
            ("a0", "a0 b70", "a", 70),
            ("a0 b70", "a0 c50", "a", 50),
            ("a0 b70 d80", "a0 b70 e60", "b", 60),
            ("a0 b70 d80 f90", "a0 b70 d80", "d", 90),
            // Promoted while it was on its way to where b begins.
            ("a0 b70 c50", "a0", "a", 50),
            ("a0 b70 c50", "a0 d60", "a", 50),
            ("a0 b70 c50", "a0 b70", "b", 50),
            ("a0 b70 c50 e90", "a0 b70 d80", "b", 50),
            ("a0 b70 c50 e90", "a0 b70 c50", "c", 90),
        ] as [(String, String, String, UInt64?)])
    func whereTheirStoriesPart(ours: String, theirs: String, id: String, sequence: UInt64?) {
        let expected = GenerationHistory.Fork(
            generationID: id, sequence: sequence.map(SequenceNumber.init(rawValue:)))
        #expect(history(ours).fork(from: history(theirs)) == expected)
        #expect(history(theirs).fork(from: history(ours)) == expected)
    }
}
