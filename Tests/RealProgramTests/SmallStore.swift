// A small real disk under a pool: ext4 in a file, on a loop device, so that "full" is what a kernel
// makes of it (delayed allocation, metadata, blocks kept for root).

import Glibc
import TestSupport

final class SmallStore {
    let folder: String
    private let disk: GuestDisk
    private let bytes: Int
    var path: String { disk.folder }

    private init(megabytes: Int) throws {
        bytes = megabytes << 20
        folder = try makeTemporaryFolder()
        disk = GuestDisk("ext4", at: folder + "/store")
    }

    static func with(megabytes: Int, _ body: (SmallStore) throws -> Void) throws {
        let store = try SmallStore(megabytes: megabytes)
        defer { store.remove() }
        let image = store.folder + "/disk"
        _ = try TestFile(image)
        guard truncate(image, store.bytes) == 0 else { throw Failure("truncate: errno \(errno)") }
        try store.disk.attach(image)
        try store.disk.format()
        try store.disk.mount()
        try body(store)
    }

    private func remove() {
        disk.detach()
        _ = try? run(["rm", "-rf", "--one-file-system", folder])
    }

    var freeBytes: Int {
        var figures = statvfs()
        guard statvfs(path, &figures) == 0 else { return -1 }
        return Int(figures.f_bavail) * Int(figures.f_frsize)
    }

    /// Somebody else takes all that is left, to the last block.
    func fill() throws {
        let file = try TestFile(path + "/somebody-else")
        var offset = file.size
        for count in [1 << 20, 4096] {
            let bytes = [UInt8](repeating: 0x55, count: count)
            while pwrite(file.fd, bytes, count, offset) == count { offset += count }
        }
        _ = fsync(file.fd)
    }

    func empty() { unlink(path + "/somebody-else") }
}
