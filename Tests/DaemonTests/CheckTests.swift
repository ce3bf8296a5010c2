import BlockCore
import Foundation
import Pool
import SystemIO
import Testing
import TestSupport

@testable import Daemon

/// Real pools damaged file by file: check finds it, changes nothing; repair mends it, loses nothing.
@Suite struct CheckTests {
    private func withPool(seed: UInt64 = 1, _ body: (DamagedPool) throws -> Void) throws {
        try withFolder { folder in try body(try DamagedPool(folder + "/pool", seed: seed)) }
    }

    @Test func aSoundPoolHasNoFindingsAndIsNotChanged() throws {
        try withPool { pool in
            let before = try pool.state()
            let report = try pool.check()
            #expect(report.findings.isEmpty, "\(report.findings)")
            #expect(report.layersChecked == pool.layers.count)
            // Two roots, and the five blocks that were written between the snapshots.
            #expect(report.blocksVerified == UInt64(2 * DamagedPool.blocks + 5))
            #expect(try pool.state() == before)
            #expect(try pool.check(repairs: true).repaired.isEmpty)
            #expect(try pool.state() == before)
            try pool.expectAllSound()
        }
    }

    // MARK: Maps

    /// A commit in the middle: what it said is lost, everything else is saved under another name.
    @Test func aHeadWithADamagedMapIsSetAsideThenSaved() throws {
        try withPool { pool in
            let map = pool.file(pool.chain("a.img")[2], "map")
            try pool.flip(map, at: 4096 + 56 + 10)
            let before = try pool.state()
            let report = try pool.check()
            let finding = try #require(report.findings.first)
            #expect(report.findings.count == 1)
            #expect(finding.kind == .mapDamaged && finding.severity == .damaged)
            #expect(finding.subject == "image 'a.img'")
            #expect(finding.file == map)
            #expect(finding.repair?.contains("-salvaged") == true)
            #expect(try pool.state() == before)

            // The pool opens, the others are served, the damaged one says so.
            try pool.expectAllSound(but: ["a.img"])
            try pool.withSession { session in
                let status = try #require(session.execute(ControlRequest(.status)).result?.status)
                #expect(status.state == "damaged")
                #expect(status.damagedImages.first?.hasPrefix("a.img") == true)
                let images = session.execute(ControlRequest(.list)).result?.images ?? []
                #expect(images.first { $0.path == "a.img" }?.state == "damaged")
                #expect(images.first { $0.path == "b.img" }?.state == "ok")
                let resize = ControlRequest(.resize) {
                    $0.path = "a.img"
                    $0.sizeBytes = 1 << 20
                }
                #expect(session.execute(resize).error?.exitCode == 5)
            }
            #expect(try pool.contents()["a.img"] == .some(nil))

            let repaired = try pool.check(repairs: true)
            #expect(repaired.findings.isEmpty, "\(repaired.findings)")
            #expect(repaired.repaired.count == 2)
            try pool.expectAllSound(but: ["a.img"])
            let saved = try pool.contents()
            #expect(saved["a.img"] == nil)
            // All of it: what the lost commit named is in the data file.
            #expect(saved["a.img-salvaged"] == .some(pool.expected["a.img"]!))
            let kept = try pool.disk.list(pool.path + "/quarantine").map(\.name)
            #expect(kept.contains { $0.hasSuffix("\(pool.chain("a.img")[2].id.rawValue).map") })
            let kinds = try pool.withSession {
                $0.execute(ControlRequest(.events)).result?.events?.map(\.kind) ?? []
            }
            #expect(kinds.contains("repair") && kinds.contains("damaged"))
        }
    }

    @Test func aDamagedHeaderLosesNothingAndNoName() throws {
        try withPool { pool in
            for row in pool.chain("a.img").dropFirst() {
                try pool.flip(pool.file(row, "map"), at: 3)
            }
            #expect(try pool.check().findings.map(\.kind) == [.mapDamaged, .mapDamaged])
            try pool.expectNoLie("header")
            #expect(try pool.check(repairs: true).findings.isEmpty)
            try pool.expectAllSound()
        }
    }

