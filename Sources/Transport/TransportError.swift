/// What keeps a transport from beginning at all.
package struct TransportError: Error, Sendable, Hashable, CustomStringConvertible {
    package enum Kind: Sendable, Hashable {
        /// Nobody would be asked for a key there.
        case unprotected
        /// The keys of this host cannot be used.
        case keys
        /// The address cannot be listened on.
        case address
    }
    package var kind: Kind
    package var message: String
    package var errno: Int32?

    init(_ kind: Kind, _ message: String, errno: Int32? = nil) {
        self.kind = kind
        self.message = message
        self.errno = errno
    }
    package var description: String { message }
}
