import Glibc

/// A shell script that runs beside the test, with all it starts in one process group, and is gone
/// with this object at the latest.
package final class BackgroundShell {
    package let pid: pid_t
    private var isReaped = false
    private var code: Int32 = 0

    package init(_ script: String, _ arguments: [String] = []) throws {
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // Where a connection was made in this process, it ignores the signal, and a script's loop into a pipe
        // that nobody reads any more would never end.
        var ordinary = sigset_t()
        sigemptyset(&ordinary)
        sigaddset(&ordinary, SIGPIPE)
        // Under nohup, or behind `&`, the tests themselves ignore these.
        for signal in [SIGINT, SIGQUIT, SIGHUP] { sigaddset(&ordinary, signal) }
        posix_spawnattr_setsigdefault(&attributes, &ordinary)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETPGROUP) | Int16(POSIX_SPAWN_SETSIGDEF))
        let words = ["sh", "-c", script, "sh"] + arguments
        let argv: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        defer { for word in argv { free(word) } }
        var pid: pid_t = 0
        let result = posix_spawn(&pid, "/bin/sh", nil, &attributes, argv, environ)
        guard result == 0 else { throw Failure("cannot run a shell: errno \(result)") }
        self.pid = pid
    }
    deinit { kill() }

    /// Ends the whole group at once.
    package func kill() {
        guard !isReaped else { return }
        _ = Glibc.kill(-pid, SIGKILL)
        _ = try? wait()
    }

    package var isRunning: Bool {
        guard !isReaped else { return false }
        var status: Int32 = 0
        guard waitpid(pid, &status, WNOHANG) == pid else { return true }
        note(status)
        return false
    }

    /// - Returns: the script's exit code, 128 + signal when it was killed.
    /// - Throws: see ``waitForEnd(of:limitSeconds:)``.
    package func wait() throws -> Int32 {
        guard !isReaped else { return code }
        isReaped = true
        // Whoever was made to end left what it had started.
        defer { if code > 128 { _ = Glibc.kill(-pid, SIGKILL) } }
        code = 255
        code = try waitForEnd(of: pid)
        return code
    }

    private func note(_ status: Int32) {
        isReaped = true
        code = exitCode(status)
    }
}
