// Two hosts of a network: a namespace each, with one link between them that can be cut, and can lose the packets of
// one direction.
//
// A namespace lives as long as somebody is in it: a process that ends when its input does, and so with the test's
// process, however that ends. With the namespaces goes the link.

import Glibc

package final class NamespacePair {
    package enum Host: Int, CaseIterable, Sendable {
        case primary = 1
        case standby = 2

        /// Of a network that is nobody's.
        package var address: String { "192.0.2.\(rawValue)" }
        package var other: Host { self == .primary ? .standby : .primary }
        fileprivate var hardware: String { "02:00:00:00:00:0\(rawValue)" }
    }

    private static let device = "wire0"
    /// Of no interface.
    private static let nobody = "02:00:00:00:00:ff"
    private var keepers: [Host: Server] = [:]

    package init() throws {
        do {
            for host in Host.allCases {
                let keeper = try Server(
                    "/usr/bin/unshare", ["--net", "sh", "-c", "echo ready; exec cat >/dev/null"])
                keepers[host] = keeper
                try keeper.expectReady()
            }
            try join()
        } catch {
            end()
            throw error
        }
    }
    deinit { end() }

    package func end() {
        for keeper in keepers.values { keeper.end() }
        keepers = [:]
    }

    /// What a command begins with that is to run there. Its mounts are seen by everybody.
    package func enter(_ host: Host) -> [String] {
        ["nsenter", "--net=/proc/\(keepers[host]?.pid ?? 0)/ns/net"]
    }

    private func ip(_ host: Host, _ words: String...) throws {
        let result = try run(enter(host) + ["ip"] + words)
        guard result.code == 0 else {
            throw Failure("ip \(words.joined(separator: " ")): \(result.output)")
        }
    }

    private func join() throws {
        try ip(
            .primary, "link", "add", Self.device, "type", "veth", "peer", "name", Self.device,
            "netns", "\(keepers[.standby]?.pid ?? 0)")
        for host in Host.allCases {
            try ip(host, "link", "set", Self.device, "address", host.hardware)
            try ip(host, "address", "add", host.address + "/24", "dev", Self.device)
            try ip(host, "link", "set", "lo", "up")
            try ip(host, "link", "set", Self.device, "up")
        }
    }

    // MARK: Faults

    /// Both know that there is no carrier any more.
    package func cut() throws { try ip(.primary, "link", "set", Self.device, "down") }
    package func mend() throws { try ip(.primary, "link", "set", Self.device, "up") }

    /// Its packets go to an address that nobody has, and neither end is told.
    package func drop(from host: Host) throws {
        try setNeighbour(of: host, to: Self.nobody, state: "permanent")
    }
    package func deliver(from host: Host) throws {
        try setNeighbour(of: host, to: host.other.hardware, state: "reachable")
    }

    private func setNeighbour(of host: Host, to hardware: String, state: String) throws {
        try ip(
            host, "neighbour", "replace", host.other.address, "lladdr", hardware, "dev",
            Self.device, "nud", state)
    }
}

/// Whether namespaces can be made: by root, with ip and nsenter.
package let hasNamespaces: Bool = {
    guard isRoot, access("/usr/bin/unshare", X_OK) == 0, access("/usr/bin/nsenter", X_OK) == 0,
        let result = try? run(["unshare", "--net", "ip", "link"])
    else { return false }
    return result.code == 0
}()
