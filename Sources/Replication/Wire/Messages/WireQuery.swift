// What is asked on a control connection, by whoever may read or administer a pool there.
//
// A copy (`copy-open`) is the pool as it was when that was asked, in legs: each snapshot, then the checkpoint. What is
// asked of a leg has the form of a session's requests, with the leg's number in place of `after`.

import BlockCore

package enum WireQuery: Sendable {
    /// A verb as on the control socket of a mounted pool: one JSON object.
    case control([UInt8])
    case shape(leg: UInt64)
    /// What the leg may have that the one before has not.
    case blocks(leg: UInt64)
    case hashes(leg: UInt64, of: ImageID, in: BlockRange)
    case read(leg: UInt64, BlockRange, of: ImageID)

    package var kind: WireKind {
        switch self {
        case .control: .control
        case .shape: .shape
        case .blocks: .allocatedBlocks
        case .hashes: .blockHashes
        case .read: .read
        }
    }

    package static let kinds: [WireKind] = [
        .control, .shape, .allocatedBlocks, .blockHashes, .read,
    ]

    package func encoded() throws(WireError) -> WireWriter {
        switch self {
        case .control(let text):
            var writer = WireWriter("control", capacity: text.count)
            writer.put(bytes: text)
            return writer
        case .shape(let leg): return try WireRequest.shape(after: leg).encoded()
        case .blocks(let leg): return try WireRequest.allocatedBlocks(after: leg).encoded()
        case .hashes(let leg, let image, let range):
            return try WireRequest.blockHashes(after: leg, of: image, in: range).encoded()
        case .read(let leg, let range, let image):
            return try WireRequest.read(after: leg, range, of: image).encoded()
        }
    }

    init(_ frame: WireFrame) throws(WireError) {
        guard frame.head.kind != .control else {
            self = .control(frame.body.withBytes { Array($0) })
            return
        }
        switch try WireRequest(frame) {
        case .shape(let leg): self = .shape(leg: leg)
        case .allocatedBlocks(let leg): self = .blocks(leg: leg)
        case .blockHashes(let leg, let image, let range):
            self = .hashes(leg: leg, of: image, in: range)
        case .read(let leg, let range, let image): self = .read(leg: leg, range, of: image)
        default:
            throw WireError(
                .outOfOrder, "frame.kind", at: 4, "'\(frame.head.kind)' is no query")
        }
    }
}
