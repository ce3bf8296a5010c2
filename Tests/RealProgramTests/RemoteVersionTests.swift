import TestSupport
import Testing
import WireHarness

/// A host whose program speaks other versions of the protocol than the server's does, newer or older: what the two
/// programs greet each other with is changed on the line between them.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemoteVersionTests {
    /// From the document: a hello has its versions at 8, lowest and highest, a welcome the one that is spoken.
    private static func greet(with versions: UInt16...) -> @Sendable (inout [UInt8]) -> Void {
        { frame in
            // All of it is sent at once; one that came in parts is left, and the test says that nothing was changed.
            guard frame.count >= 40 + 2 * versions.count else { return }
            for (index, version) in versions.enumerated() {
                frame[40 + 2 * index] = UInt8(truncatingIfNeeded: version)
                frame[41 + 2 * index] = UInt8(truncatingIfNeeded: version >> 8)
            }
            WireForge.seal(&frame)
        }
    }

    @Test func aNewerHostSpeaksAsTheServerDoes() throws {
        let relay = try Relay()
        defer { relay.end() }
        relay.changeFirst(.toServer, Self.greet(with: 1, 9))
        try Sandbox.withServer("a.img", isEncrypted: false, through: relay) { box, server in
            #expect(relay.changedCount > 0)
            try box.write("first", to: box.mountPoint + "/a.img", at: 12345)
            try box.settle()
            try server.expectSame()
        }
    }

    enum Meeting: CaseIterable { case newerHost, olderServer, newerServer }

    /// Status says it in words, the guest goes on as where the server is gone, and nothing reaches the mirror; the
    /// session goes on as soon as both speak one version.
    @Test(arguments: Meeting.allCases) func whoShareNoVersionSaySo(meeting: Meeting) throws {
        let relay = try Relay()
        defer { relay.end() }
        try Sandbox.withServer("a.img", isEncrypted: false, through: relay, options: "timeout=1s") {
            box, server in
            try box.write("before", to: box.mountPoint + "/a.img")
            try box.settle()
            let there = try box.target(server.address).durableSequence
            switch meeting {
            case .newerHost: relay.changeFirst(.toServer, Self.greet(with: 2, 3))
            // Of a time before the first version.
            case .olderServer: relay.changeFirst(.toClient, Self.greet(with: 0))
            case .newerServer: relay.changeFirst(.toClient, Self.greet(with: 2))
            }
            relay.dropConnections()
            try box.until("status says it", seconds: 5) {
                let target = try box.target(server.address)
                return !target.isInStep && target.reason?.contains("version") ?? false
            }
            try box.write("meanwhile", to: box.mountPoint + "/a.img", at: 65536)
            let target = try box.target(server.address)
            #expect(target.durableSequence == there, "\(target)")
            #expect(target.staleSinceNs != nil, "\(target)")
            relay.changeFirst(.toServer, nil)
            relay.changeFirst(.toClient, nil)
            try box.untilInStep(server.address)
            try box.settle()
            try server.expectSame()
        }
    }
}
