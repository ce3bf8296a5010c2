import Foundation
import TestSupport
import Testing

/// The verbs for targets, and what status says of them.
@Suite(.enabled(if: hasFuse)) struct TargetTests {
    // MARK: Status

    @Test func statusTellsHowTheTargetStands() throws {
        try Sandbox.withMirror("a.img", options: "mode=flush,timeout=700ms") { box in
            let status = try box.status()
            #expect(status.state == "healthy")
            #expect(status.replica?.role == "primary")
            let target = try box.target()
            #expect(target.address == box.mirror)
            #expect((target.mode, target.modeInForce, target.timeoutMs) == ("flush", "flush", 700))
            #expect(target.state == "streaming")
            #expect(target.staleSinceNs == nil)
            #expect(target.reason == nil)
            try box.write("here", to: box.mountPoint + "/a.img")
            try box.settle()
            #expect(try box.target().atRiskBytes == 0)
            #expect(try box.target().checkpointNs != nil)
            try box.until("how far back it can be shown") {
                try box.write("more", to: box.mountPoint + "/a.img")
                return try box.target().reachFromNs != nil
            }
            try box.settle()
            let text = try box.ok("status", box.pool)
            #expect(text.contains("primary, generation 1"))
            #expect(text.contains("\(box.mirror): in step, mode flush"))
            let file = try box.json(
                box.read(box.mountPoint + "/.doppel/status.json"), StatusLine.self)
            #expect(file.targets?.first?.state == "streaming")
            #expect(try box.ok("target", "list", box.pool).contains("in step"))
        }
    }

    /// What the kernel keeps back no target has: an fsync could not promise it.
    @Test func writebackGoesWithAsyncTargetsAlone() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok("unmount", box.mountPoint)
            func mount() throws -> Outcome {
                try box.run("mount", box.pool, box.mountPoint, "--cache", "writeback")
            }
            let refused = try mount()
            #expect(refused.code == 2, "\(refused)")
            #expect(refused.errors.contains("async targets alone"), "\(refused)")
            try box.ok("target", "set", box.pool, box.mirror, "--mode", "async")
            #expect(try mount().code == 0)
            let set = try box.run("target", "set", box.pool, box.mirror, "--mode", "flush")
            #expect(set.code == 2, "\(set)")
            #expect(try box.target().mode == "async")
        }
    }

    @Test func aPausedTargetIsDegradedAndNobodyWaitsForIt() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok("target", "pause", box.mountPoint, box.mirror)
            try box.write("meanwhile", to: box.mountPoint + "/a.img")
            let shown = try box.run("status", box.pool)
            #expect(shown.code == 4, "\(shown)")
            #expect(shown.output.contains("behind since"))
            #expect(shown.output.contains("at risk 4 KiB"), "\(shown)")
            let target = try box.target()
            #expect((target.state, target.mode, target.modeInForce) == ("paused", "flush", "async"))
            #expect(target.staleSinceNs != nil)
            #expect(target.reason == "it is paused")
            #expect(target.dirtyBytes == 4096)
            try box.until("it is behind by more than a second") {
                try box.target().lagMs > 1000
            }
            // Also after the pool was opened anew.
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            #expect(try box.target().state == "paused")
            #expect(try box.target().dirtyBytes == 4096)
            try box.ok("target", "resume", box.pool, box.mirror)
            try box.settle()
            try box.untilInStep()
            #expect(try box.run("status", box.pool).code == 0)
            try box.until("it counts again") { try box.target().modeInForce == "flush" }
        }
    }

    @Test func waitGivesFourWhenTheTimePasses() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.write("meanwhile", to: box.mountPoint + "/a.img")
            for words in [["wait", box.pool], ["wait", box.mountPoint, "--target", box.mirror]] {
                let late = try box.execute(
                    [Sandbox.binary] + words + ["--timeout", "300ms"], input: "/dev/null")
                #expect(late.code == 4, "\(late)")
                #expect(late.errors.contains(box.mirror))
            }
            let other = try box.run("wait", box.pool, "--target", box.folder, "--timeout", "1s")
            #expect(other.code == 1)
            #expect(other.errors.contains("no target"))
            try box.ok("target", "resume", box.pool, box.mirror)
            try box.ok("wait", box.pool, "--target", box.mirror, "--timeout", "50s")
        }
    }

    /// Until so many lines that were printed have the word in them.
    private func watch(
        _ box: Sandbox, _ words: String, until word: String, _ count: Int
    ) throws -> Outcome {
        try box.shell(
            """
            f='\(box.folder)/watched'; "$DOPPEL" status \(words) --watch >"$f" & pid=$!
            for i in $(seq 400); do
                [ "$(grep -c '\(word)' "$f")" -ge \(count) ] && break; sleep 0.05
            done
            kill -KILL $pid; wait $pid; cat "$f"
            """)
    }

    @Test func statusIsWatched() throws {
        try Sandbox.withMirror("a.img") { box in
            let watched = try watch(box, "'\(box.pool)' --json", until: "pool", 2)
            let lines = watched.output.split(separator: "\n")
            #expect(lines.count >= 2, "\(watched)")
            for line in lines {
                #expect(try box.json(String(line), StatusLine.self).targets?.count == 1)
            }
            let text = try watch(box, "'\(box.mountPoint)'", until: "in step", 1)
            #expect(text.output.components(separatedBy: "in step").count >= 2, "\(text)")
        }
    }

    // MARK: Changing

    @Test func aTargetIsSetPausedAndRemoved() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok(
                "target", "set", box.pool, box.mirror, "--mode", "async", "--timeout", "900ms")
            try box.untilInStep()
            var target = try box.target()
            #expect((target.mode, target.modeInForce, target.timeoutMs) == ("async", "async", 900))
            try box.ok("target", "set", box.pool, box.mirror, "--mode", "flush")
            try box.until("it counts") { try box.target().modeInForce == "flush" }
            target = try box.target()
            #expect(target.timeoutMs == 900)
            try box.write("kept", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.ok("target", "remove", box.pool, box.mirror)
            #expect(try box.status().targets?.isEmpty == true)
            #expect(try box.run("status", box.pool).code == 0)
            #expect(
                try box.run("target", "pause", box.pool, box.mirror).errors.contains("no target"))
            // What it held is there still, and can be taken up again.
            try box.lookIntoMirror()
            #expect(try box.text(box.look + "/a.img", count: 4) == "kept")
            try box.lookAway()
            try box.write("more", to: box.mountPoint + "/a.img", at: 4)
            try box.ok("target", "add", box.pool, box.mirror)
            try box.settle()
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    @Test func addRefusesWhatIsNoPlaceForAMirror() throws {
        try Sandbox.withPool("a.img") { box in
            let foreign = box.folder + "/foreign"
            mkdir(foreign, 0o755)
            try box.makeFile(foreign + "/letter.txt", count: 10)
            let other = box.folder + "/other"
            try box.ok("init", other)
            for mounted in [false, true] {
                if mounted { try box.mount() }
                for (place, code) in [
                    (foreign, Int32(1)), (other, 1), (box.pool, 2), (box.pool + "/inside", 2),
                    (box.folder, 2),
                ] {
                    let refused = try box.run("target", "add", box.pool, place)
                    #expect(refused.code == code, "\(place): \(refused)")
                }
                #expect(
                    try box.json(box.ok("target", "list", box.pool, "--json"), [TargetLine].self)
                        .isEmpty)
            }
            #expect(try FileManager.default.contentsOfDirectory(atPath: foreign) == ["letter.txt"])
            #expect(access(box.pool + "/inside", F_OK) != 0)
            // The same for a mount, which then does not come about.
            try box.ok("unmount", box.mountPoint)
            let mount = try box.run("mount", box.pool, box.mountPoint, "--mirror", foreign)
            #expect(mount.code == 1, "\(mount)")
            #expect(!box.isMounted)
        }
    }

    @Test func addWarnsOfTheSameFileSystem() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let added = try box.run("target", "add", box.pool, box.mirror)
            #expect(added.code == 0)
            #expect(added.errors.contains("same file system"), "\(added)")
            let again = try box.run("target", "add", box.pool, box.mirror)
            #expect(again.code == 1)
            #expect(again.errors.contains("target set"))
            // So does the mount that adds one; afterwards it is known.
            try box.ok("unmount", box.mountPoint)
            let other = box.folder + "/other"
            let mount = ["mount", box.pool, box.mountPoint, "--mirror", other]
            for isNew in [true, false] {
                let mounted = try box.execute([Sandbox.binary] + mount, input: "/dev/null")
                #expect(mounted.code == 0, "\(mounted)")
                #expect(mounted.errors.contains("same file system") == isNew, "\(mounted)")
                try box.ok("unmount", box.mountPoint)
            }
        }
    }

    // MARK: Absent

    /// Not mounted, empty, or another's: degraded, and never laid out anew.
    @Test func aMirrorThatIsNotThereIsAbsentAndNeverMadeAnew() throws {
        try Sandbox.withMirror("a.img") { box in
            let stranger = box.folder + "/stranger"
            try box.ok("unmount", box.mountPoint)
            let away = box.folder + "/away"
            try #require(rename(box.mirror, away) == 0)
            try box.ok("init", box.folder + "/second")
            try box.ok("target", "add", box.folder + "/second", stranger)
            // An earlier mirror of the same pool is another one, too.
            let old = box.folder + "/old"
            try box.ok("target", "add", box.pool, old)
            try box.ok("wait", box.pool, "--target", old, "--timeout", "50s")
            try box.ok("target", "remove", box.pool, old)
            func check(_ what: String, _ round: Int) throws {
                try box.mount()
                try box.until("\(what): it is tried", seconds: 30) {
                    let target = try box.target()
                    return target.state == "disconnected"
                        && target.reason?.contains(box.mirror) == true
                }
                let started = Date()
                #expect(box.writeError(box.mountPoint + "/a.img") == 0)
                try box.write("round \(round)", to: box.mountPoint + "/a.img", at: round * 8192)
                #expect(Date().timeIntervalSince(started) < 20)
                let target = try box.target()
                #expect(target.staleSinceNs != nil)
                #expect(target.modeInForce == "async")
                #expect(target.dirtyBytes >= 4096)
                #expect(try box.run("status", box.pool).code == 4)
                try box.ok("unmount", box.mountPoint)
            }
            try check("nothing there", 1)
            mkdir(box.mirror, 0o755)
            try check("an empty directory", 2)
            #expect(try FileManager.default.contentsOfDirectory(atPath: box.mirror).isEmpty)
            rmdir(box.mirror)
            for (round, place) in [(3, stranger), (4, old)] {
                try #require(rename(place, box.mirror) == 0)
                try check("another mirror", round)
                try #require(rename(box.mirror, place) == 0)
            }
            try #require(rename(away, box.mirror) == 0)
            try box.mount()
            try box.settle()
            try box.untilInStep()
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }
}
