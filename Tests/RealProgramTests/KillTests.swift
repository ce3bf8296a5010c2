import Glibc
import TestSupport
import Testing

/// SIGKILL under load, again and again: the pool opens by itself, and what was flushed is there.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct KillTests {
    @Test(arguments: Seeds.run(1)) func whatWasFlushedOutlivesEveryKill(seed: UInt64) throws {
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        try Sandbox.with { box in
            try box.ok("init", box.pool)
            var disks = (0..<3).map { StampedDisk(path: "\(box.mountPoint)/\($0).img", number: $0) }
            for disk in disks {
                try box.ok("create", box.pool, "\(disk.number).img", "--size", "2M")
            }
            for round in 0..<8 {
                try box.mount()
                for index in disks.indices { try disks[index].verify("round \(round)") }
                let seeds = disks.map { _ in random.next() }
                let threads = zip(disks, seeds).map { disk, seed in
                    TestThread {
                        var disk = disk
                        disk.load(SeededRandom(seed: seed))
                        return disk
                    }
                }
                var snapshots = 0
                let wanted = random.below(4)
                // Snapshots, merges and names go on meanwhile.
                for _ in 0..<wanted {
                    let name = "r\(round)-\(snapshots)"
                    try box.ok("snapshot", "create", box.pool, name)
                    snapshots += 1
                    try box.ok("create", box.pool, name, "--size", "1M")
                    if random.chance(50) { try box.ok("snapshot", "delete", box.pool, name) }
                }
                usleep(UInt32(random.below(300_000)))
                try box.killDaemon()
                disks = try threads.map { try $0.join() }
                #expect(disks.allSatisfy { $0.writes > 0 }, "there was load")
            }
            try box.mount()
            for index in disks.indices { try disks[index].verify("at the end") }
            try box.ok("check", box.pool)
            try box.ok("scrub", box.pool)
        }
    }
}

/// An image whose every block says which write it has, and what may be there after a kill.
private struct StampedDisk: Sendable {
    static let blockCount = 512
    static let blockBytes = 4096
    let path: String
    let number: Int
    /// For each block, what a flush made durable and what was written since, by number of the write.
    private var allowed = [[UInt64]](repeating: [0], count: blockCount)
    private var next: UInt64 = 1
    private(set) var writes = 0

    init(path: String, number: Int) {
        self.path = path
        self.number = number
    }

    private func block(_ index: Int, _ write: UInt64) -> [UInt8] {
        if write == 0 { return [UInt8](repeating: 0, count: Self.blockBytes) }
        var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: write), count: Self.blockBytes)
        for place in 0..<8 {
            bytes[place] = UInt8(truncatingIfNeeded: write >> (8 * UInt64(place)))
            bytes[Self.blockBytes - 1 - place] = bytes[place]
        }
        bytes[8] = UInt8(truncatingIfNeeded: index)
        bytes[9] = UInt8(truncatingIfNeeded: index >> 8)
        bytes[10] = UInt8(number)
        return bytes
    }

    /// Writes and flushes until the file fails.
    mutating func load(_ seeded: SeededRandom) {
        var random = seeded
        writes = 0
        guard let file = try? TestFile(path, O_RDWR) else { return }
        while true {
            for _ in 0..<1 + random.below(20) {
                let index = random.below(Self.blockCount)
                let write = next
                next += 1
                // A write that fails may have happened.
                allowed[index].append(write)
                let bytes = block(index, write)
                guard pwrite(file.fd, bytes, bytes.count, index * Self.blockBytes) == bytes.count
                else { return }
                writes += 1
            }
            guard fsync(file.fd) == 0 else { return }
            for index in allowed.indices where allowed[index].count > 1 {
                allowed[index] = [allowed[index].last!]
            }
        }
    }

    /// What is found is what the next load starts from.
    mutating func verify(_ when: String) throws {
        let bytes = try contents(path)
        for index in 0..<Self.blockCount {
            let start = index * Self.blockBytes
            // The newest first: mostly it is that one.
            let write = allowed[index].last { write in
                bytes.withUnsafeBytes {
                    memcmp($0.baseAddress! + start, block(index, write), Self.blockBytes) == 0
                }
            }
            guard let write else {
                throw Failure(
                    "\(when): block \(index) of \(path) has none of the writes "
                        + "\(allowed[index]), but \(Array(bytes[start..<start + 12]))")
            }
            allowed[index] = [write]
        }
    }
}
