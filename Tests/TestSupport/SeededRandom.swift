import Foundation

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): the same
/// numbers for the same seed, on every machine.
package struct SeededRandom: RandomNumberGenerator, Sendable {
    private var state: UInt64

    package init(seed: UInt64) { state = seed }

    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// 0 ..< limit; 0 for a limit below 1.
    package mutating func below(_ limit: Int) -> Int {
        limit < 2 ? 0 : Int(next() % UInt64(limit))
    }
    package mutating func chance(_ percent: Int) -> Bool { below(100) < percent }
    package mutating func bytes(_ count: Int) -> [UInt8] {
        var word = next()
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            let raw = UnsafeMutableRawBufferPointer(buffer)
            for start in stride(from: 0, to: count, by: 8) {
                word = word &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                // The low bits of such a sequence repeat soon: the high half, twice.
                let mixed = (word >> 32 | word & 0xffff_ffff_0000_0000).littleEndian
                guard count - start < 8 else {
                    raw.storeBytes(of: mixed, toByteOffset: start, as: UInt64.self)
                    continue
                }
                withUnsafeBytes(of: mixed) { bytes in
                    for index in 0..<count - start { raw[start + index] = bytes[index] }
                }
            }
            filled = count
        }
    }
}

/// The seeds of one run: DOPPEL_SEED=n replays one, DOPPEL_SOAK=n runs n times as many.
package enum Seeds {
    package static func run(_ count: Int) -> [UInt64] {
        let environment = ProcessInfo.processInfo.environment
        if let one = environment["DOPPEL_SEED"].flatMap(UInt64.init) { return [one] }
        let factor = environment["DOPPEL_SOAK"].flatMap(Int.init) ?? 1
        return (1...max(count * factor, 1)).map { UInt64($0) }
    }
}