    /// The last commit is no torn one when the pool was closed cleanly.
    @Test func theLastCommitOfACleanPoolIsNotCutSilently() throws {
        try withPool { pool in
            let map = pool.file(pool.chain("a.img")[2], "map")
            try pool.flip(map, at: try pool.size(map) - 3)
            #expect(try pool.contents()["a.img"] == .some(nil))
            #expect(try pool.check().findings.first?.kind == .mapDamaged)
            #expect(try pool.check(repairs: true).worst == nil)
            #expect(try pool.contents()["a.img-salvaged"] == .some(pool.expected["a.img"]!))
        }
    }

    @Test func aMissingMapOfASnapshotMarksEveryNameThatShowsIt() throws {
        try withPool { pool in
            try pool.disk.removeFile(pool.file(pool.chain("a.img")[1], "map"))
            let finding = try #require(try pool.check().findings.first)
            #expect(finding.kind == .mapMissing)
            #expect(finding.subject.contains("image 'a.img'"))
            #expect(finding.subject.contains("'a.img' in snapshot 'two'"))
            try pool.expectAllSound(but: ["a.img", "a.img@two"])
            #expect(try pool.check(repairs: true).findings.isEmpty)
            try pool.expectAllSound(but: ["a.img", "a.img@two"])
            let saved = try pool.contents()
            #expect(saved["a.img-salvaged@two"] == .some(pool.expected["a.img@two"]!))
            #expect(saved["a.img-salvaged"] == .some(pool.expected["a.img"]!))
        }
    }

    // MARK: Data

    @Test func aShortDataFileIsNeverReadAsZeros() throws {
        try withPool { pool in
            let row = pool.chain("a.img")[2]
            try pool.cut(pool.file(row, "data"), to: 100 * 4096 + 10)
            let finding = try #require(try pool.check().findings.first)
            #expect(finding.kind == .dataShort)
            #expect(finding.meaning.contains("200") && finding.meaning.contains("280"))
            #expect(try pool.contents()["a.img"] == .some(nil))
            try pool.expectAllSound(but: ["a.img"])
            #expect(try pool.check(repairs: true).worst == nil)
            let contents = try pool.contents()
            let saved = try #require(contents["a.img-salvaged"] ?? nil)
            for block in 0..<DamagedPool.blocks - 1 where block != 200 && block != 280 {
                let range = block * 4096..<(block + 1) * 4096
                #expect(saved[range] == pool.expected["a.img"]![range], "block \(block)")
            }
        }
    }

