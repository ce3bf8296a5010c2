import Foundation
import TestSupport
import Testing

/// Looking into a mirror, and taking over from its primary.
@Suite(.enabled(if: hasFuse)) struct MirrorMountTests {
    // MARK: Looking

    @Test func aMirrorIsShownAtOneMomentWhileItsPrimaryRuns() throws {
        try Sandbox.withMirror("a.img", "b.img") { box in
            try box.write("first", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.lookIntoMirror()
            try box.write("other", to: box.mountPoint + "/a.img")
            try box.ok("delete", box.pool, "b.img")
            try box.settle()
            #expect(try box.text(box.look + "/a.img", count: 5) == "first")
            #expect(access(box.look + "/b.img", F_OK) == 0)
            #expect(box.writeError(box.look + "/a.img") == EROFS)
            #expect(try box.shell("touch '\(box.look)/x'").code != 0)
            // The primary's own mount stays when that of the mirror goes.
            let primary = try box.daemon()
            try box.lookAway()
            #expect(try box.daemon() == primary)
            #expect(box.isMounted)
            try box.lookIntoMirror()
            #expect(try box.text(box.look + "/a.img", count: 5) == "other")
            #expect(access(box.look + "/b.img", F_OK) != 0)
            // The primary may end under the reader.
            try box.ok("unmount", box.mountPoint)
        }
    }

    @Test func aMirrorAloneIsShownReadOnly() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.write("there", to: box.mountPoint + "/a.img")
            try box.killDaemon()
            try box.lookIntoMirror()
            #expect(try box.text(box.look + "/a.img", count: 5) == "there")
            #expect(box.writeError(box.look + "/a.img") == EROFS)
            let status = try box.status(of: box.look)
            #expect(status.replica?.role == "replica")
            #expect(status.replica?.primaryPool != nil)
            #expect(status.replica?.shownNs != nil)
            for words in [
                ["create", box.look, "new.img", "--size", "1M"],
                ["delete", box.look, "a.img"], ["snapshot", "create", box.look, "s"],
                ["target", "add", box.look, box.folder + "/third"],
            ] {
                let refused = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(refused.code == 1, "\(words): \(refused)")
            }
            // Whoever reads it keeps its primary waiting; then the primary goes on with it.
            try box.mount()
            #expect(try !box.target().isInStep)
            try box.lookAway()
            try box.untilInStep()
        }
    }

    @Test func aMirrorIsShownAsItWasAtAnyMoment() throws {
        try Sandbox.withMirror("a.img") { box in
            func now() -> String {
                let format = DateFormatter()
                format.locale = Locale(identifier: "en_US_POSIX")
                format.timeZone = TimeZone(identifier: "UTC")
                format.dateFormat = "yyyy-MM-dd HH:mm:ss"
                return format.string(from: Date())
            }
            func nextSecond() throws {
                let start = time(nil)
                try box.until("the next second") { time(nil) > start }
            }
            try box.write("early", to: box.mountPoint + "/a.img")
            try box.settle()
            try nextSecond()
            let between = now()
            try nextSecond()
            try box.write("later", to: box.mountPoint + "/a.img")
            try box.settle()
            for isAlone in [false, true] {
                if isAlone { try box.killDaemon() }
                try box.lookIntoMirror("--at", between)
                #expect(try box.text(box.look + "/a.img", count: 5) == "early", "alone: \(isAlone)")
                try box.lookAway()
                try box.lookIntoMirror()
                #expect(try box.text(box.look + "/a.img", count: 5) == "later", "alone: \(isAlone)")
                try box.lookAway()
            }
            let tooEarly = try box.run("mount", box.mirror, box.look, "--at", "2001-01-01 00:00")
            #expect(tooEarly.code == 1, "\(tooEarly)")
        }
    }

    // MARK: Taking over

    @Test func promotionMakesAMirrorAPrimary() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.write("flushed", to: box.mountPoint + "/a.img")
            let inUse = try box.run("promote", box.mirror)
            #expect(inUse.code == 3, "\(inUse)")
            try box.killDaemon()
            let plan = try box.ok("promote", box.mirror, "--dry-run")
            #expect(plan.contains("would become generation 2"))
            try box.lookIntoMirror()
            #expect(box.writeError(box.look + "/a.img") == EROFS)
            try box.lookAway()
            let done = try box.json(box.ok("promote", box.mirror, "--json"), PromotionLine.self)
            #expect(done.generation == 2)
            try box.lookIntoMirror()
            #expect(try box.text(box.look + "/a.img", count: 7) == "flushed")
            #expect(box.writeError(box.look + "/a.img") == 0)
            #expect(try box.status(of: box.mirror).generation == 2)
            #expect(try box.status(of: box.mirror).replica?.role == "primary")
            #expect(try box.run("promote", box.mirror).code != 0)
            #expect(try box.run("promote", box.pool).code != 0)
            // The journal went, and with it the looking back.
            try box.lookAway()
            let back = try box.run("mount", box.mirror, box.look, "--at", "1m")
            #expect(back.code == 2, "\(back)")
            #expect(
                try FileManager.default.contentsOfDirectory(atPath: box.mirror + "/journal").isEmpty
            )
        }
    }

    /// Takes the mirror over while the old primary's mount is up.
    private func withFencedPrimary(_ body: (Sandbox) throws -> Void) throws {
        try Sandbox.withMirror("a.img", "b.img") { box in
            try box.write("before", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.ok("target", "pause", box.pool, box.mirror)
            // It is in use still.
            #expect(try box.run("promote", box.mirror).code == 1)
            try box.ok("promote", box.mirror, "--force")
            // Until it hears of it, it goes on.
            try box.write("late", to: box.mountPoint + "/a.img")
            try box.holdingOpen(box.mountPoint + "/a.img") { () throws in
                try box.ok("target", "resume", box.pool, box.mirror)
                try box.until("the primary is fenced") { try box.target().state == "fenced" }
            }
            try body(box)
        }
    }

    /// Also what was open before.
    @Test func aFileThatIsOpenWhenItsPoolIsFencedTakesNothing() throws {
        try Sandbox.withMirror("a.img") { box in
            let file = try TestFile(box.mountPoint + "/a.img", O_RDWR)
            try file.write(Array("before".utf8), at: 0)
            try box.ok("target", "pause", box.pool, box.mirror)
            // It is in use still.
            #expect(try box.run("promote", box.mirror).code == 1)
            try box.ok("promote", box.mirror, "--force")
            try file.write(Array("late".utf8), at: 0)
            try file.sync()
            try box.ok("target", "resume", box.pool, box.mirror)
            try box.until("the primary is fenced") { try box.target().state == "fenced" }
            #expect(error(Int32(truncatingIfNeeded: pwrite(file.fd, "x", 1, 0))) == EROFS)
            #expect(error(fsync(file.fd)) == EROFS)
            #expect(error(ftruncate(file.fd, 100)) == EROFS)
            #expect(posix_fallocate(file.fd, 0, 4096) == EROFS)
            #expect(try file.read(6, at: 0) == Array("latere".utf8))
        }
    }

    @Test func anOldPrimaryIsFencedAndTakesNothing() throws {
        try withFencedPrimary { box in
            for command in [
                "echo x > new", "mv a.img c.img", "rm b.img", "mkdir sub", "chmod 600 a.img",
                "touch a.img", "ln -s a.img l", "truncate -s 0 b.img",
            ] {
                let refused = try box.shell("cd '\(box.mountPoint)' && \(command)")
                #expect(refused.code != 0, "\(command)")
                #expect(refused.errors.lowercased().contains("read-only"), "\(command): \(refused)")
            }
            for words in [
                ["create", box.pool, "n.img", "--size", "1M"], ["delete", box.pool, "a.img"],
                ["snapshot", "create", box.pool], ["resize", box.pool, "a.img", "9M"],
            ] {
                let refused = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(refused.code == 1)
                #expect(refused.errors.contains("target remove"), "\(words): \(refused)")
            }
            // What it has can be read.
            #expect(try box.text(box.mountPoint + "/a.img", count: 6) == "latere")
        }
    }

    @Test func aFencedPrimarySaysWhatToDo() throws {
        try withFencedPrimary { box in
            let status = try box.status()
            #expect(status.state == "degraded")
            #expect(status.replica?.role == "fenced")
            #expect(status.problems.contains { $0.contains("target remove") }, "\(status.problems)")
            #expect(try box.target().reason?.contains("was promoted") == true)
            try box.until("the event") {
                try box.events().contains { $0.kind == "target-fenced" && $0.subject == box.mirror }
            }
            // It stays so, also where the mirror cannot be asked.
            try box.ok("unmount", box.mountPoint)
            try #require(rename(box.mirror, box.folder + "/away") == 0)
            try box.mount()
            #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
            #expect(try box.status().replica?.role == "fenced")
            // The way out that the message names.
            try box.ok("target", "remove", box.pool, box.mirror)
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            #expect(box.writeError(box.mountPoint + "/a.img") == 0)
            #expect(try box.run("status", box.pool).code == 0)
        }
    }

    /// Its mirror was promoted and is in use: it is fenced all the same.
    @Test func anOldPrimaryIsFencedByAMirrorThatIsMounted() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.killDaemon()
            try box.ok("promote", box.mirror)
            try box.lookIntoMirror()
            try box.write("new", to: box.look + "/a.img")
            try box.mount()
            try box.until("the old primary is fenced") { try box.target().state == "fenced" }
            #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
            #expect(try box.text(box.look + "/a.img", count: 3) == "new")
            #expect(box.writeError(box.look + "/a.img") == 0)
        }
    }
}
