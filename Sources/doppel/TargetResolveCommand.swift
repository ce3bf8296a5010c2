import ArgumentParser
import Daemon
import SystemIO

struct TargetResolve: ParsableCommand {
    enum Side: String, ExpressibleByArgument, CaseIterable { case here, there }

    static let configuration = CommandConfiguration(
        commandName: "resolve",
        abstract: "Two pools that were one both are primaries: say which one goes on.",
        discussion: """
            The other becomes its mirror. What that had alone stays in it as a snapshot
            `diverged-...`; nothing is thrown away. The one that gives up must not be mounted.

            EXAMPLES
              doppel target resolve /srv/vms /backup/vms --keep here
              doppel target resolve /srv/vms /backup/vms --keep there
            """)
    @OptionGroup var place: TargetArguments
    @Option(help: "The pool that goes on: here (the pool) or there (the target).") var keep: Side

    func run() throws {
        try exiting {
            let target = TargetSpecification(address: place.target).absolute
            if keep == .there { return try keepThere(target) }
            let result = try PoolAccess.perform(
                ControlRequest(.targetResolve) { $0.target = target }, on: place.pool)
            if let text = result.text { print(text) }
        }
    }

    private func keepThere(_ target: TargetSpecification) throws {
        let pool = try PoolLocation.find(place.pool).poolPath
        let info = try PoolDemotion.perform(path: pool, to: target.address, isResolving: true)
        let targets = try PoolAccess.perform(ControlRequest(.targetList), on: target.address)
            .targets
        if !(targets ?? []).contains(where: { $0.address == pool }) {
            _ = try PoolAccess.perform(
                ControlRequest(.targetAdd) { $0.target = TargetSpecification(address: pool) },
                on: target.address)
        }
        print(
            "\(info.primary) goes on, generation \(info.generation); \(pool) is its mirror, and keeps what "
                + "it had alone as a snapshot")
    }
}
