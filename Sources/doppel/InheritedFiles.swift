import Glibc
import SystemIO

/// Descriptors that a caller left open. A daemon that kept them would hold the caller's locks for as
/// long as it lives, and a pipe's reader would wait for it.
enum InheritedFiles {
    /// Closes all but the standard three and `kept`. Call before anything else is opened.
    static func close(except kept: Int32) {
        guard let entries = try? LinuxDisk().list("/proc/self/fd") else { return }
        // The list has the descriptor it was read through, too, which is closed by now.
        for number in entries.compactMap({ Int32($0.name) }) where number > 2 && number != kept {
            _ = Glibc.close(number)
        }
    }
}
