/// Where a program of the network is: `host:port`, `192.0.2.1:7420`, `[2001:db8::1]:7420`.
package struct HostPort: Sendable, Hashable, CustomStringConvertible {
    /// Of a Doppel server, where nothing else is said.
    package static let defaultPort = 7420
    package var host: String
    package var port: Int

    package init(host: String, port: Int) {
        self.host = host
        self.port = port
    }

    /// - Returns: nil for what is none. Port 0 is one that the system chooses.
    package init?(_ text: String) {
        let (host, rest): (Substring, Substring)
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { return nil }
            host = text[text.index(after: text.startIndex)..<end]
            rest = text[text.index(after: end)...]
            guard host.contains(":") else { return nil }
        } else {
            let end = text.firstIndex(of: ":") ?? text.endIndex
            (host, rest) = (text[..<end], text[end...])
        }
        guard !host.isEmpty, host.utf8.count <= 255, host.utf8.allSatisfy(Self.mayBeInName) else {
            return nil
        }
        self.host = String(host)
        guard !rest.isEmpty else {
            port = Self.defaultPort
            return
        }
        let digits = rest.dropFirst()
        guard rest.first == ":", !digits.isEmpty, digits.utf8.allSatisfy({ (48...57) ~= $0 }),
            let port = Int(digits), port <= 65535
        else { return nil }
        self.port = port
    }

    private static func mayBeInName(_ byte: UInt8) -> Bool {
        switch byte {
        case 48...57, 65...90, 97...122: true
        default: "-._:%".utf8.contains(byte)
        }
    }

    package var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }

    /// Not one address, but all that the host has.
    package var isAnyAddress: Bool { host == "0.0.0.0" || host == "::" }

    /// The host is an address in 127.0.0.0/8.
    package var isLoopback: Bool {
        let parts = host.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4 && parts[0] == "127" && parts.allSatisfy { UInt8($0) != nil }
    }
}
