import CFuse
import Glibc
import Logging
import SystemIO

/// What libfuse and fusermount3 say, for the log and for the message of a mount that fails.
final class LibraryLog: @unchecked Sendable {  // `recent` is under `lock`
    static let shared = LibraryLog()
    private let lock = Lock()
    private let log = Logger(label: "doppel.libfuse")
    private var recent: [String] = []

    private init() {
        cfuse_set_log { level, line in
            guard let line else { return }
            LibraryLog.shared.take(level: level, line: String(cString: line))
        }
    }

    private func take(level: Int32, line: String) {
        lock.withLock {
            recent.append(line)
            if recent.count > 8 { recent.removeFirst() }
        }
        // syslog's scale: 3 is an error, 4 a warning.
        switch level {
        case ...3: log.error("\(line)")
        case 4: log.warning("\(line)")
        default: log.debug("\(line)")
        }
    }

    /// What was said since the last call.
    func drain() -> String {
        lock.withLock {
            defer { recent = [] }
            return recent.joined(separator: "; ")
        }
    }
}
