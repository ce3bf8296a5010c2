import Foundation
import TestSupport
import Testing

/// Waited for as much as the mirror's answers allow.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct AdaptiveMirrorTests {
    @Test func aSlowMirrorIsWaitedForLessAndAQuickOneMore() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"),
                options: "mode=adaptive,latency-budget=20ms,timeout=500ms"
            ) { box in
                let image = box.mountPoint + "/a.img"
                #expect(try box.target().mode == "adaptive")
                try box.until("it is waited for") { try box.target().modeInForce == "sync" }
                // Ten times as late as it may be; still less than a silent one.
                try lossy.tell("slow 250")
                defer { try? lossy.tell("slow 0") }
                var number = 0
                try box.until("nobody waits for it any more", seconds: 30) {
                    number += 1
                    try box.write("slow \(number)", to: image, at: 4096 * (number % 100))
                    return try box.target().modeInForce == "async"
                }
                let started = Date()
                try box.write("at once", to: image)
                let took = Date().timeIntervalSince(started)
                #expect(took < 0.2, "a write took \(took) s")
                try lossy.tell("slow 0")
                try box.until("it is waited for again", seconds: 40) {
                    number += 1
                    try box.write("quick \(number)", to: image, at: 4096 * (number % 100))
                    return try ["semi-sync", "sync"].contains(box.target().modeInForce)
                }
                let told = try box.events().filter { $0.kind == "mode-changed" }.map(\.message)
                let steps = Set(told.map { $0.components(separatedBy: ":")[0] })
                #expect(
                    steps.isSuperset(of: ["semi-sync is in force", "async is in force"]), "\(told)")
                try box.settle()
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }
}
