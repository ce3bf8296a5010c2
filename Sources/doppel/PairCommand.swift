// Pairing: each host pins the other's key. Nothing travels but one line, by whatever way people trust.

import ArgumentParser
import Daemon
import Identity
import Settings
import SystemIO

extension Right: ExpressibleByArgument {}

struct Pair: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Let other hosts connect, and say which key a server has.",
        discussion: """
            Each host has one key, made when it is first asked for. `doppel pair` shows its line; paste it on
            the other host with --accept, and say there what this host may do: which pools, and with
            which right. A host that is connected to is accepted with --host, so that nobody else can
            stand in its place. Lines stand in authorized_peers, which can be edited by hand as well;
            what is taken out of it ends sessions at once.

            Rights, each with those before: read; replicate, which `doppel serve` asks for: append to a pool
            as its primary, and not delete the mirror's snapshots; admin.

            To change this host's key: --rotate makes a second one, whose line the others accept with
            --second-key; then --retire the old one.

            EXAMPLES
              doppel pair
              doppel pair --accept 'SHA256:... web1' --pools 'web,db-*' --right replicate
              doppel pair --accept 'SHA256:... backup1' --host backup1.example:7420
              doppel pair --list
              doppel pair --remove web1
              doppel pair --rotate
              doppel pair --accept 'SHA256:... web1' --second-key
              doppel pair --retire SHA256:...
            """)
    @Option(help: ArgumentHelp("The line that the other host showed.", valueName: "line"))
    var accept: String?
    @Option(help: "Pools that it may connect to, such as 'web,db-*'; '*' is all.") var pools:
        String?
    @Option(help: "What it may do with them: read, replicate (if nothing is said) or admin.")
    var right: Right?
    @Option(help: "Where it listens, such as backup1.example:7420: it is the server there.")
    var host: String?
    @Option(help: "Another name than the line has; with nothing else, this host's in its line.")
    var name: String?
    @Flag(help: "It is one more key of the host with this name, with the same rights.")
    var secondKey = false
    @Flag(help: "Show who is accepted.") var list = false
    @Option(help: "Take out a host by its name, or one key.") var remove: String?
    @Flag(help: "Make a second key for this host.") var rotate = false
    @Option(help: ArgumentHelp("Destroy one of this host's two keys.", valueName: "key"))
    var retire: String?
    @OptionGroup var settings: SettingsOption
    @OptionGroup var output: JSONFlag

    func validate() throws {
        let actions = [accept != nil, list, remove != nil, rotate, retire != nil].count { $0 }
        guard actions <= 1 else {
            throw ValidationError("--accept, --list, --remove, --rotate, --retire: one at a time")
        }
        guard accept != nil || (pools == nil && right == nil && host == nil && !secondKey) else {
            throw ValidationError("--pools, --right, --host and --second-key belong to --accept")
        }
        guard name == nil || accept != nil || actions == 0 else {
            throw ValidationError("--name belongs to --accept, or to this host's line")
        }
        guard !output.json || list else { throw ValidationError("--json belongs to --list") }
    }

    func run() throws {
        let settings = try loaded()
        let state = StateDirectory(path: settings.stateDirectory)
        let hosts = Pairing(
            file: PeerFile(path: settings.authorizedPeersPath, state: state),
            keys: HostKeys(state), events: HostEvents(state))
        if accept != nil {
            try takeIn(hosts)
        } else if list {
            try exiting { try show(hosts) }
        } else if let remove {
            try exiting { try takeOut(remove, hosts) }
        } else if rotate {
            try exiting {
                let next = try hosts.keys.rotate()
                try hosts.events.record(
                    "key-rotated", "\(next.fingerprint)", "a second key was made for this host")
                print("\(next.fingerprint) \(try ownName())")
                Output.error(
                    "doppel: on every other host: doppel pair --accept LINE --second-key; then here: "
                        + "doppel pair --retire \(try hosts.keys.current().fingerprint)")
            }
        } else if let retire {
            try self.retire(retire, hosts)
        } else {
            try exiting { try showOwn(hosts) }
        }
    }

    private func loaded() throws -> Settings {
        var result = Settings()
        try exiting { result = try settings.load() }
        return result
    }

    // MARK: This host

    private func showOwn(_ hosts: Pairing) throws {
        let lines = [try hosts.keys.current(), try hosts.keys.next()].compactMap { $0 }
        for key in lines { print("\(key.fingerprint) \(try ownName())") }
        let line = "\(lines[0].fingerprint) \(try ownName())"
        Output.error(
            "doppel: on the other host: doppel pair --accept '\(line)' --pools NAMES --right replicate "
                + "(or --host ADDRESS, where this is the server)")
    }

    private func ownName() throws -> String {
        if let name {
            guard PinnedPeer.isName(name) else {
                throw ControlFailure(.usage, Pairing.noName(name))
            }
            return name
        }
        let letters = HostSystem.hostName.filter { PinnedPeer.isName(String($0)) }.prefix(64)
        return letters.isEmpty ? "host" : String(letters)
    }

    private func retire(_ text: String, _ hosts: Pairing) throws {
        guard let fingerprint = PeerFingerprint(text) else {
            throw ValidationError("'\(text)' is no key; `doppel pair` shows this host's two")
        }
        try exiting {
            let left = try hosts.keys.retire(fingerprint)
            try hosts.events.record(
                "key-retired", text, "the key was destroyed; this host's is \(left.fingerprint)")
            print("this host is \(left.fingerprint) now")
            Output.error(
                "doppel: what is running takes it when it is started anew; then, on the other hosts: "
                    + "doppel pair --remove \(text)")
        }
    }

    // MARK: Others

    private func takeIn(_ hosts: Pairing) throws {
        let offers = try offers()
        let patterns = try pools.map { text in
            guard let patterns = PinnedPeer.pools(text) else {
                throw ValidationError(
                    "--pools is names with commas between them, such as 'web,db-*'")
            }
            return patterns
        }
        let places = try host.map { text in
            guard let places = PinnedPeer.hosts(text) else {
                throw ValidationError("--host is such as backup1.example:7420 or [::1]:7420")
            }
            return places
        }
        guard patterns != nil || places != nil || right != nil || secondKey else {
            throw ValidationError(
                "say what it may do: --pools (and --right), --host, or --second-key")
        }
        guard !secondKey || (patterns == nil && places == nil && right == nil) else {
            throw ValidationError("--second-key gives the rights of the first one, and no others")
        }
        try exiting {
            for offer in offers {
                let peer = try hosts.peer(
                    offer, pools: patterns, right: right, hosts: places, isSecondKey: secondKey)
                print(try hosts.accept(peer))
            }
            warn(try hosts.file.load())
        }
    }

    /// Fingerprint and name of each line.
    private func offers() throws -> [PinnedPeer] {
        let lines = (accept ?? "").split(whereSeparator: \.isNewline).map {
            $0.split(whereSeparator: \.isWhitespace).prefix { !$0.hasPrefix("#") }
        }.filter { !$0.isEmpty }
        guard !lines.isEmpty else {
            throw ValidationError("--accept takes the line of `doppel pair`")
        }
        return try lines.map { words in
            guard let fingerprint = PeerFingerprint(words[0]) else {
                throw ValidationError("'\(words[0])' is no key: paste the line of `doppel pair`")
            }
            // Who may do what is not for the other side to say.
            guard words.count <= 2 else {
                throw ValidationError("a line is a key and a name, and nothing else: '\(words[2])'")
            }
            let name = name ?? words.dropFirst().first.map(String.init) ?? ""
            guard PinnedPeer.isName(name) else { throw ValidationError(Pairing.noName(name)) }
            return PinnedPeer(fingerprint: fingerprint, name: name)
        }
    }

    private func takeOut(_ who: String, _ hosts: Pairing) throws {
        let key = PeerFingerprint(who)
        let gone = try hosts.file.remove { key == nil ? $0.name == who : $0.fingerprint == key }
        guard !gone.isEmpty else {
            warn(try hosts.file.load())
            throw ControlFailure(
                .failed, "\(hosts.file.path) has no \(who); see `doppel pair --list`")
        }
        for peer in gone {
            try hosts.events.record("unpaired", peer.name, "\(peer.fingerprint) was taken out")
            print(
                "\(peer.name) (\(peer.fingerprint)) is taken out; what it was before is in "
                    + "\(hosts.file.path).old")
        }
    }

    private func show(_ hosts: Pairing) throws {
        let found = try hosts.file.load()
        if output.json {
            Output.json(
                PairingReport(
                    fingerprint: try hosts.keys.existing()?.fingerprint.description,
                    nextFingerprint: try hosts.keys.next()?.fingerprint.description,
                    peers: found.peers.map(PairingReport.Peer.init),
                    problems: found.mistakes.map(\.description)))
        } else {
            Output.table(
                ["NAME", "RIGHT", "POOLS", "SERVER AT", "KEY"],
                found.peers.map { peer in
                    [
                        peer.name, peer.rights?.right.rawValue ?? "-",
                        peer.rights?.pools.map(\.text).joined(separator: ",") ?? "-",
                        peer.hosts.isEmpty
                            ? "-" : peer.hosts.map(\.description).joined(separator: ","),
                        peer.fingerprint.description,
                    ]
                })
            warn(found)
        }
        if !found.mistakes.isEmpty { throw ExitCode(ExitKind.degraded.rawValue) }
    }

    private func warn(_ list: PeerList) {
        for mistake in list.mistakes {
            Output.error("doppel: authorized_peers, \(mistake), and it grants nothing")
        }
    }
}