    @Test func aMissingDataFileLeavesTheOthersAndAWayOut() throws {
        try withPool { pool in
            try pool.disk.removeFile(pool.file(pool.chain("c.img")[0], "data"))
            try pool.disk.removeFile(pool.file(pool.chain("a.img")[2], "data"))
            let found = try pool.check().findings
            #expect(
                found.map(\.kind).sorted { $0.rawValue < $1.rawValue } == [
                    .dataMissing, .dataMissing,
                ])
            #expect(found.allSatisfy { $0.repair == nil })
            #expect(try pool.check(repairs: true).worst == .damaged)
            try pool.expectAllSound(but: ["a.img", "c.img"])
            try pool.withSession { session in
                // The older content, under a name that says so, and then the damaged names can go.
                let restore = ControlRequest(.restore) {
                    $0.path = "a.img"
                    $0.snapshot = "two"
                    $0.newPath = "older.img"
                }
                #expect(session.execute(restore).error == nil)
                for name in ["a.img", "c.img"] {
                    let delete = ControlRequest(.delete) { $0.path = name }
                    #expect(session.execute(delete).error == nil)
                }
            }
            #expect(try pool.contents()["older.img"] == .some(pool.expected["a.img@two"]!))
            #expect(try pool.check().worst != .damaged)
        }
    }

    @Test func aRottenBlockIsNamedAndConcernsNothingElse() throws {
        try withPool { pool in
            let data = pool.file(pool.chain("a.img")[0], "data")
            try pool.flip(data, at: 42 * 4096 + 7)
            let finding = try #require(try pool.check().findings.first)
            #expect(finding.kind == .block)
            #expect(finding.problem.contains("blocks 42 (1 blocks"))
            #expect(finding.subject.contains("snapshot 'one'"))
            #expect(try pool.check(repairs: true).worst == .damaged)
            try pool.expectNoLie("block")
            try pool.expectAllSound(but: ["a.img", "a.img@one", "a.img@two"])
        }
    }

    @Test func aSealedRootThatWasCutIsFoundByItsChecksums() throws {
        try withPool { pool in
            try pool.cut(pool.file(pool.chain("b.img")[0], "data"), to: 250 * 4096)
            #expect(try pool.check().findings.first?.kind == .block)
            try pool.expectNoLie("cut root")
            try pool.expectAllSound(but: ["b.img", "b.img@one", "b.img@two"])
        }
    }

    // MARK: The small files

    @Test func checksumsAndActivityAreMadeAnew() throws {
        try withPool { pool in
            try pool.flip(pool.file(pool.chain("a.img")[0], "sums"), at: 17)
            try pool.flip(pool.file(pool.chain("b.img")[0], "sums"), at: 4096 + 300)
            try pool.flip(pool.path + "/images/\(pool.images["c.img"]!.rawValue)/activity", at: 2)
            try pool.disk.removeFile(
                pool.path + "/images/\(pool.images["a.img"]!.rawValue)/activity")
            let report = try pool.check()
            #expect(report.worst == .degraded)
            #expect(
                Set(report.findings.map(\.kind)) == [
                    .sumsDamaged, .activityDamaged, .activityMissing,
                ])
            try pool.expectNoLie("sums")
            _ = try pool.check(repairs: true)
            try pool.expectAllSound()
            _ = try pool.withSession { $0.execute(ControlRequest(.scrub)) }
            let after = try pool.check()
            #expect(after.findings.isEmpty, "\(after.findings)")
            #expect(after.blocksVerified == UInt64(2 * DamagedPool.blocks + 5))
        }
    }

    @Test func strayFilesGoToQuarantineAndNothingElseDoes() throws {
        try withPool { pool in
            let folder = pool.path + "/images/\(pool.images["a.img"]!.rawValue)"
            for name in ["77.data", "notes.txt"] {
                try pool.disk.writeDurably(folder + "/" + name, contents: Array(name.utf8))
            }
            let report = try pool.check()
            #expect(report.findings.map(\.kind) == [.stray, .stray])
            #expect(report.worst == .note)
            #expect(try pool.check(repairs: true).findings.isEmpty)
            let kept = try pool.disk.list(pool.path + "/quarantine").map(\.name)
            #expect(kept.count == 2 && kept.contains { $0.hasSuffix("77.data") })
            try pool.expectAllSound()
        }
    }

    // MARK: The catalog

    /// Pages of indexes and tables: what can be read is kept, and nothing reads as something else.
    @Test func aDamagedCatalogIsWrittenAnew() throws {
        try withPool { pool in
            let catalog = pool.path + "/catalog.sqlite"
            try pool.addTarget()
            let pages = try pool.size(catalog) / 4096
            var rebuilt = 0
            for page in 1..<pages {
                let copy = try #require(FileManager.default.contents(atPath: catalog))
                try pool.flip(catalog, at: page * 4096)  // the page's kind: no tree has it
                let report = try pool.check()
                if report.findings.contains(where: { $0.kind == .catalog && $0.repair != nil }) {
                    rebuilt += 1
                    let after = try pool.check(repairs: true)
                    #expect(!after.findings.contains { $0.kind == .catalog }, "page \(page)")
                    // The pool is replicated still, and all of it will be compared.
                    #expect(try pool.targets().map(\.address) == ["/nowhere"], "page \(page)")
                    #expect(try pool.disk.status(pool.path + "/targets/1/dirty") == nil)
                    // Rows may be lost, and with them files; what is there is what it was.
                    let contents = try pool.contents()
                    for (name, bytes) in contents where !name.contains("lost") {
                        if let bytes {
                            #expect(bytes == pool.expected[name], "page \(page): \(name)")
                        }
                    }
                } else {
                    #expect(!report.findings.isEmpty || (try? pool.expectAllSound()) != nil)
                }
                for suffix in ["-wal", "-shm"] { try? pool.disk.removeFile(catalog + suffix) }
                try copy.write(to: URL(fileURLWithPath: catalog))
                // What a rebuilt catalog did not know may have been taken for garbage.
                if rebuilt == 1 { break }
            }
            #expect(rebuilt > 0)
        }
    }

    @Test func aLostCatalogIsSaid() throws {
        try withPool { pool in
            try pool.disk.removeFile(pool.path + "/catalog.sqlite")
            #expect(PoolCheck.isCheckable(pool.path, disk: pool.disk))
            let finding = try #require(try pool.check(repairs: true).findings.first)
            #expect(finding.kind == .catalog && finding.repair == nil)
            #expect(throws: ControlFailure.self) { try PoolLocation.find(pool.path) }
        }
    }

    @Test func aHalfAdoptedFolderIsExplained() throws {
        try withFolder { folder in
            let vms = folder + "/vms"
            try FileManager.default.createDirectory(
                atPath: vms, withIntermediateDirectories: false)
            try Data([1, 2, 3]).write(to: URL(fileURLWithPath: vms + "/a.img"))
            var changes = 0
            #expect(throws: (any Error).self) {
                try Adoption.adopt(vms) { (_) throws(PoolError) in
                    changes += 1
                    if changes == 6 { throw PoolError(.io, "killed") }
                }
            }
            let finding = try #require(
                try PoolCheck.run(path: vms, disk: LinuxDisk()).findings.first)
            #expect(finding.kind == .interrupted && finding.problem.contains("doppel adopt"))
            do {
                _ = try PoolLocation.find(vms)
                Issue.record("it is no pool yet")
            } catch let failure as ControlFailure {
                #expect(failure.message.contains("doppel adopt \(vms)"))
            }
        }
    }

    // MARK: Any damage

    /// Whatever happens to whichever file that carries a hash: nobody is told something else than
    /// what was written, check is not silent about a loss, and repair ends with names that tell.
    @Test(arguments: Seeds.run(24)) func anyDamageIsFoundAndNeverServed(seed: UInt64) throws {
        try withPool(seed: seed) { pool in
            var random = SeededRandom(seed: seed ^ 0xdead)
            let targets = pool.layers.flatMap { row -> [String] in
                var files: [String] = []
                if row.parentID != nil { files.append(pool.file(row, "map")) }
                if row.isSealed { files += [pool.file(row, "sums"), pool.file(row, "data")] }
                return files
            }
            let file = targets[random.below(targets.count)]
            let size = try pool.size(file)
            let what: String
            switch random.below(3) {
            case 0:
                let offset = random.below(size)
                what = "flip \(file) at \(offset)"
                try pool.flip(file, at: offset)
            case 1:
                // Never at the end of a record: what is before it would be a whole, older map.
                let end = UInt64(random.below(size)) | 1
                what = "cut \(file) to \(end)"
                try pool.cut(file, to: end)
            default:
                what = "remove \(file)"
                try pool.disk.removeFile(file)
            }
            let before = try pool.state()
            let report = try pool.check()
            #expect(try pool.state() == before, "check changed the pool: \(what)")
            let contents = try pool.contents()
            for (name, bytes) in pool.expected {
                #expect(contents[name] != .none, "\(name) is gone: \(what), seed \(seed)")
                guard let now = contents[name] ?? nil else {
                    #expect(report.worst == .damaged || file.hasSuffix("sums"), "\(what)")
                    continue
                }
                #expect(now == bytes, "\(name): \(what), seed \(seed)")
            }
            let repaired = try pool.check(repairs: true)
            try pool.expectNoLie("after repair of \(what), seed \(seed)")
            #expect(
                repaired.findings.allSatisfy { $0.repair == nil || $0.kind == .stray },
                "\(what), seed \(seed): \(repaired.findings)")
        }
    }
}
