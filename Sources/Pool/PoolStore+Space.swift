// The way out of a full disk, and the place for what does not verify.

import BlockCore
import SystemIO

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
                try file.allocate(at: 0, length: lengthBytes, keepSize: false)
            } else if now > lengthBytes + (1 << 20) {
                try file.truncate(to: lengthBytes)
            }
            return try file.status().allocatedBytes
        } catch { return reserveBytes }
    }

    package var reserveBytes: UInt64 {
        ((try? disk.status(reservePath)) ?? nil)?.allocatedBytes ?? 0
    }

    /// Gives the reserve's space to whoever needs it next; ``makeReserve`` takes it back.
    package func releaseReserve() { Self.releaseReserve(path: path, disk: disk) }

    static func releaseReserve(path: String, disk: Disk) {
        guard let file = try? disk.open(path + "/reserve", .readWrite) else { return }
        try? file.truncate(to: 0)
        try? file.sync()
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

    /// Files of layers that the catalog does not know: left by a creation or a deletion that a
    /// crash interrupted. What holds data goes to quarantine, what is empty is removed.
    func removeStrayFiles() {
        guard
            let known = try? catalog.read({ tx in
                (
                    Set(try tx.layers().map(\.id.rawValue)),
                    Set(try tx.images().map(\.id.rawValue)),
                    Set(try tx.layers().map(\.imageID.rawValue))
                )
            })
        else { return }
        let (layers, images, holders) = known
        for entry in (try? disk.list(path + "/images")) ?? [] {
            guard let image = Int64(entry.name) else { continue }
            let directory = path + "/images/" + entry.name
            for file in (try? disk.list(directory)) ?? [] {
                guard let dot = file.name.firstIndex(of: "."),
                    let layer = Int64(file.name[..<dot]), !layers.contains(layer)
                else {
                    if file.name.hasSuffix(".new") {
                        try? disk.removeFile(directory + "/" + file.name)
                    }
                    continue
                }
                let stray = directory + "/" + file.name
                if file.name.hasSuffix(".data"),
                    (((try? disk.status(stray)) ?? nil)?.allocatedBytes ?? 0) > 0
                {
                    quarantine(stray, reason: "the catalog does not know its layer \(layer)")
                } else {
                    try? disk.removeFile(stray)
                }
            }
            if !images.contains(image), !holders.contains(image) {
                for file in ["activity", "image.txt"] {
                    try? disk.removeFile(directory + "/" + file)
                }
                try? disk.removeDirectory(directory)
            }
        }
    }
}
