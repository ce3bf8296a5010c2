// What authorized_peers says as a whole.
//
// A line with a mistake grants nothing, and no other line grants more for it: a file that is broken, or cut off in the
// middle while somebody writes it, can only take rights away. A key stands in one line; where it stands in two,
// neither counts, for nobody knows which was meant.

package struct PeerList: Sendable {
    package struct Mistake: Sendable, Hashable, CustomStringConvertible {
        package var line: Int
        package var message: String
        package var description: String { "line \(line): \(message)" }
    }
    package struct Entry: Sendable, Hashable {
        package var line: Int
        package var peer: PinnedPeer
    }

    package private(set) var entries: [Entry] = []
    package private(set) var mistakes: [Mistake] = []
    /// The lines as they are, without the byte that ends each.
    let lines: [ArraySlice<UInt8>]

    package init(_ bytes: [UInt8] = []) {
        // By bytes: to a string, a carriage return and a newline are one character.
        lines = bytes.split(separator: 0x0a, omittingEmptySubsequences: false)
        var found: [Entry] = []
        for (index, line) in lines.enumerated() {
            do throws(IdentityError) {
                if let peer = try PinnedPeer.parse(Self.text(line)) {
                    found.append(Entry(line: index + 1, peer: peer))
                }
            } catch {
                mistakes.append(Mistake(line: index + 1, message: error.message))
            }
        }
        let byKey = Dictionary(grouping: found, by: \.peer.fingerprint)
        for entry in found {
            guard let others = byKey[entry.peer.fingerprint], others.count > 1 else {
                entries.append(entry)
                continue
            }
            let places = others.map { "\($0.line)" }.joined(separator: " and ")
            mistakes.append(
                Mistake(
                    line: entry.line,
                    message: "the key stands in lines \(places): none of them counts"))
        }
        mistakes.sort { $0.line < $1.line }
    }

    static func text(_ line: ArraySlice<UInt8>) -> Substring {
        String(decoding: line, as: UTF8.self)[...]
    }

    package var peers: [PinnedPeer] { entries.map(\.peer) }
}
