// What a copy is made of: a mirror on another machine, or one in a folder here. Both keep it as it is while it is read.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets

struct ClonePart: Sendable, Hashable {
    var image: ImageID
    var range: BlockRange
}

/// Asked by one thread at a time.
protocol CloneSource: AnyObject, Sendable {
    var info: CloneSourceInfo { get }
    func shape(_ leg: Int) throws(TargetError) -> PoolShape
    func blocks(_ leg: Int) throws(TargetError) -> [ImageID: BlockSet]
    func hashes(_ leg: Int, _ parts: [ClonePart]) throws(TargetError) -> [[UInt64]]
    /// - Parameter buffer: filled with the parts, one after the other.
    func read(
        _ leg: Int, _ parts: [ClonePart], into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError)
    func close()
}

extension UnsafeMutableRawBufferPointer {
    /// The place of each part, one after the other.
    func places(of parts: [ClonePart]) -> [UnsafeMutableRawBufferPointer] {
        var start = 0
        return parts.map { part in
            defer { start += Int(part.range.lengthBytes) }
            return UnsafeMutableRawBufferPointer(
                rebasing: self[start..<start + Int(part.range.lengthBytes)])
        }
    }
}

extension MirrorCopy {
    var info: CloneSourceInfo {
        CloneSourceInfo(
            pool: poolID, primaryPool: primary.poolID, primaryAddress: primary.address,
            generation: primary.generation, history: primary.history,
            incarnationID: primary.incarnationID, sequence: sequence, shownNs: shownNs,
            legs: legs.map { leg in
                .init(
                    snapshot: leg.snapshot, blocks: leg.blocks.values.reduce(0) { $0 + $1.count })
            })
    }
}

/// Behind a server, over a control connection.
final class RemoteCloneSource: CloneSource {
    let info: CloneSourceInfo
    private let connection: RemoteControl

    init(_ place: RemoteAddress, timeoutMs: Int64) throws {
        let connection = try RemoteAccess.shared.control(place, timeoutMs: timeoutMs)
        self.connection = connection
        do {
            let result = try RemotePool.perform(ControlRequest(.copyOpen), by: connection)
            guard let info = result.source else {
                throw ControlFailure(.failed, "the server does not say what it has")
            }
            guard info.isSound else { throw Self.unexpected }
            self.info = info
        } catch {
            connection.drop()
            throw error
        }
    }

    private static var unexpected: TargetError {
        TargetError(.io, "what the source answered is not what it was asked for")
    }

    func shape(_ leg: Int) throws(TargetError) -> PoolShape {
        guard case .shape(let shape) = try connection.ask([.shape(leg: UInt64(leg))]).first else {
            throw Self.unexpected
        }
        return shape
    }

    func blocks(_ leg: Int) throws(TargetError) -> [ImageID: BlockSet] {
        guard case .blocks(let blocks) = try connection.ask([.blocks(leg: UInt64(leg))]).first
        else { throw Self.unexpected }
        return blocks
    }

    func hashes(_ leg: Int, _ parts: [ClonePart]) throws(TargetError) -> [[UInt64]] {
        let replies = try connection.ask(
            parts.map { .hashes(leg: UInt64(leg), of: $0.image, in: $0.range) })
        var all: [[UInt64]] = []
        for (part, reply) in zip(parts, replies) {
            guard case .hashes(let hashes) = reply, hashes.count == Int(part.range.count) else {
                throw Self.unexpected
            }
            all.append(hashes)
        }
        return all
    }

    func read(
        _ leg: Int, _ parts: [ClonePart], into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        let replies = try connection.ask(
            parts.map { .read(leg: UInt64(leg), $0.range, of: $0.image) })
        for ((part, place), reply) in zip(zip(parts, buffer.places(of: parts)), replies) {
            guard case .content(let content) = reply else { throw Self.unexpected }
            do throws(WireError) {
                try content.fill(place, with: part.range, of: part.image)
            } catch { throw TargetError(.io, "what the source sent is something else: \(error)") }
        }
    }

    func close() { connection.leave() }
}

/// A mirror in a folder of this machine, which nobody uses meanwhile. `copy` has one caller at a time: the
/// thread that fetches ahead has ended before anybody else asks (``CloneAhead``).
final class LocalCloneSource: CloneSource {
    let info: CloneSourceInfo
    private let mirror: RecoveredMirror
    private let copy: MirrorCopy

    init(_ path: String) throws {
        let store = try PoolStore.open(path: path, disk: LinuxDisk())
        do {
            mirror = try RecoveredMirror(store: store, runsInBackground: false, keepsHistory: true)
        } catch {
            try? store.close(clean: false, lastSequence: .zero)
            guard error.kind == .absent else { throw ControlFailure(.failed, error.message) }
            throw ControlFailure(
                .failed,
                "\(path) is a primary: `doppel target add \(path) DIR` makes a copy, and keeps it in step"
            )
        }
        do throws(TargetError) { copy = try mirror.copy() } catch {
            mirror.close()
            throw ControlFailure(.failed, error.message)
        }
        info = copy.info
    }

    func shape(_ leg: Int) throws(TargetError) -> PoolShape { try copy.shape(leg) }
    func blocks(_ leg: Int) throws(TargetError) -> [ImageID: BlockSet] { try copy.blocks(leg) }

    func hashes(_ leg: Int, _ parts: [ClonePart]) throws(TargetError) -> [[UInt64]] {
        var all: [[UInt64]] = []
        for part in parts { all.append(try copy.hashes(leg, of: part.image, in: part.range)) }
        return all
    }

    func read(
        _ leg: Int, _ parts: [ClonePart], into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        for (part, place) in zip(parts, buffer.places(of: parts)) {
            let got = try copy.read(leg, part.range, of: part.image, into: place)
            UnsafeMutableRawBufferPointer(rebasing: place[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    func close() {
        copy.release()
        mirror.close()
    }
}
