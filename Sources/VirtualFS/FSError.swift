import Volume

/// Why a file operation failed, in POSIX's terms but without its numbers: the front end has the
/// one table that turns a code into an errno.
package enum FSErrorCode: Sendable, Hashable {
    case notFound, exists, notDirectory, isDirectory, notEmpty, notPermitted, accessDenied
    case noSpace, io, readOnly, invalid, nameTooLong, notSupported, noAttribute, tooLarge
    case busy, stale, crossDevice, range, badHandle, noSuchOffset
    /// What is stored does not verify: an I/O error to programs, its own exit code on the command line.
    case damaged
}

package struct FSError: Error, CustomStringConvertible, Sendable {
    package var code: FSErrorCode
    package var message: String

    package init(_ code: FSErrorCode, _ message: String = "") {
        self.code = code
        self.message = message
    }

    package init(_ error: VolumeError) {
        let code: FSErrorCode =
            switch error.kind {
            case .noSpace: .noSpace
            case .io, .latched: .io
            case .checksum, .damaged: .damaged
            case .readOnly: .readOnly
            case .tooLarge: .tooLarge
            case .busy: .busy
            case .notFound: .notFound
            case .exists: .exists
            case .invalid: .invalid
            }
        self.init(code, error.description)
    }

    package var description: String { message.isEmpty ? "\(code)" : message }
}

/// Keeps a volume's error type on the way to an ``FSError``.
@inline(__always)
func volumed<T>(_ body: () throws(VolumeError) -> T) throws(FSError) -> T {
    do throws(VolumeError) { return try body() } catch { throw FSError(error) }
}
