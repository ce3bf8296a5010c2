// What cannot be seen from outside a mount: the price of the activity log beside the same volume
// without one, and the memory that dirty tracking takes.
//
//   swift run -c release volume-bench activity --folder /var/tmp
//   swift run -c release volume-bench dirty

import ArgumentParser
import BlockCore
import Foundation
import Pool
import Replication
import SystemIO
import Volume

struct VolumeBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "volume-bench",
        abstract: "Measure the way of a write, and what tracks it, without a mount.",
        subcommands: [ActivityBench.self, DirtyBench.self])
}

// MARK: The activity log

struct ActivityBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "activity",
        abstract: "Random writes of 4 KiB with the activity log and without, interleaved.")
    @Option(help: "A folder on a disk with room for two written images.") var folder = "/var/tmp"
    @Option(help: "Size of the image in MiB.") var size: UInt64 = 16 << 10
    @Option(help: "What warm writes go to, in MiB: at most 1,024 regions of 4 MiB.")
    var warm: UInt64 = 4000
    @Option var rounds = 9
    @Option(help: "Of each round of each job, in milliseconds.") var milliseconds = 1000

    func run() throws {
        let place = folder + "/doppel-volume-bench-\(getpid())"
        try FileManager.default.createDirectory(
            atPath: place, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: place) }
        let with = try Subject(place + "/with", hasLog: true, sizeBytes: size << 20)
        let without = try Subject(place + "/without", hasLog: false, sizeBytes: size << 20)
        for subject in [with, without] { try subject.fill(upTo: warm << 20) }
        var warmRates: [(Double, Double)] = []
        for round in 0...rounds {
            let seed = UInt64(round + 1)
            let a = try with.writes(within: warm << 20, milliseconds, seed: seed)
            let b = try without.writes(within: warm << 20, milliseconds, seed: seed)
            // The first round marks the regions.
            if round > 0 { warmRates.append((a, b)) }
        }
        report("warm, \(warm) MiB of \(size)", warmRates)
        for subject in [with, without] { try subject.fill(upTo: size << 20) }
        var cold: [(Double, Double)] = []
        for round in 0..<rounds {
            let seed = UInt64(round + 100)
            cold.append(
                (
                    try with.writes(within: size << 20, milliseconds, seed: seed),
                    try without.writes(within: size << 20, milliseconds, seed: seed)
                ))
        }
        report("cold, all of it", cold)
    }

    private func report(_ name: String, _ rates: [(Double, Double)]) {
        func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }
        let (with, without) = (median(rates.map(\.0)), median(rates.map(\.1)))
        let ratio = median(rates.map { $0.0 / $0.1 })
        print(
            "\(name): \(Int(with)) writes/s with the log, \(Int(without)) without, "
                + "median of the ratios \(String(format: "%.3f", ratio)) x")
    }
}

/// A volume with one image.
private final class Subject: @unchecked Sendable {  // set up in one thread, then only read
    let volume: Volume
    let image: Image

    init(_ path: String, hasLog: Bool, sizeBytes: UInt64) throws {
        let disk = LinuxDisk()
        try PoolStore.initialize(path: path, disk: disk) { tx in
            // What a replica's volume lacks is the log, and nothing else on the way of a write.
            if !hasLog { try tx.setReplica(ReplicaRecord(primaryPoolID: "bench")) }
        }
        volume = try Volume(
            store: try PoolStore.open(path: path, disk: disk),
            options: VolumeOptions(isReplica: !hasLog))
        image = hasLog ? try volume.createImage() : try volume.createImage(id: ImageID(rawValue: 1))
        try image.resize(to: sizeBytes)
    }

    /// So that no write has to find a place on the disk.
    func fill(upTo end: UInt64) throws {
        let chunk = UnsafeMutableRawBufferPointer.allocate(byteCount: 4 << 20, alignment: 4096)
        defer { chunk.deallocate() }
        var state: UInt64 = end
        for word in chunk.bindMemory(to: UInt64.self).indices {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            chunk.storeBytes(of: state, toByteOffset: word * 8, as: UInt64.self)
        }
        var offset: UInt64 = 0
        while offset < end {
            try image.write(UnsafeRawBufferPointer(chunk), at: offset)
            offset += UInt64(chunk.count)
        }
        try image.flush()
    }

    /// - Returns: writes a second.
    func writes(within span: UInt64, _ milliseconds: Int, seed: UInt64) throws -> Double {
        let block = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { block.deallocate() }
        block.initializeMemory(as: UInt8.self, repeating: UInt8(truncatingIfNeeded: seed))
        var state = seed
        var count = 0
        let clock = ContinuousClock()
        let start = clock.now
        let end = start + .milliseconds(milliseconds)
        while clock.now < end {
            for _ in 0..<64 {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                let number = (state >> 20) % (span >> 12)
                try image.write(UnsafeRawBufferPointer(block), at: number << 12)
            }
            count += 64
        }
        let elapsed = clock.now - start
        // Not measured: what one subject leaves to the disk must not fall on the other.
        try image.flush()
        return Double(count)
            / (Double(elapsed.components.seconds)
                + Double(elapsed.components.attoseconds) / 1e18)
    }
}

// MARK: Dirty tracking

struct DirtyBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dirty",
        abstract: "The memory that one target's dirty blocks take for each TiB of images.")
    @Option(help: "Blocks dirty in each region of 1,024.") var blocks: UInt64 = 10

    func run() throws {
        let regions: UInt64 = (1 << 40) >> Geometry.regionShift
        let before = try Self.residentBytes()
        var legs = DirtyLegs()
        var state: UInt64 = 1
        for region in 0..<regions {
            for _ in 0..<blocks {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                let block = region << 10 + (state >> 30) % 1024
                legs.enter(
                    StreamRecord(
                        .data, sequence: SequenceNumber(rawValue: 1), image: ImageID(rawValue: 1),
                        range: BlockRange(start: block, count: 1), imageSizeBytes: 1 << 40))
            }
        }
        let unwritten = try Self.residentBytes() - before
        _ = legs.takeUnwritten()
        let settled = try Self.residentBytes() - before
        withExtendedLifetime(legs) {}
        print(
            "\(blocks) blocks of each region of 1 TiB: \(unwritten >> 20) MiB until they are in the "
                + "dirty file, \(settled >> 20) MiB after")
    }

    private static func residentBytes() throws -> Int {
        let fields = try String(contentsOfFile: "/proc/self/statm", encoding: .utf8)
            .split(separator: " ")
        return Int(fields[1])! * 4096
    }
}

VolumeBench.main()
