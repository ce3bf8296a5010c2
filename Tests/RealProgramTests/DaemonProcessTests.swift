import Glibc
import TestSupport
import Testing

/// The daemon as a process: it is a disk, and others' memory depends on it.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct DaemonProcessTests {
    /// Where the kernel allows it (CAP_SYS_RESOURCE), every thread of the write path is marked; where
    /// not, the log says so.
    @Test func itIsAnIOFlusherWhereItMayBe() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try box.write("x", to: box.mountPoint + "/a.img")
            let pid = try box.daemon()
            let may = (try capabilities() >> 24) & 1 == 1
            guard may else {
                let name = box.pool.split(separator: "/").joined(separator: "-")
                let folder =
                    isRoot
                    ? "/run/doppel" : getenv("XDG_RUNTIME_DIR").map { String(cString: $0) } ?? ""
                #expect(box.read("\(folder)/\(name).log").contains("I/O flusher"))
                return
            }
            for thread in try names(in: "/proc/\(pid)/task") {
                let text = box.read("/proc/\(pid)/task/\(thread)/stat")
                // After the name in brackets: state, five numbers, flags.
                let fields = text[text.lastIndex(of: ")")!...].split(separator: " ")
                let flags = UInt64(fields[7]) ?? 0
                let name = box.read("/proc/\(pid)/task/\(thread)/comm")
                // The thread that waits for signals started before, and writes nothing.
                if name.hasPrefix("doppel-signal") { continue }
                #expect(flags & 0x8_0000 != 0, "\(name) may wait for its own write-back")
            }
        }
    }

    /// 100 images of 1 TiB, mounted and idle.
    @Test func anIdleMountIsSmall() throws {
        try Sandbox.with { box in
            try box.ok("init", box.pool)
            try box.mount()
            for index in 0..<100 {
                let path = "\(box.mountPoint)/\(index).img"
                _ = try TestFile(path)
                guard truncate(path, 1 << 40) == 0 else { throw Failure("truncate: \(errno)") }
            }
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            for index in 0..<100 { _ = try status("\(box.mountPoint)/\(index).img") }
            #expect(try residentKiB(of: box) < 64 << 10)
        }
    }

    /// What a write needs is there before it comes: a disk that allocates while memory is short waits
    /// for itself.
    @Test func steadyWritingTakesNoMemory() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try box.ok("snapshot", "create", box.pool, "one")
            let file = try TestFile(box.mountPoint + "/a.img")
            let block = pattern(65536)
            func load() throws {
                for index in 0..<2000 {
                    try file.write(block, at: index % 128 * 65536)
                    if index % 50 == 0 { try file.sync() }
                }
            }
            try load()
            let before = try residentKiB(of: box, anonymousOnly: true)
            try load()
            try load()
            let after = try residentKiB(of: box, anonymousOnly: true)
            #expect(after - before < 4096, "\(before) KiB became \(after) KiB")
        }
    }

    /// Where a service manager collects it.
    @Test func inTheForegroundItLogsToStandardError() throws {
        try Sandbox.withPool("a.img") { box in
            let log = box.folder + "/log"
            let shell = try BackgroundShell(
                "exec \"$1\" mount --foreground \"$2\" \"$3\" 2>\"$4\"",
                [Sandbox.binary, box.pool, box.mountPoint, log])
            try box.until("the mount") { box.isMounted }
            try box.holdingOpen(box.mountPoint + "/a.img") {
                kill(shell.pid, SIGTERM)
                try box.until("a line") { box.read(log).contains("waiting to unmount") }
                #expect(box.isMounted)
            }
            #expect(try shell.wait() == 0)
        }
    }

    private func capabilities() throws -> UInt64 {
        let status = String(decoding: try contents("/proc/self/status"), as: UTF8.self)
        let line = status.split(separator: "\n").first { $0.hasPrefix("CapEff:") } ?? ""
        return UInt64(line.split(whereSeparator: \.isWhitespace).last ?? "0", radix: 16) ?? 0
    }

    private func residentKiB(of box: Sandbox, anonymousOnly: Bool = false) throws -> Int {
        let name = anonymousOnly ? "RssAnon:" : "VmRSS:"
        let text = box.read("/proc/\(try box.daemon())/status")
        let line = text.split(separator: "\n").first { $0.hasPrefix(name) } ?? ""
        return line.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { Int($0) }
            ?? .max
    }
}
