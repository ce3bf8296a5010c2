import FuseFrontend
import Glibc
import Pool
import SystemIO
import VirtualFS
import Volume

/// One line to the test, at once: `print` would keep it in a buffer.
private func say(_ line: String) {
    let bytes = Array((line + "\n").utf8)
    _ = write(1, bytes, bytes.count)
}

enum FixtureServer {
    static func main(_ arguments: [String]) -> Int32 {
        guard arguments.count >= 2 else {
            say("error usage: MountFixture POOL MOUNTPOINT [CACHE] [OPTION...]")
            return 2
        }
        do {
            try serve(arguments)
            return 0
        } catch {
            say("error \(error)")
            return 1
        }
    }

    private static func serve(_ arguments: [String]) throws {
        let (pool, mountPoint) = (arguments[0], arguments[1])
        var options = MountOptions.defaults(forUser: geteuid())
        if arguments.count > 2, let cache = CacheMode(rawValue: arguments[2]) {
            options.cache = cache
        }
        var fileSystemOptions = VirtualFS.Options()
        for word in arguments.dropFirst(3) {
            if word == "snapdir=visible" {
                fileSystemOptions.isSnapdirVisible = true
            } else if !options.accept(word) {
                throw MountError(.badOption, path: mountPoint, "unknown option \(word)")
            }
        }
        fileSystemOptions.isReadOnly = options.isReadOnly
        fileSystemOptions.status = { Array("{\"state\":\"ok\"}\n".utf8) }
        try MountSession.prepare(mountPoint: mountPoint)

        let disk = LinuxDisk()
        if !PoolStore.isPool(pool, disk: disk) { try PoolStore.initialize(path: pool, disk: disk) }
        let store = try PoolStore.open(path: pool, disk: disk)
        let volume = try Volume(store: store)
        let fileSystem = try VirtualFS(volume: volume, options: fileSystemOptions)
        let session = try MountSession(
            fileSystem: fileSystem, poolPath: pool, mountPoint: mountPoint, options: options)
        try session.mount()
        _ = WorkerThread.start("commands") { obey(session, fileSystem) }
        try session.run(whenReady: { say("ready") })
        try fileSystem.close()
        try volume.close()
        try store.close(clean: true, lastSequence: volume.sequence)
        say("closed")
    }

    private static func obey(_ session: MountSession, _ fileSystem: VirtualFS) {
        while let line = readLine() {
            let words = line.split(separator: " ").map(String.init)
            do {
                say("ok \(try answer(words, session, fileSystem))")
            } catch { say("error \(error)") }
        }
        // The test is gone.
        try? session.unmount(force: true)
        session.abort()
    }

    private static func answer(
        _ words: [String], _ session: MountSession, _ fileSystem: VirtualFS
    ) throws -> String {
        switch words.first {
        case "snapshot":
            try session.syncThroughMount()
            return try fileSystem.createSnapshot(name: words[1]).name
        case "delete-snapshot":
            let folder = try fileSystem.lookup(parent: 1, name: Array(".snapshots".utf8))
            let snapshot = try fileSystem.lookup(parent: folder.inode, name: Array(words[1].utf8))
            try fileSystem.deleteSnapshot(words[1])
            session.notifyDelete(
                parent: folder.inode, name: Array(words[1].utf8), inode: snapshot.inode)
            return ""
        case "restore":
            let kept = try fileSystem.restore(path: words[1], snapshot: words[2], force: true)
            let attributes = try fileSystem.lookup(parent: 1, name: Array(words[1].utf8))
            session.notifyInvalidate(inode: attributes.inode)
            return kept ?? ""
        case "resize":
            try fileSystem.resize(path: words[1], sizeBytes: UInt64(words[2]) ?? 0)
            let attributes = try fileSystem.lookup(parent: 1, name: Array(words[1].utf8))
            session.notifyInvalidate(inode: attributes.inode)
            return ""
        case "unmount":
            try session.unmount()
            return ""
        case "force":
            try session.unmount(force: true)
            return ""
        case "abort":
            session.abort()
            return ""
        case "stop":
            session.requestStop()
            return ""
        case "writers":
            let attributes = try fileSystem.lookup(parent: 1, name: Array(words[1].utf8))
            return fileSystem.openWriters(of: attributes.inode).map(\.summary)
                .joined(separator: ", ")
        case "mapping": return "\(MountSession.allowsDirectMapping == true)"
        default: throw MountError(.failed, path: "", "unknown command \(words)")
        }
    }
}
