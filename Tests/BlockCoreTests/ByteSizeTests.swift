import BlockCore
import Testing

@Suite struct ByteSizeTests {
    @Test(arguments: ["20G", "20GiB", "20 GiB", "20g", "20 gb", "20480M", "21474836480"])
    func equalSizesAreEqual(text: String) {
        #expect(ByteSize(parsing: text)?.bytes == 20 << 30)
    }

    @Test(arguments: [("0", 0), ("512", 512), ("1.5K", 1536), ("1k", 1024), ("64T", 64 << 40)])
    func sizesAreBinary(text: String, bytes: UInt64) {
        #expect(ByteSize(parsing: text)?.bytes == bytes)
    }

    @Test(arguments: [
        "", "G", "-1", "1.5", "20GG", "20iB", "x", "1e3", "20 GiBs", "99999999999999999999",
        "17179869184G", "nan", "1..5K",
    ])
    func whatIsNoSizeIsRefused(text: String) {
        #expect(ByteSize(parsing: text) == nil)
    }

    @Test(
        arguments: [
            (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"),
            (4 << 30, "4 GiB"), (64 << 40, "64 TiB"),
        ] as [(UInt64, String)])
    func sizesReadAsPeopleWriteThem(bytes: UInt64, text: String) {
        #expect(ByteSize(bytes: bytes).description == text)
        #expect(ByteSize(parsing: text) == ByteSize(bytes: bytes))
    }
}
