import ArgumentParser
import BlockCore
import Daemon
import SystemIO

struct Snapshot: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Keep moments of the whole pool; each is a read-only folder in .snapshots.",
        discussion: """
            EXAMPLES
              doppel snapshot create /mnt/vms before-upgrade
              doppel snapshot create /mnt/vms --before 'virsh domfsfreeze web' \\
                                              --after 'virsh domfsthaw web'
              doppel snapshot list /mnt/vms
              doppel snapshot diff /mnt/vms before-upgrade
              doppel snapshot delete /mnt/vms before-upgrade
            """,
        subcommands: [
            SnapshotCreate.self, SnapshotList.self, SnapshotDelete.self, SnapshotDiff.self,
        ])
}

struct SnapshotCreate: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "create", abstract: "Take a snapshot of all images at one moment.",
        discussion: """
            Prints its name. It takes no space until images are written again.

            --after runs whatever happened: when --before failed, when no snapshot came of it, and
            when this command was told to stop (which stops --before first).

            EXAMPLES
              doppel snapshot create /mnt/vms before-upgrade
              doppel snapshot create /mnt/vms --before 'virsh domfsfreeze web' \\
                                              --after 'virsh domfsthaw web'
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "Its name; the time when none is given.") var name: String?
    @Option(help: "A command to run first, such as a freeze; its failure stops the snapshot.")
    var before: String?
    @Option(help: "A command to run afterwards, such as a thaw; it runs whatever happened.")
    var after: String?
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let interruption = Interruption()
            if before != nil || after != nil { interruption.beginHandling() }
            var failure: (any Error)?
            do {
                if let before { try shell(before, "--before", interruption) }
                let made = try PoolAccess.perform(
                    ControlRequest(.snapshotCreate) { $0.name = name }, on: pool.pool
                ).snapshot
                if let made {
                    if output.json { Output.json(made) } else { print(made.name) }
                }
            } catch { failure = error }
            if let after {
                do { try shell(after, "--after", nil) } catch { failure = failure ?? error }
            }
            if let failure { throw failure }
        }
    }

    private func shell(
        _ command: String, _ option: String, _ interruption: Interruption?
    ) throws {
        let status = try ProcessControl.runShell(command) { interruption?.stops($0) }
        interruption?.stops(nil)
        try interruption?.check()
        if status != 0 {
            throw ControlFailure(.failed, "the \(option) command ended with \(status): \(command)")
        }
    }
}

/// Being told to stop while guests are frozen must not leave them frozen: what runs is told to stop, and
/// the rest goes its way.
private final class Interruption: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private var command: Int32?
    private var number: Int32?

    func beginHandling() {
        _ = ProcessControl.handleTermination { [self] number in
            lock.withLock {
                self.number = number
                if let command { ProcessControl.send(number, to: command) }
            }
        }
    }

    /// The command that a signal is handed on to.
    func stops(_ command: Int32?) {
        lock.withLock {
            self.command = command
            if let command, let number { ProcessControl.send(number, to: command) }
        }
    }

    func check() throws {
        if let number = lock.withLock({ number }) {
            throw ControlFailure(.failed, "stopped by signal \(number); no snapshot was taken")
        }
    }
}

struct SnapshotList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List a pool's snapshots.",
        discussion: """
            BY is user, or what took it: restore and force keep what they replace.

            EXAMPLES
              doppel snapshot list /mnt/vms
              doppel snapshot list /srv/vms --json | jq -r '.[].name'
              doppel snapshot list doppel://backup1.example:7420/vms
            """)
    @OptionGroup var pool: PoolArgument
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let all =
                try PoolAccess.perform(ControlRequest(.snapshotList), on: pool.pool).snapshots ?? []
            if output.json { return Output.json(all) }
            Output.table(
                ["SNAPSHOT", "TAKEN (UTC)", "BY"],
                all.map { [$0.name, Output.time($0.createdNs), $0.origin] })
        }
    }
}

struct SnapshotDelete: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete", abstract: "Delete snapshots; their space is given back behind.",
        discussion: """
            With one name that is wrong, none is deleted. A snapshot whose files are open is refused.
            The space comes back when the layers are merged: behind, in a mounted pool, unless --wait
            is given; at once in one that is not mounted, unless --no-wait leaves it to the next mount.

            EXAMPLES
              doppel snapshot delete /mnt/vms monday --dry-run
              doppel snapshot delete /mnt/vms monday tuesday --wait
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "Their names.") var names: [String]

    private struct Outcome: Encodable {
        var deleted: [String]
        var dryRun: Bool
    }
    @Flag(inversion: .prefixedNo, help: "Return when the space is given back.")
    var wait: Bool?
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false
    @OptionGroup var progress: ProgressFlag
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let known = Set(
                (try PoolAccess.perform(ControlRequest(.snapshotList), on: pool.pool).snapshots
                    ?? []).map(\.name))
            for name in names where !known.contains(name) {
                throw ControlFailure(
                    .failed,
                    "there is no snapshot '\(name)', so none was deleted; `doppel snapshot list "
                        + "\(pool.pool)` shows what is")
            }
            if !dryRun {
                _ = try PoolAccess.perform(
                    ControlRequest(.snapshotDelete) { $0.names = names }, on: pool.pool)
                if try wait ?? (PoolLocation.find(pool.pool).liveMountPoint == nil) { try merge() }
            }
            if output.json { return Output.json(Outcome(deleted: names, dryRun: dryRun)) }
            if dryRun { for name in names { print("would delete snapshot \(name)") } }
        }
    }

    private func merge() throws {
        let line = Progress("merging", isForced: progress.progress)
        defer { line.end() }
        _ = try PoolAccess.perform(ControlRequest(.merge), on: pool.pool) { line.update($0) }
    }
}

