import BlockCore
import SystemIO

extension SumsFile {
    /// Verifies whole blocks that were read from the layer's data file.
    /// - Returns: how many of them were covered.
    /// - Throws: ``LayerError/checksumMismatch`` at the first block that is not what was sealed.
    @discardableResult
    package func verify(
        _ blocks: UnsafeRawBufferPointer, startingAt first: UInt64
    ) throws(LayerError) -> Int {
        var covered = 0
        let range = BlockRange(start: first, count: UInt64(blocks.count / 4096))
        try forEachPage(of: range) { (number, part, page) throws(LayerError) in
            guard try load(number, into: page) else { return }
            for block in part.start..<part.end {
                let stored = Self.entry(block, in: page)
                if stored == 0 { continue }
                let at = Int(block - first) * 4096
                let bytes = UnsafeRawBufferPointer(rebasing: blocks[at..<at + 4096])
                guard stored == Self.hash(ofBlock: bytes) else {
                    throw .checksumMismatch(path: file.path, block: block)
                }
                covered += 1
            }
        }
        return covered
    }

    /// Reads every covered block of a data file, also one past its end, and says whether it is what was
    /// sealed.
    /// - Parameter each: false ends it.
    /// - Returns: false when it was ended.
    package func verifyAll(
        of data: DiskFile, each: (_ block: UInt64, _ isGood: Bool) -> Bool
    ) throws(LayerError) -> Bool {
        let sizeBytes = try layered { () throws(SystemError) in try file.status().sizeBytes }
        let page = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.pageBytes, alignment: 8)
        let block = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer {
            page.deallocate()
            block.deallocate()
        }
        var number: UInt64 = 0
        while Self.offset(number) < sizeBytes {
            // Runs of blocks that are not covered are holes.
            let stored = try layered { () throws(SystemError) in
                try file.seekData(from: Self.offset(number))
            }
            guard let stored else { return true }
            number = max(number, (stored - Self.pagesOffset) / UInt64(Self.pageBytes))
            defer { number += 1 }
            guard Self.offset(number) < sizeBytes, try load(number, into: page) else { continue }
            for index in 0..<Self.hashesPerPage {
                let which = number * Self.hashesPerPage + index
                let expected = Self.entry(which, in: page)
                if expected == 0 { continue }
                let got = try layered { () throws(SystemError) in
                    try data.read(into: block, at: which << Geometry.blockShift)
                }
                UnsafeMutableRawBufferPointer(rebasing: block[got...])
                    .initializeMemory(as: UInt8.self, repeating: 0)
                let isGood = Self.hash(ofBlock: UnsafeRawBufferPointer(block)) == expected
                if !each(which, isGood) { return false }
            }
        }
        return true
    }
}
