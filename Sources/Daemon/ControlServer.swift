import SystemIO

/// Answers requests on the pool's socket: a thread a connection, requests of one in their order.
package final class ControlServer: Sendable {
    private let listener: UnixListener
    /// Carries a request out; what it tells meanwhile goes to the same peer, before the reply.
    package typealias Handler = @Sendable (ControlRequest, @escaping Job.Listener) -> ControlReply
    private let handler: Handler
    private let thread: WorkerThread
    private let answering: Answering

    /// - Parameter handler: called from several threads at once.
    package init(
        path: String, handler: @escaping Handler
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
        _ client: UnixSocket, _ handler: Handler, _ answering: Answering
    ) {
        while let line = client.receiveLine() {
            guard answering.begin() else {
                _ = client.sendLine(JSONLine.encode(ControlReply(error: .draining)))
                return
            }
            defer { answering.end() }
            let reply: ControlReply
            do {
                reply = handler(try JSONLine.decode(ControlRequest.self, line)) { event in
                    client.sendLine(JSONLine.encode(event))
                }
            } catch {
                reply = ControlReply(
                    error: ControlFailure(
                        .usage,
                        "the daemon knows no such request. Is it older than the program that asks? "
                            + "Then unmount the pool and mount it again. (\(error))"))
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

/// Requests that were read and not answered yet. Connections' threads share it. Unchecked, for the compiler knows
/// nothing of `lock`, under which every `var` is read and changed.
private final class Answering: @unchecked Sendable {
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

    /// - Parameter listener: hears how long work goes on.
    package func send(
        _ request: ControlRequest, listener: (JobInfo) -> Void = { _ in }
    ) throws -> ControlResult {
        guard socket.sendLine(JSONLine.encode(request)) else { throw NoAnswer() }
        while let line = socket.receiveLine() {
            if let event = try? JSONLine.decode(ControlEvent.self, line) {
                listener(event.data)
                continue
            }
            let reply = try JSONLine.decode(ControlReply.self, line)
            if let error = reply.error { throw error }
            return reply.result ?? ControlResult()
        }
        throw NoAnswer()
    }
}
