import BlockCore
import Foundation
import SystemIO
import Testing

@testable import VirtualFS

@Suite struct AttributeTests {
    @Test func setAttributesAreKept() throws {
        try TestPool.with { pool in
            try pool.create("a", [1])
            try pool.set("a") {
                $0.mode = 0o4711
                $0.uid = 107
                $0.gid = 108
                $0.accessNs = 5
                $0.modifyNs = -7
            }
            for isReopened in [false, true] {
                if isReopened { try pool.reopen() }
                let now = try pool.attributes("a")
                #expect(now.mode == 0o4711 && now.uid == 107 && now.gid == 108)
                #expect(now.accessNs == 5 && now.modifyNs == -7 && now.changeNs > 0)
            }
        }
    }

    @Test(.timeLimit(.minutes(1))) func truncateThenSync() throws {
        try TestPool.with { pool in
            let inode = try pool.create("a", [1, 2, 3])
            try pool.set("a") { $0.modifyNs = 5 }
            try pool.set("a") { $0.sizeBytes = 5000 }
            #expect(try pool.attributes("a").modifyNs > 5, "a new size moves the time")
            #expect(try pool.contents("a").prefix(5) == [1, 2, 3, 0, 0])
            try pool.fs.syncDirectory(TestPool.root)
            try pool.set("a") { $0.sizeBytes = 5000 }
            try pool.set("a") { $0.sizeBytes = 2 }
            try pool.fs.syncDirectory(TestPool.root)
            let file = try pool.fs.open(inode, access: .read)
            try file.flush()
            file.close()
            #expect(try pool.contents("a") == [1, 2])
            try pool.mkdir("d")
            try pool.link("l", "a")
            #expect(code { try pool.set("d") { $0.sizeBytes = 0 } } == .isDirectory)
            #expect(code { try pool.set("l") { $0.sizeBytes = 0 } } == .invalid)
            #expect(code { try pool.set("a") { $0.sizeBytes = 1 << 60 } } == .tooLarge)
        }
    }

    @Test func extendedAttributes() throws {
        try TestPool.with { pool in
            let inode = try pool.create("a")
            let fs = pool.fs
            func set(
                _ name: String, _ value: [UInt8], create: Bool = false, replace: Bool = false
            ) throws {
                try fs.setExtendedAttribute(
                    inode, name, value, mustCreate: create, mustReplace: replace)
            }
            #expect(code { try set("user.x", [1], replace: true) } == .noAttribute)
            try set("user.x", [1], create: true)
            #expect(code { try set("user.x", [1], create: true) } == .exists)
            try set("user.x", [2, 0, 255], replace: true)
            try set("user.empty", [])
            #expect(code { try set("security.selinux", [1]) } == .notSupported)
            #expect(code { try set("trusted.x", [1]) } == .notSupported)
            #expect(
                code { try set("user." + String(repeating: "x", count: 251), [1]) } == .range)
            #expect(code { try set("user.big", [UInt8](repeating: 1, count: 65537)) } == .tooLarge)
            for name in ["1", "2", "3"] {
                try set("user.\(name)", [UInt8](repeating: 1, count: 65536))
            }
            #expect(
                code { try set("user.4", [UInt8](repeating: 1, count: 65536)) } == .noSpace)
            for name in ["1", "2", "3"] { try fs.removeExtendedAttribute(inode, "user.\(name)") }
            #expect(code { try fs.removeExtendedAttribute(inode, "user.1") } == .noAttribute)
            #expect(code { _ = try fs.extendedAttribute(inode, "user.1") } == .noAttribute)
            #expect(
                code { _ = try fs.extendedAttribute(inode, "security.capability") }
                    == .notSupported)
            try pool.reopen()
            #expect(try pool.fs.extendedAttributes(inode) == ["user.empty", "user.x"])
            #expect(try pool.fs.extendedAttribute(inode, "user.x") == [2, 0, 255])
            #expect(try pool.fs.extendedAttribute(inode, "user.empty") == [])
        }
    }

    // MARK: Lazy times

    @Test func aWriteMovesTheTimeAtOnceAndTheCatalogLater() throws {
        var options = TestPool.patient
        options.timesDelayMs = 30
        options.commitDelayMs = 10
        try TestPool.with(options) { pool in
            let file = try pool.open("a")
            defer { file.close() }
            try pool.set("a") { $0.modifyNs = 5 }
            try file.put([1], at: 0)
            let shown = try pool.attributes("a").modifyNs
            #expect(shown > 5)
            let deadline = Date(timeIntervalSinceNow: 10)
            var stored: Int64 = 0
            while stored < shown, Date() < deadline {
                Pause.microseconds(5000)
                stored =
                    try pool.store.catalog.read { try $0.nodes() }
                    .first { $0.id.rawValue == file.inode }?.modifyNs ?? 0
            }
            #expect(stored == shown, "while the file is still open")
        }
    }

    @Test func closingCommitsTheTime() throws {
        try TestPool.with { pool in
            let file = try pool.open("a")
            try pool.set("a") { $0.modifyNs = 5 }
            try file.put([1], at: 0)
            file.close()
            let shown = try pool.attributes("a").modifyNs
            try pool.fs.syncDirectory(TestPool.root)
            let stored = try pool.store.catalog.read { try $0.nodes() }
                .first { $0.id.rawValue == file.inode }?.modifyNs
            #expect(stored == shown && shown > 5)
        }
    }

    @Test func aSnapshotMovesNoTime() throws {
        try TestPool.with { pool in
            try pool.create("a", [1])
            let before = try pool.attributes("a").modifyNs
            Pause.microseconds(20_000)
            _ = try pool.fs.createSnapshot(name: "s")
            #expect(try pool.attributes("a").modifyNs == before)
            try pool.reopen()
            #expect(try pool.attributes("a").modifyNs == before)
        }
    }

    @Test func statisticsAreTheStores() throws {
        try TestPool.with { pool in
            let figures = try pool.fs.statistics()
            #expect(figures.totalBytes > 0 && figures.availableBytes <= figures.totalBytes)
        }
    }
}
