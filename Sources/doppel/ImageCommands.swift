import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

extension ByteSize: ExpressibleByArgument {
    public init?(argument: String) { self.init(parsing: argument) }
}

struct Init: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make an empty pool.",
        discussion: """
            To turn a folder of images that is there already into a pool, see `doppel adopt`.

            EXAMPLE
              doppel init /srv/vms
            """)
    @Argument(help: "A directory that is empty or not there yet.", completion: .directory)
    var pool: String

    func run() throws {
        try exiting {
            try PoolStore.initialize(path: PoolLocation.absolute(pool), disk: LinuxDisk())
            print("\(pool) is a pool now; mount it with: doppel mount \(pool) MOUNTPOINT")
        }
    }
}

struct Create: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Create an image of zeros; it takes no space until it is written.",
        discussion: """
            Of any size up to 64 TiB, as far as the file system below has files of that size.

            EXAMPLES
              doppel create /srv/vms db/data.raw --size 20G
              doppel create /mnt/vms odd.img --size 1000001
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The image's path inside the pool.") var image: String
    @Option(help: "20G, 20GiB and \"20 GiB\" are equal.") var size: ByteSize

    func run() throws {
        try exiting {
            _ = try PoolAccess.perform(
                ControlRequest(.create) {
                    $0.path = image
                    $0.sizeBytes = size.bytes
                }, on: pool.pool)
        }
    }
}

struct Resize: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Change an image's size; what is cut off is gone, unless a snapshot has it.",
        discussion: """
            A smaller size needs --shrink, and an image that nobody has open for writing.

            EXAMPLES
              doppel resize /srv/vms win11.img 80G
              doppel resize /srv/vms scratch.img 1G --shrink
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The image's path inside the pool.") var image: String
    @Argument(help: "The new size.") var size: ByteSize
    @Flag(help: "Allow a smaller size, which cuts data off.") var shrink = false
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false

    func run() throws {
        try exiting {
            let images = try PoolAccess.perform(ControlRequest(.list), on: pool.pool).images ?? []
            let now = images.first { $0.path == image }
            if dryRun, let now {
                let change = size.bytes < now.sizeBytes ? "cut off" : "add"
                let bytes = max(size.bytes, now.sizeBytes) - min(size.bytes, now.sizeBytes)
                return print("would \(change) \(Output.size(bytes)) at the end of \(image)")
            }
            if let now, size.bytes < now.sizeBytes, !shrink {
                throw ControlFailure(
                    .usage,
                    "'\(image)' has \(Output.size(now.sizeBytes)); a smaller size cuts off "
                        + "\(Output.size(now.sizeBytes - size.bytes)). Say --shrink to do it")
            }
            _ = try PoolAccess.perform(
                ControlRequest(.resize) {
                    $0.path = image
                    $0.sizeBytes = size.bytes
                }, on: pool.pool)
        }
    }
}

struct Rename: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Rename or move an image or folder inside the pool.",
        discussion: """
            Snapshots keep the name of their time. Folders are made with mkdir in the mount.

            EXAMPLES
              doppel rename /srv/vms old.img new.img
              doppel rename /mnt/vms old.img archive/old.img
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The path now.") var old: String
    @Argument(help: "The new path; nothing may be there.") var new: String

    func run() throws {
        try exiting {
            _ = try PoolAccess.perform(
                ControlRequest(.rename) {
                    $0.path = old
                    $0.newPath = new
                }, on: pool.pool)
        }
    }
}

struct Delete: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Delete an image. Snapshots that have it keep it.",
        discussion: """
            Refuses an image that is open for writing. With --force it takes a snapshot of the
            whole pool first and then deletes.

            EXAMPLES
              doppel delete /srv/vms old.img --dry-run
              doppel delete /srv/vms old.img
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The image's path inside the pool.") var image: String
    @Flag(help: "Delete an open image too, after a snapshot.") var force = false
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false
    @OptionGroup var output: JSONFlag

    private struct Outcome: Encodable {
        var image: String
        var sizeBytes: UInt64
        var dryRun: Bool
    }

    func run() throws {
        try exiting {
            let images = try PoolAccess.perform(ControlRequest(.list), on: pool.pool).images ?? []
            guard let found = images.first(where: { $0.path == image }) else {
                throw ControlFailure(.failed, "there is no '\(image)' in the pool")
            }
            if !dryRun {
                _ = try PoolAccess.perform(
                    ControlRequest(.delete) {
                        $0.path = image
                        $0.force = force
                    }, on: pool.pool)
            }
            if output.json {
                return Output.json(
                    Outcome(image: image, sizeBytes: found.sizeBytes, dryRun: dryRun))
            }
            if dryRun { print("would delete \(image), \(Output.size(found.sizeBytes))") }
        }
    }
}
