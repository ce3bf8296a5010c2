import Glibc

/// Waits for a child's end. One that goes on for longer than anything here takes is killed, so that what hangs fails
/// its test and holds up no other. One that goes on even then sits in a call to a disk that hangs: it is left to
/// whoever takes that disk away.
/// - Returns: its exit code, or 128 and the signal that ended it; 255 where it has not ended.
package func waitForEnd(of pid: pid_t, limitSeconds: Double = 120) -> Int32 {
    var status: Int32 = 0
    for seconds in [limitSeconds, 10] {
        let end = monotonicSeconds() + seconds
        repeat {
            let found = waitpid(pid, &status, WNOHANG)
            if found == pid { return exitCode(status) }
            if found < 0, errno != EINTR { return 255 }
            usleep(2_000)
        } while monotonicSeconds() < end
        print("process \(pid) goes on after \(Int(seconds)) s")
        kill(pid, SIGKILL)
    }
    return 255
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
