// One line of authorized_peers:
//
//   SHA256:…  [pools=web,db-*  right=replicate]  [host=backup.example:7420]  NAME  [# comment]
//
// `pools` and `right` come together: what the peer may do when it connects to this host. `host` says that the peer
// is the server at these addresses. A peer has the one, the other, or both.

/// Where a server listens.
package struct PeerHost: Hashable, Sendable, CustomStringConvertible {
    package let host: String
    /// nil: any.
    package let port: Int?

    /// `backup.example`, `10.0.0.2:7420`, `[::1]:7420`.
    package init?(_ text: some StringProtocol) {
        var rest = text[...]
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { return nil }
            host = Self.normal(text[text.index(after: text.startIndex)..<end])
            guard host.contains(":") else { return nil }
            rest = text[text.index(after: end)...]
        } else {
            let end = text.firstIndex(of: ":") ?? text.endIndex
            host = Self.normal(text[..<end])
            rest = text[end...]
        }
        guard !host.isEmpty,
            host.utf8.allSatisfy({ byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"):
                    true
                default: ".-_:%".utf8.contains(byte)
                }
            })
        else { return nil }
        if rest.isEmpty {
            port = nil
        } else {
            guard rest.first == ":", let number = UInt16(rest.dropFirst()), number > 0 else {
                return nil
            }
            port = Int(number)
        }
    }

    package func matches(_ host: String, port: Int) -> Bool {
        Self.normal(host) == self.host && (self.port ?? port) == port
    }

    private static func normal(_ host: some StringProtocol) -> String {
        var host = host.lowercased()
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        return host
    }

    package var description: String {
        (host.contains(":") ? "[\(host)]" : host) + (port.map { ":\($0)" } ?? "")
    }
}

package struct PinnedPeer: Hashable, Sendable {
    package var fingerprint: PeerFingerprint
    package var name: String
    /// What it may do here; nil: it may not connect.
    package var rights: PeerRights?
    package var hosts: [PeerHost]

    package init(
        fingerprint: PeerFingerprint, name: String, rights: PeerRights? = nil,
        hosts: [PeerHost] = []
    ) {
        self.fingerprint = fingerprint
        self.name = name
        self.rights = rights
        self.hosts = hosts
    }

    /// As it stands in the file.
    package var line: String {
        var words = [fingerprint.description]
        if let rights {
            words.append("pools=" + rights.pools.map(\.text).joined(separator: ","))
            words.append("right=\(rights.right.rawValue)")
        }
        if !hosts.isEmpty {
            words.append("host=" + hosts.map(\.description).joined(separator: ","))
        }
        return (words + [name]).joined(separator: " ")
    }

    /// Letters, digits and `.`, `-`, `_`, `@`; at most 64.
    package static func isName(_ text: some StringProtocol) -> Bool {
        !text.isEmpty && text.utf8.count <= 64
            && text.utf8.allSatisfy {
                switch $0 {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"):
                    true
                default: ".-_@".utf8.contains($0)
                }
            }
    }

    package static func pools(_ text: some StringProtocol) -> [PoolPattern]? {
        let words = text.split(separator: ",", omittingEmptySubsequences: false)
        let pools = words.compactMap { PoolPattern($0) }
        return pools.count == words.count ? pools : nil
    }

    package static func hosts(_ text: some StringProtocol) -> [PeerHost]? {
        let words = text.split(separator: ",", omittingEmptySubsequences: false)
        let hosts = words.compactMap { PeerHost($0) }
        return hosts.count == words.count ? hosts : nil
    }

    /// - Returns: nil for a line without a peer.
    static func parse(_ line: Substring) throws(IdentityError) -> PinnedPeer? {
        let words = Self.words(of: line)
        guard let first = words.first else { return nil }
        guard let fingerprint = PeerFingerprint(first) else {
            throw mistake("'\(first.prefix(60))' is no key's fingerprint (SHA256: and 43 letters)")
        }
        var values: [String: Substring] = [:]
        var name: Substring?
        for word in words.dropFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            guard parts.count == 2 else {
                if let name { throw mistake("'\(word)' follows the peer's name, \(name)") }
                guard isName(word) else {
                    throw mistake("'\(word)' is no name: letters, digits, '.', '-', '_' and '@'")
                }
                name = word
                continue
            }
            let key = String(parts[0])
            guard ["pools", "right", "host"].contains(key) else {
                throw mistake("there is no '\(key)=': it is one of pools=, right=, host=")
            }
            guard name == nil, values.updateValue(parts[1], forKey: key) == nil else {
                throw mistake("'\(key)=' stands once, before the peer's name")
            }
        }
        guard let name else { throw mistake("the peer's name is missing at the end") }
        return PinnedPeer(
            fingerprint: fingerprint, name: String(name),
            rights: try rights(String(name), values["pools"], values["right"]),
            hosts: try checkedHosts(values["host"], isAlone: values["pools"] == nil))
    }

    /// Up to a word that begins a comment.
    private static func words(of line: Substring) -> [Substring] {
        let all = line.split { $0 == " " || $0 == "\t" || $0 == "\r" }
        return Array(all.prefix { !$0.hasPrefix("#") })
    }

    private static func rights(
        _ name: String, _ pools: Substring?, _ right: Substring?
    ) throws(IdentityError) -> PeerRights? {
        guard pools != nil || right != nil else { return nil }
        guard let pools, let right else {
            throw mistake("'pools=' and 'right=' stand together")
        }
        guard let patterns = Self.pools(pools) else {
            throw mistake("'pools=\(pools)' is names with commas between them, such as web,db-*")
        }
        guard let known = Right(rawValue: String(right)) else {
            throw mistake(
                "'right=\(right)' is one of "
                    + Right.allCases.map(\.rawValue).joined(separator: ", "))
        }
        return PeerRights(name: name, pools: patterns, right: known)
    }

    private static func checkedHosts(
        _ text: Substring?, isAlone: Bool
    ) throws(IdentityError) -> [PeerHost] {
        guard let text else {
            if isAlone {
                throw mistake("neither 'pools=' and 'right=' nor 'host=': it may do nothing")
            }
            return []
        }
        guard let hosts = hosts(text) else {
            throw mistake("'host=\(text)' is such as backup.example:7420 or [::1]:7420")
        }
        return hosts
    }

    private static func mistake(_ message: String) -> IdentityError {
        IdentityError(.damaged, message)
    }
}
