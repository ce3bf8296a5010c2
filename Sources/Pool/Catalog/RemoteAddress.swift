import BlockCore

/// A pool behind a server: `doppel://host:port/pool`.
package struct RemoteAddress: Sendable, Hashable {
    package static let prefix = "doppel://"
    package var server: HostPort
    /// As the server names it: a path below the folder that it serves.
    package var pool: String

    /// - Returns: nil for what is none.
    package init?(_ text: String) {
        guard text.hasPrefix(Self.prefix) else { return nil }
        let rest = text.dropFirst(Self.prefix.count)
        guard let slash = rest.firstIndex(of: "/"), let server = HostPort(String(rest[..<slash])),
            server.port > 0
        else { return nil }
        pool = String(rest[rest.index(after: slash)...])
        guard Self.isPoolName(pool) else { return nil }
        self.server = server
    }

    package var text: String { "\(Self.prefix)\(server)/\(pool)" }

    /// Names that stay below the folder they are looked for in, and hide nothing in it.
    package static func isPoolName(_ name: String) -> Bool {
        guard !name.isEmpty, name.utf8.count <= 512 else { return false }
        let hasOdd = name.unicodeScalars.contains {
            $0.value <= 0x20 || $0.value == 0x7f || ",#\"\\:*".unicodeScalars.contains($0)
        }
        let parts = name.split(separator: "/", omittingEmptySubsequences: false)
        return !hasOdd && parts.allSatisfy { !$0.isEmpty && !$0.hasPrefix(".") }
    }
}
