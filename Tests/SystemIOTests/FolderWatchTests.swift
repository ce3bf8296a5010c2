import Glibc
import SystemIO
import TestSupport
import Testing

/// What tells of changes, and the word to the service manager.
@Suite struct FolderWatchTests {
    @Test func itTellsOfChangesAndOfItsEnd() throws {
        let folder = try makeTemporaryFolder()
        defer { _ = try? run(["rm", "-rf", folder]) }
        let watch = try FolderWatch(path: folder + "/in")
        #expect(watch.wait(timeoutMs: 1) == .timePassed, "a folder that is not there")
        mkdir(folder + "/in", 0o700)
        #expect(watch.wait(timeoutMs: 1) == .timePassed, "from here on it is watched")
        let disk: Disk = LinuxDisk()
        try disk.writeDurably(folder + "/in/file", contents: [1])
        #expect(watch.wait(timeoutMs: 20_000) == .changed)
        chmod(folder + "/in/file", 0o644)
        #expect(watch.wait(timeoutMs: 20_000) == .changed)
        try disk.removeFile(folder + "/in/file")
        #expect(watch.wait(timeoutMs: 20_000) == .changed)
        // Another folder with the same name.
        try disk.rename(folder + "/in", to: folder + "/out")
        mkdir(folder + "/in", 0o700)
        #expect(watch.wait(timeoutMs: 20_000) == .changed)
        try disk.writeDurably(folder + "/in/file", contents: [1])
        #expect(watch.wait(timeoutMs: 20_000) == .changed)
        let thread = TestThread { watch.wait(timeoutMs: 60_000) }
        watch.end()
        #expect(try thread.join() == .ended)
        #expect(watch.wait(timeoutMs: 60_000) == .ended)
    }

    /// - Parameter isAbstract: a name that no file has; systemd writes it with `@`.
    @Test(arguments: [false, true]) func theServiceManagerHears(isAbstract: Bool) throws {
        let folder = try makeTemporaryFolder()
        defer { _ = try? run(["rm", "-rf", folder]) }
        let name = (isAbstract ? "@" : "") + folder + "/notify"
        let socket = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(socket) }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        var bytes = Array(name.utf8)
        if isAbstract { bytes[0] = 0 }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket, $0, socklen_t(2 + bytes.count))
            }
        }
        try #require(bound == 0)
        setenv("NOTIFY_SOCKET", name, 1)
        defer { unsetenv("NOTIFY_SOCKET") }
        for text in ["READY=1", "STATUS=draining\nSTOPPING=1"] {
            ProcessControl.notifyServiceManager(text)
            var buffer = [UInt8](repeating: 0, count: 256)
            let got = recv(socket, &buffer, buffer.count, Int32(MSG_DONTWAIT))
            #expect(String(decoding: buffer.prefix(max(got, 0)), as: UTF8.self) == text)
        }
        // Nobody listens: nothing happens.
        setenv("NOTIFY_SOCKET", folder + "/none", 1)
        ProcessControl.notifyServiceManager("READY=1")
    }
}
