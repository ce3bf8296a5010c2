import Foundation
import TestSupport
import Testing

/// Something of a mirror's images no longer verifies. For each: what the guest sees, what status and those
/// who look into the mirror are told, and how it is whole again.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct MirrorRotTests {
    /// A pool with two images of noise and a mirror that has both; its blocks have their checksums,
    /// and nobody has either open.
    private func withCoveredMirror(_ body: (Sandbox) throws -> Void) throws {
        try Sandbox.withPool("a.img", "b.img") { box in
            try box.mount()
            for (seed, name) in ["a.img", "b.img"].enumerated() {
                try box.makeFile(
                    box.mountPoint + "/" + name, count: 1 << 20, seed: UInt64(seed + 1))
            }
            try box.ok("target", "add", box.pool, box.mirror, "--timeout", "500ms")
            try box.settle()
            try box.ok("unmount", box.mountPoint)
            try box.ok("scrub", box.mirror)
            try body(box)
        }
    }

    private func layerFiles(_ box: Sandbox, image: Int, _ suffix: String) throws -> [String] {
        let folder = box.mirror + "/images/\(image)"
        return try names(in: folder).filter { $0.hasSuffix(suffix) }.map { folder + "/" + $0 }
    }

    /// A bit of a block of a.img turns over on the mirror's disk.
    private func rot(_ box: Sandbox, block: Int) throws {
        let clean = try box.makeFile("a.raw", count: 1 << 20)
        let wanted = try TestFile(clean, O_RDONLY).read(4096, at: block * 4096)
        var found = 0
        for path in try layerFiles(box, image: 1, ".data") {
            let file = try TestFile(path, O_RDWR)
            guard try file.read(4096, at: block * 4096) == wanted else { continue }
            try file.write([wanted[100] ^ 0x10], at: block * 4096 + 100)
            try file.sync()
            found += 1
        }
        try #require(found == 1, "\(found) layers have the block")
    }

    private func readError(_ path: String, block: Int) -> Int32 {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return errno }
        defer { close(file) }
        var bytes = [UInt8](repeating: 0, count: 4096)
        return pread(file, &bytes, 4096, off_t(block * 4096)) == 4096 ? 0 : errno
    }

    /// Whoever looks into the mirror gets an error for the block, and everything else.
    private func checkShown(_ box: Sandbox, rotten block: Int) throws {
        try box.lookIntoMirror()
        #expect(readError(box.look + "/a.img", block: block) == EIO)
        let clean = try box.makeFile("a.raw", count: 1 << 20)
        do {
            let (good, shown) = (try TestFile(clean), try TestFile(box.look + "/a.img", O_RDONLY))
            for other in [0, block + 1, 255] {
                #expect(try shown.read(4096, at: other * 4096) == good.read(4096, at: other * 4096))
            }
        }
        let other = try box.makeFile("b.raw", count: 1 << 20, seed: 2)
        #expect(try box.bytes(box.look + "/b.img") == box.bytes(other))
        try box.lookAway()
    }

    @Test func aBlockThatRotsIsFoundAndNeverServed() throws {
        try withCoveredMirror { box in
            try rot(box, block: 3)
            for verb in ["scrub", "check"] {
                let found = try box.run(verb, box.mirror)
                #expect(found.code == 5, "\(found)")
                #expect(found.output.contains("'a.img'"), "\(found)")
            }
            try checkShown(box, rotten: 3)
            // A mirror with something left out would be no moment of its primary.
            let map = try layerFiles(box, image: 1, ".map").map { try box.bytes($0) }
            _ = try box.run("check", box.mirror, "--repair")
            #expect(try layerFiles(box, image: 1, ".map").map { try box.bytes($0) } == map)

            // The guest sees nothing of it, and nobody waits.
            try box.mount()
            try box.untilInStep()
            let start = Date()
            try box.write("the guest goes on", to: box.mountPoint + "/a.img", at: 500_000)
            #expect(Date().timeIntervalSince(start) < 10)
            #expect(try box.run("status", box.pool).code == 0)
            try checkShown(box, rotten: 3)

            // Attached anew, all of it is copied over.
            try box.ok("target", "remove", box.pool, box.mirror)
            try box.ok("target", "add", box.pool, box.mirror, "--timeout", "500ms")
            try box.settle()
            try box.untilInStep()
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    /// A block that is met while regions are compared counts as different: it is copied anew.
    @Test func aCompareReplacesWhatDoesNotVerify() throws {
        try withCoveredMirror { box in
            try rot(box, block: 3)
            try box.mount()
            try box.untilInStep()
            try box.write("active", to: box.mountPoint + "/a.img", at: 80 * 4096)
            try box.settle()
            try box.killDaemon()
            try box.mount()
            try box.settle()
            try box.untilInStep()
            let told = try box.events().filter { $0.kind == "target-damaged" }
            #expect(told.count == 1)
            #expect(told.first?.subject == box.mirror)
            #expect(told.first?.message.contains("4 KiB") == true, "\(told)")
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    /// Where blocks of an image stand is not known any more: the mirror takes nothing, says so, and
    /// shows what it can.
    @Test func aMapThatDoesNotVerifyNeedsANewMirror() throws {
        try withCoveredMirror { box in
            let maps = try layerFiles(box, image: 1, ".map")
            try #require(!maps.isEmpty)
            for path in maps {
                let file = try TestFile(path, O_RDWR)
                try file.write([UInt8](repeating: 0xa5, count: min(8192, file.size)), at: 0)
            }
            #expect(try box.run("check", box.mirror).code == 5)
            let repair = try box.run("check", box.mirror, "--repair")
            #expect(repair.code == 1, "\(repair)")
            #expect(repair.errors.contains("is a mirror"), "\(repair)")
            try box.lookIntoMirror()
            #expect(readError(box.look + "/a.img", block: 0) == EIO)
            let clean = try box.makeFile("b.raw", count: 1 << 20, seed: 2)
            #expect(try box.bytes(box.look + "/b.img") == box.bytes(clean))
            #expect(try box.run("status", box.look).code == 5)
            try box.lookAway()

            try box.mount()
            try box.until("it is degraded", seconds: 40) {
                let target = try box.target()
                return target.modeInForce == "async"
                    && target.reason?.contains("not verify") == true
            }
            let start = Date()
            try box.write("meanwhile", to: box.mountPoint + "/a.img", at: 40_000)
            #expect(Date().timeIntervalSince(start) < 10)
            #expect(try box.target().atRiskBytes >= 4096)
            let status = try box.run("status", box.pool)
            #expect(status.code == 4, "\(status)")
            #expect(status.output.contains("Attach it anew"), "\(status)")
            try box.ok("target", "remove", box.pool, box.mirror)
            try #require(rename(box.mirror, box.folder + "/damaged") == 0)
            try box.ok("target", "add", box.pool, box.mirror)
            try box.settle()
            try box.untilInStep()
            #expect(try box.run("status", box.pool).code == 0)
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
            try box.lookAway()
            try box.ok("unmount", box.mountPoint)
            try box.ok("scrub", box.mirror)
        }
    }
}
