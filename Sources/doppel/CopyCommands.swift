import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO
import VirtualFS
import Volume

/// How many pieces are copied at once.
struct JobsOption: ParsableArguments {
    @Option(help: "Pieces copied at once, 1 to 64.") var jobs = 4

    func validate() throws {
        guard (1...64).contains(jobs) else {
            throw ValidationError("--jobs takes a number from 1 to 64")
        }
    }
}

struct Import: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Copy a raw file into the pool as a new image.",
        discussion: """
            Holes stay holes. Blocks are shared with the file, or copied inside the kernel, where the
            file system can (XFS, btrfs; a pool that is not mounted). The image gets its name when all
            of it is there and durable: until then it is NAME.doppel-partial, which an import that was
            killed leaves behind, and the next one of the same name begins anew.

            EXAMPLES
              doppel import /srv/vms /tmp/win11.raw --as win11.img
              zcat backup.gz | doppel import /srv/vms - --as restored.img
              doppel import /mnt/vms big.raw --jobs 16 --progress
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "A raw file, or - for standard input.", completion: .file()) var file: String
    @Option(name: .customLong("as"), help: "The image's path inside the pool.") var image: String?
    @OptionGroup var jobs: JobsOption
    @OptionGroup var progress: ProgressFlag

    func run() throws {
        try exiting {
            let line = Progress("importing", isForced: progress.progress)
            defer { line.end() }
            let isStream = file == "-"
            if isStream, image == nil {
                throw ControlFailure(.usage, "standard input needs --as IMAGE")
            }
            guard let name = image ?? file.split(separator: "/").last.map(String.init) else {
                throw ControlFailure(.failed, "\(file) is a folder, not a raw file")
            }
            let source = isStream ? nil : try rawFile()
            let location = try PoolLocation.find(pool.pool)
            let fill = { (target: RawCopy.End) in
                if let source {
                    try RawCopy.copySparse(
                        from: .file(source), to: target, jobs: jobs.jobs, line)
                } else {
                    try RawCopy.copyStream(to: target, line)
                }
            }
            if let mountPoint = location.liveMountPoint {
                try PartialFile.make(mountPoint + "/" + name) { try fill(.file($0)) }
            } else {
                try importUnmounted(location.poolPath, name, fill)
            }
        }
    }

    private func rawFile() throws -> DiskFile {
        let source = try LinuxDisk().open(file, [], mode: 0)
        guard try source.status().kind != .directory else {
            throw ControlFailure(.failed, "\(file) is a folder, not a raw file")
        }
        return source
    }

    private func importUnmounted(
        _ poolPath: String, _ name: String, _ fill: (RawCopy.End) throws -> Void
    ) throws {
        let session = try PoolSession(path: poolPath)
        do {
            let files = session.fileSystem
            let partial = name + PartialFile.suffix
            if (try? files.resolve(name)) != nil {
                throw ControlFailure(.failed, "there is a '\(name)' in the pool already")
            }
            // The pool is ours alone: what has this name, a killed import left.
            if (try? files.resolve(partial)) != nil {
                try files.remove(path: partial, force: false)
            }
            let target = try files.create(path: partial, sizeBytes: 0)
            do {
                try fill(.image(try target.image()))
                target.close()
                try files.rename(path: partial, to: name)
            } catch {
                target.close()
                try? files.remove(path: partial, force: false)
                throw error
            }
        } catch {
            try? session.close()
            throw error
        }
        try session.close()
    }
}

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Copy an image, or a snapshot's, out of the pool as a raw file.",
        discussion: """
            Holes stay holes, also in what a snapshot has. An existing FILE is never overwritten; it
            gets its name when all of it is there and durable, and is FILE.doppel-partial until then.
            An image that is being written is copied as it changes: export IMAGE@SNAPSHOT instead.

            EXAMPLES
              doppel export /srv/vms win11.img /tmp/win11.raw
              doppel export /srv/vms win11.img@before - | zstd > win11.zst
              doppel export /mnt/vms db/data.raw@nightly /backup/data.raw --jobs 16 --progress
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "IMAGE, or IMAGE@SNAPSHOT.") var source: String
    @Argument(help: "A new file, or - for standard output.", completion: .file()) var file: String
    @OptionGroup var jobs: JobsOption
    @OptionGroup var progress: ProgressFlag

    func run() throws {
        try exiting {
            let (image, snapshot) = ImageReference.split(source)
            let line = Progress("exporting", isForced: progress.progress)
            defer { line.end() }
            let location = try PoolLocation.find(pool.pool)
            if let mountPoint = location.liveMountPoint {
                let folder = snapshot.map { "\(mountPoint)/.snapshots/\($0)" } ?? mountPoint
                return try copyOut(
                    .file(try LinuxDisk().open("\(folder)/\(image)", [], mode: 0)), line)
            }
            let session = try PoolSession(path: location.poolPath)
            do { try copyOut(try opened(image, snapshot, session), line) } catch {
                try? session.close()
                throw error
            }
            try session.close()
        }
    }

    private func opened(
        _ image: String, _ snapshot: String?, _ session: PoolSession
    ) throws -> RawCopy.End {
        if let snapshot {
            let file = try session.fileSystem.snapshotFile(image, in: snapshot)
            guard let layer = file.layerID else {
                throw ControlFailure(.failed, "'\(image)' is no image in snapshot '\(snapshot)'")
            }
            return .view(try session.volume.openView(layer, sizeBytes: file.sizeBytes))
        }
        let inode = try session.fileSystem.resolve(image).id.rawValue
        let live = try session.fileSystem.open(inode, access: .read).image()
        return try live.plainFile().map { .file($0) } ?? .image(live)
    }

    private func copyOut(_ source: RawCopy.End, _ line: Progress) throws {
        if file == "-" { return try RawCopy.copyStream(from: source, line) }
        try PartialFile.make(file) {
            try RawCopy.copySparse(from: source, to: .file($0), jobs: jobs.jobs, line)
        }
    }
}
