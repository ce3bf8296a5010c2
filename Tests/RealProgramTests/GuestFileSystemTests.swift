import Glibc
import TestSupport
import Testing

/// A guest's file system and its database survive what happens to Doppel.
@Suite(
    .enabled(if: Machine.canMountGuests, "needs root, /dev/fuse and loop devices"),
    .enabled(if: Machine.hasSQLite, "needs sqlite3"))
struct GuestFileSystemTests {
    struct Guest: CustomTestStringConvertible {
        var fileSystem: String
        var journal: String
        var direct: Bool
        var testDescription: String { "\(fileSystem), \(journal), direct=\(direct)" }
    }
    private static let guests = [
        Guest(fileSystem: "ext4", journal: "DELETE", direct: false),
        Guest(fileSystem: "ext4", journal: "WAL", direct: true),
        Guest(fileSystem: "xfs", journal: "DELETE", direct: false),
    ].filter { Machine.canMount($0.fileSystem) }

    /// SIGKILL under load: the guest sees its disk die. All that its database acknowledged is there.
    @Test(arguments: guests) func committedRowsSurviveAKill(guest: Guest) throws {
        try Sandbox.with { box in try killUnderLoad(box, guest) {} }
    }

    /// The same with the machine's power going: of the store only what was synced is left.
    @Test(arguments: guests.filter { $0.journal == "DELETE" }, Seeds.run(1))
    func committedRowsSurvivePowerLoss(
        guest: Guest, seed: UInt64
    ) throws {
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in
                try killUnderLoad(box, guest) { try lossy.tell("drop \(seed)") }
            }
        }
    }

    private func killUnderLoad(
        _ box: Sandbox, _ guest: Guest, afterwards: () throws -> Void
    ) throws {
        try box.ok("init", box.pool)
        try box.ok("create", box.pool, "vm.img", "--size", "320M")
        try box.mount()
        let image = box.mountPoint + "/vm.img"
        let disk = GuestDisk(guest.fileSystem, at: box.folder + "/guest")
        defer { disk.detach() }
        try disk.attach(image, direct: guest.direct)
        try disk.format()
        try disk.mount()
        let ledger = Ledger(
            database: disk.folder + "/ledger.db", acknowledgements: box.folder + "/acknowledged")
        try ledger.create(journal: guest.journal)

        let load = try ledger.load()
        try box.until("commits", seconds: 60) { ledger.acknowledged >= 20 }
        try box.ok("snapshot", "create", box.pool, "under-load")
        let atSnapshot = ledger.acknowledged
        try box.until("more commits", seconds: 60) { ledger.acknowledged >= atSnapshot + 20 }
        try box.killDaemon()
        try box.until("the database's end", seconds: 30) { !load.isRunning }
        let acknowledged = ledger.acknowledged
        disk.detach()
        try afterwards()

        try box.mount()
        try disk.attach(image, direct: guest.direct)
        try disk.mount()
        let found = try ledger.verify()
        #expect(found >= acknowledged)
        try disk.unmount()
        try disk.check()
        disk.detach()

        // What the snapshot kept is a disk whose power went at the cut.
        let copy = box.folder + "/copy.img"
        let old = box.mountPoint + "/.snapshots/under-load/vm.img"
        try #require(try run(["cp", "--sparse=auto", old, copy]).code == 0)
        try disk.attach(copy)
        try disk.mount()
        let kept = try ledger.verify()
        #expect(kept >= 20 && kept <= acknowledged + 1)
        try disk.unmount()
        try disk.check()
    }
}
