// A line between a client and a server on the loopback that can be cut, and held in either direction.

import Glibc
import SystemIO

package final class Relay: @unchecked Sendable {  // fields are under `lock`
    package enum Direction: Sendable { case toServer, toClient }

    private let lock = Lock()
    private let changed = Condition()
    private let listener: Int32
    package let port: Int
    private var serverPort = 0
    /// Both ends of each connection.
    private var open: [Int32: Int32] = [:]
    private var isCut = false
    private var held: Set<Direction> = []
    private var isOver = false
    private var threads: [WorkerThread] = []

    package init() throws {
        listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var address = Self.address(port: 0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let listener = listener
        let result = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, length) == 0 && listen(listener, 64) == 0
                    && getsockname(listener, $0, &length) == 0
            }
        }
        guard result else { throw Failure("relay: errno \(errno)") }
        port = Int(UInt16(bigEndian: address.sin_port))
        threads = [WorkerThread.start("relay") { [self] in accept() }]
    }

    package func end() {
        let all = lock.withLock { () -> [WorkerThread] in
            isOver = true
            changed.broadcast()
            return threads
        }
        cut()
        shutdown(listener, Int32(SHUT_RDWR))
        for thread in all { thread.join() }
        for thread in lock.withLock({ threads.dropFirst(all.count) }) { thread.join() }
        close(listener)
    }

    package func lead(to port: Int) { lock.withLock { serverPort = port } }

    // MARK: What happens to the line

    /// Every connection breaks; no new one comes about before ``mend()``.
    package func cut() {
        lock.withLock {
            isCut = true
            changed.broadcast()
            for (one, other) in open {
                shutdown(one, Int32(SHUT_RDWR))
                shutdown(other, Int32(SHUT_RDWR))
            }
        }
    }
    package func mend() { lock.withLock { isCut = false } }
    /// Nothing arrives any more, and nobody is told.
    package func hold(_ directions: Set<Direction>) {
        lock.withLock {
            held = directions
            changed.broadcast()
        }
    }

    // MARK: Threads

    private static func address(port: Int) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(port).bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        return address
    }

    private func accept() {
        while true {
            let client = Glibc.accept(listener, nil, nil)
            guard client >= 0 else {
                if errno == EINTR || errno == ECONNABORTED { continue }
                return
            }
            let server = connectToServer()
            lock.withLock {
                guard server >= 0, !isCut, !isOver else {
                    close(client)
                    if server >= 0 { close(server) }
                    return
                }
                open[client] = server
                threads.append(
                    WorkerThread.start("relay-up") { [self] in serve(client, server) })
            }
        }
    }

    private func connectToServer() -> Int32 {
        let server = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var address = Self.address(port: lock.withLock { serverPort })
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(server, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        if result == 0 { return server }
        close(server)
        return -1
    }

    private func serve(_ client: Int32, _ server: Int32) {
        let down = WorkerThread.start("relay-down") { [self] in
            pump(from: server, to: client, .toClient)
        }
        pump(from: client, to: server, .toServer)
        down.join()
        lock.withLock { _ = open.removeValue(forKey: client) }
        close(client)
        close(server)
    }

    private func pump(from: Int32, to: Int32, _ direction: Direction) {
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let got = recv(from, &bytes, bytes.count, 0)
            if got < 0, errno == EINTR { continue }
            guard got > 0 else { break }
            lock.withLock {
                while held.contains(direction), !isOver, !isCut { changed.wait(lock) }
            }
            var sent = 0
            while sent < got {
                let more = bytes.withUnsafeBytes {
                    send(to, $0.baseAddress! + sent, got - sent, Int32(MSG_NOSIGNAL))
                }
                if more < 0, errno == EINTR { continue }
                guard more > 0 else { break }
                sent += more
            }
            guard sent == got else { break }
        }
        shutdown(from, Int32(SHUT_RDWR))
        shutdown(to, Int32(SHUT_RDWR))
    }
}
