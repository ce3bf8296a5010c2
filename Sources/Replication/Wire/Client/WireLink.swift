// What a transport does for a remote replica: it opens connections, moves bytes, and tells the time. It knows
// nothing of what the bytes mean.
//
// A transport calls `receive`, `tick` and `lost` of a `RemoteConnection` from any one thread at a time, `tick`
// at the latest at its `wakeNs`.

import BlockCore
import SystemIO

package protocol WireLink: AnyObject, Sendable {
    /// Of a clock that only goes forward.
    var nowNs: Int64 { get }

    /// Begins a connection; what comes by it is given to `receiver`. It may still be opening on return: what
    /// is sent meanwhile waits.
    /// - Throws: `.absent`.
    func open(_ receiver: RemoteConnection) throws(TargetError) -> any WireChannel

    /// Gives up the lock, which is held, until something may have changed; then holds it again.
    /// - Parameter changed: signalled for whatever comes.
    func wait(_ lock: Lock, _ changed: Condition)
}

package protocol WireChannel: AnyObject, Sendable {
    /// Takes all of it, in order; never blocks. What is borrowed is sent or copied on return. How much may
    /// wait to be sent is bounded by credit.
    func send(_ pieces: [WirePiece])
    /// Of that, what waits here for the line.
    var unsentBytes: Int { get }
    /// Sends what waits, then closes.
    func close()
}
