import BlockCore
import Testing

@testable import Settings

/// The file of settings: what it may say, and every mistake with its line.
@Suite struct SettingsTests {
    private func parse(_ text: String) -> (Settings, [SettingsMistake]) {
        SettingsFile.parse(Array(text.utf8))
    }

    @Test func aWholeFile() {
        let (settings, mistakes) = parse(
            """
            # this host
            state-directory = "/srv/state"
            authorized-peers = '/etc/doppel/peers'
            log-level = "debug"

            [serve]
            root = "/srv/mirrors"   # all of them
            listen = [
                "0.0.0.0:7420",
                "[::1]",
            ]
            connections = 1_000
            connections-per-peer = 0x20
            pools = 8
            memory = "512MiB"
            rate-per-peer = "20MiB/s"
            """)
        #expect(mistakes.isEmpty, "\(mistakes)")
        var wanted = Settings()
        wanted.stateDirectory = "/srv/state"
        wanted.authorizedPeers = "/etc/doppel/peers"
        wanted.logLevel = .debug
        wanted.serve.root = "/srv/mirrors"
        wanted.serve.listen = [
            HostPort(host: "0.0.0.0", port: 7420),
            HostPort(host: "::1", port: 7420),
        ]
        wanted.serve.connections = 1000
        wanted.serve.connectionsPerPeer = 32
        wanted.serve.pools = 8
        wanted.serve.memoryBytes = 512 << 20
        wanted.serve.bytesPerSecondOfAPeer = 20 << 20
        #expect(settings == wanted)
    }

    @Test func whatIsNotSaidIsAsUsual() {
        let (settings, mistakes) = parse("\u{feff}\n[serve]\r\npools = 9\r\n")
        #expect(mistakes.isEmpty, "\(mistakes)")
        var wanted = Settings()
        wanted.serve.pools = 9
        #expect(settings == wanted)
        #expect(settings.authorizedPeersPath == settings.stateDirectory + "/authorized_peers")
        #expect(settings.serve.listen.map(\.description) == ["127.0.0.1:7420"])
    }

    @Test func aTableInALineIsTheSame() {
        let (settings, mistakes) = parse("serve = { pools = 9, listen = '[::1]:1' }")
        #expect(mistakes.isEmpty, "\(mistakes)")
        #expect(settings.serve.pools == 9)
        #expect(parse("serve.pools = 9").0.serve.pools == 9)
        #expect(parse("\"serve\" . 'pools' = 9").0.serve.pools == 9)
    }

    @Test func everyMistakeIsToldWithItsLine() {
        let (_, mistakes) = parse(
            """
            state-directory = "srv"
            log-level = debug
            log_level = "debug"
            rate = 1.5

            [serve]
            conections = 5
            connections = "5"
            pools = 0
            memory = 4
            rate-per-peer = "fast"
            listen = ["0.0.0.0:7420", 5,
               "a:b"]
            pools = 7
            root = "/a" "/b"
            log-level = "info"
            [server]
            pools = 7
            [[serve]]
            ignored = 1
            """)
        let wanted: [(line: Int, words: [String])] = [
            (1, ["state-directory", "absolute", "\"srv\""]), (2, ["quotes", "\"debug\""]),
            (3, ["log_level", "log-level"]), (4, ["no setting rate"]),
            (7, ["serve.conections", "serve.connections"]), (8, ["whole number without quotes"]),
            (9, ["from 1 to 4096", "not 0"]), (10, ["size", "in quotes"]),
            (11, ["rate such as 20MiB/s", "\"fast\""]), (12, ["address", "a number"]),
            (13, ["\"a:b\""]), (14, ["serve.pools", "line 9"]), (15, ["nothing may follow"]),
            (16, ["serve.log-level", "is log-level meant"]), (17, ["[server]", "[serve]"]),
            (19, ["list of tables"]),
        ]
        #expect(mistakes.map(\.line) == wanted.map(\.line), "\(mistakes)")
        for (mistake, wanted) in zip(mistakes, wanted) {
            for word in wanted.words { #expect(mistake.message.contains(word), "\(mistake)") }
        }
    }

    @Test func rangesAreSaid() {
        for (text, word) in [
            ("serve.memory = \"1MiB\"", "64 MiB to 1 TiB"),
            ("serve.rate-per-peer = \"1\"", "64 KiB/s"),
            ("serve.connections = 65537", "1 to 65536"),
            ("serve.connections = 99999999999999999999", "fraction"),
            ("serve.listen = []", "nothing"), ("serve.listen = \":7420\"", "address"),
            ("serve.listen = \"a:70000\"", "address"),
            ("serve.listen = \"[1.2.3.4]:1\"", "address"),
        ] {
            let mistakes = parse(text).1
            #expect(
                mistakes.count == 1 && mistakes[0].message.contains(word), "\(text): \(mistakes)")
        }
    }

