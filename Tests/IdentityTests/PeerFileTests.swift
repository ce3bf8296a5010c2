import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Identity

/// Changes of authorized_peers by program: what a person wrote stays, and no loss of power leaves half a file.
@Suite struct PeerFileTests {
    private func peer(_ number: Int, _ name: String, _ right: Right = .replicate) -> PinnedPeer {
        PinnedPeer(
            fingerprint: PeerListTests.keys[number], name: name,
            rights: PeerRights(name: name, pools: [PoolPattern("web")!], right: right))
    }

    @Test func whatAPersonWroteStays() throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let path = folder + "/authorized_peers"
        let own = "# ours\n\n\(peer(0, "a").line) # the first\nnonsense"
        try own.write(toFile: path, atomically: true, encoding: .utf8)
        let file = PeerFile(path: path, state: StateDirectory(path: folder))
        #expect(try file.accept(peer(1, "b")) == .added)
        #expect(
            try String(contentsOfFile: path, encoding: .utf8) == own + "\n\(peer(1, "b").line)\n")
        #expect(try String(contentsOfFile: path + ".old", encoding: .utf8) == own)
        #expect(try file.accept(peer(1, "b")) == .unchanged)
        #expect(try file.accept(peer(0, "a", .read)) == .replaced)
        let text = try String(contentsOfFile: path, encoding: .utf8)
        #expect(text.hasPrefix("# ours\n\n\(peer(0, "a", .read).line) # the first\nnonsense\n"))
        #expect(try file.remove { $0.name == "b" }.map(\.name) == ["b"])
        #expect(try file.remove { $0.name == "b" }.isEmpty)
        #expect(
            try String(contentsOfFile: path, encoding: .utf8)
                == "# ours\n\n\(peer(0, "a", .read).line) # the first\nnonsense\n")
    }

    @Test func aLineThatNobodyCanReadIsNotDoubled() throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let path = folder + "/authorized_peers"
        try "\(PeerListTests.keys[0]) pols=a right=read a\n".write(
            toFile: path, atomically: true, encoding: .utf8)
        let file = PeerFile(path: path, state: StateDirectory(path: folder))
        #expect(throws: IdentityError.self) { _ = try file.accept(peer(0, "a")) }
    }

    @Test func twoAtOnceLoseNothing() throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let state = StateDirectory(path: folder + "/state")
        let threads = (0..<4).map { number in
            TestThread {
                _ = try PeerFile(path: folder + "/state/peers", state: state)
                    .accept(peer(number, "p\(number)"))
            }
        }
        for thread in threads { try thread.join() }
        let left = try PeerFile(path: folder + "/state/peers", state: state).load()
        #expect(Set(left.peers.map(\.name)) == ["p0", "p1", "p2", "p3"])
    }

    @Test(arguments: Seeds.run(4)) func powerGoesAtAnySync(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        for sync in 1..<24 {
            let disk = SimulatedDisk()
            try disk.createDirectory("/var", mode: 0o755)
            try disk.syncDirectory("/")
            disk.powerOff(atSync: sync)
            let state = StateDirectory(path: "/var/doppel", disk: disk)
            // What was said to be so, and what may be so.
            var said: [Set<String>] = [[]]
            do {
                let file = PeerFile(path: "/var/doppel/peers", state: state)
                for (number, name) in ["a", "b", "c"].enumerated() {
                    said.append(said.last!.union([name]))
                    _ = try file.accept(peer(number, name))
                    said.removeFirst()
                }
                said.append(said.last!.subtracting(["a"]))
                _ = try file.remove { $0.name == "a" }
                said.removeFirst()
            } catch {}
            let after = StateDirectory(path: "/var/doppel", disk: disk.crash(&random))
            let left = try PeerFile(path: "/var/doppel/peers", state: after).load()
            #expect(left.mistakes.isEmpty)
            #expect(said.contains(Set(left.peers.map(\.name))), "sync \(sync): \(left.peers)")
        }
    }
}

/// Pairing and refusals are written down, and nobody fills a disk by knocking.
@Suite struct HostEventsTests {
    @Test func refusalsAreToldOnceAMinute() throws {
        let disk = SimulatedDisk()
        try disk.createDirectory("/var", mode: 0o755)
        let events = HostEvents(StateDirectory(path: "/var/doppel", disk: disk))
        let key = PeerListTests.keys[0]
        try events.record("paired", "web1", "it may")
        for _ in 0..<50 { try events.refused(key, from: "10.0.0.1", "its key is unknown") }
        try events.refused(nil, from: "10.0.0.2", "it has no key")
        try events.refused(key, from: "10.0.0.1", "it may not replicate to web")
        #expect(try events.newest(100).count == 4)
        disk.advance(ns: 61_000_000_000)
        try events.refused(key, from: "10.0.0.1", "its key is unknown")
        let all = try events.newest(100)
        #expect(all.map(\.kind) == ["paired", "refused", "refused", "refused", "refused"])
        #expect(all[1].subject == "\(key) from 10.0.0.1")
        #expect(all[4].message.contains("49 times more"))
        #expect(try events.newest(2) == all.suffix(2))
        // From very many addresses.
        for number in 0..<2000 { try events.refused(nil, from: "h\(number)", "it has no key") }
        #expect(try events.newest(10_000).count < 300)
    }

    @Test func twoFilesAreAllThereAre() throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let events = HostEvents(StateDirectory(path: folder))
        let long = String(repeating: "x", count: 400_000)
        for number in 0..<8 { try events.record("paired", "\(number)", long) }
        let names = try FileManager.default.contentsOfDirectory(atPath: folder).sorted()
        #expect(names == [".lock", "events", "events.1"])
        let subjects = try events.newest(100).map(\.subject)
        #expect(subjects.last == "7" && subjects.count < 7)
        // What a loss of power left of a line takes no other with it.
        let handle = try #require(FileHandle(forWritingAtPath: folder + "/events"))
        handle.seekToEndOfFile()
        handle.write(Data("{\"atNs\":1,".utf8))
        try handle.close()
        try events.record("paired", "after", "")
        #expect(try events.newest(1).first?.subject == "after")
    }
}
