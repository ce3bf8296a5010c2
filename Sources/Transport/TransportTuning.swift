import NIOCore
import NIOTLS

enum TransportTuning {
    /// Large reads for a stream of records; what comes in small pieces takes no large buffer.
    static let receiving = AdaptiveRecvByteBufferAllocator(
        minimum: 4 << 10, initial: 64 << 10, maximum: 512 << 10)
    /// As many reads in a row as the line allows, unless a peer is held to a rate.
    static let readsInARow: UInt = 4
    /// Encrypted bytes that wait in this process for the line.
    static let waterMark = ChannelOptions.Types.WriteBufferWaterMark(low: 256 << 10, high: 1 << 20)

    /// Both sides have shown their keys.
    static func isHandshakeDone(_ event: Any) -> Bool {
        guard let event = event as? TLSUserEvent, case .handshakeCompleted = event else {
            return false
        }
        return true
    }
}

/// The buffers that a server reads into: large where much comes, and of one size where a peer is held to a rate.
///
/// A line fills its buffer, and the library keeps buffers that never shrink: where the size matters each read has one of
/// its own (no size is named, and the next one may always be larger).
struct ServerReceiving: RecvByteBufferAllocator {
    private var adaptive = TransportTuning.receiving
    private let pieceBytes: Int?

    init(_ throttle: PeerThrottle? = nil) { pieceBytes = throttle?.pieceBytes }

    func buffer(allocator: ByteBufferAllocator) -> ByteBuffer {
        pieceBytes.map(allocator.buffer(capacity:)) ?? adaptive.buffer(allocator: allocator)
    }
    mutating func record(actualReadBytes: Int) -> Bool {
        pieceBytes != nil || adaptive.record(actualReadBytes: actualReadBytes)
    }
    func nextBufferSize() -> Int? { pieceBytes == nil ? adaptive.nextBufferSize() : nil }
}