private struct PairingReport: Encodable {
    struct Peer: Encodable {
        var name: String
        var fingerprint: String
        var pools: [String]
        var right: String?
        var hosts: [String]

        init(_ peer: PinnedPeer) {
            name = peer.name
            fingerprint = peer.fingerprint.description
            pools = peer.rights?.pools.map(\.text) ?? []
            right = peer.rights?.right.rawValue
            hosts = peer.hosts.map(\.description)
        }
    }
    var fingerprint: String?
    var nextFingerprint: String?
    var peers: [Peer]
    var problems: [String]
}

/// What a host keeps of others, and of itself.
private struct Pairing {
    let file: PeerFile
    let keys: HostKeys
    let events: HostEvents

    static func noName(_ text: String) -> String {
        "'\(text)' is no name for a host: letters, digits, '.', '-', '_' and '@'; --name gives another"
    }

    /// What is to stand in the line of a host that was offered. What is not said stays as it was.
    func peer(
        _ offer: PinnedPeer, pools: [PoolPattern]?, right: Right?, hosts: [PeerHost]?,
        isSecondKey: Bool
    ) throws -> PinnedPeer {
        let known = try file.load().peers
        let before = known.first { $0.fingerprint == offer.fingerprint }
        let named = known.filter {
            $0.name == offer.name && $0.fingerprint != offer.fingerprint
        }
        if isSecondKey {
            guard let first = named.first else {
                throw ControlFailure(
                    .failed, "no other key is known of \(offer.name): say what it may do")
            }
            guard named.allSatisfy({ $0.rights == first.rights && $0.hosts == first.hosts }) else {
                throw ControlFailure(
                    .failed, "the keys of \(offer.name) have different rights already")
            }
            return PinnedPeer(
                fingerprint: offer.fingerprint, name: offer.name, rights: first.rights,
                hosts: first.hosts)
        }
        if let other = named.first, before == nil {
            throw ControlFailure(
                .failed,
                "\(other.name) is known with the key \(other.fingerprint): say --second-key to accept "
                    + "both, --name to call this one otherwise, or remove that one first")
        }
        var peer = PinnedPeer(
            fingerprint: offer.fingerprint, name: offer.name, hosts: hosts ?? before?.hosts ?? [])
        let patterns = pools ?? before?.rights?.pools
        if let patterns {
            peer.rights = PeerRights(
                name: offer.name, pools: patterns,
                right: right ?? before?.rights?.right ?? .replicate)
        } else if right != nil {
            throw ControlFailure(
                .usage, "--right says what it may do with --pools, which are missing")
        }
        return peer
    }

    /// - Returns: what a person is told.
    func accept(_ peer: PinnedPeer) throws -> String {
        var may: [String] = []
        if let rights = peer.rights {
            may.append("may \(rights.right) \(rights.pools.map(\.text).joined(separator: ","))")
        }
        if !peer.hosts.isEmpty {
            may.append("is the server at \(peer.hosts.map(\.description).joined(separator: ","))")
        }
        let text = "\(may.joined(separator: " and "))"
        switch try file.accept(peer) {
        case .unchanged: return "\(peer.name) \(text) already (\(peer.fingerprint))"
        case .added, .replaced:
            try events.record("paired", peer.name, "\(peer.fingerprint) \(text)")
            return "\(peer.name) \(text) (\(peer.fingerprint))"
        }
    }
}
