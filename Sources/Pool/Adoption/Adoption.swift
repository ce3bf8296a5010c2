// A folder of raw files becomes a pool, by rename alone. (The way back is in Ejection.swift.)
//
// The durable steps, in order (`.doppel-adopt/` is the stage; `lock` in it admits one run at a time):
//   1 stage/images, empty, and then stage/plan.json: everything there is to know
//   2 each file → stage/images/<id>/<layer>.data, with its activity log; those folders are synced
//     first, then the folders the files came from: in power loss a file may have both names on some
//     file systems, never none
//   3 symlinks and emptied folders are removed: the plan has them
//   4 stage/images → images
//   5 the catalog, complete, by rename (P4)
//   6 the stage is removed
//
// Invariants
//   A1 Until 5 the folder has no catalog, so nobody opens it as a pool; after 5 it is a whole one,
//      and a stage that is still there means nothing: opening the pool removes it.
//   A2 A stage without a plan means nothing has been changed. With a plan, `stage/images` tells
//      whether 4 is done, whatever the user's own folders are called: it is made before the plan is.
//   A3 Every step can be done twice: a run that was killed anywhere is finished by the next one.
//   A4 Only what the plan names is moved or removed, and only while it is what the plan says.

import BlockCore
import Foundation
import SystemIO

package enum Adoption {
    static let stageName = ".doppel-adopt"
    static let ejectStageName = ".doppel-eject"
    /// Names at the top of a folder that are never taken for somebody's files.
    static let ownNames: Set<String> = [
        stageName, ejectStageName, RawFolderState.folderName, "lost+found",
    ]

    /// Told of each change before it is made. What it throws stops the run; the same command goes
    /// on from there.
    package typealias BeforeChange = (_ what: String) throws(PoolError) -> Void

    /// Looks, and changes nothing.
    /// - Throws: ``PoolError`` `.refused` with every reason at once.
    package static func plan(
        _ folder: String, ids: AdoptionIDs? = nil
    ) throws(PoolError) -> AdoptionPlan {
        let disk = LinuxDisk()
        guard !PoolStore.isPool(folder, disk: disk) else {
            throw PoolError(.exists, "\(folder) is a pool already")
        }
        if isHalfEjected(folder), let text = interruption(folder, disk: disk) {
            throw PoolError(.refused, text)
        }
        if let resumed = try readPlan(folder, stageName, disk) { return resumed }
        guard ids != nil || !RawFolderState.isThere(folder, disk: disk) else {
            throw PoolError(
                .refused,
                "\(folder) is a raw mirror: `doppel promote raw:\(folder)` makes a pool of it")
        }
        var scan = AdoptionScan(disk: disk, folder: folder, ids: ids)
        return try scan.run()
    }

    /// Turns the folder into a pool, or finishes a run that was interrupted.
    /// - Parameters:
    ///   - ids: what is to have an id that others know; the same in every run.
    ///   - also: further rows of the transaction that makes it a pool.
    /// - Returns: what was done, by this run and the ones before it.
    package static func adopt(
        _ folder: String, ids: AdoptionIDs? = nil,
        beforeChange: BeforeChange = { _ throws(PoolError) in },
        also: @escaping (CatalogTransaction) throws -> Void = { _ in }
    ) throws(PoolError) -> AdoptionPlan {
        let disk = LinuxDisk()
        if PoolStore.isPool(folder, disk: disk),
            let done = try readPlan(folder, stageName, disk)
        {
            // Killed between 5 and 6. It may be in use already: its owner removes the stage as well.
            discardStage(folder, stageName, disk)
            return done
        }
        let first = try plan(folder, ids: ids)
        return try withoutBeforeChange(beforeChange) { (change) throws(PoolError) in
            let run = AdoptionRun(
                folder: folder, stage: folder + "/" + stageName, change: change, also: also)
            let lock = try run.takeStage()
            defer { lock.release() }
            // Looked at again under the lock: another run may have come or gone.
            var plan: AdoptionPlan
            do throws(PoolError) { plan = try self.plan(folder, ids: ids) } catch {
                if interruption(folder, disk: disk) == nil {
                    discardStage(folder, stageName, disk)
                }
                throw error
            }
            // Its times as they were before the stage was made in it.
            if !run.hasPlan { plan.root = first.root }
            try run.carryOut(plan)
            return plan
        }
    }

    // MARK: Interrupted runs

    /// What to do about a run that was interrupted here; nil where there is none.
    package static func interruption(_ folder: String, disk: Disk) -> String? {
        guard !PoolStore.isPool(folder, disk: disk) else { return nil }
        func has(_ stage: String) -> Bool {
            ((try? disk.status("\(folder)/\(stage)/plan.json")) ?? nil) != nil
        }
        if has(stageName) {
            return "adopting \(folder) was interrupted; `doppel adopt \(folder)` finishes it"
        }
        if has(ejectStageName) {
            return "ejecting \(folder) was interrupted; `doppel eject \(folder)` finishes it"
        }
        return nil
    }

    /// In a whole pool a stage is what a finished adopt, or an eject that did not begin, left (A1).
    static func discardStages(_ folder: String, disk: Disk) {
        for stage in [stageName, ejectStageName] { discardStage(folder, stage, disk) }
    }

    /// Removes the stage's own small files, and the stage where nothing else is in it.
    static func discardStage(_ folder: String, _ name: String, _ disk: Disk) {
        let stage = folder + "/" + name
        guard ((try? disk.status(stage)) ?? nil) != nil else { return }
        for file in ["plan.json", "plan.json.new", "cleared", "cleared.new", "lock"] {
            try? disk.removeFile(stage + "/" + file)
        }
        try? disk.syncDirectory(stage)
        try? disk.removeDirectory(stage + "/images")
        try? disk.removeDirectory(stage)
        try? disk.syncDirectory(folder)
    }

    // MARK: Shared with ejecting

    static func encode(_ plan: AdoptionPlan) throws(PoolError) -> [UInt8] {
        do { return [UInt8](try JSONEncoder().encode(plan)) } catch {
            throw PoolError(.io, "cannot write the plan: \(error)")
        }
    }

    static func readPlan(
        _ folder: String, _ stage: String, _ disk: Disk
    ) throws(PoolError) -> AdoptionPlan? {
        let path = "\(folder)/\(stage)/plan.json"
        do {
            guard try disk.status(path) != nil else { return nil }
            return try JSONDecoder().decode(AdoptionPlan.self, from: Data(try disk.readAll(path)))
        } catch {
            throw PoolError(.damaged, "\(path) cannot be read: \(error)")
        }
    }

    static func withoutBeforeChange<T>(
        _ beforeChange: BeforeChange, _ body: (FolderChange) throws(PoolError) -> T
    ) throws(PoolError) -> T {
        try withoutActuallyEscaping(beforeChange) { (before) throws(PoolError) in
            try body(FolderChange(before: before))
        }
    }
}

/// Changes of a folder, each announced before it is made.
struct FolderChange {
    let before: Adoption.BeforeChange

    func callAsFunction(
        _ what: String, _ body: () throws(SystemError) -> Void
    ) throws(PoolError) {
        try before(what)
        do throws(SystemError) { try body() } catch { throw PoolError(error) }
    }
}
