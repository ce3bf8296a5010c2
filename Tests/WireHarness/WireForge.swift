// Frames made by hand, from the document and not by the code under test: what they say may be anything, their
// checks are right.

import BlockCore

package enum WireForge {
    /// Makes the checks of one frame right, as far as it is all there.
    package static func seal(_ bytes: inout [UInt8]) {
        guard bytes.count >= 32 else { return }
        func store(_ value: UInt64, at offset: Int) {
            for index in 0..<8 {
                bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
            }
        }
        store(bytes[32...].withUnsafeBytes { blockHash($0) }, at: 16)
        store(bytes[..<24].withUnsafeBytes { blockHash($0, seed: 0x3157_4c45_5050_4f44) }, at: 24)
    }

    package static func frame(
        kind: UInt8, flags: UInt8 = 0, number: UInt64, body: some Collection<UInt8>
    ) -> [UInt8] {
        var bytes: [UInt8] = []
        func put(_ value: UInt64, _ count: Int) {
            for index in 0..<count { bytes.append(UInt8(truncatingIfNeeded: value >> (8 * index))) }
        }
        put(UInt64(body.count), 4)
        bytes += [kind, flags, 0, 0]
        put(number, 8)
        put(0, 16)
        bytes += body
        seal(&bytes)
        return bytes
    }
}
