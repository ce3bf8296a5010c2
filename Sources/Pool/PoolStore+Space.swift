// The way out of a full disk, and the place for what does not verify.

import BlockCore
import SystemIO

/// What was lent of the reserve and not taken back yet.
final class ReserveLoan: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private var users = 0
    private var owed: UInt64 = 0

    func begin(lending bytes: UInt64) {
        lock.withLock {
            users += 1
            owed = max(owed, bytes)
        }
    }
    func end() { lock.withLock { users -= 1 } }
    var owedBytes: UInt64 { lock.withLock { owed } }
    var payableBytes: UInt64 { lock.withLock { users == 0 ? owed : 0 } }
    func paid(_ bytes: UInt64) { lock.withLock { if owed == bytes { owed = 0 } } }
}

extension PoolStore {
    private var reservePath: String { path + "/reserve" }

    /// Allocates the reserve, so that a full disk leaves room to delete snapshots and to recover.
    /// - Returns: the bytes reserved; less than asked for on a disk that is too full already.
    @discardableResult
    package func makeReserve(lengthBytes: UInt64) -> UInt64 {
        do throws(SystemError) {
            let file = try disk.open(reservePath, [.readWrite, .create])
            let now = try file.status().allocatedBytes
            if now < lengthBytes {
                try grow(file, from: now, to: lengthBytes)
            } else if now > lengthBytes + (1 << 20) {
                try file.truncate(to: lengthBytes)
            }
            return try file.status().allocatedBytes
        } catch { return reserveBytes }
    }

    /// As far as there is room: whoever is refused all of it would leave the rest to others.
    private func grow(_ file: DiskFile, from now: UInt64, to length: UInt64) throws(SystemError) {
        var end = now
        var step = length - now
        while end < length, step >= 4096 {
            let count = min(step, length - end)
            do throws(SystemError) {
                try file.allocate(at: end, length: count, keepSize: false)
                end += count
            } catch {
                guard error.isNoSpace else { throw error }
                step /= 2
            }
        }
    }

    package var reserveBytes: UInt64 {
        ((try? disk.status(reservePath)) ?? nil)?.allocatedBytes ?? 0
    }

    /// Gives the reserve's space to whoever needs it next; ``makeReserve`` takes it back.
    package func releaseReserve() { Self.releaseReserve(path: path, disk: disk) }

    static func releaseReserve(path: String, disk: Disk, keepingBytes: UInt64 = 0) {
        guard let file = try? disk.open(path + "/reserve", .readWrite) else { return }
        try? file.truncate(to: keepingBytes)
        try? file.sync()
    }

    /// How much of the reserve is lent: a small one as a whole.
    package enum Lending: Sendable {
        case all, half
        fileprivate func keptBytes(of reserve: UInt64) -> UInt64 {
            self == .half && reserve >= 16 << 20 ? reserve / 2 & ~4095 : 0
        }
    }

    /// Runs something that gives space back, or that recovery cannot do without, with the reserve's
    /// space at its disposal. What others took of it meanwhile is owed: see ``payReserve()``.
    package func withReserve<T, E: Error>(
        lending: Lending = .all, _ body: () throws(E) -> T
    ) throws(E) -> T {
        let reserve = reserveBytes
        reserveLoan.begin(lending: reserve)
        if reserve > 0 {
            Self.releaseReserve(
                path: path, disk: disk, keepingBytes: lending.keptBytes(of: reserve))
        }
        defer {
            reserveLoan.end()
            payReserve()
        }
        return try body()
    }

    package var owesReserve: Bool { reserveLoan.owedBytes > 0 }

    /// Takes back what was lent, once nobody uses it, as far as there is room.
    package func payReserve() {
        let owed = reserveLoan.payableBytes
        if owed > 0, makeReserve(lengthBytes: owed) >= owed { reserveLoan.paid(owed) }
    }

    /// Moves something that does not verify out of the way (P3).
    package func quarantine(_ file: String, reason: String) {
        let name = file.split(separator: "/").suffix(2).joined(separator: "-")
        let target = "\(path)/quarantine/\(disk.now())-\(name)"
        do throws(SystemError) {
            try disk.rename(file, to: target)
            try disk.syncDirectory(path + "/quarantine")
            try disk.syncDirectory(parentPath(file))
        } catch { return }
        _ = try? catalog.write { tx in
            try tx.addEvent(
                EventRecord(
                    atNs: disk.now(), kind: "quarantine", subject: target, message: reason))
        }
    }

    /// Keeps a copy of something that does not verify, durably, before it is changed.
    package func quarantineCopy(_ file: String) throws(SystemError) {
        let name = file.split(separator: "/").suffix(2).joined(separator: "-")
        let source = try disk.open(file, [])
        defer { source.close() }
        let target = try disk.open(
            "\(path)/quarantine/\(disk.now())-\(name)", [.readWrite, .create, .truncate])
        defer { target.close() }
        var bytes = [UInt8](repeating: 0, count: 1 << 20)
        var offset: UInt64 = 0
        while true {
            let got = try bytes.withTypedMutableBytes { (raw) throws(SystemError) in
                try source.read(into: raw, at: offset)
            }
            guard got > 0 else { break }
            try bytes.withTypedBytes { (raw) throws(SystemError) in
                try target.write(UnsafeRawBufferPointer(rebasing: raw[..<got]), at: offset)
            }
            offset += UInt64(got)
        }
        try target.sync()
        try disk.syncDirectory(path + "/quarantine")
    }

    /// Files of layers that have no row in the catalog.
    ///
    /// A row is committed before its layer's files are made and deleted before they are removed, and
    /// ids are not used twice. So an id that the catalog has handed out is a layer that was deleted
    /// for good: garbage. One above it is a layer that this catalog never knew, because it is older
    /// than the files: they are kept (P3).
    func removeStrayFiles() {
        guard let known = try? catalog.read({ try KnownLayers($0) }) else { return }
        for entry in (try? disk.list(path + "/images")) ?? [] {
            guard let image = Int64(entry.name) else { continue }
            let directory = path + "/images/" + entry.name
            for file in (try? disk.list(directory)) ?? [] {
                let inside = directory + "/" + file.name
                if file.name.hasSuffix(".new") {
                    try? disk.removeFile(inside)
                } else if let dot = file.name.firstIndex(of: "."),
                    let layer = Int64(file.name[..<dot]), !known.layers.contains(layer)
                {
                    if layer > known.lastLayer {
                        quarantine(inside, reason: "the catalog never knew its layer \(layer)")
                    } else {
                        try? disk.removeFile(inside)
                    }
                }
            }
            if !known.images.contains(image), image <= known.lastImage {
                for file in ["activity", "image.txt"] {
                    try? disk.removeFile(directory + "/" + file)
                }
                try? disk.removeDirectory(directory)
            }
        }
    }

    private struct KnownLayers {
        var layers: Set<Int64>
        /// Images, and those whose directory holds a layer of another.
        var images: Set<Int64>
        var lastLayer: Int64
        var lastImage: Int64

        init(_ tx: CatalogTransaction) throws {
            let rows = try tx.layers()
            layers = Set(rows.map(\.id.rawValue))
            images = Set(try tx.images().map(\.id.rawValue) + rows.map(\.imageID.rawValue))
            lastLayer = try tx.lastLayerID().rawValue
            lastImage = try tx.lastImageID().rawValue
        }
    }
}
