import TestSupport
import Testing

@testable import Identity

/// What lines of authorized_peers mean, and what is wrong with those that mean nothing.
@Suite struct PeerListTests {
    static let keys = (0..<4).map { number in
        PeerFingerprint(bytes: [UInt8](repeating: UInt8(number), count: 32))!
    }

    private func list(_ text: String) -> PeerList { PeerList(Array(text.utf8)) }

    @Test func aLineIsAKeyAndWhatItMay() throws {
        let found = list(
            """
            # who may send to us

            \(Self.keys[0]) pools=web,db-* right=replicate web1   # since May
            \t\(Self.keys[1])  host=Backup.example:7420,[::1]  backup1\r
            \(Self.keys[2]) right=admin pools=* host=10.0.0.2 both#1
            \(Self.keys[3]) host=a both-1
            #\(Self.keys[3]) pools=* right=admin gone
            """)
        #expect(found.mistakes.map(\.line) == [5], "a name has no #")
        let peers = found.peers
        #expect(peers.map(\.name) == ["web1", "backup1", "both-1"])
        #expect(peers[0].rights?.right == .replicate)
        #expect(peers[0].rights?.pools.map(\.text) == ["web", "db-*"])
        #expect(peers[0].hosts.isEmpty)
        #expect(peers[1].rights == nil)
        #expect(peers[1].hosts.map(\.description) == ["backup.example:7420", "[::1]"])
        for peer in peers { #expect(list(peer.line).peers == [peer]) }
    }

    @Test func everyMistakeIsToldWithItsLine() {
        let key = Self.keys[0].description
        for (line, word) in [
            ("nonsense", "fingerprint"), ("\(key)", "name is missing"),
            ("\(key.dropLast()) host=a x", "fingerprint"), ("\(key) web1", "may do nothing"),
            ("\(key) pools=web web1", "stand together"),
            ("\(key) right=read web1", "stand together"),
            ("\(key) pools=web right=write web1", "read, replicate, admin"),
            ("\(key) pools= right=read web1", "commas"),
            ("\(key) pools=a,,b right=read w", "commas"),
            ("\(key) pools=../a right=read w", "commas"), ("\(key) pool=a right=read w", "pools="),
            ("\(key) pools=a right=read right=admin w", "once"),
            ("\(key) pools=a right=read w extra", "follows"),
            ("\(key) w pools=a right=read", "before"), ("\(key) host=a:0 w", "host="),
            ("\(key) host=a:99999 w", "host="), ("\(key) host= w", "host="),
            ("\(key) host=a \u{e9}", "no name"),
        ] {
            let found = list("\n\(line)\n")
            #expect(found.peers.isEmpty, "\(line)")
            #expect(found.mistakes.map(\.line) == [2], "\(line)")
            #expect(found.mistakes.first?.message.contains(word) == true, "\(found.mistakes)")
        }
        let bytes: [UInt8] = Array("\(key) pools=a right=read w".utf8) + [0xff, 0x0a]
        #expect(PeerList(bytes).mistakes.count == 1)
    }

    @Test func aKeyThatStandsTwiceCountsInNeither() {
        let found = list(
            """
            \(Self.keys[0]) pools=* right=admin a
            \(Self.keys[1]) pools=a right=read b
            \(Self.keys[0]) pools=a right=read a
            """)
        #expect(found.peers.map(\.name) == ["b"])
        #expect(found.mistakes.map(\.line) == [1, 3])
    }

    /// However far somebody got with writing it, and whatever line is broken: nobody may more.
    @Test(arguments: Seeds.run(20)) func aFileThatIsBrokenGrantsNoMore(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let pools = ["web", "db", "db-*", "web-*-x", "*"]
        let lines = (0..<Self.keys.count).map { number in
            let words = pools.filter { _ in random.chance(40) }
            return
                "\(Self.keys[number]) pools=\(words.isEmpty ? "web" : words.joined(separator: ",")) "
                + "right=\(["read", "replicate", "admin"][random.below(3)]) host=h\(number):1 name\(number) # x"
        }
        let whole = lines.joined(separator: "\n")
        let before = Dictionary(
            uniqueKeysWithValues: list(whole).peers.map { ($0.fingerprint, $0) })
        #expect(before.count == Self.keys.count)
        let names = ["web", "db", "db-1", "web-1-x", "other"]
        for length in 0..<whole.utf8.count {
            var bytes = Array(whole.utf8.prefix(length))
            // A byte of it is something else.
            if !bytes.isEmpty, random.chance(30) {
                bytes[random.below(bytes.count)] = UInt8(ascii: "!")
            }
            for peer in PeerList(bytes).peers {
                let was = try #require(before[peer.fingerprint])
                for name in names where peer.rights?.allows(.read, pool: name) == true {
                    #expect(was.rights?.allows(peer.rights!.right, pool: name) == true, "\(length)")
                }
                #expect(
                    Set(peer.hosts).isSubset(of: was.hosts) || bytes.contains(UInt8(ascii: "!")))
            }
        }
    }

    @Test func whatAPatternMatches() throws {
        for (pattern, yes, no) in [
            ("web", ["web"], ["web1", "we", "Web", ""]),
            ("db-*", ["db-", "db-1", "db-a-b"], ["db", "xdb-1", "db-1/x"]),
            ("*", ["a", "a/b", "db-1"], []),
            ("*b*d", ["bd", "abcd", "abbdd"], ["abc", "bda"]),
            ("a*/b*", ["a/b", "ax/by"], ["a/x/b", "ax", "a"]),
            ("a**", ["a", "ab"], ["b"]),
        ] as [(String, [String], [String])] {
            let found = try #require(PoolPattern(pattern))
            for name in yes { #expect(found.matches(name), "\(pattern) \(name)") }
            for name in no { #expect(!found.matches(name), "\(pattern) \(name)") }
        }
        for wrong in ["", "a b", "/a", "a/", "a//b", "..", "a/../b", "a,b", "a#b"] {
            #expect(PoolPattern(wrong) == nil, "\(wrong)")
        }
    }

    @Test func aRightIncludesThoseBelow() {
        let rights = PeerRights(name: "a", pools: [PoolPattern("web")!], right: .replicate)
        #expect(rights.allows(.read, pool: "web") && rights.allows(.replicate, pool: "web"))
        #expect(!rights.allows(.admin, pool: "web"))
        #expect(!rights.allows(.read, pool: "db"))
    }
}
