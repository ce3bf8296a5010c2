import CXXHash

/// XXH3, 64 bits: guards against rot and torn writes, not against an adversary.
package func blockHash(_ bytes: UnsafeRawBufferPointer, seed: UInt64 = 0) -> UInt64 {
    doppel_xxh3_64(bytes.baseAddress, bytes.count, seed)
}

/// The same of bytes that lie in up to three places.
package func blockHash(
    _ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer,
    _ third: UnsafeRawBufferPointer
) -> UInt64 {
    doppel_xxh3_64_joined(
        first.baseAddress, first.count, second.baseAddress, second.count, third.baseAddress,
        third.count)
}
