import BlockCore
import Foundation
import Pool
import Replication
import SystemIO
import Targets
import TestSupport
import Testing

@testable import Daemon

/// A copy of a pool, made of a mirror of it: whatever the source does meanwhile, and wherever it is cut off.
@Suite struct CloneTests {
    private static let image = ImageID(rawValue: 1)

    /// A pool, a mirror of it, and the place of a copy.
    private final class Place {
        let folder: String
        var pool: String { folder + "/pool" }
        var mirror: String { folder + "/mirror" }
        /// Several may be made.
        var copy = ""
        var session: PoolSession?

        init() throws {
            folder = try makeTemporaryFolder(in: TestFolders.quick)
            copy = folder + "/copy"
        }
        deinit {
            try? session?.close()
            try? FileManager.default.removeItem(atPath: folder)
        }

        static func with(_ body: (Place) throws -> Void) throws {
            let place = try Place()
            mkdir(place.pool, 0o755)
            for (name, seed) in [("a.img", 1), ("b.img", 2)] as [(String, UInt8)] {
                try Data(pattern(2 << 20, seed: seed)).write(
                    to: URL(filePath: place.pool + "/" + name))
            }
            _ = try Adoption.adopt(place.pool)
            try place.change { session in
                try session.ok(
                    ControlRequest(.targetAdd) {
                        $0.target = TargetSpecification(address: place.mirror)
                    })
                for name in ["one", "two"] {
                    try session.write(name, at: name == "one" ? 8192 : 1 << 20)
                    try session.ok(ControlRequest(.snapshotCreate) { $0.name = name })
                }
                try session.write("the end", at: 40960)
            }
            try body(place)
        }

        /// What is changed is on the mirror, too, when it returns.
        func change(_ body: (PoolSession) throws -> Void) throws {
            var options = PoolSession.Options()
            options.connectsTargets = true
            let session = try PoolSession(path: pool, options: options)
            do {
                try body(session)
                try session.ok(ControlRequest(.wait) { $0.timeoutMs = 50_000 })
            } catch {
                try? session.close()
                throw error
            }
            try session.close()
        }

        func source() throws -> LocalCloneSource { try LocalCloneSource(mirror) }

        func clone(_ source: any CloneSource) throws -> CloneInfo {
            defer { source.close() }
            return try PoolClone.perform(source, called: mirror, to: copy)
        }

        func requireUnfinished() {
            do {
                _ = try PoolSession(path: copy)
                Issue.record("an unfinished copy was opened")
            } catch {
                #expect("\(error)".contains("unfinished copy of \(mirror)"), "\(error)")
            }
        }