    @Test func whatCannotBeReadAtAll() {
        let missing = #expect(throws: SettingsError.self) { try SettingsFile.load("/none/at/all") }
        #expect(missing?.cause != nil)
        let (_, mistakes) = SettingsFile.parse(Array("a = 1\nb".utf8) + [0xff])
        #expect(mistakes.map(\.line) == [2])
    }
}

/// The grammar of TOML.
@Suite struct TOMLDocumentTests {
    private func values(_ text: String) -> [String: TOMLItem.Value] {
        let document = TOMLDocument(Array(text.utf8))
        #expect(document.mistakes.isEmpty, "\(text): \(document.mistakes)")
        return Dictionary(
            uniqueKeysWithValues: document.entries.map {
                ($0.key.joined(separator: "."), $0.item.value)
            })
    }

    @Test func textsOfEachKind() {
        let found = values(
            #"""
            a = "x\ty\"\u00e9\U0001F600\\ # no comment"
            b = 'C:\dir'
            c = """
            one
            two \
               three ""four"""""
            d = '''
            'single' \n'''
            e = ""
            """#)
        #expect(found["a"] == .string("x\ty\"\u{e9}\u{1F600}\\ # no comment"))
        #expect(found["b"] == .string("C:\\dir"))
        #expect(found["c"] == .string("one\ntwo three \"\"four\"\""))
        #expect(found["d"] == .string("'single' \\n"))
        #expect(found["e"] == .string(""))
    }

    @Test func otherValues() {
        let found = values(
            """
            a = +12
            b = -0
            c = 0b101
            d = 0o17
            e = 1e3
            f = 1_0.5
            g = inf
            h = 1979-05-27T07:32:00Z
            i = 1979-05-27 07:32:00
            j = 07:32:00
            k = true
            l = [[1, 2], [], ["a",],]
            m = {}
            """)
        #expect(found["a"] == .integer(12) && found["b"] == .integer(0))
        #expect(found["c"] == .integer(5) && found["d"] == .integer(15))
        for key in ["e", "f", "g"] {
            guard case .float = found[key] else {
                Issue.record("\(key): \(String(describing: found[key]))")
                continue
            }
        }
        for key in ["h", "i", "j"] {
            guard case .dateTime = found[key] else {
                Issue.record("\(key): \(String(describing: found[key]))")
                continue
            }
        }
        #expect(found["k"] == .boolean(true))
        guard case .array(let items) = found["l"] else { return #expect(Bool(false)) }
        #expect(items.count == 3)
    }

    @Test func linesOfValuesAfterManyLines() {
        let document = TOMLDocument(Array("a = [\n1,\n2]\nb = \"\"\"\n\n\"\"\"\n\nc = 1".utf8))
        #expect(document.entries.map(\.item.line) == [1, 4, 8])
    }

    @Test func whatIsNoTOML() {
        for (text, line) in [
            ("a = \"x", 1), ("a = 'x\n'", 1), ("\na = \"\"\"x\n\n", 2), ("a = [1\n2]", 2),
            ("a = [1,\n", 1), ("a", 1), ("= 1", 1), ("a = ", 1), ("a = 01", 1), ("a = 1__0", 1),
            ("a = \"\\q\"", 1), ("a = \"\\ud800\"", 1), ("[a", 1), ("[a] b = 1", 1), ("[]", 1),
            ("a = 1 b = 2", 1), ("a = {b = 1", 1), ("a = yes", 1), ("a b = 1", 1),
            ("\n\na = \"\u{1}\"", 3), ("[a]\n[a]", 2), ("a = 1\na = 2", 2),
        ] {
            let found = TOMLDocument(Array(text.utf8)).mistakes
            #expect(found.first?.line == line, "\(text): \(found)")
        }
    }

    /// One mistake hides none of those after it.
    @Test func readingGoesOnInTheNextLine() {
        let document = TOMLDocument(Array("a = yes\nb = 1\n[c\nd = 2\n[e]\nf = 3\ng == 1".utf8))
        #expect(document.mistakes.map(\.line) == [1, 3, 7])
        #expect(document.entries.map { $0.key.joined(separator: ".") } == ["b", "e.f"])
    }
}
