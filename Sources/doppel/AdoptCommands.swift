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
    @OptionGroup var progress: ProgressFlag
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            guard let path = ProcessControl.realPath(directory) else {
                throw ControlFailure(.failed, "there is no \(directory)")
            }
            let plan = dryRun ? try Adoption.plan(path) : try adopt(path)
            if output.json { return Output.json(FolderReport(path, plan, dryRun: dryRun)) }
            for item in plan.files { print("  \(item.path)  \(Output.size(item.sizeBytes))") }
            print(
                "\(plan.files.count) images, \(Output.size(plan.totalBytes)): "
                    + (dryRun ? "\(directory) can be adopted" : "\(directory) is a pool now"))
        }
    }

    private func adopt(_ path: String) throws -> AdoptionPlan {
        let line = Progress("adopting", unit: .things("files"), isForced: progress.progress)
        defer { line.end() }
        // A folder that cannot be adopted says so below; this is for the count alone.
        let total = UInt64((try? Adoption.plan(path))?.files.count ?? 0)
        var done: UInt64 = 0
        return try Adoption.adopt(path) { what in
            if what.hasPrefix("move ") { done = min(done + 1, total) }
            line.update(done, of: total)
        }
    }
}

/// What adopting or ejecting a folder did, or would do, for programs.
private struct FolderReport: Encodable {
    struct Image: Encodable {
        var path: String
        var sizeBytes: UInt64
    }
    var directory: String
    var dryRun: Bool
    var images: [Image]
    var totalBytes: UInt64

    init(_ directory: String, _ plan: AdoptionPlan, dryRun: Bool) {
        self.directory = directory
        self.dryRun = dryRun
        images = plan.files.map { Image(path: $0.path, sizeBytes: $0.sizeBytes) }
        totalBytes = plan.totalBytes
    }
}

struct Eject: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Turn a pool back into a folder of plain files; nothing is copied.",
        discussion: """
            Refuses while the pool is mounted or has snapshots, which plain files cannot keep.

            A run that was interrupted is finished by running it again.

            EXAMPLES
              doppel eject /srv/vms --dry-run
              doppel eject /srv/vms
            """)
    @Argument(help: "The pool's directory.", completion: .directory) var pool: String
    @Flag(help: "Say what would be done, and do nothing.") var dryRun = false
    @OptionGroup var progress: ProgressFlag
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let path = ProcessControl.realPath(pool) ?? PoolLocation.absolute(pool)
            // What an interrupted run did not finish was planned by it.
            let planned = Adoption.isHalfEjected(path) ? nil : try prepare(path)
            if dryRun { return }
            let plan = try eject(path, count: planned?.files.count ?? 0)
            if output.json { return Output.json(FolderReport(path, plan, dryRun: false)) }
            print("\(plan.files.count) images are plain files in \(pool) again")
        }
    }

    private func prepare(_ path: String) throws -> AdoptionPlan {
        try flatten(path)
        let session = try PoolSession(path: path)
        var plan: AdoptionPlan
        do {
            plan = try Adoption.ejectionPlan(session.store, mayMerge: dryRun)
            let sizes = session.fileSystem.listAll().map { ($0.path, $0.sizeBytes) }
            let sizeOf = Dictionary(sizes) { first, _ in first }
            for index in plan.items.indices where plan.items[index].imageID != nil {
                plan.items[index].sizeBytes = sizeOf[plan.items[index].path] ?? 0
            }
            if !dryRun { try Adoption.prepareEjection(path, plan) }
        } catch {
            try? session.close()
            throw error
        }
        try session.close()
        guard dryRun else { return plan }
        if output.json {
            Output.json(FolderReport(path, plan, dryRun: true))
        } else {
            for item in plan.files { print("would put back \(item.path)") }
        }
        return plan
    }

    /// Snapshots that were deleted may have left layers: they are merged into one file an image.
    private func flatten(_ path: String) throws {
        if dryRun { return }
        let session = try PoolSession(path: path)
        do {
            if try session.volume.snapshots().isEmpty {
                let line = Progress("merging", isForced: progress.progress)
                defer { line.end() }
                let merged = session.execute(ControlRequest(.merge)) {
                    line.update($0.data)
                    return true
                }
                if let error = merged.error { throw error }
                try session.volume.flattenHeads()
            }
        } catch {
            try? session.close()
            throw error
        }
        try session.close()
    }

    /// - Parameter count: of files, each of which is moved, gets its attributes and leaves a folder of
    ///   the pool to be removed; 0 where nobody knows.
    private func eject(_ path: String, count: Int) throws -> AdoptionPlan {
        let line = Progress("ejecting", unit: .things("steps"), isForced: progress.progress)
        defer { line.end() }
        let total = UInt64(count) * 3
        var done: UInt64 = 0
        return try Adoption.eject(path) { _ in
            done = total > 0 ? min(done + 1, total) : done + 1
            line.update(done, of: total)
        }
    }
}
