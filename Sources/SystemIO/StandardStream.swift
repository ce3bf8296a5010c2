import Glibc

/// Standard input and output as byte streams that fill their buffers.
public struct StandardStream: Sendable {
    private let fd: Int32
    public static let input = StandardStream(fd: 0)
    public static let output = StandardStream(fd: 1)

    /// - Returns: bytes read; short only at the end.
    public func read(into buffer: UnsafeMutableRawBufferPointer) throws(SystemError) -> Int {
        var done = 0
        while done < buffer.count {
            let got = Glibc.read(fd, buffer.baseAddress! + done, buffer.count - done)
            if got < 0 {
                if errno == EINTR { continue }
                throw SystemError(operation: "read", path: "standard input", errno: errno)
            }
            if got == 0 { break }
            done += got
        }
        return done
    }

    public func write(_ buffer: UnsafeRawBufferPointer) throws(SystemError) {
        var done = 0
        while done < buffer.count {
            let put = Glibc.write(fd, buffer.baseAddress! + done, buffer.count - done)
            if put < 0 {
                if errno == EINTR { continue }
                throw SystemError(operation: "write", path: "standard output", errno: errno)
            }
            done += put
        }
    }
}
