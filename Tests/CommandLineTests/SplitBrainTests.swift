import Foundation
import TestSupport
import Testing

/// Two mirrors of a pool that was lost, both promoted: neither is sent to, until somebody says which goes on.
@Suite(.enabled(if: hasFuse)) struct SplitBrainTests {
    /// - Parameter body: gets the two, both with something of their own, both with the other as a target.
    private func withTwoPrimaries(_ body: (Sandbox, String, String) throws -> Void) throws {
        try Sandbox.withMirror("a.img") { box in
            let (one, two) = (box.mirror, box.mirror + "-2")
            try box.write("both", to: box.mountPoint + "/a.img")
            try box.ok("target", "add", box.pool, two)
            try box.settle()
            try box.killDaemon()
            try #require(rename(box.pool, box.folder + "/lost") == 0)
            try box.ok("promote", one, "--force")
            // Each knows of the other from their primary, and is promoted before it hears of that.
            #expect(try box.ok("target", "list", one).contains(two))
            try box.ok("promote", two, "--force")
            for (path, name) in [(one, "one"), (two, "two")] {
                try box.ok("mount", path, box.mountPoint, "--no-targets")
                try box.write(name, to: box.mountPoint + "/a.img", at: 8192)
                try box.makeFile(box.mountPoint + "/of-\(name).img", count: 5000)
                try box.ok("unmount", box.mountPoint)
            }
            try body(box, one, two)
        }
    }

    private func checkKept(_ box: Sandbox, in path: String, _ name: String) throws {
        try box.ok("mount", path, box.mountPoint)
        defer { _ = try? box.run("unmount", box.mountPoint) }
        let kept = try names(in: box.mountPoint + "/.snapshots").filter {
            $0.hasPrefix("diverged-")
        }
        try #require(kept.count == 1, "\(kept)")
        let old = box.mountPoint + "/.snapshots/" + kept[0]
        #expect(try box.text(old + "/a.img", count: 3, at: 8192) == name)
        #expect(access(old + "/of-\(name).img", F_OK) == 0)
    }

    @Test func bothDirectionsStopAndStatusSaysSo() throws {
        try withTwoPrimaries { box, one, two in
            try box.ok("mount", two, box.mountPoint)
            mkdir(box.look, 0o755)
            try box.ok("mount", one, box.look)
            try box.until("it is told") {
                try box.status(of: one).targets?.contains {
                    $0.address == two && $0.state == "split-brain"
                } ?? false
            }
            let status = try box.run("status", one)
            #expect(status.code == 4)
            #expect(status.output.contains("split brain"), "\(status)")
            #expect(status.output.contains("target resolve"), "\(status)")
            // Both go on as they are.
            #expect(box.writeError(box.look + "/a.img") == 0)
            #expect(box.writeError(box.mountPoint + "/a.img") == 0)
            #expect(access(box.look + "/of-two.img", F_OK) != 0)
            let refused = try box.run("target", "resolve", one, two, "--keep", "here")
            #expect(refused.code == 3, "\(refused)")
            let demoted = try box.run("demote", two, "--to", one)
            #expect(demoted.code != 0)
        }
    }

    @Test(arguments: [false, true]) func theOneThatIsKeptGoesOn(isMounted: Bool) throws {
        try withTwoPrimaries { box, one, two in
            mkdir(box.look, 0o755)
            if isMounted { try box.ok("mount", one, box.look) }
            try box.ok("target", "resolve", one, two, "--keep", "here")
            try box.ok("wait", one, "--target", two, "--timeout", "50s")
            if isMounted {
                #expect(box.writeError(box.look + "/a.img") == 0)
                try box.ok("wait", one, "--target", two, "--timeout", "50s")
                try box.ok("unmount", box.look)
            }
            let kept = try box.content(of: one)
            #expect(kept.keys.sorted() == ["a.img", "of-one.img"])
            #expect(try box.content(of: two) == kept)
            try checkKept(box, in: two, "two")
            #expect(try box.status(of: one).generation == 3)
            // The lost one comes back: it was replaced.
            try #require(rename(box.folder + "/lost", box.pool) == 0)
            try box.ok("demote", box.pool, "--to", one)
            try box.ok("wait", one, "--timeout", "50s")
            #expect(try box.content(of: box.pool) == kept)
        }
    }

    @Test func theOtherIsKeptAndThisOneFollows() throws {
        try withTwoPrimaries { box, one, two in
            try box.ok("target", "resolve", one, two, "--keep", "there")
            try box.ok("wait", two, "--target", one, "--timeout", "50s")
            let kept = try box.content(of: two)
            #expect(kept.keys.sorted() == ["a.img", "of-two.img"])
            #expect(try box.content(of: one) == kept)
            try checkKept(box, in: one, "one")
        }
    }
}
