import Glibc
import TestSupport
import Testing

/// QEMU's own tools on images of the mount.
@Suite(
    .enabled(if: hasFuse, "needs /dev/fuse"), .enabled(if: Machine.hasQEMU, "needs qemu-utils"))
struct QemuTests {
    @Test(arguments: ["none", "read"])
    func patternsAreReadBackAsTheyWereWritten(cache: String) throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount("--cache", cache)
            let image = box.mountPoint + "/a.img"
            let copy = box.folder + "/copy.img"
            _ = try TestFile(copy)
            guard truncate(copy, 8 << 20) == 0 else {
                throw Failure("truncate: errno \(errno)")
            }
            // The same on the mount and on an ordinary file; what differs is our doing.
            for path in [image, copy] {
                try io(
                    path, "write -P 0x11 0 1M", "write -P 0x22 1000k 100k", "write -z 300k 64k",
                    "write -P 0x33 511 3", "discard 512k 128k", "write -P 0x44 7M 1M", "flush",
                    "aio_write -P 0x55 2M 64k", "aio_write -P 0x66 2112k 64k", "aio_flush",
                    "writev -P 0x77 3M 4096 8192 512", "truncate 9M", "truncate 8M",
                    "read -P 0x22 1000k 100k", "read -P 0 300k 64k", "read -P 0x33 511 3",
                    "read -P 0x55 2M 64k", "read -P 0x66 2112k 64k", "read -P 0x44 7M 1M")
            }
            try same(image, copy)
            try io(image, "-t", "none", "write -P 0x88 4M 64k", "flush", "read -P 0x88 4M 64k")
            try io(copy, "write -P 0x88 4M 64k")
            try same(image, copy)
            try box.ok("snapshot", "create", box.pool, "one")
            try io(image, "write -P 0x99 0 8M", "read -P 0x99 0 8M")
            try same(box.mountPoint + "/.snapshots/one/a.img", copy)
        }
    }

    /// An image of any format on the mount, from and to raw, and out of a snapshot.
    @Test func imagesAreConvertedComparedAndChecked() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let raw = box.mountPoint + "/a.img"
            try io(raw, "write -P 0x5a 0 2M", "write -P 0xa5 5M 100k")
            let qcow = box.mountPoint + "/disk.qcow2"
            try img("convert", "-q", "-f", "raw", "-O", "qcow2", raw, qcow)
            try img("check", "-q", "-f", "qcow2", qcow)
            try img("compare", "-q", "-f", "raw", "-F", "qcow2", raw, qcow)
            try must("qemu-io", "-f", "qcow2", "-c", "write -P 7 3M 1M", qcow)
            try img("snapshot", "-c", "inside", qcow)
            try img("check", "-q", "-f", "qcow2", qcow)
            try box.ok("snapshot", "create", box.pool, "one")
            try must("qemu-io", "-f", "qcow2", "-c", "write -P 8 0 8M", qcow)
            try img("check", "-q", "-f", "qcow2", qcow)

            // The snapshot has the disk as it was, read-only, and sparse.
            let old = box.mountPoint + "/.snapshots/one/disk.qcow2"
            try img("check", "-q", "-f", "qcow2", old)
            let out = box.folder + "/out.img"
            try img("convert", "-q", "-f", "qcow2", "-O", "raw", old, out)
            try must("qemu-io", "-r", "-f", "raw", "-c", "read -P 7 3M 1M", out)
            let back = box.mountPoint + "/back.img"
            try img("convert", "-q", "-f", "raw", "-O", "raw", out, back)
            try img("compare", "-q", "-f", "raw", "-F", "raw", out, back)
            #expect(try status(back).st_blocks * 512 < 5 << 20, "holes stay holes")
            let sums = try must("cksum", out).split(separator: " ").first
            #expect(try must("cksum", back).split(separator: " ").first == sums)
        }
    }

    // MARK: Programs

    private func io(_ path: String, _ words: String...) throws {
        var arguments = ["qemu-io", "-f", "raw", "-d", "unmap"]
        var words = words[...]
        if words.first == "-t" {
            arguments += ["-t", words.dropFirst().first!]; words = words.dropFirst(2)
        }
        for word in words { arguments += ["-c", word] }
        let output = try must(arguments + [path])
        guard !output.contains("failed"), !output.contains("error") else {
            throw Failure("\(path): \(output)")
        }
    }

    private func img(_ words: String...) throws { try must(["qemu-img"] + words) }

    private func same(_ a: String, _ b: String) throws {
        try img("compare", "-q", "-f", "raw", "-F", "raw", a, b)
        try must("cmp", a, b)
    }

    @discardableResult
    private func must(_ words: String...) throws -> String { try must(words) }
    @discardableResult
    private func must(_ words: [String]) throws -> String {
        let (code, output) = try run(words)
        guard code == 0 else { throw Failure("\(words.joined(separator: " ")): \(output)") }
        return output
    }
}
