import Pool
import SystemIO

/// Finds the pool that a person means: by its own path, or by where it is mounted.
package struct PoolLocation: Sendable, Hashable {
    package var poolPath: String
    /// Who holds it, when somebody does.
    package var owner: PoolOwner?

    package static func find(_ path: String) throws -> PoolLocation {
        let disk = LinuxDisk()
        if let mount = mounts().last(where: { $0.mountPoint == absolute(path) }) {
            return PoolLocation(
                poolPath: mount.source, owner: PoolStore.readOwner(path: mount.source, disk: disk))
        }
        guard let real = ProcessControl.realPath(path) else {
            throw ControlFailure(.failed, "there is no \(path)")
        }
        if let mount = mounts().last(where: { $0.mountPoint == real }) {
            return PoolLocation(
                poolPath: mount.source, owner: PoolStore.readOwner(path: mount.source, disk: disk))
        }
        guard PoolStore.isPool(real, disk: disk) else {
            if let interrupted = Adoption.interruption(real, disk: disk) {
                throw ControlFailure(.failed, interrupted)
            }
            if PoolCheck.isCheckable(real, disk: disk) {
                throw ControlFailure(
                    .damaged, "the pool \(path) has lost its catalog: run `doppel check \(path)`")
            }
            throw ControlFailure(
                .failed,
                "\(path) is neither a pool nor the mount point of one; `doppel init` "
                    + "makes a pool, `doppel adopt` turns a folder of images into one")
        }
        return PoolLocation(poolPath: real, owner: PoolStore.readOwner(path: real, disk: disk))
    }

    /// Without touching the path: a dead mount point answers nothing.
    package static func absolute(_ path: String) -> String {
        var result = path
        if !result.hasPrefix("/") {
            result = (ProcessControl.realPath(".") ?? "") + "/" + result
        }
        var parts: [Substring] = []
        for part in result.split(separator: "/") where part != "." {
            if part == ".." { _ = parts.popLast() } else { parts.append(part) }
        }
        return "/" + parts.joined(separator: "/")
    }

    /// Where the pool can be reached as files; nil where it is not mounted, or its daemon is gone.
    package var liveMountPoint: String? {
        guard let mountPoint = owner?.mountPoint, owner?.socketPath != nil,
            let mount = Self.mounts().last(where: { $0.mountPoint == mountPoint }),
            mount.source == poolPath, mount.state == .served
        else { return nil }
        return mountPoint
    }

    package enum MountState: String, Sendable, Encodable {
        case served
        /// The kernel has the mount still, and nobody answers it.
        case dead
        /// A pool of somebody else's, into which we cannot look.
        case unknown
    }

    package struct Mount: Sendable, Hashable {
        package var source: String
        package var mountPoint: String

        package var state: MountState {
            let disk = LinuxDisk()
            guard let owner = PoolStore.readOwner(path: source, disk: disk) else {
                return PoolStore.isPool(source, disk: disk) ? .dead : .unknown
            }
            guard owner.mountPoint == mountPoint, ProcessControl.isAlive(owner.pid) else {
                return .dead
            }
            // One that is just starting has no socket yet.
            guard let socket = owner.socketPath else { return .served }
            do throws(SystemError) {
                _ = try UnixSocket.connect(to: socket)
                return .served
            } catch { return error.isConnectionRefused || error.isNotFound ? .dead : .served }
        }
    }

    /// Every Doppel mount of this mount namespace.
    package static func mounts() -> [Mount] {
        // The kernel hands the table out a page at a time: a mount elsewhere between two pages can
        // hide a line. What was read twice alike was read whole.
        let disk = LinuxDisk()
        var bytes: [UInt8] = []
        for _ in 0..<20 {
            guard let now = try? disk.readSmall("/proc/self/mounts", limit: 1 << 20) else {
                return []
            }
            if now == bytes { break }
            bytes = now
        }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ")
            guard fields.count >= 3, fields[2] == "fuse.doppel" else { return nil }
            return Mount(source: unescape(fields[0]), mountPoint: unescape(fields[1]))
        }
    }

    /// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
    private static func unescape(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            if byte == 0x5c, rest.count >= 3,
                let value = UInt8(String(decoding: rest.prefix(3), as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// Sends a request to whoever holds the pool, or opens it and carries it out.
package enum PoolAccess {
    /// - Parameters:
    ///   - keepsHistory: it is asked for somebody who may not give up what a mirror keeps.
    ///   - listener: hears how long work goes on.
    package static func perform(
        _ request: ControlRequest, on path: String, keepsHistory: Bool = false,
        listener: @escaping @Sendable (JobInfo) -> Void = { _ in }
    ) throws -> ControlResult {
        if let remote = try RemotePool.address(path) {
            return try RemotePool.perform(request, at: remote)
        }
        let location = try PoolLocation.find(path)
        // One that was killed leaves its text as it was.
        if let owner = location.owner, owner.writesMirror ?? false,
            ProcessControl.isAlive(owner.pid)
        {
            if let advice = owner.advice {
                throw ControlFailure(
                    .inUse, "the pool \(location.poolPath) is in use by \(owner.summary). \(advice)"
                )
            }
            throw ControlFailure(
                .inUse,
                "\(location.poolPath) is a mirror that \(owner.summary) writes to: `doppel status` of "
                    + "its primary shows how it stands, `doppel mount` what is in it")
        }
        if let socket = location.owner?.socketPath, let client = try? ControlClient(path: socket) {
            do { return try client.send(request, listener: listener) } catch let error as NoAnswer {
                let owner = PoolStore.readOwner(path: location.poolPath, disk: LinuxDisk())
                // One that was killed leaves its text as it was; what it did is not known.
                guard owner == nil || owner?.isDraining == true else { throw error }
            } catch let failure as ControlFailure where failure.kind == "draining" {
                // Nothing was done: the open below waits for the owner and does it.
            }
        }
        var options = PoolSession.Options()
        options.connectsTargets = [.wait, .failover].contains(request.execute)
        options.keepsRole = request.execute == .targetResolve
        options.onlyLooks = request.execute.onlyLooks
        options.keepsHistory = keepsHistory
        // Who takes a target away goes on without it.
        if request.execute == .targetRemove { options.recovery = .start }
        let session = try PoolSession(path: location.poolPath, options: options)
        let reply = session.execute(request) {
            listener($0.data)
            return true
        }
        do { try session.close() } catch { if reply.error == nil { throw error } }
        if let error = reply.error { throw error }
        return reply.result ?? ControlResult()
    }
}
