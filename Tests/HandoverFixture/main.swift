// Hands a pool over to its mirror, and dies at a step of it: as if killed there. Or another process does, such as the
// mirror's server, or the disk of that one hangs, and this one goes on.
//
//     HandoverFixture POOL MIRROR STEP [PID | CONTROL]
//
// CONTROL is the file that the lossy file system takes commands by.

import Daemon
import Glibc

let words = CommandLine.arguments
guard (4...5).contains(words.count), let step = HandoverStep(rawValue: words[3]) else { exit(2) }
let other = words.count > 4 ? words[4] : nil

func strike() {
    guard let other else { return _ = kill(getpid(), SIGKILL) }
    if let pid = pid_t(other) { return _ = kill(pid, SIGKILL) }
    let control = open(other, O_WRONLY)
    guard write(control, "hang", 4) == 4 else { exit(2) }
    close(control)
}

var options = PoolSession.Options()
options.connectsTargets = true
do {
    let session = try PoolSession(path: words[1], options: options)
    do {
        _ = try session.failOver(to: words[2], timeoutMs: other == nil ? nil : 3000) { reached in
            if reached == step { strike() }
        }
    } catch {
        try? session.close()
        throw error
    }
    try session.close()
} catch {
    print(error)
    exit(1)
}
