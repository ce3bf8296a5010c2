// What became of a connection, in words for a person.

import BlockCore
import NIOCore
import NIOPosix
import NIOSSL
import SystemIO

enum LineTrouble {
    static func words(_ error: any Error) -> String {
        switch error {
        case let error as IOError: return SystemError.message(error.errnoCode)
        case let error as NIOConnectionError:
            if let first = error.connectionErrors.first { return words(first.error) }
            return "the name \(error.host) is not known"
        case ChannelError.connectTimeout(let amount):
            return "no answer within \(amount.nanoseconds / 1_000_000) ms"
        case NIOSSLError.handshakeFailed(let error): return "TLS: \(alert(error) ?? "\(error)")"
        case NIOSSLError.uncleanShutdown: return "the connection was cut"
        case let error as BoringSSLError: return "TLS: \(alert(error) ?? "\(error)")"
        default: return "\(error)"
        }
    }

    /// What the other side said before it ended the handshake.
    private static func alert(_ error: any Error) -> String? {
        let text = "\(error)"
        if text.contains("ALERT_CERTIFICATE") || text.contains("ALERT_BAD_CERTIFICATE") {
            return "it does not take this host's key"
        }
        if text.contains("WRONG_VERSION_NUMBER") || text.contains("HTTP_REQUEST") {
            return "the other side speaks no TLS"
        }
        if text.contains("PROTOCOL_VERSION") || text.contains("UNSUPPORTED_PROTOCOL") {
            return "the other side speaks no TLS 1.3"
        }
        return nil
    }
}
