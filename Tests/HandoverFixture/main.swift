// Hands a pool over to its mirror, and dies at a step of it: as if killed there.
//
//     HandoverFixture POOL MIRROR STEP

import Daemon
import Glibc

let words = CommandLine.arguments
guard words.count == 4, let step = HandoverStep(rawValue: words[3]) else { exit(2) }
var options = PoolSession.Options()
options.connectsTargets = true
do {
    let session = try PoolSession(path: words[1], options: options)
    _ = try session.failOver(to: words[2], timeoutMs: nil) { reached in
        if reached == step { kill(getpid(), SIGKILL) }
    }
    try session.close()
} catch {
    print(error)
    exit(1)
}
