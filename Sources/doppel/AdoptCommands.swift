import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

struct Adopt: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Turn a folder of raw images into a pool; nothing is copied.",
        discussion: """
            Files become images by rename; subfolders, ownership, modes and times are kept. Refuses
            hard links, other file systems beneath, and files that somebody has open for writing.
            A run that was interrupted is finished by running it again. `doppel eject` is the
            reverse.

            EXAMPLES
              doppel adopt /srv/vms --dry-run
              doppel adopt /srv/vms
            """)
    @Argument(help: "The folder.", completion: .directory) var directory: String
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let path = ProcessControl.realPath(directory) ?? PoolLocation.absolute(directory)
            let plan = dryRun ? try Adoption.plan(path) : try Adoption.adopt(path)
            if output.json { return Output.json(plan) }
            for item in plan.files { print("  \(item.path)  \(Output.size(item.sizeBytes))") }
            print(
                "\(plan.files.count) images, \(Output.size(plan.totalBytes)): "
                    + (dryRun ? "\(directory) can be adopted" : "\(directory) is a pool now"))
        }
    }
}

struct Eject: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Turn a pool back into a folder of plain files; nothing is copied.",
        discussion: """
            Refuses while the pool is mounted or has snapshots, which plain files cannot keep.

            EXAMPLE
              doppel eject /srv/vms
            """)
    @Argument(help: "The pool's directory.", completion: .directory) var pool: String
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false

    func run() throws {
        try exiting {
            let path = ProcessControl.realPath(pool) ?? PoolLocation.absolute(pool)
            if !Adoption.isHalfEjected(path) { try prepare(path) }
            if dryRun { return }
            let plan = try Adoption.eject(path)
            print("\(plan.files.count) images are plain files in \(pool) again")
        }
    }

    private func prepare(_ path: String) throws {
        try flatten(path)
        let session = try PoolSession(path: path)
        let plan: AdoptionPlan
        do {
            plan = try Adoption.ejectionPlan(session.store)
            if !dryRun { try Adoption.prepareEjection(path, plan) }
        } catch {
            try? session.close()
            throw error
        }
        try session.close()
        if dryRun { for item in plan.files { print("would put back \(item.path)") } }
    }

    /// Snapshots that were deleted may have left layers: they are merged into one file an image.
    private func flatten(_ path: String) throws {
        if dryRun { return }
        let session = try PoolSession(path: path)
        do { if try session.volume.snapshots().isEmpty { try session.volume.flattenHeads() } } catch
        {
            try? session.close()
            throw error
        }
        try session.close()
    }
}
