import Glibc

/// Waits for a child's end. One that goes on for longer than anything here takes is killed. One that goes on even then
/// sits in a call to a disk that hangs: it is left to whoever takes that disk away.
/// - Returns: its exit code, or 128 and the signal that ended it.
/// - Throws: where it had to be killed: what hangs fails its test, also one that expects a failure, and holds up no
///   other.
package func waitForEnd(of pid: pid_t, limitSeconds: Double = 120) throws -> Int32 {
    if let code = end(of: pid, withinSeconds: limitSeconds) { return code }
    kill(pid, SIGKILL)
    _ = end(of: pid, withinSeconds: 10)
    throw Unexpected("process \(pid) went on for more than \(Int(limitSeconds)) s")
}

private func end(of pid: pid_t, withinSeconds seconds: Double) -> Int32? {
    var status: Int32 = 0
    let end = monotonicSeconds() + seconds
    repeat {
        let found = waitpid(pid, &status, WNOHANG)
        if found == pid { return exitCode(status) }
        if found < 0, errno != EINTR { return 255 }
        usleep(2_000)
    } while monotonicSeconds() < end
    return nil
}

/// - Parameter status: as waitpid(2) gives it.
func exitCode(_ status: Int32) -> Int32 {
    status & 0x7f == 0 ? status >> 8 & 0xff : 128 + (status & 0x7f)
}

private func monotonicSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
