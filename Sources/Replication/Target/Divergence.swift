// What a target has that its primary has not: it was a primary itself, or followed another one.
//
//     common ──► what the primary did since     in the target's dirty set here
//          └───► what the target did since      reported by the target: this
//
// Only the union of the two travels. What the target did stays there as a snapshot.

import BlockCore

package struct Divergence: Sendable, Equatable {
    /// Up to here both have the same.
    package var common: SequenceNumber
    /// Changed on the target after that.
    package var blocks: [ImageID: BlockSet]
    /// Changed there, or lost in a crash, or neither: to be compared.
    package var suspects: [ImageID: BlockSet]
    /// It has something of these; of any other image of the primary it has nothing (any more): the blocks of
    /// an image that was deleted there are in neither set.
    package var images: Set<ImageID> = []
    /// All that changed is in the two, or is of images that it has not. Otherwise the target does not know:
    /// everything is compared.
    package var isComplete: Bool
    /// Names, images or sizes changed there, or may have.
    package var hasNameChanges = false

    /// Something is there that the primary may not have.
    package var isSomething: Bool {
        !isComplete || hasNameChanges || blocks.blockCount + suspects.blockCount > 0
    }

    package init(
        common: SequenceNumber, blocks: [ImageID: BlockSet] = [:],
        suspects: [ImageID: BlockSet] = [:], isComplete: Bool
    ) {
        self.common = common
        self.blocks = blocks
        self.suspects = suspects
        self.isComplete = isComplete
    }
}
