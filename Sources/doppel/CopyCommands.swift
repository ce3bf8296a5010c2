import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO
import VirtualFS
import Volume

struct Import: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Copy a raw file into the pool as a new image.",
        discussion: """
            EXAMPLES
              doppel import /srv/vms /tmp/win11.raw --as win11.img
              zcat backup.gz | doppel import /srv/vms - --as restored.img
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "A raw file, or - for standard input.", completion: .file()) var file: String
    @Option(name: .customLong("as"), help: "The image's path inside the pool.") var image: String?
    @OptionGroup var progress: ProgressFlag

    func run() throws {
        try exiting {
            let disk = LinuxDisk()
            let line = Progress("importing", isForced: progress.progress)
            defer { line.end() }
            if file == "-", image == nil {
                throw ControlFailure(.usage, "standard input needs --as IMAGE")
            }
            let source = try disk.open(file == "-" ? "/dev/stdin" : file, [], mode: 0)
            guard let name = image ?? file.split(separator: "/").last.map(String.init),
                try file == "-" || source.status().kind != .directory
            else { throw ControlFailure(.failed, "\(file) is a folder, not a raw file") }
            let location = try PoolLocation.find(pool.pool)
            if let mounted = location.owner?.mountPoint, location.owner?.socketPath != nil,
                PoolLocation.mounts().contains(where: { $0.mountPoint == mounted })
            {
                let path = mounted + "/" + name
                let target = try disk.open(path, [.readWrite, .create, .exclusive], mode: 0o644)
                do {
                    try RawCopy.copy(from: source, isStream: file == "-", to: .file(target), line)
                } catch {
                    target.close()
                    try? disk.removeFile(path)
                    throw error
                }
                return target.close()
            }
            let session = try PoolSession(path: location.poolPath)
            do {
                let target = try session.fileSystem.create(path: name, sizeBytes: 0)
                do {
                    try RawCopy.copy(
                        from: source, isStream: file == "-", to: .image(try target.image()),
                        line)
                    target.close()
                } catch {
                    target.close()
                    try? session.fileSystem.remove(path: name, force: false)
                    throw error
                }
            } catch {
                try? session.close()
                throw error
            }
            try session.close()
        }
    }
}

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Copy an image, or a snapshot's, out of the pool as a raw file.",
        discussion: """
            EXAMPLES
              doppel export /srv/vms win11.img /tmp/win11.raw
              doppel export /srv/vms win11.img@before - | zstd > win11.zst
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "IMAGE, or IMAGE@SNAPSHOT.") var source: String
    @Argument(help: "A new file, or - for standard output.", completion: .file()) var file: String
    @OptionGroup var progress: ProgressFlag

    func run() throws {
        try exiting {
            let (image, snapshot) = ImageReference.split(source)
            let line = Progress("exporting", isForced: progress.progress)
            defer { line.end() }
            let location = try PoolLocation.find(pool.pool)
            if let mounted = location.owner?.mountPoint, location.owner?.socketPath != nil,
                PoolLocation.mounts().contains(where: { $0.mountPoint == mounted })
            {
                let folder = snapshot.map { "\(mounted)/.snapshots/\($0)" } ?? mounted
                let source = try LinuxDisk().open("\(folder)/\(image)", [], mode: 0)
                return try RawCopy.export(.file(source), to: file, line)
            }
            let session = try PoolSession(path: location.poolPath)
            do {
                let inode: UInt64
                if let snapshot {
                    let view = try session.fileSystem.snapshotFile(image, in: snapshot)
                    let opened = try session.volume.openView(
                        view.layerID!, sizeBytes: view.sizeBytes)
                    try RawCopy.export(.view(opened), to: file, line)
                } else {
                    inode = try session.fileSystem.resolve(image).id.rawValue
                    let opened = try session.fileSystem.open(inode, access: .read)
                    try RawCopy.export(.image(try opened.image()), to: file, line)
                }
            } catch {
                try? session.close()
                throw error
            }
            try session.close()
        }
    }
}

/// Copies raw content, holes staying holes.
enum RawCopy {
    enum End: Sendable {
        case file(DiskFile)
        case image(Image)
        case view(LayerView)

        func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws -> Int {
            switch self {
            case .file(let file): try file.read(into: buffer, at: offset)
            case .image(let image): try image.read(into: buffer, at: offset)
            case .view(let view): try view.read(into: buffer, at: offset)
            }
        }
        func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws {
            switch self {
            case .file(let file): try file.write(buffer, at: offset)
            case .image(let image): try image.write(buffer, at: offset)
            case .view: preconditionFailure("a snapshot is never written")
            }
        }
        func seekData(_ offset: UInt64) throws -> UInt64? {
            switch self {
            case .file(let file): try file.seekData(from: offset)
            case .image(let image): try image.seekData(from: offset)
            case .view(let view): try view.seekData(from: offset)
            }
        }
        func seekHole(_ offset: UInt64) throws -> UInt64? {
            switch self {
            case .file(let file): try file.seekHole(from: offset)
            case .image(let image): try image.seekHole(from: offset)
            case .view(let view): try view.seekHole(from: offset)
            }
        }
        func sizeBytes() throws -> UInt64 {
            switch self {
            case .file(let file): try file.status().sizeBytes
            case .image(let image): image.sizeBytes
            case .view(let view): view.sizeBytes
            }
        }
        func finish(sizeBytes: UInt64) throws {
            switch self {
            case .file(let file):
                try file.truncate(to: sizeBytes)
                try file.sync()
            case .image(let image):
                try image.resize(to: sizeBytes)
                try image.flush()
            case .view: break
            }
        }
    }

    static func copy(
        from source: DiskFile, isStream: Bool, to target: End, _ progress: Progress
    ) throws {
        if isStream { return try copyStream(from: source, to: target, progress) }
        try copySparse(from: .file(source), to: target, progress)
    }

    /// A pipe cannot be sought: runs of zeros become holes.
    private static func copyStream(
        from source: DiskFile, to target: End, _ progress: Progress
    ) throws {
        let stream = StandardStream.input
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        var position: UInt64 = 0
        while true {
            let got = try stream.read(into: buffer)
            if got == 0 { break }
            let part = UnsafeRawBufferPointer(rebasing: buffer[0..<got])
            if part.contains(where: { $0 != 0 }) { try target.write(part, at: position) }
            position += UInt64(got)
            progress.update(position)
        }
        try target.finish(sizeBytes: position)
    }

    static func export(_ source: End, to path: String, _ progress: Progress) throws {
        if path != "-" {
            let disk = LinuxDisk()
            let target = try disk.open(path, [.readWrite, .create, .exclusive], mode: 0o644)
            do { try copySparse(from: source, to: .file(target), progress) } catch {
                try? disk.removeFile(path)
                throw error
            }
            return
        }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        let size = try source.sizeBytes()
        var position: UInt64 = 0
        while true {
            let got = try source.read(into: buffer, at: position)
            if got == 0 { return }
            try StandardStream.output.write(UnsafeRawBufferPointer(rebasing: buffer[0..<got]))
            position += UInt64(got)
            progress.update(position, of: size)
        }
    }
}
