// Programs of this package that serve a test: started beside it, told what to do line by line, and
// gone when the test is.

import Glibc
import MountCalls

package struct Failure: Error, CustomStringConvertible {
    package var description: String
    package init(_ description: String) { self.description = description }
}

/// The child process, and the lines to and from it.
package final class Server {
    package let pid: pid_t
    private let input: Int32
    private let output: Int32
    private var pending: [UInt8] = []
    private var isReaped = false

    /// - Parameter program: a path, or the name of a product of this package.
    package init(_ program: String, _ arguments: [String]) throws {
        var down: [Int32] = [0, 0]
        var up: [Int32] = [0, 0]
        guard mc_pipe(&down) == 0, mc_pipe(&up) == 0 else { throw Failure("pipe") }
        let path = program.hasPrefix("/") ? program : Sandbox.products + "/" + program
        pid = try spawn([path] + arguments, input: down[0], output: up[1])
        close(down[0])
        close(up[1])
        input = down[1]
        output = up[0]
    }

    package func expectReady() throws {
        let line = try readLine(timeoutMs: 30_000)
        guard line == "ready" else { throw Failure("the server says: \(line)") }
    }

    @discardableResult
    package func tell(_ command: String) throws -> String {
        let bytes = Array((command + "\n").utf8)
        guard write(input, bytes, bytes.count) == bytes.count else {
            throw Failure("the server is gone")
        }
        let line = try readLine(timeoutMs: 30_000)
        guard line.hasPrefix("ok") else { throw Failure(line) }
        return String(line.dropFirst(3))
    }

    package func waitForEnd() throws {
        let line = try readLine(timeoutMs: 30_000)
        guard line == "closed" else { throw Failure("the server says: \(line)") }
        reap()
    }

    package func kill() {
        Glibc.kill(pid, SIGKILL)
        reap()
    }

    /// Without input the server takes its mount away and ends; if not, it is made to.
    package func end() {
        close(input)
        for _ in 0..<100 where !isReaped {
            var status: Int32 = 0
            if waitpid(pid, &status, WNOHANG) == pid { isReaped = true } else { usleep(50_000) }
        }
        if !isReaped { kill() }
        close(output)
    }

    private func reap() {
        guard !isReaped else { return }
        isReaped = true
        _ = try? TestSupport.waitForEnd(of: pid)
    }

    private func readLine(timeoutMs: Int32) throws -> String {
        while true {
            if let end = pending.firstIndex(of: 10) {
                defer { pending.removeFirst(end + 1) }
                return String(decoding: pending[..<end], as: UTF8.self)
            }
            var wait = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, timeoutMs) > 0 else { throw Failure("the server says nothing") }
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = read(output, &buffer, buffer.count)
            guard count > 0 else { throw Failure("the server ended") }
            pending += buffer[..<count]
        }
    }
}

// MARK: Processes

private func spawn(_ arguments: [String], input: Int32, output: Int32) throws -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, input, 0)
    posix_spawn_file_actions_adddup2(&actions, output, 1)
    var words: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var pid: pid_t = 0
    let result = posix_spawnp(&pid, arguments[0], &actions, nil, &words, environ)
    guard result == 0 else { throw Failure("cannot run \(arguments[0]): errno \(result)") }
    return pid
}

/// Runs a program to its end.
/// - Returns: its exit code, and what it said on either stream.
@discardableResult
package func run(_ arguments: [String]) throws -> (code: Int32, output: String) {
    var ends: [Int32] = [0, 0]
    guard mc_pipe(&ends) == 0 else { throw Failure("pipe") }
    let shell = ["sh", "-c", "exec timeout -k 10 100 \"$@\" 2>&1 </dev/null", "sh"] + arguments
    let pid = try spawn(shell, input: 0, output: ends[1])
    close(ends[1])
    var output: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = read(ends[0], &buffer, buffer.count)
        if count > 0 { output += buffer[..<count] } else { break }
    }
    close(ends[0])
    let code = try waitForEnd(of: pid)
    let text = String(decoding: output, as: UTF8.self)
    guard code != 124 else {
        throw Unexpected("\(arguments.joined(separator: " ")): after 100 s it went on: \(text)")
    }
    return (code, text)
}
