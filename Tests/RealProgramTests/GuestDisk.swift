// An image as the disk of a guest: a loop device over the file on the mount, a file system on it.

import Glibc
import TestSupport

/// What a machine needs for these tests; each suite that misses something is skipped by name.
enum Machine {
    static let canMountGuests =
        hasFuse && isRoot && access("/dev/loop-control", R_OK | W_OK) == 0
    static let hasSQLite = access("/usr/bin/sqlite3", X_OK) == 0
    static let hasQEMU = access("/usr/bin/qemu-io", X_OK) == 0
    static func canMount(_ fileSystem: String) -> Bool {
        let known = (try? run(["grep", "-qw", fileSystem, "/proc/filesystems"]).code) == 0
        let path = (try? run(["sh", "-c", "command -v mkfs.\(fileSystem)"]).code) == 0
        return canMountGuests && known && path
    }
}

final class GuestDisk {
    let folder: String
    let fileSystem: String
    private(set) var device: String?

    /// - Parameter folder: where the guest's files appear; made here.
    init(_ fileSystem: String, at folder: String) {
        self.fileSystem = fileSystem
        self.folder = folder
        mkdir(folder, 0o755)
    }
    deinit { detach() }

    func attach(_ image: String, direct: Bool = false) throws {
        let mode = direct ? "on" : "off"
        device = try must("losetup", "--find", "--show", "--direct-io=\(mode)", image)
    }

    func format() throws {
        switch fileSystem {
        case "xfs": try must("mkfs.xfs", "-q", "-f", device!)
        default: try must("mkfs.ext4", "-q", "-F", device!)
        }
    }

    func mount() throws { try must("mount", "-t", fileSystem, device!, folder) }
    func unmount() throws { try must("umount", folder) }

    /// After ``mount()`` replayed the log and ``unmount()`` wrote it out, nothing is left to mend.
    func check() throws {
        switch fileSystem {
        case "xfs": try must("xfs_repair", "-n", device!)
        default: try must("e2fsck", "-fn", device!)
        }
    }

    /// Whatever state it is in, also when what it stands on is dead.
    func detach() {
        guard let device else { return }
        // The mount table, not the folder: a file system that lost its disk answers nothing.
        if let mounts = try? contents("/proc/self/mounts"),
            String(decoding: mounts, as: UTF8.self).contains(" \(folder) ")
        {
            if (try? run(["umount", folder]))?.code != 0 {
                _ = try? run(["umount", "-l", folder])
            }
        }
        _ = try? run(["losetup", "-d", device])
        self.device = nil
    }

    @discardableResult
    private func must(_ words: String...) throws -> String {
        let (code, output) = try run(words)
        guard code == 0 else { throw Failure("\(words.joined(separator: " ")): \(output)") }
        return output.filter { $0 != "\n" }
    }
}

/// sqlite3 at work: one transaction after another, each with the next number, and the number goes to
/// a file elsewhere when its commit has returned.
struct Ledger {
    let database: String
    let acknowledgements: String

    func create(journal: String) throws {
        let made = try run([
            "sqlite3", "-bail", database,
            """
            PRAGMA journal_mode=\(journal);
            CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0);
            CREATE TABLE ledger (n INTEGER PRIMARY KEY, fill TEXT);
            """,
        ])
        guard made.code == 0 else { throw Failure("sqlite3: \(made.output)") }
    }

    /// EXTRA, because with FULL a commit in mode DELETE returns before the removal of its journal
    /// is durable: after a crash that commit is rolled back, and rightly so.
    ///
    /// Goes on until a statement fails or the returned script is killed.
    func load() throws -> BackgroundShell {
        let script = """
            i=$(( $(sqlite3 "$1" 'SELECT n FROM counter') + 1 ))
            { echo "PRAGMA synchronous=EXTRA;"
              while :; do
                echo "BEGIN; INSERT INTO ledger VALUES ($i, hex(randomblob($((i * 37 % 3000)))));"
                echo "UPDATE counter SET n = $i; COMMIT; SELECT $i;"
                i=$((i + 1))
              done
            } 2>/dev/null | stdbuf -oL sqlite3 -bail "$1" >>"$2" 2>/dev/null
            """
        return try BackgroundShell(script, [database, acknowledgements])
    }

    /// The highest commit that was acknowledged. A torn last line is none.
    var acknowledged: Int {
        guard let bytes = try? contents(acknowledgements), let end = bytes.lastIndex(of: 10) else {
            return 0
        }
        let text = String(decoding: bytes[..<end], as: UTF8.self)
        return text.split(separator: "\n").last.flatMap { Int($0) } ?? 0
    }

    /// - Returns: the commits that are there, all of them from 1 on; throws where one is missing.
    func verify() throws -> Int {
        let (code, output) = try run([
            "sqlite3", "-bail", database,
            "PRAGMA integrity_check; SELECT n FROM counter; SELECT count(*), max(n) FROM ledger;",
        ])
        let lines = output.split(separator: "\n").map(String.init)
        guard code == 0, lines.count == 3, lines[0] == "ok", let count = Int(lines[1]),
            lines[2] == "\(count)|\(count)"
        else { throw Failure("the database is not whole: \(output)") }
        return count
    }
}
