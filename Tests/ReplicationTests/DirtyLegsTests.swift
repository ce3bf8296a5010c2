import BlockCore
import Replication
import Testing

private let image = ImageID(rawValue: 1)
private func set(_ blocks: UInt64...) -> BlockSet {
    BlockSet(blocks.map { BlockRange(start: $0, count: 1) })
}
private func cut(_ sequence: UInt64) -> SnapshotInfo {
    SnapshotInfo(
        name: "s\(sequence)", createdNs: 0, origin: "user",
        sequence: SequenceNumber(rawValue: sequence))
}

@Suite struct DirtyLegsTests {
    /// Legs that end at 10 and 20, with a block of its own number in each.
    private func threeLegs() -> DirtyLegs {
        var legs = DirtyLegs()
        legs.enter([image: set(1)])
        legs.cut(cut(10))
        legs.enter([image: set(2)])
        legs.cut(cut(20))
        legs.enter([image: set(3)])
        return legs
    }
    private func blocks(_ legs: DirtyLegs) -> [BlockSet] {
        legs.legs.map { $0.blocks[image] ?? BlockSet() }
    }

    @Test func aSuspectThatDiffersIsInTheFirstLegAndEverySuspectInTheLaterOnes() {
        var legs = threeLegs()
        legs.enterUnknown([image: set(5, 6, 7)])
        #expect(legs.dirtyBlocks == 3 && legs.unknownBlocks == 3 && !legs.isFromRecordsOnly)
        // What was not a suspect is none of its business.
        func resolve(_ start: UInt64, _ count: UInt64, _ differing: BlockSet) -> Bool {
            legs.resolve(
                BlockRange(start: start, count: count), of: image, differing: differing,
                end: SequenceNumber(rawValue: 10))
        }
        #expect(resolve(0, 7, set(5, 2)))
        #expect(blocks(legs) == [set(1, 5), set(2, 5, 6), set(3, 5, 6)])
        #expect(legs.unknown == [image: set(7)])
        #expect(resolve(0, 7, set(6)))
        #expect(blocks(legs)[0] == set(1, 5), "a block is resolved once")
        #expect(resolve(7, 1, BlockSet()))
        #expect(legs.unknown.isEmpty)
    }

    /// It says nothing of another end: the snapshot may differ where the head does not, and the other way
    /// round.
    @Test func whatWasComparedWithAnotherEndResolvesNothing() {
        let range = BlockRange(start: 0, count: 8)
        var legs = threeLegs()
        legs.enterUnknown([image: set(5)])
        legs.join(cut: SequenceNumber(rawValue: 10))
        let was = legs.resolve(
            range, of: image, differing: BlockSet(), end: SequenceNumber(rawValue: 10))
        #expect(!was && legs.unknown == [image: set(5)])
        var head = DirtyLegs()
        head.enterUnknown([image: set(5)])
        head.cut(cut(10))
        let wasHead = head.resolve(range, of: image, differing: BlockSet(), end: nil)
        #expect(!wasHead)
        #expect(head.unknown == [image: set(5)])
    }

    @Test func aSuspectOfADeletedImageMayStillBeInASnapshot() {
        for hasLegs in [false, true] {
            var legs = hasLegs ? threeLegs() : DirtyLegs()
            legs.enterUnknown([image: set(5)])
            legs.enter(
                StreamRecord(.imageDeleted, sequence: SequenceNumber(rawValue: 30), image: image))
            #expect(legs.unknown.isEmpty == !hasLegs)
            #expect(blocks(legs).last == BlockSet())
        }
    }

    @Test func theFirstLegStaysUntilItIsCommitted() {
        var legs = threeLegs()
        #expect(legs.takeFirst() == [image: set(1)])
        #expect(legs.legs.count == 3 && blocks(legs)[0].isEmpty && !legs.isClean)
        #expect(legs.legs[0].all == [image: set(1)])
        legs.putBack([image: set(1)])
        #expect(blocks(legs)[0] == set(1))
        #expect(legs.takeFirst() == [image: set(1)])
        legs.commitFirst()
        #expect(blocks(legs) == [set(2), set(3)])
        _ = legs.takeFirst()
        legs.commitFirst()
        _ = legs.takeFirst()
        legs.commitFirst()
        #expect(legs.isClean && legs.isFromRecordsOnly)
    }

    @Test func whatIsDirtyInALegAgainWhenItIsCommittedGoesWithTheNext() {
        var legs = threeLegs()
        _ = legs.takeFirst()
        legs.putBack([image: set(1, 9)])
        legs.commitFirst()
        #expect(blocks(legs) == [set(1, 2, 9), set(3)])
    }

    @Test func committingALegWhoseSnapshotIsGoneLeavesTheNextCutInItsPlace() {
        var legs = threeLegs()
        _ = legs.takeFirst()
        legs.join(cut: SequenceNumber(rawValue: 10))
        #expect(blocks(legs) == [set(2), set(3)])
        legs.commitFirst()
        #expect(legs.legs.map { $0.snapshot?.sequence.rawValue } == [20, nil])
        #expect(blocks(legs) == [set(2), set(3)])
    }

    @Test func theBlocksOfALostSessionAreDirtyAgain() {
        var legs = threeLegs()
        _ = legs.takeFirst()
        legs.join(cut: SequenceNumber(rawValue: 10))
        legs.returnTaken()
        #expect(blocks(legs) == [set(1, 2), set(3)])
    }

    @Test func cutsThatTheTargetHasAreNoLegs() {
        var legs = threeLegs()
        legs.joinLegs(through: SequenceNumber(rawValue: 15))
        #expect(blocks(legs) == [set(1, 2), set(3)])
        legs.joinLegs(through: SequenceNumber(rawValue: 100))
        #expect(blocks(legs) == [set(1, 2, 3)])
    }
}
