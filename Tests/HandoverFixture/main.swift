// Hands a pool over to its mirror, and dies at a step of it: as if killed there. Or another process does, such as the
// mirror's server, and this one goes on.
//
//     HandoverFixture POOL MIRROR STEP [PID]

import Daemon
import Glibc

let words = CommandLine.arguments
guard (4...5).contains(words.count), let step = HandoverStep(rawValue: words[3]) else { exit(2) }
let other = words.count > 4 ? pid_t(words[4]) : nil
if words.count > 4, other == nil { exit(2) }
var options = PoolSession.Options()
options.connectsTargets = true
do {
    let session = try PoolSession(path: words[1], options: options)
    do {
        _ = try session.failOver(to: words[2], timeoutMs: other == nil ? nil : 3000) { reached in
            if reached == step { kill(other ?? getpid(), SIGKILL) }
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
