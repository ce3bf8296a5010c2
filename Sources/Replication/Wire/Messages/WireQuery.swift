// What is asked on a control connection, by whoever may read or administer a pool there.

import BlockCore

package enum WireQuery: Sendable {
    /// A verb as on the control socket of a mounted pool: one JSON object.
    case control([UInt8])

    package var kind: WireKind {
        switch self {
        case .control: .control
        }
    }

    package static let kinds: [WireKind] = [.control]

    package func encoded() throws(WireError) -> WireWriter {
        switch self {
        case .control(let text):
            var writer = WireWriter("control", capacity: text.count)
            writer.put(bytes: text)
            return writer
        }
    }

    init(_ frame: WireFrame) throws(WireError) {
        switch frame.head.kind {
        case .control: self = .control(frame.body.withBytes { Array($0) })
        default:
            throw WireError(
                .outOfOrder, "frame.kind", at: 4, "'\(frame.head.kind)' is no query")
        }
    }
}
