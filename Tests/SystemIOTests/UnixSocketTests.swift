import Glibc
import SystemIO
import Synchronization
import TestSupport
import Testing

/// Lines over a socket, also where signals come in between.
@Suite struct UnixSocketTests {
    private func withPair(_ body: (UnixSocket, UnixSocket) throws -> Void) throws {
        let folder = try makeTemporaryFolder()
        defer { _ = try? run(["rm", "-rf", folder]) }
        let listener = try UnixListener(path: folder + "/socket")
        defer { listener.close() }
        #expect(try status(folder + "/socket").st_mode & 0o777 == 0o600)
        let client = try UnixSocket.connect(to: folder + "/socket")
        try body(client, try #require(listener.accept()))
    }

    @Test func linesComeAsTheyWereSent() throws {
        try withPair { (client, server) throws in
            let lines = [[], Array("one".utf8), [UInt8](repeating: 65, count: 300_000), [66]]
            let sender = TestThread { for line in lines { #expect(client.sendLine(line)) } }
            for line in lines { #expect(server.receiveLine() == line) }
            try sender.join()
            client.shutDown()
            #expect(server.receiveLine() == nil)
            #expect(!server.sendLine([1]) || !server.sendLine([1]), "nobody is there")
        }
    }

    /// What a peer sends before it goes is no line without its end.
    @Test func aLineThatIsTooLongEndsIt() throws {
        try withPair { (client, server) throws in
            let sender = TestThread { _ = client.sendLine([UInt8](repeating: 65, count: 200_000)) }
            #expect(server.receiveLine(limitBytes: 1000) == nil)
            server.shutDown()
            try sender.join()
        }
    }

    @Test func aSignalIsNotTheEnd() throws {
        // A handler that does not ask for calls to be restarted.
        var action = sigaction()
        action.__sigaction_handler.sa_handler = { _ in }
        var before = sigaction()
        try #require(sigaction(SIGUSR1, &action, &before) == 0)
        defer { sigaction(SIGUSR1, &before, nil) }
        try withPair { (client, server) throws in
            let reader = Atomic<UInt>(0)
            let thread = TestThread<[UInt8]?> {
                reader.store(UInt(pthread_self()), ordering: .sequentiallyConsistent)
                return server.receiveLine()
            }
            while reader.load(ordering: .sequentiallyConsistent) == 0 { sched_yield() }
            for _ in 0..<50 {
                pthread_kill(pthread_t(reader.load(ordering: .sequentiallyConsistent)), SIGUSR1)
                usleep(1000)
            }
            #expect(client.sendLine(Array("after all".utf8)))
            #expect(try thread.join() == Array("after all".utf8))
        }
    }

    @Test func whoIsNotThereIsToldApart() throws {
        let folder = try makeTemporaryFolder()
        defer { _ = try? run(["rm", "-rf", folder]) }
        let missing = #expect(throws: SystemError.self) {
            _ = try UnixSocket.connect(to: folder + "/none")
        }
        #expect(missing?.isNotFound == true)
        do {
            let listener = try UnixListener(path: folder + "/left")
            // As a process that was killed leaves it.
            try disk.rename(folder + "/left", to: folder + "/dead")
            listener.close()
        }
        let refused = #expect(throws: SystemError.self) {
            _ = try UnixSocket.connect(to: folder + "/dead")
        }
        #expect(refused?.isConnectionRefused == true)
        let long = #expect(throws: SystemError.self) {
            _ = try UnixListener(path: folder + "/" + String(repeating: "x", count: 120))
        }
        #expect(long?.errno == ENAMETOOLONG)
    }
    private let disk: Disk = LinuxDisk()
}
