import BlockCore
import Foundation
import Glibc
import Pool
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// A folder that vanishes with the test.
func withFolder(_ body: (String) throws -> Void) throws {
    let folder = try makeTemporaryFolder(in: TestFolders.quick)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try body(folder)
}

@Suite struct ControlTests {
    @Test func messagesAreInTheMannerOfQMP() throws {
        let request = ControlRequest(.snapshotCreate) { $0.name = "before" }
        let text = String(decoding: JSONLine.encode(request), as: UTF8.self)
        #expect(text == #"{"arguments":{"name":"before"},"execute":"snapshot-create"}"#)
        let refused = ControlReply(error: ControlFailure(.inUse, "it is"), id: 7)
        #expect(
            String(decoding: JSONLine.encode(refused), as: UTF8.self)
                == #"{"error":{"class":"inUse","exitCode":3,"message":"it is"},"id":7}"#)
    }

    @Test(arguments: ControlCommand.allCases) func requestsSurviveTheWire(_ command: ControlCommand)
        throws
    {
        var request = ControlRequest(command) {
            $0.path = "a \"b\"\n/ü.img"
            $0.names = ["x", ""]
            $0.sizeBytes = .max
        }
        request.id = 1
        let line = JSONLine.encode(request)
        #expect(!line.contains(0x0a))
        #expect(try JSONLine.decode(ControlRequest.self, line) == request)
    }

    @Test func theSocketIsItsOwnersAlone() throws {
        try withFolder { folder in
            let server = try ControlServer(path: folder + "/s") { _, _ in ControlReply() }
            defer { server.close() }
            var status = stat()
            #expect(stat(folder + "/s", &status) == 0)
            #expect(status.st_mode & 0o777 == 0o600)
        }
    }

    @Test func requestsOfOneConnectionAreAnsweredInTheirOrder() throws {
        try withFolder { folder in
            let server = try ControlServer(path: folder + "/s") { request, _ in
                var result = ControlResult()
                result.text = request.arguments?.path
                return ControlReply(result: result, id: request.id)
            }
            defer { server.close() }
            let client = try ControlClient(path: folder + "/s")
            for number in 0..<100 {
                let result = try client.send(ControlRequest(.list) { $0.path = "\(number)" })
                #expect(result.text == "\(number)")
            }
        }
    }

    @Test func aLineThatIsNoRequestIsAnsweredAndTheConnectionGoesOn() throws {
        try withFolder { folder in
            let server = try ControlServer(path: folder + "/s") { _, _ in
                ControlReply(result: ControlResult())
            }
            defer { server.close() }
            let socket = try UnixSocket.connect(to: folder + "/s")
            for line in ["nonsense", "{}", #"{"execute":"format-disk"}"#] {
                #expect(socket.sendLine(Array(line.utf8)))
                let reply = try JSONLine.decode(ControlReply.self, #require(socket.receiveLine()))
                #expect(reply.error?.exitCode == 2)
            }
            #expect(socket.sendLine(JSONLine.encode(ControlRequest(.status))))
            #expect(
                try JSONLine.decode(ControlReply.self, #require(socket.receiveLine())).error == nil)
        }
    }

    /// The request that ends the daemon gets its answer, too.
    @Test func closingAnswersWhatCame() throws {
        try withFolder { folder in
            let entered = DispatchSemaphore(value: 0)
            let server = try ControlServer(path: folder + "/s") { _, _ in
                entered.signal()
                Pause.microseconds(200_000)
                return ControlReply(result: ControlResult())
            }
            let socket = try UnixSocket.connect(to: folder + "/s")
            #expect(socket.sendLine(JSONLine.encode(ControlRequest(.status))))
            entered.wait()
            server.close()
            #expect(socket.receiveLine() != nil)
            #expect(access(folder + "/s", F_OK) != 0)
        }
    }

    @Test func exitCodesFollowTheKindOfError() {
        #expect(PoolSession.failure(PoolError(.inUse, "")).exitCode == 3)
        #expect(PoolSession.failure(PoolError(.damaged, "")).exitCode == 5)
        #expect(PoolSession.failure(PoolError(.notAPool, "")).exitCode == 1)
        #expect(PoolSession.failure(ControlFailure(.degraded, "")).exitCode == 4)
        #expect(PoolSession.failure(ControlFailure(.usage, "")).exitCode == 2)
    }

    @Test(arguments: [
        ("/a/b", "/a/b"), ("/a//b/", "/a/b"), ("/a/./b/../c", "/a/c"), ("/../a", "/a"), ("/", "/"),
    ])
    func pathsAreMadeAbsoluteWithoutTouchingThem(path: String, expected: String) {
        #expect(PoolLocation.absolute(path) == expected)
    }
}
