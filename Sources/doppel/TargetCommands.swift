import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

struct Target: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Add, change and list the places that a pool is replicated to.",
        discussion: """
            A target belongs to its pool: every later mount replicates to it. A mirror directory is
            a pool of its own, which `doppel mount` shows read-only, also while it is being written.
            A raw mirror, raw:DIR, is a folder of plain files that any program can read; it keeps no
            snapshots, and is torn when its machine goes down while it is being written. A remote one,
            doppel://HOST:PORT/POOL, is a mirror directory on another machine, where `doppel serve` runs.

            EXAMPLES
              doppel target add /srv/vms /mnt/usb/vms-mirror
              doppel target add /srv/vms raw:/mnt/usb/vms-plain
              doppel target add /srv/vms doppel://backup.example:7420/vms --mode semi-sync
              doppel target add /srv/vms /backup/vms --mode async --interval 15m
              doppel target set /srv/vms /backup/vms --mode flush --timeout 10s
              doppel target list /srv/vms
              doppel wait /srv/vms
            """,
        subcommands: [
            TargetAdd.self, TargetSet.self, TargetList.self, TargetPause.self, TargetResume.self,
            TargetRemove.self, TargetResolve.self,
        ])
}

struct TargetArguments: ParsableArguments {
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String
    @Argument(
        help: "The mirror's directory, raw:DIR, or doppel://HOST:PORT/POOL.", completion: .directory
    )
    var target: String
}

struct TargetAdd: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "add", abstract: "Replicate a pool to a further place.",
        discussion: """
            The directory must be new, empty, or a mirror of this pool already. What is in the pool is
            copied behind, while it is used.

            With --seed, the directory holds copies of the images, carried there by hand: plain files of
            the same names and sizes, or a pool that `doppel adopt` made of them. They are compared by hash.
            A mirror keeps what it had as a snapshot, diverged-...; a raw mirror keeps nothing.

            EXAMPLES
              doppel target add /srv/vms /mnt/usb/vms-mirror
              doppel target add /srv/vms raw:/mnt/usb/vms-plain --mode async
              doppel target add /srv/vms /mnt/usb/carried-over --seed
            """)
    @OptionGroup var place: TargetArguments
    @OptionGroup var settings: TargetSettings
    @Flag(
        help:
            "Copies of the images are there already: they are compared, and only what differs is sent."
    )
    var seed = false

    func run() throws {
        try exiting {
            var request = ControlRequest(.targetAdd)
            var wanted = try settings.specification(place.target).absolute
            wanted.isSeeded = seed
            request.arguments?.target = wanted
            let result = try PoolAccess.perform(request, on: place.pool)
            if let warning = result.text { Output.error("doppel: \(warning)") }
        }
    }
}

