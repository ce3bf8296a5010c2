import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Daemon

@Suite struct ServedRootTests {
    @Test func aSecondServerIsToldWhoHasTheFolder() throws {
        let root = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: root) }
        let first = try #require(try ServedRoot.take(root, timeoutMs: 0))
        let refused = #expect(throws: ControlFailure.self) {
            _ = try ServedRoot.take(root, timeoutMs: 100)
        }
        #expect(refused?.exitCode == 3)
        let who = "process \(ProcessControl.processID)"
        #expect(refused?.message.contains(who) == true, "\(String(describing: refused))")
        #expect(refused?.message.contains("SIGTERM") == true)
        // Who is told to end meanwhile ends.
        #expect(try ServedRoot.take(root, timeoutMs: 60_000, unless: { true }) == nil)
        let second = TestThread { try ServedRoot.take(root, timeoutMs: 60_000) != nil }
        first.release()
        #expect(try second.join())
        #expect(try FileManager.default.contentsOfDirectory(atPath: root).isEmpty)
    }
}
