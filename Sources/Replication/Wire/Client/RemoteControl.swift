// A control connection, for whoever wants to know something of a pool behind a server, or has it changed, and is not
// its primary.

import BlockCore

package final class RemoteControl: Sendable {
    private let connection: RemoteConnection

    /// Connects, and comes to the pool.
    /// - Parameter limitMs: for all that is asked, after which the connection is lost; nil: the answers are waited
    ///   for while the line is alive.
    /// - Throws: what the server says, or why it cannot be asked.
    package init(
        _ link: any WireLink, pool: String,
        options: ClientConnection.Options = ClientConnection.Options(), limitMs: Int64? = nil
    ) throws(TargetError) {
        connection = RemoteConnection(.control, options, link)
        if let limitMs { connection.limit(toMs: limitMs) }
        do throws(TargetError) {
            let welcome = try connection.begin()
            try connection.enter(WireEnter(challenge: welcome.challenge, pool: pool))
        } catch {
            connection.drop("it was not let in")
            throw error
        }
    }

    /// All of it at once, as far as may be under way; the answers in the same order.
    /// - Throws: the first that failed.
    package func ask(_ queries: [WireQuery]) throws(TargetError) -> [WireReply] {
        try connection.ask(queries)
    }

    /// - Parameter request: one JSON object, as for a control socket.
    package func control(_ request: [UInt8]) throws(TargetError) -> [UInt8] {
        guard case .answered(let text) = try ask([.control(request)]).first else {
            throw TargetError(.io, "what it answered is not what it was asked for")
        }
        return text
    }

    /// Waits until the server has said goodbye, too.
    package func leave() { connection.leave() }
    /// Without a word.
    package func drop() { connection.drop("it was let go of") }
}
