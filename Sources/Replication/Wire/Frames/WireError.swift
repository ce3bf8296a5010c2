// What is wrong with what came over a connection. Any of these ends it: after one byte that is not
// understood nothing that follows can be.

package struct WireError: Error, Sendable, Hashable, CustomStringConvertible {
    package enum Kind: UInt16, Sendable, CaseIterable {
        /// A checksum does not match.
        case check = 1
        /// A length or a count that cannot be.
        case length = 2
        /// A kind, version or feature that nobody here knows.
        case unknown = 3
        /// A value that its field cannot have.
        case malformed = 4
        /// Sound, but not now.
        case outOfOrder = 5
        /// More bytes of records than there was credit for.
        case credit = 6
        /// More requests at once than may be.
        case tooManyRequests = 7
        /// No version that both speak.
        case version = 8
        /// Too large to be carried.
        case tooLarge = 9
        /// Not the answer to this connection's greeting, or to an epoch that is over.
        case superseded = 10
        /// The other side was silent, or takes nothing.
        case silence = 11
        /// More than a limit of the server lets through, of what others need, too.
        case limit = 12
    }
    package var kind: Kind
    /// `append.last`: the message and its field.
    package var field: String
    /// Where the field begins: in the frame's head for `frame.…`, in the message's body otherwise.
    package var offset: Int
    package var message: String

    package init(_ kind: Kind, _ field: String, at offset: Int, _ message: String) {
        self.kind = kind
        self.field = field
        self.offset = offset
        self.message = message
    }

    package var description: String { "\(field) (byte \(offset)): \(message)" }
}
