import BlockCore
import SystemIO

/// What a target lacks, as its dirty file holds it.
package struct DirtyFileState: Sendable, Equatable {
    /// What the target said last that it holds durably.
    package var acknowledged: SequenceNumber
    /// The pool's incarnation in which this was written.
    package var incarnation: UInt64
    /// In the order in which they are shipped. Every one that there is: others are dropped.
    package var legs: [DirtyLegState]

    package init(acknowledged: SequenceNumber, incarnation: UInt64, legs: [DirtyLegState]) {
        self.acknowledged = acknowledged
        self.incarnation = incarnation
        self.legs = legs
    }
}

package enum DirtyFileError: Error, Sendable, CustomStringConvertible {
    case system(SystemError)
    /// Something known durable does not verify: nobody knows what the target lacks.
    case damaged(path: String, reason: String)

    package var isNoSpace: Bool {
        if case .system(let error) = self { error.isNoSpace } else { false }
    }

    package var description: String {
        switch self {
        case .system(let error): error.description
        case .damaged(let path, let reason):
            "\(path) is damaged: \(reason). What the target lacks is not known: all of it has to be "
                + "compared."
        }
    }
}

func dirtied<T>(_ body: () throws(SystemError) -> T) throws(DirtyFileError) -> T {
    do throws(SystemError) { return try body() } catch { throw .system(error) }
}

/// The first page of a dirty file.
struct DirtyFileHeader {
    static let bytes: UInt64 = 4096
    private static let magic: UInt64 = 0x3130_5452_444c_5044  // "DPLDRT01"

    var target: TargetID
    /// Random: no frame of another file verifies in this one.
    var nonce: UInt64

    /// - Returns: the page, and the chain's first link.
    func encoded() -> (bytes: [UInt8], chain: UInt64) {
        var writer = ByteWriter(capacity: Int(Self.bytes))
        writer.put(Self.magic)
        writer.put(UInt32(1))
        writer.put(UInt32(Geometry.regionShift))
        writer.put(target.rawValue)
        writer.put(nonce)
        let chain = writer.seal()
        writer.pad(to: Int(Self.bytes))
        return (writer.bytes, chain)
    }

    init(target: TargetID, nonce: UInt64) {
        self.target = target
        self.nonce = nonce
    }

    init?(decoding raw: UnsafeRawBufferPointer) {
        guard raw.count >= 40 else { return nil }
        var reader = ByteReader(raw)
        guard reader.take(UInt64.self) == Self.magic, reader.take(UInt32.self) == 1,
            reader.take(UInt32.self) == UInt32(Geometry.regionShift)
        else { return nil }
        target = TargetID(rawValue: reader.take())
        nonce = reader.take()
        guard reader.take(UInt64.self) == blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<32]))
        else { return nil }
    }
}

/// A stretch of a change, at a multiple of 4 KiB.
struct DirtyFrameHeader {
    static let bytes = 56
    static let maxPayloadBytes = 1 << 20
    private static let magic: UInt64 = 0x3130_5246_444c_5044  // "DPLDFR01"

    var payloadBytes: UInt64
    /// Up to where the file was known durable when the frame was written.
    var durableEnd: UInt64
    /// The last frame of its change; before it the change did not happen.
    var closes: Bool
    var chain: UInt64
    var payloadHash: UInt64

    var totalBytes: UInt64 { (UInt64(Self.bytes) + payloadBytes + 4095) & ~4095 }

    /// - Returns: the header, and the chain's next link.
    func encoded(nonce: UInt64) -> (bytes: [UInt8], chain: UInt64) {
        var writer = ByteWriter(capacity: Self.bytes)
        writer.put(Self.magic)
        writer.put(payloadBytes)
        writer.put(durableEnd)
        writer.put(UInt64(closes ? 1 : 0))
        writer.put(chain)
        writer.put(payloadHash)
        let next = writer.seal(seed: nonce)
        return (writer.bytes, next)
    }

    init(
        payloadBytes: UInt64, durableEnd: UInt64, closes: Bool, chain: UInt64, payloadHash: UInt64
    ) {
        self.payloadBytes = payloadBytes
        self.durableEnd = durableEnd
        self.closes = closes
        self.chain = chain
        self.payloadHash = payloadHash
    }

