// Changes of authorized_peers by `doppel pair`. What a person wrote there stays as it is: lines are appended, replaced and
// taken out, and nothing else is touched.
//
//   1. what is there is kept durably under the name with `.old`
//   2. the new content takes its place durably
//
// After a loss of power the old or the new is there, whole.

import SystemIO

package struct PeerFile: Sendable {
    package let path: String
    private let state: StateDirectory

    /// - Parameter state: whose lock keeps two changes apart.
    package init(path: String, state: StateDirectory) {
        // A link stays a link.
        self.path = ProcessControl.realPath(path) ?? path
        self.state = state
    }

    /// Empty where there is no file.
    package func load() throws(IdentityError) -> PeerList {
        PeerList(try state.read(path, isSecret: false) ?? [])
    }

    package enum Acceptance: Sendable, Equatable { case added, replaced, unchanged }

    /// Adds a peer's line, or replaces the one with its key.
    package func accept(_ peer: PinnedPeer) throws(IdentityError) -> Acceptance {
        try state.withLock { () throws(IdentityError) in
            let list = try load()
            var lines = list.lines
            if let entry = list.entries.first(where: { $0.peer.fingerprint == peer.fingerprint }) {
                if entry.peer == peer { return .unchanged }
                let comment = Self.comment(of: PeerList.text(lines[entry.line - 1]))
                lines[entry.line - 1] = Array((peer.line + comment).utf8)[...]
                try store(lines)
                return .replaced
            }
            if list.mistakes.contains(where: {
                PeerList.text(list.lines[$0.line - 1]).contains(peer.fingerprint.description)
            }) {
                throw IdentityError(
                    .refused,
                    "\(path) has a line with \(peer.fingerprint) that nobody can read "
                        + "(\(list.mistakes.map(\.description).joined(separator: "; "))): correct it first"
                )
            }
            if lines.last?.isEmpty == true { lines.removeLast() }
            try store(lines + [Array(peer.line.utf8)[...], []])
            return .added
        }
    }

    /// Takes out every line that `matches`.
    /// - Returns: who stood there.
    package func remove(
        where matches: (PinnedPeer) -> Bool
    ) throws(IdentityError) -> [PinnedPeer] {
        try state.withLock { () throws(IdentityError) in
            let list = try load()
            let gone = list.entries.filter { matches($0.peer) }
            guard !gone.isEmpty else { return [] }
            let numbers = Set(gone.map { $0.line - 1 })
            try store(
                list.lines.indices.filter { !numbers.contains($0) }.map { list.lines[$0] })
            return gone.map(\.peer)
        }
    }

    private func store(_ lines: [ArraySlice<UInt8>]) throws(IdentityError) {
        if let old = try state.read(path, isSecret: false) { try state.write(path + ".old", old) }
        try state.write(path, Array(lines.joined(separator: [0x0a])))
    }

    private static func comment(of line: Substring) -> String {
        guard let mark = line.range(of: " #") else { return "" }
        return String(line[mark.lowerBound...])
    }
}
