import SystemIO

/// Answers requests on the pool's socket: a thread a connection, requests of one in their order.
package final class ControlServer: Sendable {
    private let listener: UnixListener
    private let handler: @Sendable (ControlRequest) -> ControlReply
    private let thread: WorkerThread
    private let answering: Answering

    /// - Parameter handler: called from several threads at once.
    package init(
        path: String, handler: @escaping @Sendable (ControlRequest) -> ControlReply
    ) throws(SystemError) {
        let listener = try UnixListener(path: path)
        self.listener = listener
        self.handler = handler
        let answering = Answering()
        self.answering = answering
        thread = WorkerThread.start("doppel-control") {
            while let client = listener.accept() {
                _ = WorkerThread.start("doppel-client") {
                    Self.serve(client, handler, answering)
                }
            }
        }
    }

    private static func serve(
        _ client: UnixSocket, _ handler: @Sendable (ControlRequest) -> ControlReply,
        _ answering: Answering
    ) {
        while let line = client.receiveLine() {
            guard answering.begin() else {
                _ = client.sendLine(JSONLine.encode(ControlReply(error: .draining)))
                return
            }
            defer { answering.end() }
            let reply: ControlReply
            do {
                reply = handler(try JSONLine.decode(ControlRequest.self, line))
            } catch {
                reply = ControlReply(
                    error: ControlFailure(.usage, "this is no request that I know: \(error)"))
            }
            guard client.sendLine(JSONLine.encode(reply)) else { return }
        }
    }

    /// Takes no new connection and returns when every request that came has its answer: the one
    /// that ends the daemon among them.
    package func close() {
        listener.close()
        thread.join()
        answering.waitForAll()
    }
}

/// Requests that were read and not answered yet.
private final class Answering: @unchecked Sendable {  // `count` is under `lock`
    private let lock = Lock()
    private let changed = Condition()
    private var count = 0

    private var isClosed = false

    /// - Returns: false once nothing may be carried out any more.
    func begin() -> Bool {
        lock.withLock {
            if isClosed { return false }
            count += 1
            return true
        }
    }
    func end() {
        lock.withLock {
            count -= 1
            changed.broadcast()
        }
    }
    func waitForAll() {
        lock.withLock {
            while count > 0 { changed.wait(lock) }
            isClosed = true
        }
    }
}

/// The connection ended first. A daemon that drains answers all it has read: without an answer from
/// such a one, nothing was done.
package struct NoAnswer: Error, CustomStringConvertible {
    package var description: String { "the daemon ended before it answered" }
}

/// Asks the daemon that holds a pool.
package struct ControlClient {
    private let socket: UnixSocket

    package init(path: String) throws(SystemError) { socket = try UnixSocket.connect(to: path) }

    package func send(_ request: ControlRequest) throws -> ControlResult {
        guard socket.sendLine(JSONLine.encode(request)), let line = socket.receiveLine() else {
            throw NoAnswer()
        }
        let reply = try JSONLine.decode(ControlReply.self, line)
        if let error = reply.error { throw error }
        return reply.result ?? ControlResult()
    }
}

package enum RuntimePaths {
    /// `/run/doppel` for root, else under `$XDG_RUNTIME_DIR`, else under /tmp by user id.
    package static func directory(disk: Disk) throws(SystemError) -> String {
        let path: String
        if ProcessControl.isRoot {
            path = "/run/doppel"
        } else if let runtime = ProcessControl.environment("XDG_RUNTIME_DIR"),
            try disk.status(runtime) != nil
        {
            path = runtime + "/doppel"
        } else {
            path = "/tmp/doppel-\(ProcessControl.userID)"
        }
        if let status = try disk.status(path) {
            guard status.kind == .directory, status.uid == ProcessControl.userID else {
                throw SystemError(operation: "trust", path: path, errno: 13)
            }
        } else {
            try disk.createDirectory(path, mode: 0o700)
        }
        return path
    }
}
