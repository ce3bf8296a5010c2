import CLinux
import Glibc

/// Starting, stopping and telling about processes.
public enum ProcessControl {
    public static var isRoot: Bool { geteuid() == 0 }
    public static var userID: UInt32 { geteuid() }
    public static var groupID: UInt32 { getegid() }
    public static var processID: Int32 { getpid() }

    public static func environment(_ name: String) -> String? {
        getenv(name).map { String(cString: $0) }
    }

    /// The path with symlinks resolved; nil where it does not exist.
    public static func realPath(_ path: String) -> String? {
        guard let raw = realpath(path, nil) else { return nil }
        defer { free(raw) }
        return String(cString: raw)
    }

    public static func send(_ signal: Int32, to pid: Int32) { _ = kill(pid, signal) }
    public static func isAlive(_ pid: Int32) -> Bool { kill(pid, 0) == 0 || errno == EPERM }

    // MARK: A daemon that says when it is ready

    public struct Readiness: Sendable {
        let fd: Int32

        /// Tells the waiting parent why it takes so long.
        /// - Parameter text: one line; nothing only finds out whether anybody waits.
        /// - Returns: false when nobody does any more.
        public func tell(_ text: String) -> Bool {
            let bytes = Array("+\(text)\n".utf8)
            return bytes.withUnsafeBytes { write(fd, $0.baseAddress, $0.count) } == bytes.count
        }

        /// Tells the waiting parent, once.
        /// - Parameter text: one line; what it means is between the two.
        public func report(_ text: String) {
            let bytes = Array(text.utf8) + [0x0a]
            _ = bytes.withUnsafeBytes { write(fd, $0.baseAddress, $0.count) }
            close(fd)
        }
    }

    /// The readiness pipe that `spawnDaemon` handed to this process.
    public static func inheritedReadiness(descriptor: Int32) -> Readiness {
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        return Readiness(fd: descriptor)
    }

    /// Runs the program in a session of its own, with standard output and error going to `logPath`,
    /// and waits for its word.
    /// - Parameters:
    ///   - whenTold: hears why it takes so long.
    ///   - arguments: made from the descriptor the child must report on.
    /// - Returns: what it reported, or that it ended without a word.
    public static func spawnDaemon(
        program: String, logPath: String, whenTold: (String) -> Void = { _ in },
        arguments: (Int32) -> [String]
    ) throws(SystemError) -> String {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else {
            throw SystemError(operation: "make pipe", path: program, errno: errno)
        }
        _ = fcntl(ends[0], F_SETFD, FD_CLOEXEC)
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(
            &actions, 1, logPath, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, 0x80)  // POSIX_SPAWN_SETSID
        var argv: [UnsafeMutablePointer<CChar>?] = ([program] + arguments(ends[1])).map {
            strdup($0)
        }
        argv.append(nil)
        defer { for each in argv { free(each) } }
        var pid: pid_t = 0
        let result = posix_spawn(&pid, program, &actions, &attributes, argv, clx_environment())
        close(ends[1])
        defer { close(ends[0]) }
        if result != 0 { throw SystemError(operation: "start", path: program, errno: result) }
        var text: [UInt8] = []
        var byte: UInt8 = 0
        while read(ends[0], &byte, 1) == 1 {
            guard byte == 0x0a else {
                text.append(byte)
                continue
            }
            guard text.first == UInt8(ascii: "+") else {
                return String(decoding: text, as: UTF8.self)
            }
            if text.count > 1 { whenTold(String(decoding: text.dropFirst(), as: UTF8.self)) }
            text = []
        }
        return "the daemon ended before it was ready; its log is \(logPath)"
    }

    /// Runs a shell command and waits. Signals that this process handles in a way of its own mean to the
    /// command what they always do.
    /// - Parameter whenStarted: told the command's process id.
    /// - Returns: its exit status, 128 + signal when it was killed.
    public static func runShell(
        _ command: String, whenStarted: (Int32) -> Void = { _ in }
    ) throws(SystemError) -> Int32 {
        var argv: [UnsafeMutablePointer<CChar>?] = ["sh", "-c", command].map { (text: String) in
            strdup(text)
        }
        argv.append(nil)
        defer { for each in argv { free(each) } }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        var ordinary = sigset_t()
        sigemptyset(&ordinary)
        sigaddset(&ordinary, SIGPIPE)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &ordinary)
        posix_spawnattr_setflags(&attributes, 0x0c)  // POSIX_SPAWN_SETSIGDEF, _SETSIGMASK
        var pid: pid_t = 0
        let result = posix_spawn(&pid, "/bin/sh", nil, &attributes, argv, clx_environment())
        if result != 0 { throw SystemError(operation: "run", path: command, errno: result) }
        whenStarted(pid)
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0 && errno == EINTR {}
        return status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
    }

    /// `READY=1`, `STOPPING=1`: to the service manager that started us, if one did.
    public static func notifyServiceManager(_ text: String) {
        guard let path = environment("NOTIFY_SOCKET"), !path.isEmpty else { return }
        let fd = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { return }
        defer { close(fd) }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        var name = Array(path.utf8)
        if name[0] == 0x40 { name[0] = 0 }  // "@": an abstract socket
        guard name.count < 107 else { return }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
        let length = socklen_t(2 + name.count)
        _ = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { to in
                Array(text.utf8).withUnsafeBytes {
                    sendto(fd, $0.baseAddress, $0.count, 0, to, length)
                }
            }
        }
    }

    // MARK: Signals

    /// A file that would pass the process's limit (`ulimit -f`) is an error of the call that meets it, and
    /// not the end of the process.
    public static func ignoreFileSizeSignal() { signal(SIGXFSZ, SIG_IGN) }

    /// What a service manager sends to have settings read anew, where a program does that.
    public static let reloadSignal = SIGHUP

    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and all it starts later, and hands each to
    /// `body` on a thread of its own. Call before any other thread starts.
    public static func handleTermination(_ body: @escaping @Sendable (Int32) -> Void)
        -> WorkerThread
    {
        var set = sigset_t()
        sigemptyset(&set)
        for each in [SIGTERM, SIGINT, SIGHUP] { sigaddset(&set, each) }
        pthread_sigmask(SIG_BLOCK, &set, nil)
        signal(SIGPIPE, SIG_IGN)
        return WorkerThread.start("doppel-signal") {
            var wanted = sigset_t()
            sigemptyset(&wanted)
            for each in [SIGTERM, SIGINT, SIGHUP] { sigaddset(&wanted, each) }
            while true {
                var number: Int32 = 0
                if sigwait(&wanted, &number) == 0 { body(number) }
            }
        }
    }
}