struct TargetSet: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Change how a target is waited for.",
        discussion: """
            With --image, for one image alone: only its --mode and --on-timeout can differ. Who waits for
            the target while it is away is let go of by any change.

            With --address, the same target is somewhere else from now on: its disk was carried to another machine,
            its server has another name, or it was promoted from and nobody here knows how it is reached
            (`web1:/srv/vms`). What it lacks is known as before, and nothing else is sent. Another pool at the
            new address is not touched.

            EXAMPLES
              doppel target set /srv/vms /backup/vms --mode async --interval 30s
              doppel target set /srv/vms /backup/vms --mode adaptive --latency-budget 3ms
              doppel target set /srv/vms /backup/vms --rpo 10s --on-rpo throttle
              doppel target set /srv/vms doppel://backup.example:7420/vms --compress off
              doppel target set /srv/vms /backup/vms --image db.raw --mode sync --on-timeout block
              doppel target set /srv/vms /backup/vms --image db.raw --inherit
              doppel target set /srv/mirrors/vms web1:/srv/vms \\
                --address doppel://web1.example/vms
            """)
    @OptionGroup var place: TargetArguments
    @OptionGroup var settings: TargetSettings
    @Option(help: "Only this image of the pool.") var image: String?
    @Flag(help: "The image is as the others again.") var inherit = false
    @Option(
        help: "Where the target is from now on: a directory, or doppel://HOST:PORT/POOL.",
        completion: .directory)
    var address: String?

    func validate() throws {
        if inherit, image == nil { throw ValidationError("--inherit goes with --image") }
        if address != nil, image != nil { throw ValidationError("--address is of a whole target") }
        if image != nil,
            settings.timeout ?? settings.history ?? settings.interval ?? settings.rpo.first
                ?? settings.latencyBudget ?? settings.rate ?? settings.compress?.rawValue != nil
                || settings.onRPO != nil
        {
            throw ValidationError("--image goes with --mode, --on-timeout and --inherit alone")
        }
    }

    func run() throws {
        try exiting {
            var request = ControlRequest(.targetSet)
            var wanted = try settings.specification(place.target).absolute
            wanted.image = image
            wanted.inherits = inherit
            if let address {
                if let problem = TargetAddress.problem(address) { throw ValidationError(problem) }
                wanted.newAddress = TargetSpecification(address: address).absolute.address
            }
            request.arguments?.target = wanted
            let result = try PoolAccess.perform(request, on: place.pool)
            if let warning = result.text { Output.error("doppel: \(warning)") }
        }
    }
}

struct TargetList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "Show a pool's targets and how they stand.",
        discussion: "EXAMPLE\n  doppel target list /srv/vms --json")
    @OptionGroup var pool: PoolArgument
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let targets =
                try PoolAccess.perform(ControlRequest(.targetList), on: pool.pool).targets ?? []
            if output.json { return Output.json(targets) }
            Output.table(
                ["TARGET", "KIND", "MODE", "STATE", "LAG", "DIRTY"],
                targets.map {
                    [
                        $0.address, $0.kind, $0.mode, TargetText.state($0),
                        Output.size($0.lagBytes),
                        Output.size($0.dirtyBytes),
                    ]
                })
        }
    }
}

struct TargetPause: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pause",
        abstract: "Stop replicating to a target; what it lacks is kept track of.",
        discussion: "EXAMPLE\n  doppel target pause /srv/vms /mnt/usb/vms-mirror")
    @OptionGroup var place: TargetArguments
    func run() throws { try exiting { try place.send(.targetPause) } }
}

struct TargetResume: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resume", abstract: "Go on replicating to a target that was paused.",
        discussion: "EXAMPLE\n  doppel target resume /srv/vms /mnt/usb/vms-mirror")
    @OptionGroup var place: TargetArguments
    func run() throws { try exiting { try place.send(.targetResume) } }
}

struct TargetRemove: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove", abstract: "Forget a target. What it holds stays as it is.",
        discussion: """
            EXAMPLES
              doppel target remove /srv/vms /mnt/usb/vms-mirror
              doppel target remove /srv/vms /mnt/usb/vms-mirror --detach
            """)
    @OptionGroup var place: TargetArguments
    @Flag(help: "At once, also where the target hangs: nobody waits for it any more.")
    var detach = false
    func run() throws {
        try exiting { try place.send(.targetRemove) { $0.force = detach } }
    }
}

extension TargetArguments {
    func send(
        _ command: ControlCommand, _ fill: (inout ControlArguments) -> Void = { _ in }
    ) throws {
        var request = ControlRequest(command, fill)
        request.arguments?.target = TargetSpecification(address: target).absolute
        _ = try PoolAccess.perform(request, on: pool)
    }
}

extension TargetSpecification {
    /// The daemon has another working directory.
    var absolute: TargetSpecification {
        var result = self
        let place = TargetAddress(address)
        if place.remote != nil {
            result.address = place.text
            return result
        }
        if place.isElsewhere, ProcessControl.realPath(place.path) == nil { return result }
        result.address =
            place.at(ProcessControl.realPath(place.path) ?? PoolLocation.absolute(place.path)).text
        return result
    }
}
