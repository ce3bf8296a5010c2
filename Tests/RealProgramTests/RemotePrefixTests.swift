import Glibc
import TestSupport
import Testing

/// What `PrefixTests` hold a mirror directory to, with the mirror behind a server: the line is cut and hangs, the
/// server is killed and comes back in the middle; in the end the primary's daemon is killed, and the server, or its
/// machine loses its power.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemotePrefixTests {
    /// All modes together: 20 rounds, and 100 in a long run.
    private static var rounds: Int { getenv("DOPPEL_SOAK") == nil ? 5 : 25 }

    private func promise(_ mode: String, isKilled: Bool, losesPower: Bool) -> Stamps.Promise {
        switch mode {
        case "flush": .flushes
        case "sync": losesPower ? .flushes : .writes
        case "semi-sync": losesPower || isKilled ? .nothing : .writes
        default: .nothing
        }
    }

    @Test(arguments: ["flush", "async", "semi-sync", "sync"])
    func aMirrorBehindAServerHoldsAPrefix(mode: String) throws {
        let seed = Seeds.run(1)[0]
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let relay = try Relay()
        defer { relay.end() }
        try LossyMount.with { lossy in
            let images = (0..<Stamps.imageCount).map { "disk\($0).img" }
            try Sandbox.with { box in
                let server = try MirrorServer(box, root: lossy.file("served"), through: relay)
                try box.ok("init", box.pool)
                for image in images { try box.ok("create", box.pool, image, "--size", "1M") }
                let stamps = Stamps()
                mkdir(box.look, 0o755)
                for round in 1...Self.rounds {
                    // A line that is slow on a busy machine is not to be given up.
                    try box.mount("--mirror", "\(server.address),timeout=20s,mode=\(mode)")
                    let startsInStep = random.chance(70)
                    let losesPower = random.chance(50)
                    let isKilled = random.chance(40)
                    if startsInStep { try box.untilInStep(server.address) }
                    try stamps.write(
                        images.map { "\(box.mountPoint)/\($0)" }, seed: random.next(),
                        promise: startsInStep
                            ? promise(mode, isKilled: isKilled, losesPower: losesPower) : .nothing
                    ) {
                        usleep(useconds_t(20_000 + random.below(200_000)))
                        if isKilled {
                            server.kill()
                            try server.start()
                        } else if random.chance(50) {
                            relay.cut()
                            usleep(useconds_t(random.below(50_000)))
                            relay.mend()
                        } else {
                            relay.hold(random.chance(50) ? [.toServer] : [.toClient])
                            usleep(useconds_t(random.below(100_000)))
                            relay.hold([])
                        }
                        usleep(useconds_t(20_000 + random.below(200_000)))
                        try box.killDaemon()
                    }
                    if losesPower {
                        server.kill()
                        try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
                    } else {
                        #expect(try server.terminate() == 0, "\(server.words)")
                    }
                    try box.ok("mount", server.mirror, box.look)
                    let found = try images.map { try contents(box.look + "/" + $0) }
                    if let violation = stamps.violation(of: found) {
                        throw Failure("seed \(seed), \(mode), round \(round): \(violation)")
                    }
                    try box.lookAway()
                    try server.start()
                }
                #expect(stamps.writeCount > 20 * Self.rounds, "hardly anything was written")
                // In the end both are the same.
                try box.mount()
                try box.settle()
                try server.expectSame()
            }
        }
    }
}
