import Glibc

/// The lossy file system at a mount point of its own.
package final class LossyMount: @unchecked Sendable {  // used by one test
    package let folder: String
    package var path: String { folder + "/lossy" }
    private let server: Server

    private init() throws {
        folder = try makeTemporaryFolder()
        mkdir(folder + "/lossy", 0o755)
        server = try Server("LossyFS", [folder + "/lossy"])
    }

    @discardableResult
    package static func with<T>(_ body: (LossyMount) throws -> T) throws -> T {
        let mount = try LossyMount()
        defer { mount.remove() }
        try mount.server.expectReady()
        return try body(mount)
    }

    package func file(_ name: String) -> String { path + "/" + name }

    package func tell(_ command: String) throws {
        let control = try TestFile(file(".lossy"), O_WRONLY)
        guard Glibc.write(control.fd, command, command.utf8.count) > 0 else {
            throw Failure("\(command): errno \(errno)")
        }
    }

    /// How many syncs were begun, and whether it hangs.
    package func standing() throws -> (syncs: Int, hangs: Bool) {
        let words = String(decoding: try contents(file(".lossy")), as: UTF8.self)
            .split(separator: " ")
        guard words.count == 2, let syncs = Int(words[0]) else { throw Failure("\(words)") }
        return (syncs, words[1] == "hangs\n")
    }

    /// Nothing of it answers any more, as if its machine hung.
    package func stop() throws {
        guard kill(server.pid, SIGSTOP) == 0 else { throw Failure("SIGSTOP: errno \(errno)") }
    }
    package func goOn() { kill(server.pid, SIGCONT) }

    package func syncFolder() throws { try TestFile(path, O_RDONLY | O_DIRECTORY).sync() }

    private func remove() {
        goOn()
        server.end()
        _ = try? run(["fusermount3", "-uz", path])
        _ = try? run(["rm", "-rf", "--one-file-system", folder])
    }
}
