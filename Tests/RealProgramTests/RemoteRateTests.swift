import Foundation
import TestSupport
import Testing

/// How fast a server is sent what its mirror lacks, as the line sees it.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemoteRateTests {
    /// What went over the line since a moment.
    private struct Meter {
        let relay: Relay
        let began = Date()
        let before: UInt64

        init(_ relay: Relay) {
            self.relay = relay
            before = relay.passed(.toServer)
        }
        var bytes: UInt64 { relay.passed(.toServer) - before }
        var seconds: Double { Date().timeIntervalSince(began) }
    }

    private static let mebibyte = 1 << 20

    /// A first copy keeps to its rate, to another one as soon as that is said, and to none when it is taken away.
    /// What is written meanwhile is held by none of it.
    @Test func aFirstCopyKeepsToItsRateWhichIsChangedMeanwhile() throws {
        let relay = try Relay()
        defer { relay.end() }
        try Sandbox.with { box in
            let server = try MirrorServer(box, through: relay)
            defer { server.kill() }
            try box.ok("init", box.pool)
            // What it is made of does not shrink.
            let source = try box.makeFile("source", count: 8 * Self.mebibyte)
            try box.ok("import", box.pool, source, "--as", "a.img")
            try box.ok("create", box.pool, "b.img", "--size", "8M")
            try box.mount()
            func setRate(_ rate: String) throws {
                try box.ok("target", "set", box.pool, server.address, "--rate", rate)
            }

            let first = Meter(relay)
            try box.ok("target", "add", box.pool, server.address, "--rate", "2MiB")
            try keeps(first, to: 2.0, until: 2.0, box)
            #expect(try box.target(server.address).rateLimitBytesPerSecond == 2 << 20)
            try setRate("512KiB")
            try keeps(Meter(relay), to: 0.5, until: 0.5, box)

            let stream = Meter(relay)
            let written = try box.makeFile("written", count: 3 * Self.mebibyte, seed: 7)
            let copied = try box.shell(
                "dd if='\(written)' of='\(box.mountPoint)/b.img' bs=1M conv=notrunc,fsync status=none"
            )
            #expect(copied.code == 0, "\(copied)")
            try box.until("what was written is sent") { stream.bytes >= 3 * Self.mebibyte }
            #expect(stream.seconds < 3, "it would take six seconds at the rate of the copy")
            let target = try box.target(server.address)
            #expect(target.state == "resyncing")
            let (done, total) = (target.resyncDoneBytes ?? 0, target.resyncTotalBytes ?? 0)
            let left = Double(total) - Double(done)
            try #require(left > Double(3 * Self.mebibyte), "\(target)")

            let lifted = Date()
            try setRate("0")
            try box.untilInStep(server.address)
            #expect(
                Date().timeIntervalSince(lifted) < left / Double(512 << 10) / 2,
                "it goes on as slowly as before")
            #expect(try box.target(server.address).rateLimitBytesPerSecond == nil)
            #expect(try !box.events().contains { $0.kind == "target-lost" })
            try box.settle()
            try server.expectSame()
        }
    }

    /// - Parameters:
    ///   - rate: in MiB a second.
    ///   - amount: what is waited for, in MiB.
    private func keeps(
        _ meter: Meter, to rate: Double, until amount: Double, _ box: Sandbox
    ) throws {
        let unit = Double(Self.mebibyte)
        try box.until("\(amount) MiB were sent") { Double(meter.bytes) >= amount * unit }
        // What came meanwhile counts, too: first the bytes, then the time.
        let (bytes, seconds) = (Double(meter.bytes) / unit, meter.seconds)
        // A tenth of a second that it may make up for, a piece that is under way, and what is said beside it.
        let most = rate * (seconds + 0.2) + 0.1
        #expect(bytes <= most, "\(bytes) MiB in \(seconds) s at \(rate) MiB/s")
        #expect(seconds < 4 * amount / rate + 1, "it is much slower than it may be")
    }
}
