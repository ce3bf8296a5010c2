import Glibc
import TestSupport
import Testing

/// What a mirror shows is a prefix of what was done to the pool, over all images: where a write is
/// there, every write is that had ended before that one began. And everything is there that the mode
/// promises: what was flushed in mode flush and sync; in sync and semi-sync, where the mirror's machine
/// goes on, every write that returned. A mirror with an interval shows one of its checkpoints, and what was done
/// before somebody waited for one; one in mode adaptive has what sync promises while that is in force.
///
/// Several writers stamp sectors of several images with one counter. The daemon is killed in the
/// middle, and the mirror's disk forgets what was not synced, or some of it.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct PrefixTests {
    /// All modes together: 20 rounds, and 200 in a long run.
    private static var rounds: Int { getenv("DOPPEL_SOAK") == nil ? 4 : 34 }

    /// What has returned and must be there when the daemon is killed, and when the mirror's power goes,
    /// too.
    private func promise(_ mode: String, losesPower: Bool) -> Stamps.Promise {
        switch mode {
        case "flush": .flushes
        case "sync", "adaptive": losesPower ? .flushes : .writes
        case "semi-sync": losesPower ? .nothing : .writes
        default: .nothing
        }
    }

    /// - Parameter isTight: the mirror does not answer in time for more than mode async.
    private func options(_ mode: String, isTight: Bool) -> String {
        switch mode {
        case "interval": "mode=async,interval=1s"
        case "adaptive": "mode=adaptive,latency-budget=\(isTight ? "1ms" : "30s")"
        default: "mode=\(mode)"
        }
    }

    @Test(arguments: ["flush", "async", "semi-sync", "sync", "interval", "adaptive"])
    func aMirrorHoldsAPrefix(mode: String) throws {
        let seed = Seeds.run(1)[0]
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        try LossyMount.with { lossy in
            let images = (0..<Stamps.imageCount).map { "disk\($0).img" }
            try Sandbox.with(mirror: lossy.file("mirror")) { box in
                try box.ok("init", box.pool)
                for image in images { try box.ok("create", box.pool, image, "--size", "1M") }
                let stamps = Stamps()
                for round in 1...Self.rounds {
                    let isTight = mode == "adaptive" && random.chance(50)
                    // A target that is slow on a busy machine is not to be left behind.
                    try box.mount(
                        "--mirror",
                        "\(box.mirror),timeout=60s," + options(mode, isTight: isTight))
                    // Otherwise the mirror is being brought in step under the writes: what it shows
                    // then may be from before.
                    let startsInStep = random.chance(70)
                    let losesPower = random.chance(
                        mode.hasSuffix("sync") || mode == "adaptive" ? 50 : 100)
                    if startsInStep { try box.untilInStep() }
                    if startsInStep, mode == "adaptive", !isTight {
                        try box.until("sync is in force") {
                            try box.target().modeInForce == "sync"
                        }
                    }
                    let isPromised = startsInStep && !isTight
                    let waits = mode == "interval" && random.chance(60)
                    if isTight { try lossy.tell("slow 3") }
                    try stamps.write(
                        images.map { "\(box.mountPoint)/\($0)" }, seed: random.next(),
                        promise: isPromised ? promise(mode, losesPower: losesPower) : .nothing,
                        // A run ends only where the mirror takes more than is written.
                        pauseUs: waits ? 1000 : 0
                    ) {
                        if waits { try stamps.promising { try box.settle() } }
                        usleep(useconds_t(20_000 + random.below(300_000)))
                        try box.killDaemon()
                    }
                    if losesPower {
                        try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
                    }
                    if isTight { try lossy.tell("slow 0") }
                    try box.lookIntoMirror()
                    let found = try images.map { try contents(box.look + "/" + $0) }
                    if let violation = stamps.violation(of: found) {
                        throw Failure("seed \(seed), \(mode), round \(round): \(violation)")
                    }
                    try box.lookAway()
                }
                #expect(stamps.writeCount > 20 * Self.rounds, "hardly anything was written")
                #expect(mode != "flush" || stamps.flushCount > Self.rounds)
                // In the end both are the same.
                try box.mount()
                try box.settle()
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }

    /// The check itself finds what it is there to find.
    @Test func theCheckFindsWhatIsNoPrefix() {
        let stamps = Stamps()
        stamps.note(Stamps.Write(stamp: 1, ended: 2, image: 0, sector: 0))
        stamps.note(Stamps.Write(stamp: 3, ended: 4, image: 1, sector: 0))
        stamps.note(Stamps.Write(stamp: 5, ended: nil, image: 0, sector: 0))
        func content(_ first: UInt64, _ second: UInt64) -> [[UInt8]] {
            [Stamps.sector(first), Stamps.sector(second), []]
        }
        #expect(stamps.violation(of: content(0, 0)) == nil)
        #expect(stamps.violation(of: content(1, 0)) == nil)
        #expect(stamps.violation(of: content(1, 3)) == nil)
        #expect(stamps.violation(of: content(5, 3)) == nil)
        #expect(stamps.violation(of: content(0, 3)) != nil)
        #expect(stamps.violation(of: content(5, 0)) != nil)
        #expect(stamps.violation(of: content(7, 3)) != nil)
        var torn = content(1, 3)
        torn[0][511] = 0xff
        #expect(stamps.violation(of: torn) != nil)
        stamps.noteFlush(image: 1, began: 6)
        #expect(stamps.violation(of: content(1, 0)) != nil)
        #expect(stamps.violation(of: content(1, 3)) == nil)
    }
}
