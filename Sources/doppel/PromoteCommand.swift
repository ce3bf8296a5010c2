import ArgumentParser
import Daemon
import Glibc
import Pool
import SystemIO

struct Promote: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make a mirror a pool of its own: its primary is lost, or is to be replaced.",
        discussion: """
            What the mirror received is applied, and a new generation begins. The old primary is
            refused from then on; its mount turns read-only when it connects. The mirror must not be
            mounted, and its primary's daemon must not be writing to it: stop it first.

            Where the old primary may have what the mirror lacks, that is shown first: exactly, where
            its directory can be read; otherwise since when it is not known. Then --force is needed, or
            a `yes` on the terminal. A mirror whose journal is damaged is promoted with --force as of the
            last operation before the damage; what cannot be applied goes to quarantine/.

            A mirror behind `doppel serve` is promoted by that server, for a host that it gave the right `admin`:
            the session of the old primary ends at once. It is mounted on that machine.

            EXAMPLES
              doppel promote /backup/vms --dry-run
              doppel promote /backup/vms
              doppel promote /backup/vms --force
              doppel promote raw:/backup/plain
              doppel promote doppel://backup1.example:7420/vms --dry-run
              doppel mount /backup/vms /mnt/vms
            """)
    @Argument(help: "The mirror's directory, or its address.", completion: .directory)
    var mirror: String
    @Flag(help: "Say what would be done, and what would be lost.") var dryRun = false
    @Flag(help: "Also where something may be lost.") var force = false
    @OptionGroup var output: JSONFlag

    func run() throws {
        let place = TargetAddress(mirror)
        if place.isRaw { return try promoteRaw(place.path) }
        try exiting {
            try PersonsPromotion(dryRun: dryRun, force: force, json: output.json).run(mirror)
        }
    }

    /// A raw mirror becomes a pool as by `doppel adopt`.
    private func promoteRaw(_ path: String) throws {
        try exiting {
            let real = ProcessControl.realPath(path) ?? PoolLocation.absolute(path)
            let info = try RawPromotion.perform(path: real, dryRun: dryRun, accept: accept)
            if output.json { return Output.json(info) }
            print(
                dryRun
                    ? "\(info.path) would become a pool and a primary, generation \(info.generation)"
                    : "\(info.path) is a pool and a primary now, generation \(info.generation)")
            print("  follows      pool \(info.primaryPool)")
            for line in Self.lines(info) { print(line) }
            if !dryRun { print("  next         doppel mount \(info.path) MOUNTPOINT") }
        }
    }

    private static func lines(_ info: RawPromotionInfo) -> [String] {
        var lines: [String] = []
        if info.isTorn {
            let since = info.tornSinceNs.map { " since \(Output.time($0))" } ?? ""
            lines.append(
                "  torn         its files were being written\(since): each has all that was flushed before, "
                    + "and together they are of no one moment")
        } else {
            lines.append(
                "  holds        \(info.images) images, operations up to \(info.checkpointSequence)")
        }
        if let reason = info.mayLack { lines.append("  may lack     something: \(reason)") }
        return lines
    }

    private func accept(_ info: RawPromotionInfo) throws -> Bool {
        if force { return true }
        for line in Self.lines(info) { Output.error(line) }
        throw ControlFailure(
            .failed,
            "\(info.path) was not promoted: "
                + (info.isTorn ? "it is torn" : "something may be lost")
                + "; --force does it all the same")
    }

}

/// `doppel promote`, and `doppel failover --forced`.
struct PersonsPromotion {
    var dryRun: Bool
    var force: Bool
    var json: Bool
    /// What says that it is to be done although something may be lost.
    var forcing = "--force"

    func run(_ mirror: String) throws {
        let info = try AnyPromotion.perform(mirror, dryRun: dryRun, force: force, accept: accept)
        if json { return Output.json(info) }
        print(
            dryRun
                ? "\(info.path) would become generation \(info.generation)"
                : "\(info.path) is a primary now, generation \(info.generation)")
        print("  follows      pool \(info.primaryPool)")
        print(
            "  holds        operations up to \(info.checkpointSequence), \(Output.time(info.shownNs))"
        )
        for line in LossText.lines(info) { print(line) }
        guard !dryRun else { return }
        print(
            TargetAddress(mirror).remote == nil
                ? "  next         doppel mount \(info.path) MOUNTPOINT"
                : "  next         doppel mount on the machine that \(info.path) is on")
    }

    private func accept(_ info: PromotionInfo) throws -> Bool {
        if force { return true }
        for line in LossText.lines(info) { Output.error(line) }
        if !json, isatty(0) == 1 {
            Output.error("Type yes to promote \(info.path) all the same:")
            if readLine() == "yes" { return true }
        }
        throw ControlFailure(
            .failed,
            "\(info.path) was not promoted: something may be lost; \(forcing) does it all the same")
    }
}

/// What a promotion may lose, in words.
enum LossText {
    static func lines(_ info: PromotionInfo) -> [String] {
        let loss = info.loss
        var lines: [String] = []
        switch loss.knowledge {
        case .exact where loss.images.isEmpty:
            lines.append("  lost         nothing: \(loss.reason)")
        case .exact:
            lines.append(
                "  lost         \(Output.size(loss.bytes)) in \(loss.images.count) files, "
                    + "\(seconds(loss)): \(loss.reason)")
            for image in loss.images.prefix(20) {
                let ranges = image.ranges == 1 ? "1 range" : "\(image.ranges) ranges"
                lines.append(
                    "               \(image.path): \(image.change), \(Output.size(image.bytes)) in \(ranges)"
                )
            }
            if loss.images.count > 20 {
                lines.append(
                    "               and \(loss.images.count - 20) more; --json lists them all")
            }
        case .growing:
            lines.append(
                "  lost         at least \(Output.size(loss.bytes)), and more by the moment: \(loss.reason)"
            )
        case .unknown:
            lines.append(
                "  lost         not known: \(loss.reason). What it acknowledged after "
                    + "\(Output.time(loss.fromNs)) may be missing")
            if let heard = loss.heardNs {
                lines.append("               it was heard of last at \(Output.time(heard))")
            }
        }
        if let damage = info.damage { lines.append("  damaged      \(damage.text)") }
        if let since = loss.staleSinceNs {
            lines.append(
                "               it was without this mirror since \(Output.time(since))")
        }
        if let copy = loss.staleToldBy, let reason = loss.staleReason {
            lines.append("               \(copy) was told so: \(reason)")
        }
        for address in info.better {
            lines.append("               \(address) holds more than this mirror: promote that one")
        }
        return lines
    }

    private static func seconds(_ loss: LossPreview) -> String {
        guard let seconds = loss.seconds else { return "since an unknown time" }
        return "the last \(Int(seconds * 10) / 10).\(Int(seconds * 10) % 10) s"
    }
}
