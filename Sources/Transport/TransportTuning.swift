import NIOCore
import NIOTLS

enum TransportTuning {
    /// Large reads for a stream of records; what comes in small pieces takes no large buffer.
    static let receiving = AdaptiveRecvByteBufferAllocator(
        minimum: 4 << 10, initial: 64 << 10, maximum: 512 << 10)
    /// As many reads in a row as the line allows, unless a peer is held to a rate.
    static let readsInARow: UInt = 4
    /// Of a connection whose peer is held to a rate, or not.
    static func receiving(_ throttle: PeerThrottle?) -> any RecvByteBufferAllocator {
        guard let throttle else { return receiving }
        return FixedSizeRecvByteBufferAllocator(capacity: throttle.pieceBytes)
    }
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
