import Glibc
import SystemIO
import TestSupport
import Testing

/// Files of the running system: whole reads and writes or an error that says why, holes, copies.
@Suite struct LinuxFileTests {
    private let disk: Disk = LinuxDisk()

    private func withFile(_ body: (DiskFile) throws -> Void) throws {
        let folder = try makeTemporaryFolder()
        defer { _ = try? run(["rm", "-rf", folder]) }
        let file = try disk.open(folder + "/file", [.readWrite, .create], mode: 0o600)
        defer { file.close() }
        try body(file)
    }
    private func put(_ bytes: [UInt8], at offset: UInt64, to file: DiskFile) throws {
        try bytes.withUnsafeBytes { try file.write($0, at: offset) }
    }
    private func get(_ count: Int, at offset: UInt64, of file: DiskFile) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: count)
        let got = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: offset) }
        return Array(bytes[..<got])
    }

    @Test func aReadIsShortAtTheEndAlone() throws {
        try withFile { (file) throws in
            try put(pattern(10_000), at: 0, to: file)
            #expect(try get(10_000, at: 0, of: file) == pattern(10_000))
            #expect(try get(10_000, at: 9000, of: file) == Array(pattern(10_000)[9000...]))
            #expect(try get(10, at: 10_000, of: file).isEmpty)
        }
    }

    /// The kernel takes a part, and says why it does not take the rest only when it is asked again.
    @Test func aWriteThatIsCutShortIsAnError() throws {
        ProcessControl.ignoreFileSizeSignal()
        var limit = rlimit()
        try #require(getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0)
        defer { setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) }
        try withFile { (file) throws in
            var low = rlimit(rlim_cur: 1 << 20, rlim_max: limit.rlim_max)
            let bytes = pattern(3 << 19)
            for inPieces in [false, true] {
                try file.truncate(to: 0)
                try #require(setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &low) == 0)
                let failure = #expect(throws: SystemError.self) {
                    try bytes.withUnsafeBytes { raw in
                        guard inPieces else { return try file.write(raw, at: 0) }
                        let parts = [raw[..<100_000], raw[100_000...]]
                        try file.write(
                            pieces: parts.map(UnsafeRawBufferPointer.init(rebasing:)), at: 0)
                    }
                }
                try #require(setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0)
                #expect(failure?.errno == EFBIG && failure?.isTooLarge == true)
                #expect(try file.status().sizeBytes == 1 << 20)
                #expect(try get(1 << 20, at: 0, of: file) == Array(bytes[..<(1 << 20)]))
            }
        }
    }

    @Test func piecesAreWrittenOneAfterAnother() throws {
        try withFile { (file) throws in
            for count in [1, 2, 8, 9, 40] {
                let bytes = pattern(count * 1000, seed: UInt8(count))
                try bytes.withUnsafeBytes { raw in
                    try file.write(
                        pieces: (0..<count).map {
                            UnsafeRawBufferPointer(rebasing: raw[$0 * 1000..<($0 + 1) * 1000])
                        }, at: 77)
                }
                #expect(try get(bytes.count, at: 77, of: file) == bytes, "\(count) pieces")
            }
        }
    }

    @Test func aFullDeviceIsToldAsThat() throws {
        let full = try disk.open("/dev/full", .readWrite, mode: 0)
        defer { full.close() }
        let failure = #expect(throws: SystemError.self) { try put([1], at: 0, to: full) }
        #expect(failure?.isNoSpace == true)
        #expect(failure?.path == "/dev/full")
        #expect(failure?.description.contains("No space left on device (errno 28)") == true)
    }

    @Test func holesAreMadeAndFound() throws {
        try withFile { (file) throws in
            try file.truncate(to: 1 << 20)
            #expect(try file.seekData(from: 0) == nil)
            try put(pattern(65536), at: 262_144, to: file)
            #expect(try file.seekData(from: 0) == 262_144)
            #expect(try file.seekHole(from: 262_144) == 327_680)
            try file.punchHole(at: 262_144, length: 65536)
            #expect(try file.seekData(from: 0) == nil)
            #expect(try get(10, at: 262_144, of: file) == [UInt8](repeating: 0, count: 10))
            #expect(try file.status().sizeBytes == 1 << 20)
            // Space without a new size, and with one.
            try file.allocate(at: 1 << 20, length: 65536, keepSize: true)
            #expect(try file.status().sizeBytes == 1 << 20)
            #expect(try file.status().allocatedBytes >= 65536)
            try file.allocate(at: 1 << 20, length: 65536, keepSize: false)
            #expect(try file.status().sizeBytes == 1 << 20 + 65536)
            // Zeros that keep their space.
            try put(pattern(8192), at: 0, to: file)
            let before = try file.status().allocatedBytes
            try file.zeroRange(at: 0, length: 8192)
            #expect(try get(8192, at: 0, of: file).allSatisfy { $0 == 0 })
            #expect(try file.status().allocatedBytes >= before)
        }
    }

    @Test func aRangeIsCopiedUpToTheSourcesEnd() throws {
        try withFile { (source) throws in
            try put(pattern(300_000), at: 0, to: source)
            try withFile { (target) throws in
                #expect(
                    try target.copyRange(from: source, at: 100_001, to: 5, length: 100_000)
                        == 100_000)
                #expect(
                    try get(100_000, at: 5, of: target)
                        == Array(pattern(300_000)[100_001..<200_001])
                )
                #expect(
                    try target.copyRange(from: source, at: 290_000, to: 0, length: 99_999) == 10_000
                )
                #expect(try get(10_000, at: 0, of: target) == Array(pattern(300_000)[290_000...]))
            }
        }
    }
}