    /// - Returns: nil where no whole header of this file is; with it the chain's next link.
    static func decode(
        _ raw: UnsafeRawBufferPointer, nonce: UInt64
    ) -> (header: DirtyFrameHeader, chain: UInt64)? {
        guard raw.count >= bytes else { return nil }
        var reader = ByteReader(raw)
        guard reader.take(UInt64.self) == magic else { return nil }
        let payloadBytes: UInt64 = reader.take()
        let durableEnd: UInt64 = reader.take()
        let flags: UInt64 = reader.take()
        let header = DirtyFrameHeader(
            payloadBytes: payloadBytes, durableEnd: durableEnd, closes: flags == 1,
            chain: reader.take(), payloadHash: reader.take())
        let hash: UInt64 = reader.take()
        guard flags <= 1, payloadBytes <= UInt64(maxPayloadBytes),
            hash == blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<48]), seed: nonce)
        else { return nil }
        return (header, hash)
    }
}

/// The blocks of one leg and image in one region, or in a run of regions that are dirty as a whole.
struct DirtyExtent {
    static let bytes = 32
    static let wordBytes = BlockSet.wordsPerRegion * 8

    var leg: UInt64
    var image: ImageID
    var region: UInt64
    /// 0: the words tell which blocks of the one region.
    var wholeRegions: UInt64
    var words: BlockSet.Words?

    var encodedBytes: Int { Self.bytes + (words == nil ? 0 : Self.wordBytes) }

    func encode(into writer: inout ByteWriter) {
        writer.put(leg)
        writer.put(image.rawValue)
        writer.put(region)
        writer.put(wholeRegions)
        if let words { for word in words { writer.put(word) } }
    }

    /// - Returns: nil where no extent of this format is.
    init?(_ reader: inout ByteReader) {
        let regionLimit = Geometry.maxImageSizeBytes >> Geometry.regionShift
        guard reader.remaining >= Self.bytes else { return nil }
        leg = reader.take()
        image = ImageID(rawValue: reader.take())
        region = reader.take()
        wholeRegions = reader.take()
        guard region < regionLimit, wholeRegions <= regionLimit - region else { return nil }
        guard wholeRegions == 0 else { return }
        guard reader.remaining >= Self.wordBytes else { return nil }
        words = BlockSet.Words((0..<BlockSet.wordsPerRegion).map { _ in reader.take() })
    }

    init(
        leg: UInt64, image: ImageID, region: UInt64, wholeRegions: UInt64, words: BlockSet.Words?
    ) {
        self.leg = leg
        self.image = image
        self.region = region
        self.wholeRegions = wholeRegions
        self.words = words
    }

    /// The extents of a set, ascending.
    static func forEach<E: Error>(
        of blocks: BlockSet, leg: UInt64, image: ImageID,
        _ body: (DirtyExtent) throws(E) -> Void
    ) throws(E) {
        let full = BlockSet.Words(repeating: .max, count: BlockSet.wordsPerRegion)
        var run: DirtyExtent?
        for region in blocks.regionNumbers {
            let words = blocks.words(inRegion: region)!
            if words == full {
                if let before = run, before.region + before.wholeRegions == region {
                    run!.wholeRegions += 1
                    continue
                }
                if let run { try body(run) }
                run = DirtyExtent(
                    leg: leg, image: image, region: region, wholeRegions: 1, words: nil)
            } else {
                if let run { try body(run) }
                run = nil
                try body(
                    DirtyExtent(
                        leg: leg, image: image, region: region, wholeRegions: 0, words: words))
            }
        }
        if let run { try body(run) }
    }

    func enter(in blocks: inout [ImageID: BlockSet]) {
        if let words {
            blocks[image, default: BlockSet()].insert(region: region, words: words)
        } else {
            blocks.insert(
                BlockRange(
                    start: region * Geometry.blocksPerRegion,
                    count: wholeRegions * Geometry.blocksPerRegion), of: image)
        }
    }
}
