/// What a peer may do with a pool. Each includes those before it.
package enum Right: String, CaseIterable, Sendable, Comparable {
    case read
    /// Append to the pool as its primary. Not: delete snapshots.
    case replicate
    case admin

    package static func < (one: Right, other: Right) -> Bool {
        let order = allCases
        return order.firstIndex(of: one)! < order.firstIndex(of: other)!  // all cases are there
    }
}

/// Names of pools: a name, or one with `*` for any characters but `/`; `*` alone is every pool.
package struct PoolPattern: Hashable, Sendable, CustomStringConvertible {
    package let text: String
    package var description: String { text }

    /// - Returns: nil for what can be no pool's name.
    package init?(_ text: some StringProtocol) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard !text.isEmpty, text.utf8.count <= 1024,
            !parts.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." }),
            !text.unicodeScalars.contains(where: {
                $0.value <= 0x20 || $0.value == 0x7f || $0 == "," || $0 == "#" || $0 == "\""
            })
        else { return nil }
        self.text = String(text)
    }

    package func matches(_ pool: String) -> Bool {
        if text == "*" { return true }
        return Self.matches(Array(pool.utf8), Array(text.utf8))
    }

    /// Remembers the last `*` alone: a later one can only take what an earlier one may leave.
    private static func matches(_ name: [UInt8], _ pattern: [UInt8]) -> Bool {
        let star = UInt8(ascii: "*")
        let slash = UInt8(ascii: "/")
        var at = 0
        var next = 0
        var retry: (at: Int, pattern: Int)?
        while at < name.count {
            if next < pattern.count, pattern[next] == star {
                retry = (at, next + 1)
                next += 1
            } else if next < pattern.count, pattern[next] == name[at] {
                at += 1
                next += 1
            } else if let last = retry, name[last.at] != slash {
                retry = (last.at + 1, last.pattern)
                at = last.at + 1
                next = last.pattern
            } else {
                return false
            }
        }
        return pattern[next...].allSatisfy { $0 == star }
    }
}

package struct PeerRights: Hashable, Sendable {
    /// As authorized_peers calls the peer.
    package let name: String
    package let pools: [PoolPattern]
    package let right: Right

    package init(name: String, pools: [PoolPattern], right: Right) {
        self.name = name
        self.pools = pools
        self.right = right
    }

    package func allows(pool: String) -> Bool { pools.contains { $0.matches(pool) } }
    package func allows(_ needed: Right, pool: String) -> Bool {
        right >= needed && allows(pool: pool)
    }
}

/// Who may connect to this host. Asked for each connection and each pool, from any thread.
package protocol PeerAuthority: Sendable {
    /// - Returns: nil for a key that nobody let in.
    func rights(of peer: PeerFingerprint) -> PeerRights?
    /// Calls `body` after each change of what ``rights(of:)`` answers, from a thread of its own: sessions
    /// that it does not cover any more have to end.
    func onChange(_ body: @escaping @Sendable () -> Void)
}

/// Which keys the server at an address may have: whoever connects to it takes these and no other. A peer that
/// may connect to us is no server for that alone: it would be sent what was meant for another one.
package protocol ServerKeys: Sendable {
    func keys(ofServerAt host: String, port: Int) -> Set<PeerFingerprint>
    func onChange(_ body: @escaping @Sendable () -> Void)
}
