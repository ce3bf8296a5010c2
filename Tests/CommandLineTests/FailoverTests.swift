import Foundation
import TestSupport
import Testing

/// A pool is handed over to its mirror: nothing is lost, and there is one primary, whoever dies when.
@Suite(.enabled(if: hasFuse)) struct FailoverTests {
    @Test func aMountedPoolIsHandedOverWhileItIsWritten() throws {
        try Sandbox.withMirror("a.img") { box in
            let writer = try NumberWriter(box, "a.img")
            defer { writer.kill() }
            let outcome = try box.json(
                box.ok("failover", box.pool, "--to", box.mirror, "--planned", "--json"),
                HandoverLine.self)
            #expect(outcome.generation == 2)
            #expect(outcome.pauseMs >= 0)
            // Who writes hears it at once, and of the new primary.
            try box.until("the writer hears of it") { !writer.isRunning }
            #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
            #expect(try box.status().problems.contains { $0.contains(box.mirror) })
            try box.ok("unmount", box.mountPoint)
            try box.lookIntoMirror()
            try writer.expectLast(in: box.look)
            // And the old one follows.
            try box.write("of the new one", to: box.look + "/a.img", at: 3 << 20)
            try box.ok("wait", box.look, "--timeout", "50s")
            let content = try box.bytes(box.look + "/a.img")
            try box.ok("unmount", box.look)
            try box.mount()
            #expect(try box.bytes(box.mountPoint + "/a.img") == content)
            #expect(try box.status().replica?.role == "replica")
            #expect(try names(in: box.mountPoint + "/.snapshots").isEmpty, "nothing had to be kept")
        }
    }

    @Test func thereAndBackOnPoolsThatAreNotMounted() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.write("first", to: box.mountPoint + "/a.img")
            try box.ok("unmount", box.mountPoint)
            try box.ok("failover", box.pool, "--to", box.mirror, "--planned")
            #expect(
                try box.primaries(creating: "second.img") == [box.mirror])
            try box.ok("wait", box.mirror, "--timeout", "50s")
            try box.ok("failover", box.mirror, "--to", box.pool, "--planned")
            #expect(
                try box.primaries(creating: "third.img") == [box.pool])
            try box.ok("wait", box.pool, "--timeout", "50s")
            #expect(try box.content(of: box.pool) == box.content(of: box.mirror))
            #expect(try box.status().generation == 3)
        }
    }

    /// SIGKILL at each step of the order; then whoever is the primary goes on, and the other follows.
    @Test(arguments: ["held", "drained", "noted", "promoted", "fenced", "settled", "demoted"])
    func aHandoverThatIsKilledLeavesOnePrimary(step: String) throws {
        try Sandbox.with { box in
            let file = try box.makeReplicated(to: box.mirror, count: 3 << 20)
            try box.ok("create", box.pool, "late.img", "--size", "1M")
            let died = try box.execute(
                [Sandbox.products + "/HandoverFixture", box.pool, box.mirror, step],
                input: "/dev/null")
            #expect(died.code != 0, "\(died)")
            let isOver = ["promoted", "fenced", "settled", "demoted"].contains(step)
            let expected = isOver ? box.mirror : box.pool
            #expect(
                try box.primaries(creating: "after.img") == [expected],
                "killed when \(step)")
            try box.ok("wait", expected, "--timeout", "50s")
            let (one, other) = (try box.content(of: box.pool), try box.content(of: box.mirror))
            #expect(one == other)
            #expect(one.keys.sorted() == ["a.img", "after.img", "late.img"])
            #expect(try one["a.img"] == box.bytes(file))
        }
    }

    @Test func whatCannotBeAskedKeepsThePoolFromBeingChanged() throws {
        try Sandbox.with { box in
            try box.ok("init", box.pool)
            try box.ok("create", box.pool, "a.img", "--size", "1M")
            try box.ok("target", "add", box.pool, box.mirror)
            try box.ok("wait", box.pool, "--timeout", "50s")
            _ = try box.execute(
                [Sandbox.products + "/HandoverFixture", box.pool, box.mirror, "noted"],
                input: "/dev/null")
            try #require(rename(box.mirror, box.mirror + "-away") == 0)
            let refused = try box.run("create", box.pool, "b.img", "--size", "1M")
            #expect(refused.code == 1)
            #expect(refused.errors.contains("target resolve"), "\(refused)")
            #expect(try box.content(of: box.pool).keys.sorted() == ["a.img"])
            try #require(rename(box.mirror + "-away", box.mirror) == 0)
            try box.ok("create", box.pool, "b.img", "--size", "1M")
        }
    }

    @Test func aMirrorThatIsNotInStepIsNotHandedTo() throws {
        try Sandbox.withMirror("a.img") { box in
            #expect(try box.run("failover", box.pool, "--to", box.mirror).code == 2)
            let other = try box.run("failover", box.pool, "--to", box.folder + "/o", "--planned")
            #expect(other.errors.contains("is no target"), "\(other)")
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.write("alone", to: box.mountPoint + "/a.img")
            let refused = try box.run(
                "failover", box.pool, "--to", box.mirror, "--planned", "--timeout", "300ms")
            #expect(refused.code == 4, "\(refused)")
            #expect(box.writeError(box.mountPoint + "/a.img") == 0)
        }
    }
}