        /// All of it, in every snapshot: names, sizes, and each block by its hash.
        func requireSame() throws {
            let (theirs, ours) = (try source(), try LocalCloneSource(copy))
            defer {
                theirs.close()
                ours.close()
            }
            #expect(ours.info.sequence == theirs.info.sequence)
            #expect(ours.info.legs.map(\.snapshot) == theirs.info.legs.map(\.snapshot))
            #expect(ours.info.history == theirs.info.history)
            #expect(ours.info.incarnationID == theirs.info.incarnationID)
            for leg in theirs.info.legs.indices {
                let (one, other) = (try theirs.shape(leg), try ours.shape(leg))
                #expect(one.names == other.names && one.sequence == other.sequence)
                #expect(
                    one.images.map { [UInt64($0.id.rawValue), $0.sizeBytes] }
                        == other.images.map { [UInt64($0.id.rawValue), $0.sizeBytes] })
                for image in one.images {
                    let part = ClonePart(
                        image: image.id,
                        range: BlockRange(
                            start: 0, count: Geometry.blockCount(sizeBytes: image.sizeBytes)))
                    #expect(try theirs.hashes(leg, [part]) == ours.hashes(leg, [part]))
                }
            }
        }
    }

    /// A source that does something else now and then.
    private final class OddSource: CloneSource, @unchecked Sendable {  // one thread at a time
        let inner: any CloneSource
        var info: CloneSourceInfo {
            var info = inner.info
            if let otherPrimary { info.primaryPool = otherPrimary }
            return info
        }
        var otherPrimary: String?
        /// Calls until it is gone.
        var callsLeft = Int.max
        /// How often what is read comes out otherwise.
        var flips = 0
        var beforeHashes: () throws -> Void = {}
        private(set) var readBytes: UInt64 = 0
        private(set) var calls = 0

        init(_ inner: any CloneSource) { self.inner = inner }

        private func call() throws(TargetError) {
            calls += 1
            guard calls <= callsLeft else { throw TargetError(.absent, "the line is cut") }
        }
        func shape(_ leg: Int) throws(TargetError) -> PoolShape {
            try call()
            return try inner.shape(leg)
        }
        func blocks(_ leg: Int) throws(TargetError) -> [ImageID: BlockSet] {
            try call()
            return try inner.blocks(leg)
        }
        func hashes(_ leg: Int, _ parts: [ClonePart]) throws(TargetError) -> [[UInt64]] {
            try call()
            do { try beforeHashes() } catch { throw TargetError(.io, "\(error)") }
            return try inner.hashes(leg, parts)
        }
        func read(
            _ leg: Int, _ parts: [ClonePart], into buffer: UnsafeMutableRawBufferPointer
        ) throws(TargetError) {
            try call()
            try inner.read(leg, parts, into: buffer)
            readBytes += UInt64(buffer.count)
            guard flips > 0 else { return }
            flips -= 1
            buffer[buffer.count / 2] ^= 4
        }
        func close() { inner.close() }
    }

    @Test func aCopyIsAMirrorAsItsPrimaryWouldHaveMadeIt() throws {
        try Place.with { place in
            let info = try place.clone(try place.source())
            #expect(info.images == 2 && info.snapshots == ["one", "two"] && !info.wasResumed)
            // Each block once, and once more where it changed after a snapshot.
            #expect(info.copiedBytes == 4 << 20 + 2 * 4096, "\(info)")
            #expect(info.verifiedBytes == info.copiedBytes)
            try place.requireSame()
            // Nothing is copied over it.
            #expect(throws: ControlFailure.self) {
                try PoolClone.perform(
                    source: place.mirror, to: place.copy, timeoutMs: 1000, progress: { _, _ in })
            }
            // A primary is copied by making it a target.
            do {
                _ = try LocalCloneSource(place.pool)
                Issue.record("a primary was taken for a mirror")
            } catch { #expect("\(error)".contains("doppel target add"), "\(error)") }
            try attach(place)
            try place.requireSame()
            try promote(place)
        }
    }

    /// Its primary takes it as a mirror that it had before: what is alike is compared, and does not travel.
    private func attach(_ place: Place) throws {
        var seen: TargetInfo?
        try place.change { session in
            try session.write("newer", at: 12288)
            try session.ok(
                ControlRequest(.targetAdd) { $0.target = TargetSpecification(address: place.copy) })
            try session.ok(ControlRequest(.wait) { $0.timeoutMs = 50_000 })
            seen = session.execute(ControlRequest(.targetList)).result?.targets?
                .first { $0.address == place.copy }
        }
        let target = try #require(seen)
        #expect(target.comparedBytes >= 4 << 20 && target.resyncedBytes < 1 << 18, "\(target)")
    }

    private func promote(_ place: Place) throws {
        _ = try PoolPromotion.perform(
            path: place.copy, dryRun: false, force: true, accept: { _ in true })
        let session = try PoolSession(path: place.copy)
        defer { try? session.close() }
        #expect(try session.text(at: 12288, count: 5) == "newer")
        #expect(try session.text(at: 40960, count: 7) == "the end")
        #expect(try session.text(at: 1 << 20, count: 3) == "two")
    }

    /// The line goes after any number of calls, the source is changed meanwhile, and it goes on.
    @Test(arguments: Seeds.run(1)) func whatIsCutOffGoesOn(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        try Place.with { place in
            var tries = 0
            while true {
                tries += 1
                let source = OddSource(try place.source())
                source.callsLeft = tries > 12 ? .max : 1 + random.below(14)
                let isDone = (try? place.clone(source)) != nil
                if isDone { break }
                try #require(tries < 14, "seed \(seed)")
                place.requireUnfinished()
                guard random.chance(40) else { continue }
                try place.change { session in
                    try session.write("change \(tries)", at: UInt64(random.below(500)) * 4096)
                    if random.chance(40) {
                        try session.ok(ControlRequest(.snapshotCreate) { $0.name = "s\(tries)" })
                    }
                    if random.chance(30) {
                        try session.ok(ControlRequest(.snapshotDelete) { $0.names = ["one"] })
                    }
                }
            }
            let session = try PoolSession(path: place.copy)
            try session.close()
            try place.requireSame()
        }
    }

    /// Numbers that no pool has are not counted with.
    @Test func whatASourceSaysOfItselfIsHeldAgainstWhatMayBe() throws {
        try Place.with { place in
            let source = try place.source()
            defer { source.close() }
            let info = source.info
            #expect(info.isSound)
            let lies: [(inout CloneSourceInfo) -> Void] = [
                { $0.legs = [] }, { $0.legs.removeLast() }, { $0.legs.swapAt(0, 1) },
                { $0.legs[1].blocks = .max }, { $0.legs[0].blocks = 1 << 50 },
                { info in for leg in info.legs.indices { info.legs[leg].blocks = 1 << 48 } },
                { $0.legs[0].snapshot?.sequence = SequenceNumber(rawValue: 1 << 61) },
                { $0.sequence = .zero }, { $0.legs[0].snapshot = nil },
            ]
            for (number, lie) in lies.enumerated() {
                var told = info
                lie(&told)
                #expect(!told.isSound, "\(number)")
            }
            // As text, numbers that cannot be.
            let text = String(decoding: JSONLine.encode(info), as: UTF8.self)
            for field in ["sequence", "startSequence", "number"] {
                let lie = try text.replacing(
                    Regex("\"\(field)\":[0-9]+"), with: "\"\(field)\":18446744073709551615")
                #expect(lie != text)
                #expect(throws: (any Error).self, "\(field)") {
                    try JSONLine.decode(CloneSourceInfo.self, Array(lie.utf8))
                }
            }
        }
    }

    /// What was there and durable does not travel again.
    @Test func whatIsDurableCounts() throws {
        try Place.with { place in
            // Its first leg is all there, and so is what the second one begins with.
            let first = OddSource(try place.source())
            first.callsLeft = 9
            #expect(throws: ControlFailure.self) { try place.clone(first) }
            #expect(first.readBytes >= 4 << 20)
            place.requireUnfinished()
            let second = OddSource(try place.source())
            let info = try place.clone(second)
            #expect(info.wasResumed && second.readBytes < 1 << 20, "\(info)")
            try place.requireSame()
        }
    }

    /// Behind a server: whoever comes and goes, what is copied stays what it was; until somebody takes its place.
    @Test func aCopyOutlivesTheSessionsOfItsPrimary() throws {
        try Place.with { place in
            let disk = LinuxDisk()
            let mirror = place.mirror
            let served = ServedMirror(
                path: mirror, below: place.folder, disk: disk, options: MirrorOptions()
            ) { () throws(PoolError) in
                try PoolStore.open(path: mirror, disk: disk, drainTimeoutMs: 0)
            }
            defer { served.disconnect() }
            let store = try PoolStore.open(path: place.pool, disk: disk)
            let hello = try TargetHub.hello(of: store)
            try store.close(clean: true, lastSequence: .zero)
            let copy = try served.copyAlone()
            let head = copy.legs.count - 1
            let range = BlockRange(start: 0, count: 512)
            let before = try copy.hashes(head, of: CloneTests.image, in: range)
            #expect(throws: PoolError.self) {
                try PoolStore.open(path: mirror, disk: disk, drainTimeoutMs: 0)
            }
            // Its primary is let in meanwhile, and changes it.
            let report = try served.connect(hello)
            #expect(report.checkpoint == copy.sequence)
            let beside = try #require(try served.look { try $0.copy() })
            try served.beginStaging(id: 5, shape: try served.shape())
            let records = RecordBuffer(capacityBytes: 1 << 16)
            let next = SequenceNumber(rawValue: report.checkpoint.rawValue + 1)
            try records.append(
                blocks: BlockRange(start: 7, count: 2), of: CloneTests.image, sizeBytes: 2 << 20,
                at: next
            ) { (place) throws(TargetError) in
                place.initializeMemory(as: UInt8.self, repeating: 0x42)
                return place.count
            }
            try served.stage(records.batch, number: 1)
            try served.commitStaging(id: 5, at: next, snapshot: nil)
            #expect(try copy.hashes(head, of: CloneTests.image, in: range) == before)
            #expect(try beside.hashes(head, of: CloneTests.image, in: range) == before)
            #expect(try served.blockHashes(of: CloneTests.image, in: range) != before)
            // The session ends, and another begins: the same.
            served.disconnect()
            #expect(try copy.hashes(head, of: CloneTests.image, in: range) == before)
            #expect(try served.connect(hello).checkpoint == next)
            served.disconnect()
            copy.release()
            #expect(try beside.hashes(head, of: CloneTests.image, in: range) == before)
            // Nobody reads it any more: it is closed.
            beside.release()
            try PoolStore.open(path: mirror, disk: disk, drainTimeoutMs: 0)
                .close(clean: true, lastSequence: next)
            // Who is to have it for himself does not wait.
            let last = try served.copyAlone()
            served.endCopies()
            try PoolStore.open(path: mirror, disk: disk, drainTimeoutMs: 0)
                .close(clean: true, lastSequence: next)
            #expect(throws: (any Error).self) {
                try last.hashes(head, of: CloneTests.image, in: range)
            }
            last.release()
        }
    }

    // MARK: What is found

    @Test func aFlippedByteIsFound() throws {
        try Place.with { place in
            let always = OddSource(try place.source())
            always.flips = .max
            do {
                _ = try place.clone(always)
                Issue.record("a copy that is none was called one")
            } catch { #expect("\(error)".contains("come out otherwise"), "\(error)") }
            place.requireUnfinished()
            // On its way: read again.
            place.copy = place.folder + "/second"
            let sometimes = OddSource(try place.source())
            sometimes.flips = 2
            _ = try place.clone(sometimes)
            #expect(sometimes.flips == 0)
            try place.requireSame()
            // On the copy's disk, after it was written and before it is read back.
            place.copy = place.folder + "/third"
            let source = OddSource(try place.source())
            var isDone = false
            source.beforeHashes = {
                guard !isDone else { return }
                isDone = true
                let folder = place.copy + "/images/1"
                let files = try FileManager.default.contentsOfDirectory(atPath: folder)
                for name in files where name.hasSuffix(".data") {
                    let file = try TestFile(folder + "/" + name)
                    try file.write([0x77], at: 777_777)
                }
            }
            let info = try place.clone(source)
            #expect(isDone && info.copiedBytes > 4 << 20 + 2 * 4096)
            try place.requireSame()
        }
    }

    @Test func anUnfinishedCopyIsNothingElse() throws {
        try Place.with { place in
            let source = OddSource(try place.source())
            source.callsLeft = 6
            #expect(throws: ControlFailure.self) { try place.clone(source) }
            try place.change { session in
                let error = session.execute(
                    ControlRequest(.targetAdd) {
                        $0.target = TargetSpecification(address: place.copy)
                    }
                ).error
                #expect(error?.message.contains("unfinished copy") == true, "\(error as Any)")
            }
            #expect(throws: (any Error).self) {
                try PoolPromotion.perform(
                    path: place.copy, dryRun: false, force: true, accept: { _ in true })
            }
            do {
                let other = OddSource(try place.source())
                other.otherPrimary = "another"
                _ = try place.clone(other)
                Issue.record("one pool was copied over another")
            } catch { #expect("\(error)".contains("another pool"), "\(error)") }
        }
    }
}

extension PoolSession {
    fileprivate func ok(_ request: ControlRequest) throws {
        if let error = execute(request).error { throw error }
    }
    fileprivate func write(_ text: String, at offset: UInt64) throws {
        let image = try volume.image(ImageID(rawValue: 1))
        try Array(text.utf8).withUnsafeBytes { try image.write($0, at: offset) }
        try image.flush()
    }
    fileprivate func text(at offset: UInt64, count: Int) throws -> String {
        let image = try volume.image(ImageID(rawValue: 1))
        var bytes = [UInt8](repeating: 0, count: count)
        _ = try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: offset) }
        return String(decoding: bytes, as: UTF8.self)
    }
}
