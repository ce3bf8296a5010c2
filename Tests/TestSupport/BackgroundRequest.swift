import Glibc
import SystemIO

/// A request to a file that may be long in coming back, on a thread of its own.
package final class BackgroundRequest: @unchecked Sendable {  // `result` is under `lock`
    private let lock = Lock()
    private var result: Int32?
    /// nil while it waits; then 0 or its errno.
    package var code: Int32? { lock.withLock { result } }

    /// - Parameter body: gets the open file; returns false where `errno` says why it failed.
    package init(_ path: String, _ flags: Int32, _ body: @escaping @Sendable (Int32) -> Bool) {
        _ = WorkerThread.start("request") { [self] in
            let file = open(path, flags | O_CLOEXEC)
            var code = errno
            if file >= 0 {
                code = body(file) ? 0 : errno
                close(file)
            }
            lock.withLock { result = code }
        }
    }
}
