import CLinux

/// Tells when something in a folder may have changed. Where the system cannot tell (some network file
/// systems, too many watches) only time passes: whoever waits looks each time.
public final class FolderWatch: @unchecked Sendable {  // `watch` is the waiting thread's alone
    public enum Outcome: Sendable { case changed, timePassed, ended }

    private let path: String
    private var watch: Int32 = -1
    private let event: Int32

    public init(path: String) throws(SystemError) {
        self.path = path
        event = clx_make_event()
        try checked(event, "make event for", path)
        watch = clx_watch_folder(path)
    }

    deinit {
        if watch >= 0 { _ = clx_close(watch) }
        _ = clx_close(event)
    }

    /// By one thread at a time.
    public func wait(timeoutMs: Int32) -> Outcome {
        let result = clx_wait_watch(watch, event, timeoutMs)
        if result == 2 { return .ended }
        // A folder that was replaced is watched anew under its name.
        if result == 1 || watch < 0 {
            if watch >= 0 { _ = clx_close(watch) }
            watch = clx_watch_folder(path)
        }
        return result == 1 ? .changed : .timePassed
    }

    /// From any thread: whoever waits, and whoever will, hears that it is over.
    public func end() { _ = clx_signal_event(event) }
}
