import ArgumentParser
import Daemon
import SystemIO

/// The command line. Verbs stand in one file each, or a few that belong together.
struct Doppel: ParsableCommand {
    static let version = "0.1.0"
    static let configuration = CommandConfiguration(
        commandName: "doppel",
        abstract: "Disk images as files, snapshots as folders, safe against any crash.",
        discussion: """
            A pool is a directory that holds disk images. Mounted, it shows them as plain files;
            its snapshots are read-only folders under .snapshots. POOL is the pool's path or its
            mount point: every verb works on a mounted pool and on an unmounted one.

            EXAMPLES
              doppel adopt /srv/vms                      turn a folder of images into a pool
              doppel mount /srv/vms /mnt/vms             and use it
              doppel snapshot create /mnt/vms before     keep this moment
              cp /mnt/vms/.snapshots/before/win11.img /tmp/
              doppel restore /mnt/vms win11.img --snapshot before

            EXIT CODES
              0 ok   1 failed   2 usage   3 in use   4 degraded   5 damaged
            """,
        version: version,
        subcommands: [
            Init.self, Adopt.self, Eject.self, Create.self, Resize.self, Rename.self, Delete.self,
            Import.self,
            Export.self, Mount.self, Unmount.self, List.self, Status.self, Snapshot.self,
            Restore.self, Clone.self, Target.self, Wait.self, Promote.self, Demote.self,
            Failover.self, ClonePool.self, Serve.self, Scrub.self,
            Check.self,
            Events.self, Jobs.self, Pair.self, Config.self, Version.self, GenerateManual.self,
        ])
}

/// Runs a verb and turns what it throws into a message and the exit code of its kind.
func exiting(_ body: () throws -> Void) throws {
    do { try body() } catch let code as ExitCode { throw code } catch let error as ValidationError {
        throw error
    } catch {
        let failure = PoolSession.failure(error)
        Output.error("doppel: \(failure.message)")
        throw ExitCode(failure.exitCode)
    }
}

struct PoolArgument: ParsableArguments {
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String
}

struct JSONFlag: ParsableArguments {
    @Flag(help: "Print JSON for programs.") var json = false
}
