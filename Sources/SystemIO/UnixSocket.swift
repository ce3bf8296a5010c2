import Glibc

/// A stream socket of this machine that carries one line a message.
public final class UnixSocket: @unchecked Sendable {  // one reader, writers under `sending`
    private let fd: Int32
    private let sending = Lock()
    private var buffer: [UInt8] = []

    init(fd: Int32) { self.fd = fd }
    deinit { Glibc.close(fd) }

    public static func connect(to path: String) throws(SystemError) -> UnixSocket {
        let fd = try open(path)
        let result = withAddress(path) { Glibc.connect(fd, $0, $1) }
        if result < 0 {
            let code = errno
            Glibc.close(fd)
            throw SystemError(operation: "connect to", path: path, errno: code)
        }
        return UnixSocket(fd: fd)
    }

    fileprivate static func open(_ path: String) throws(SystemError) -> Int32 {
        guard path.utf8.count < 107 else {
            throw SystemError(operation: "name socket", path: path, errno: ENAMETOOLONG)
        }
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        if fd < 0 { throw SystemError(operation: "make socket", path: path, errno: errno) }
        return fd
    }

    fileprivate static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    /// Sends the bytes and a newline. A peer that is gone is no error of ours.
    public func sendLine(_ line: [UInt8]) -> Bool {
        sending.withLock {
            var rest = (line + [0x0a])[...]
            while !rest.isEmpty {
                let sent = rest.withUnsafeBytes {
                    send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
                }
                if sent < 0, errno == EINTR { continue }
                if sent <= 0 { return false }
                rest = rest.dropFirst(sent)
            }
            return true
        }
    }

    /// - Returns: nil at the end of the stream, or when a line is longer than any request is.
    public func receiveLine(limitBytes: Int = 16 << 20) -> [UInt8]? {
        while true {
            if let end = buffer.firstIndex(of: 0x0a) {
                let line = Array(buffer[..<end])
                buffer.removeSubrange(...end)
                return line
            }
            if buffer.count > limitBytes { return nil }
            var chunk = [UInt8](repeating: 0, count: 65536)
            let got = chunk.withUnsafeMutableBytes { recv(fd, $0.baseAddress, $0.count, 0) }
            if got < 0, errno == EINTR { continue }
            if got <= 0 { return nil }
            buffer += chunk[..<got]
        }
    }

    public func shutDown() { shutdown(fd, Int32(SHUT_RDWR)) }
}

/// A listening socket, readable by its owner alone.
public final class UnixListener: @unchecked Sendable {  // immutable
    private let fd: Int32
    public let path: String

    public init(path: String) throws(SystemError) {
        self.path = path
        fd = try UnixSocket.open(path)
        // The pool's lock is ours: a socket left here has no listener.
        unlink(path)
        let old = umask(0o177)
        let bound = UnixSocket.withAddress(path) { [fd] in bind(fd, $0, $1) }
        let code = errno
        umask(old)
        guard bound == 0, listen(fd, 16) == 0 else {
            Glibc.close(fd)
            throw SystemError(operation: "listen on", path: path, errno: code)
        }
    }
    deinit { Glibc.close(fd) }

    /// - Returns: nil once `close` was called.
    public func accept() -> UnixSocket? {
        while true {
            let client = Glibc.accept(fd, nil, nil)
            if client >= 0 {
                _ = fcntl(client, F_SETFD, FD_CLOEXEC)
                return UnixSocket(fd: client)
            }
            if errno != EINTR && errno != ECONNABORTED { return nil }
        }
    }

    public func close() {
        shutdown(fd, Int32(SHUT_RDWR))
        unlink(path)
    }
}
