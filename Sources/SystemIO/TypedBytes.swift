import Glibc

// The standard library's withUnsafeBytes loses the type of what its body throws; these keep it.

extension Array where Element == UInt8 {
    public func withTypedBytes<T, E: Error>(
        _ body: (UnsafeRawBufferPointer) throws(E) -> T
    ) throws(E) -> T {
        try withUnsafeBytes { bytes in
            Result { () throws(E) -> T in try body(bytes) }
        }.get()
    }

    public mutating func withTypedMutableBytes<T, E: Error>(
        _ body: (UnsafeMutableRawBufferPointer) throws(E) -> T
    ) throws(E) -> T {
        try withUnsafeMutableBytes { bytes in
            Result { () throws(E) -> T in try body(bytes) }
        }.get()
    }
}

extension UnsafeRawBufferPointer {
    /// As `elementsEqual`, which goes byte by byte.
    package func hasSameBytes(as other: UnsafeRawBufferPointer) -> Bool {
        count == other.count
            && (isEmpty || memcmp(baseAddress!, other.baseAddress!, count) == 0)
    }
}
