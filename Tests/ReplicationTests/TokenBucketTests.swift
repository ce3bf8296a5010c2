import BlockCore
import Replication
import Testing

@Suite struct TokenBucketTests {
    /// Over any stretch of time as much passes as the rate says, whatever the pieces.
    @Test(arguments: [UInt64(512), 4096, 100_000, 4 << 20])
    func asMuchPassesAsTheRateSays(piece: UInt64) {
        var bucket = TokenBucket(bytesPerSecond: 1 << 20)
        var (now, passed): (Int64, UInt64) = (5_000_000_000, 0)
        let end = now + 60_000_000_000
        while now < end {
            if let waitNs = bucket.take(piece, nowNs: now) {
                now += waitNs
            } else {
                passed += piece
            }
        }
        let expected = UInt64(60 << 20)
        #expect(passed >= expected && passed <= expected + 2 * piece + (1 << 20) / 10)
    }

    @Test func aPauseIsNoLicenceForABurst() {
        var bucket = TokenBucket(bytesPerSecond: 1 << 20)
        #expect(bucket.take(1, nowNs: 0) == nil)
        let later: Int64 = 3_600_000_000_000
        var passed: UInt64 = 0
        while bucket.take(4096, nowNs: later) == nil { passed += 4096 }
        #expect(passed <= (1 << 20) / 10 + 4096)
    }

    @Test func piecesOfASlowTargetAreSmall() {
        #expect(TokenBucket(bytesPerSecond: 1).chunkBlocks == 1)
        #expect(TokenBucket(bytesPerSecond: 20 << 20).chunkBlocks == 256)
    }
}
