import Foundation
import TestSupport
import Testing

/// No copy that survives is taken for a whole one that is none: before anybody is answered without a mirror,
/// the other mirrors know.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct StandingTests {
    @Test func theOtherMirrorKnowsWhichOneWasLeftBehind() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"), options: "mode=sync,timeout=700ms"
            ) { box in
                let other = box.folder + "/other"
                let a = box.mountPoint + "/a.img"
                try box.ok("target", "add", box.pool, other, "--mode", "sync")
                try box.until("both count") {
                    try box.target(other).modeInForce == "sync"
                        && box.target().modeInForce == "sync"
                }
                try box.write("on both", to: a)
                try box.settle()
                try lossy.tell("hang")
                let started = Int64(Date().timeIntervalSince1970 * 1e9)
                // From this answer on a survivor must know, whatever dies now.
                try box.write("on one", to: a, at: 4096)
                try box.killDaemon()
                try lossy.tell("go")
                try #require(rename(box.pool, box.folder + "/lost") == 0)

                let refused = try box.run("promote", box.mirror)
                #expect(refused.code == 1, "\(refused)")
                #expect(refused.errors.contains("without this mirror since"), "\(refused)")
                #expect(refused.errors.contains("\(other) was told so"), "\(refused)")
                #expect(refused.errors.contains("\(other) holds more"), "\(refused)")
                let plan = try box.json(
                    box.ok("promote", box.mirror, "--dry-run", "--json"), PromotionLine.self)
                #expect(plan.better == [other])
                #expect(plan.loss.staleToldBy == other)
                #expect(plan.loss.staleReason?.contains("no progress") == true)
                let since = try #require(plan.loss.staleSinceNs)
                #expect(since > started && since < Int64(Date().timeIntervalSince1970 * 1e9))
                // The other has nobody before it.
                let whole = try box.json(
                    box.ok("promote", other, "--dry-run", "--json"), PromotionLine.self)
                #expect(whole.better.isEmpty)
                #expect(whole.loss.staleSinceNs == nil)
            }
        }
    }

    /// One that never streams is told with its runs, also where there is nothing else to ship.
    @Test func aMirrorWithAnIntervalIsToldWithItsRuns() throws {
        try Sandbox.withMirror("a.img", options: "mode=sync,timeout=700ms") { box in
            let other = box.folder + "/other"
            try box.ok(
                "target", "add", box.pool, other, "--mode", "async", "--interval", "1s")
            try box.settle()
            var last: TargetLine?
            try box.until("it is asked again, and nothing is to be told") {
                let now = try box.target(other)
                defer { last = now }
                guard let last, let due = last.nextRunNs, let next = now.nextRunNs else {
                    return false
                }
                return last.durableSequence == now.durableSequence && next > due + 500_000_000
            }
            let before = try box.target(other).durableSequence
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.until("a run for that alone") {
                try box.target(other).durableSequence > before
            }
            try box.killDaemon()
            try #require(rename(box.pool, box.folder + "/lost") == 0)
            let plan = try box.json(
                box.ok("promote", box.mirror, "--dry-run", "--json"), PromotionLine.self)
            #expect(plan.loss.staleToldBy == other)
            #expect(plan.loss.staleReason == "it is paused")
        }
    }

    /// What is told of a copy is told again when it changes.
    @Test func aMirrorThatIsInStepAgainIsNotCalledStale() throws {
        try Sandbox.withMirror("a.img", options: "mode=sync,timeout=700ms") { box in
            let other = box.folder + "/other"
            try box.ok("target", "add", box.pool, other, "--mode", "sync")
            try box.untilInStep(other)
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.write("on one", to: box.mountPoint + "/a.img")
            try box.ok("target", "resume", box.pool, box.mirror)
            try box.until("it counts again") { try box.target().modeInForce == "sync" }
            try box.until("it is written down") { try box.target().staleSinceNs == nil }
            try box.settle()
            try box.killDaemon()
            try #require(rename(box.pool, box.folder + "/lost") == 0)
            let plan = try box.json(
                box.ok("promote", box.mirror, "--dry-run", "--json"), PromotionLine.self)
            #expect(plan.loss.staleSinceNs == nil)
            #expect(plan.better.isEmpty)
        }
    }
}
