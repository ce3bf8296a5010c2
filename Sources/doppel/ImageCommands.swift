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
        discussion: "EXAMPLE\n  doppel init /srv/vms")
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
        discussion: "EXAMPLE\n  doppel create /srv/vms db/data.raw --size 20G")
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
        discussion: "EXAMPLE\n  doppel resize /srv/vms win11.img 80G")
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The image's path inside the pool.") var image: String
    @Argument(help: "The new size.") var size: ByteSize
    @Flag(help: "Allow a smaller size, which cuts data off.") var shrink = false

    func run() throws {
        try exiting {
            let images = try PoolAccess.perform(ControlRequest(.list), on: pool.pool).images ?? []
            if let now = images.first(where: { $0.path == image }), size.bytes < now.sizeBytes,
                !shrink
            {
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
        discussion: "EXAMPLE\n  doppel rename /srv/vms old.img archive/old.img")
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

            EXAMPLE
              doppel delete /srv/vms old.img
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The image's path inside the pool.") var image: String
    @Flag(help: "Delete an open image too, after a snapshot.") var force = false
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false

    func run() throws {
        try exiting {
            let images = try PoolAccess.perform(ControlRequest(.list), on: pool.pool).images ?? []
            guard let found = images.first(where: { $0.path == image }) else {
                throw ControlFailure(.failed, "there is no '\(image)' in the pool")
            }
            if dryRun {
                print("would delete \(image), \(Output.size(found.sizeBytes))")
                return
            }
            _ = try PoolAccess.perform(
                ControlRequest(.delete) {
                    $0.path = image
                    $0.force = force
                }, on: pool.pool)
        }
    }
}
