import BlockCore
import SystemIO

/// What can go wrong inside one layer's files.
package enum LayerError: Error, CustomStringConvertible, Sendable {
    case system(SystemError)
    /// The file's content contradicts itself where it was known durable: never opened silently.
    case damaged(path: String, reason: String)
    /// A block read does not have the checksum it was sealed with.
    case checksumMismatch(path: String, block: UInt64)

    package var description: String {
        switch self {
        case .system(let error): error.description
        case .damaged(let path, let reason):
            "\(path) is damaged: \(reason). Run `doppel check` on the pool."
        case .checksumMismatch(let path, let block):
            "block \(block) of \(path) does not have the checksum it was sealed with"
        }
    }
}

/// Runs `body` and keeps a system error's type on the way to a ``LayerError``.
@inline(__always)
func layered<T>(_ body: () throws(SystemError) -> T) throws(LayerError) -> T {
    do throws(SystemError) { return try body() } catch { throw .system(error) }
}
