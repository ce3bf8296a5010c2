// What is asked of a pool behind a server: the verbs of a control socket, over a control connection.

import Pool
import Replication

enum RemotePool {
    /// - Returns: nil for what is no address of that kind.
    /// - Throws: for one that is wrong.
    static func address(_ text: String) throws -> RemoteAddress? {
        if let problem = TargetAddress.problem(text) { throw ControlFailure(.usage, problem) }
        return RemoteAddress(text)
    }

    /// What the pool is called where it is does not help who asks: the answer has the address.
    /// - Parameter limitMs: for the answer; nil where a person waits for it, who can leave.
    static func perform(
        _ request: ControlRequest, at place: RemoteAddress, limitMs: Int64? = nil
    ) throws -> ControlResult {
        guard request.execute.remoteRight != nil else {
            throw ControlFailure(
                .usage,
                "\(place.text) is on another machine: there, `doppel status`, `list`, `snapshot list` "
                    + "and `failover` can be asked from here")
        }
        do {
            let connection = try RemoteAccess.shared.control(place, limitMs: limitMs)
            defer { connection.leave() }
            var result = try perform(request, by: connection)
            result.status?.pool = place.text
            return result
        } catch let error as TargetError {
            throw ControlFailure(.failed, "\(place.text): \(error.message)")
        }
    }

    static func perform(
        _ request: ControlRequest, by connection: RemoteControl
    ) throws -> ControlResult {
        let answer = try connection.control(JSONLine.encode(request))
        let reply: ControlReply
        do { reply = try JSONLine.decode(ControlReply.self, answer) } catch {
            throw ControlFailure(.failed, "what it answered is not understood: \(error)")
        }
        if let failure = reply.error { throw failure }
        return reply.result ?? ControlResult()
    }
}
