import SystemIO

/// A file that holds nothing: what is read of it is past its end.
final class EmptyFile: DiskFile, @unchecked Sendable {  // no state
    init() { super.init(path: "nothing") }

    override func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(SystemError) -> Int { 0 }
    override func seekData(from offset: UInt64) throws(SystemError) -> UInt64? { nil }
    override func seekHole(from offset: UInt64) throws(SystemError) -> UInt64? { nil }
    override func status() throws(SystemError) -> FileStatus { FileStatus() }
    override func syncData() throws(SystemError) {}
}
