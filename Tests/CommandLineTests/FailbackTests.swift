import Foundation
import TestSupport
import Testing

/// An old primary that comes back to the pool that took its place: what travels, what is kept.
@Suite(.enabled(if: hasFuse)) struct FailbackTests {
    private func blocks(_ count: Int, at first: Int, _ letter: Character, in path: String) throws {
        let file = try TestFile(path, O_WRONLY)
        let block = [UInt8](repeating: letter.asciiValue!, count: 4096)
        for index in 0..<count { try file.write(block, at: (first + index) * 4096) }
        try file.sync()
    }

    /// A mirror that was promoted, and is mounted, and an old primary that has more.
    /// - Parameter body: gets the pool and the mirror, called P and M here.
    private func withTwoStories(
        killing: Bool = false, _ body: (Sandbox) throws -> Void
    ) throws {
        try Sandbox.withMirror("a.img", "b.img") { box in
            try blocks(512, at: 0, "0", in: box.mountPoint + "/a.img")
            try box.settle()
            try box.ok("target", "pause", box.pool, box.mirror)
            try blocks(7, at: 100, "P", in: box.mountPoint + "/a.img")
            try blocks(3, at: 400, "B", in: box.mountPoint + "/a.img")
            try Data("of P alone".utf8).write(to: URL(filePath: box.mountPoint + "/p.img"))
            if killing {
                try box.killDaemon()
            } else {
                try box.ok("unmount", box.mountPoint)
            }
            try box.ok("promote", box.mirror, "--force")
            try box.lookIntoMirror()
            try blocks(5, at: 200, "M", in: box.look + "/a.img")
            try blocks(3, at: 401, "C", in: box.look + "/a.img")
            try Data("of M alone".utf8).write(to: URL(filePath: box.look + "/m.img"))
            try body(box)
        }
    }

    private func untilBack(_ box: Sandbox) throws {
        try box.until("the old primary follows", seconds: 60) {
            try box.status(of: box.mirror).targets?.contains {
                $0.address == box.pool && $0.isInStep
            } ?? false
        }
    }

    private func kept(_ box: Sandbox) throws -> String {
        let snapshots = try box.json(
            box.ok("snapshot", "list", box.pool, "--json"), [SnapshotLine].self)
        let kept = snapshots.filter { $0.origin == "diverged" }.map(\.name)
        return try #require(kept.count == 1 ? kept.first : nil, "\(snapshots)")
    }

    @Test func onlyWhatEitherSideChangedTravelsAndWhatWasAloneIsKept() throws {
        try withTwoStories { box in
            try box.ok("demote", box.pool, "--to", box.mirror)
            try untilBack(box)
            let copy = box.folder + "/copy"
            try #require(
                try box.shell("mkdir '\(copy)'; cp -a --sparse=always '\(box.look)'/. '\(copy)'")
                    .code == 0)
            try box.ok("unmount", box.look)
            let kept = try kept(box)
            // The head was empty when the resync began: its blocks are those that travelled.
            let diff = try box.json(
                box.ok("snapshot", "diff", box.pool, kept, "--json"), [DiffLine].self)
            let changed = diff.first { $0.path == "a.img" }
            #expect(changed?.changedBytes == (7 + 5 + 4) * 4096, "\(diff)")
            #expect(diff.contains { $0.path == "p.img" && $0.change == "removed" }, "\(diff)")
            #expect(diff.contains { $0.path == "m.img" && $0.change == "added" }, "\(diff)")
            #expect(!diff.contains { $0.path == "b.img" }, "\(diff)")

            try box.mount()
            try box.expectSame(copy, box.mountPoint)
            let old = box.mountPoint + "/.snapshots/" + kept
            #expect(try box.text(old + "/p.img", count: 10) == "of P alone")
            #expect(try box.text(old + "/a.img", count: 2, at: 100 * 4096) == "PP")
            #expect(try box.text(old + "/a.img", count: 2, at: 402 * 4096) == "BB")
            #expect(try box.text(old + "/a.img", count: 2, at: 200 * 4096) == "00")
        }
    }

    @Test func whatACrashLeftOpenIsComparedAndOnlyDifferencesTravel() throws {
        try withTwoStories(killing: true) { box in
            try box.ok("demote", box.pool, "--to", box.mirror)
            try untilBack(box)
            try box.ok("unmount", box.look)
            let kept = try kept(box)
            let diff = try box.json(
                box.ok("snapshot", "diff", box.pool, kept, "--json"), [DiffLine].self)
            #expect(
                diff.first { $0.path == "a.img" }?.changedBytes == (7 + 5 + 4) * 4096, "\(diff)")
        }
    }

    @Test func whereTheDirtySetIsLostEverythingIsComparedAndThatIsSaid() throws {
        try withTwoStories { box in
            try box.ok("unmount", box.look)
            #expect(try box.shell("rm '\(box.mirror)'/targets/*/dirty").code == 0)
            try box.ok("demote", box.pool, "--to", box.mirror)
            try box.lookIntoMirror()
            try untilBack(box)
            let copy = box.folder + "/copy"
            try #require(
                try box.shell("mkdir '\(copy)'; cp -a --sparse=always '\(box.look)'/. '\(copy)'")
                    .code == 0)
            let said = try box.json(
                box.ok("events", box.mirror, "--json"), [EventLine].self)
            #expect(said.contains { $0.kind == "compare-all" }, "\(said)")
            try box.ok("unmount", box.look)
            let diff = try box.json(
                box.ok("snapshot", "diff", box.pool, try kept(box), "--json"), [DiffLine].self)
            #expect(
                diff.first { $0.path == "a.img" }?.changedBytes == (7 + 5 + 4) * 4096, "\(diff)")
            try box.mount()
            try box.expectSame(copy, box.mountPoint)
        }
    }

    @Test func aPoolThatHadNothingAloneKeepsNothing() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.write("before", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.ok("unmount", box.mountPoint)
            try box.ok("promote", box.mirror)
            try box.lookIntoMirror()
            try box.write("later", to: box.look + "/a.img")
            try box.ok("demote", box.pool, "--to", box.mirror)
            try untilBack(box)
            try box.ok("unmount", box.look)
            let snapshots = try box.json(
                box.ok("snapshot", "list", box.pool, "--json"), [SnapshotLine].self)
            #expect(snapshots.isEmpty, "\(snapshots)")
        }
    }

    /// There and back again, three times: each time both have something of their own.
    @Test func rolesCanBeChangedAgainAndAgain() throws {
        try Sandbox.withMirror("a.img") { box in
            try blocks(64, at: 0, "0", in: box.mountPoint + "/a.img")
            try box.settle()
            try box.ok("unmount", box.mountPoint)
            var (primary, mirror) = (box.pool, box.mirror)
            for round in 1...3 {
                // Both change while they do not hear of each other.
                try box.ok("mount", primary, box.mountPoint, "--no-targets")
                try blocks(2, at: round * 3, "P", in: box.mountPoint + "/a.img")
                try box.ok("unmount", box.mountPoint)
                try box.ok("promote", mirror, "--force")
                try box.ok("mount", mirror, box.mountPoint, "--no-targets")
                try blocks(2, at: 30 + round * 3, "M", in: box.mountPoint + "/a.img")
                let content = try box.bytes(box.mountPoint + "/a.img")
                try box.ok("unmount", box.mountPoint)
                try box.ok("demote", primary, "--to", mirror)
                try box.ok("wait", mirror, "--timeout", "50s")
                (primary, mirror) = (mirror, primary)
                try box.ok("mount", mirror, box.mountPoint)
                #expect(try box.bytes(box.mountPoint + "/a.img") == content)
                #expect(
                    try names(in: box.mountPoint + "/.snapshots").filter {
                        $0.hasPrefix("diverged-")
                    }
                    .count == (round + 1) / 2)
                try box.ok("unmount", box.mountPoint)
                #expect(try box.status(of: primary).generation == UInt64(round + 1))
            }
        }
    }

    /// Whoever is killed in the middle of it: the resync goes on, and what was alone is kept once.
    @Test func aFailbackThatIsKilledGoesOn() throws {
        try withTwoStories { box in
            try box.makeFile(box.look + "/large.img", count: 24 << 20)
            let content = try box.bytes(box.look + "/large.img")
            try box.ok("unmount", box.look)
            try box.ok("demote", box.pool, "--to", box.mirror)
            for delayMs in [30, 80, 160, 320] {
                try box.lookIntoMirror()
                let pid = try #require(try box.status(of: box.mirror).ownerPID)
                // A moment somewhere in the resync; any is right.
                usleep(UInt32(delayMs) * 1000)
                kill(pid, SIGKILL)
                try box.until("it is gone") { !Sandbox.isRunning(pid) }
                _ = try box.shell(
                    "umount -l '\(box.look)' 2>/dev/null || fusermount3 -uz '\(box.look)'")
            }
            try box.lookIntoMirror()
            try untilBack(box)
            try box.ok("unmount", box.look)
            let kept = try kept(box)
            try box.mount()
            #expect(try box.bytes(box.mountPoint + "/large.img") == content)
            #expect(
                try box.text(box.mountPoint + "/.snapshots/\(kept)/p.img", count: 10)
                    == "of P alone")
        }
    }

    @Test func whoMayBeDemotedAndToWhom() throws {
        try withTwoStories { box in
            let inUse = try box.run("demote", box.mirror, "--to", box.pool)
            #expect(inUse.code != 0)
            let unknown = try box.run("demote", box.pool)
            #expect(unknown.code == 2)
            #expect(unknown.errors.contains("--to"), "\(unknown)")
            try box.ok("init", box.folder + "/other")
            let other = try box.run("demote", box.pool, "--to", box.folder + "/other")
            #expect(other.code == 1)
            #expect(other.errors.contains("was not promoted from"), "\(other)")
            try box.ok("demote", box.pool, "--to", box.mirror)
            #expect(try box.run("demote", box.pool, "--to", box.mirror).code != 0)
            try untilBack(box)
        }
    }
}
