// Where a target is, and of which kind, as its address says.

package enum TargetAddress: Sendable, Hashable {
    /// `/path`: another pool.
    case mirror(String)
    /// `raw:/path`: plain files.
    case raw(String)
    /// `doppel://host:port/pool`: a pool behind a server.
    case remote(RemoteAddress)

    private static let rawPrefix = "raw:"

    package init(_ text: String) {
        if let remote = RemoteAddress(text) {
            self = .remote(remote)
        } else {
            self =
                text.hasPrefix(Self.rawPrefix)
                ? .raw(String(text.dropFirst(Self.rawPrefix.count))) : .mirror(text)
        }
    }

    /// Why it is none; nil where it is one.
    package static func problem(_ text: String) -> String? {
        guard text.hasPrefix(RemoteAddress.prefix), RemoteAddress(text) == nil else { return nil }
        return "'\(text)' is no address of a pool: such as doppel://backup.example:7420/vms"
    }

    /// Of what is on this machine; nothing is at that of a remote one.
    package var path: String {
        switch self {
        case .mirror(let path), .raw(let path): path
        case .remote(let remote): remote.text
        }
    }

    /// The same kind elsewhere.
    package func at(_ path: String) -> TargetAddress {
        switch self {
        case .mirror: .mirror(path)
        case .raw: .raw(path)
        case .remote: self
        }
    }

    package var text: String {
        switch self {
        case .mirror(let path): path
        case .raw(let path): Self.rawPrefix + path
        case .remote(let remote): remote.text
        }
    }

    package var remote: RemoteAddress? {
        if case .remote(let remote) = self { remote } else { nil }
    }
    package var isRaw: Bool { if case .raw = self { true } else { false } }

    /// `web1:/srv/vms`: what a pool on another machine said of where it is. That is for people: nobody can be
    /// connected to there.
    package var isElsewhere: Bool {
        guard case .mirror(let path) = self, let end = path.firstIndex(of: "/") else {
            return false
        }
        return path[..<end].hasSuffix(":") && path[..<end].count > 1
    }
}
