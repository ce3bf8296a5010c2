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
    private var passed: [Direction: UInt64] = [:]
    /// It breaks when so much went there.
    private var breaksAt: [Direction: UInt64] = [:]
    private var trigger: [UInt8]?
    private var changes: [Direction: Change] = [:]
    private var changedFirst = 0
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
    package func cut() { lock.withLock { breakAll() } }
    package func mend() { lock.withLock { (isCut, breaksAt) = (false, [:]) } }
    /// It is cut as soon as so many more bytes went that way.
    package func cut(after bytes: UInt64, _ direction: Direction) {
        lock.withLock { breaksAt[direction] = (passed[direction] ?? 0) + bytes }
    }
    package var hasBroken: Bool { lock.withLock { isCut } }

    /// Under the lock.
    private func breakAll() {
        isCut = true
        changed.broadcast()
        for (one, other) in open {
            shutdown(one, Int32(SHUT_RDWR))
            shutdown(other, Int32(SHUT_RDWR))
        }
    }
    /// Nothing arrives any more, and nobody is told.
    package func hold(_ directions: Set<Direction>) {
        lock.withLock {
            held = directions
            changed.broadcast()
        }
    }

    /// How many bytes went through since it began, over all connections.
    package func passed(_ direction: Direction) -> UInt64 {
        lock.withLock { passed[direction] ?? 0 }
    }

    /// As soon as a client sends this text, what it is answered does not arrive: no key may be in use.
    package func holdAnswers(to text: String) { lock.withLock { trigger = Array(text.utf8) } }
    package typealias Change = @Sendable (inout [UInt8]) -> Void
    /// What comes first on each new connection in that direction is changed on its way, and stays as long: no key
    /// may be in use.
    package func changeFirst(_ direction: Direction, _ change: Change?) {
        lock.withLock { changes[direction] = change }
    }
    /// How often that was done.
    package var changedCount: Int { lock.withLock { changedFirst } }
    package var isHolding: Bool { lock.withLock { !held.isEmpty } }
    /// Connections break, and what was held on them is lost; new ones come about at once.
    package func dropConnections() {
        lock.withLock {
            breakAll()
            isCut = false
            held = []
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

    /// Under the lock.
    private func count(_ bytes: Int, _ direction: Direction) {
        passed[direction, default: 0] += UInt64(bytes)
        guard let end = breaksAt[direction], passed[direction]! >= end else { return }
        breaksAt[direction] = nil
        breakAll()
    }

    /// Under the lock.
    private func look(for bytes: ArraySlice<UInt8>) {
        guard let text = trigger,
            bytes.indices.contains(where: { bytes[$0...].starts(with: text) })
        else { return }
        trigger = nil
        held = [.toClient]
    }

    private func pump(from: Int32, to: Int32, _ direction: Direction) {
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        var isFirst = true
        while true {
            let got = recv(from, &bytes, bytes.count, 0)
            if got < 0, errno == EINTR { continue }
            guard got > 0 else { break }
            if isFirst, let change = lock.withLock({ changes[direction] }) {
                var first = Array(bytes[..<got])
                change(&first)
                bytes.replaceSubrange(..<got, with: first)
                lock.withLock { changedFirst += 1 }
            }
            isFirst = false
            lock.withLock {
                if direction == .toServer { look(for: bytes[..<got]) }
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
            lock.withLock { count(got, direction) }
        }
        shutdown(from, Int32(SHUT_RDWR))
        shutdown(to, Int32(SHUT_RDWR))
    }
}
