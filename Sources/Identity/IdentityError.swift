import SystemIO

package struct IdentityError: Error, CustomStringConvertible, Sendable {
    package enum Kind: Sendable {
        /// Somebody else can read or change what only the owner may.
        case untrusted
        /// What is there is not what it should be.
        case damaged
        /// What was asked for makes no sense here.
        case refused
        case system
    }
    package var kind: Kind
    package var message: String
    package var cause: SystemError?

    package init(_ kind: Kind, _ message: String, cause: SystemError? = nil) {
        self.kind = kind
        self.message = message
        self.cause = cause
    }
    init(_ cause: SystemError) { self.init(.system, cause.description, cause: cause) }

    package var description: String { message }
}

/// What a system call throws, as an error of this module.
func system<T>(_ body: () throws(SystemError) -> T) throws(IdentityError) -> T {
    do throws(SystemError) { return try body() } catch { throw IdentityError(error) }
}
