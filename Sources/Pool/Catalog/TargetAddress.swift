// Where a target is, and of which kind, as its address says.

package enum TargetAddress: Sendable, Hashable {
    /// `/path`: another pool.
    case mirror(String)
    /// `raw:/path`: plain files.
    case raw(String)

    private static let rawPrefix = "raw:"

    package init(_ text: String) {
        self =
            text.hasPrefix(Self.rawPrefix)
            ? .raw(String(text.dropFirst(Self.rawPrefix.count))) : .mirror(text)
    }

    package var path: String {
        switch self {
        case .mirror(let path), .raw(let path): path
        }
    }

    /// The same kind elsewhere.
    package func at(_ path: String) -> TargetAddress {
        switch self {
        case .mirror: .mirror(path)
        case .raw: .raw(path)
        }
    }

    package var text: String {
        switch self {
        case .mirror(let path): path
        case .raw(let path): Self.rawPrefix + path
        }
    }

    package var isRaw: Bool { if case .raw = self { true } else { false } }
}
