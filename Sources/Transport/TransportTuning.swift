import NIOCore
import NIOTLS

enum TransportTuning {
    /// Large reads for a stream of records; what comes in small pieces takes no large buffer.
    static let receiving = AdaptiveRecvByteBufferAllocator(
        minimum: 4 << 10, initial: 64 << 10, maximum: 512 << 10)
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
