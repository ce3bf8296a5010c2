// Connections to one server, over TCP, with TLS where there are keys.

import BlockCore
import Identity
import NIOCore
import NIOPosix
import Replication
import SystemIO

package final class TransportClient: WireLink {
    package struct Options: Sendable {
        package var server: HostPort
        /// nil: without TLS, which is for the loopback alone.
        package var keys: TransportKeys?
        /// The server has one of these keys. Several while it changes from one to the other.
        package var pinned: Set<PeerFingerprint>
        package var connectTimeoutMs: Int64 = 5000

        package init(server: HostPort, keys: TransportKeys?, pinned: Set<PeerFingerprint>) {
            self.server = server
            self.keys = keys
            self.pinned = pinned
        }
    }
    private let options: Options

    package init(_ options: Options) { self.options = options }

    package var nowNs: Int64 { WakeTimer.nowNs }

    package func wait(_ lock: Lock, _ changed: Condition) { changed.wait(lock) }

    package func open(_ receiver: RemoteConnection) throws(TargetError) -> any WireChannel {
        guard options.keys != nil || options.server.isLoopback else {
            throw TargetError(
                .absent,
                "without a key of the server, \(options.server) is not spoken to: only 127.0.0.0/8 "
                    + "needs none")
        }
        return ClientChannel(MultiThreadedEventLoopGroup.singleton.next(), options, receiver)
    }
}