struct SnapshotDiff: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "diff",
        abstract: "Show what was written between two snapshots, or since one.",
        discussion: """
            WRITTEN counts blocks that were written, also with what they held before.

            EXAMPLES
              doppel snapshot diff /mnt/vms monday
              doppel snapshot diff /mnt/vms monday tuesday --json
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The older snapshot.") var from: String
    @Argument(help: "The newer one; now, when none is given.") var to: String?
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let diff =
                try PoolAccess.perform(
                    ControlRequest(.snapshotDiff) {
                        $0.snapshot = from
                        $0.otherSnapshot = to
                    }, on: pool.pool
                ).diff ?? []
            if output.json { return Output.json(diff) }
            Output.table(
                ["IMAGE", "CHANGE", "WRITTEN"],
                diff.map { [$0.path, $0.change, Output.size($0.changedBytes)] })
        }
    }
}

struct Restore: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Give an image the content of a snapshot, at once.",
        discussion: """
            Nothing is copied. What the image had stays as a snapshot, whose name is printed.
            Refuses an image that is open for writing; --as NEW makes a new image instead and
            always works.

            EXAMPLES
              doppel restore /mnt/vms win11.img --snapshot before-upgrade
              doppel restore /mnt/vms win11.img --snapshot before-upgrade --as win11-old.img
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "The image's path inside the pool.") var image: String
    @Option(help: "The snapshot to take it from.") var snapshot: String
    @Option(name: .customLong("as"), help: "Make this new image instead.") var newName: String?
    @Flag(help: "Also when the image is open for writing.") var force = false
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false
    @OptionGroup var output: JSONFlag

    private struct Result: Encodable {
        var image: String
        var snapshot: String
        /// The snapshot that keeps what was replaced.
        var kept: String?
        var dryRun: Bool
    }

    func run() throws {
        try exiting {
            if dryRun {
                try foresee()
                if output.json {
                    return Output.json(
                        Result(image: newName ?? image, snapshot: snapshot, dryRun: true))
                }
                print(
                    newName.map { "would make \($0) with \(image) of snapshot \(snapshot)" }
                        ?? "would give \(image) the content of snapshot \(snapshot); what it has "
                        + "would stay as a snapshot")
                return
            }
            let result = try PoolAccess.perform(
                ControlRequest(.restore) {
                    $0.path = image
                    $0.snapshot = snapshot
                    $0.newPath = newName
                    $0.force = force
                }, on: pool.pool)
            if output.json {
                return Output.json(
                    Result(
                        image: newName ?? image, snapshot: snapshot, kept: result.text,
                        dryRun: false))
            }
            if let kept = result.text { print("what \(image) had is kept as snapshot \(kept)") }
        }
    }

    /// What would fail fails in a dry run, too, as far as looking tells.
    private func foresee() throws {
        let snapshots =
            try PoolAccess.perform(ControlRequest(.snapshotList), on: pool.pool).snapshots ?? []
        guard snapshots.contains(where: { $0.name == snapshot }) else {
            throw ControlFailure(
                .failed,
                "there is no snapshot '\(snapshot)'; `doppel snapshot list \(pool.pool)` shows what is"
            )
        }
        let images = try PoolAccess.perform(ControlRequest(.list), on: pool.pool).images ?? []
        if let newName, images.contains(where: { $0.path == newName }) {
            throw ControlFailure(.failed, "there is a '\(newName)' already")
        }
    }
}

struct Clone: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make a new image with the content of another; nothing is copied.",
        discussion: """
            Of an image without @SNAPSHOT, as it is now.

            EXAMPLES
              doppel clone /mnt/vms base.img@golden web-3.img
              doppel clone /mnt/vms win11.img try.img
            """)
    @OptionGroup var pool: PoolArgument
    @Argument(help: "IMAGE, or IMAGE@SNAPSHOT.") var source: String
    @Argument(help: "The new image.") var new: String

    func run() throws {
        try exiting {
            let (image, snapshot) = ImageReference.split(source)
            _ = try PoolAccess.perform(
                ControlRequest(.clone) {
                    $0.path = image
                    $0.snapshot = snapshot
                    $0.newPath = new
                }, on: pool.pool)
        }
    }
}

enum ImageReference {
    /// `a/b.img@snap` to its two parts.
    static func split(_ text: String) -> (image: String, snapshot: String?) {
        guard let at = text.lastIndex(of: "@") else { return (text, nil) }
        return (String(text[..<at]), String(text[text.index(after: at)...]))
    }
}
