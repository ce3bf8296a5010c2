import BlockCore
import TestSupport
import Testing

@testable import Replication

/// When it is compressed, on a clock that is the test's own.
@Suite struct CompressionPolicyTests {
    /// A line, a processor, and what is sent: frames of one size, one after the other.
    private struct Line {
        var policy = CompressionPolicy()
        var choice = CompressionChoice.auto
        /// nil: it keeps up, whatever is sent.
        var lineBytesPerSecond: Double?
        var zstdBytesPerSecond = 400e6
        /// How many bytes become one.
        var shrinks = 3.0
        var frameBytes = 256 << 10
        var nowNs: Int64 = 0
        var rawBytes = 0
        var packedFrames = 0
        var packingNs: Int64 = 0

        /// - Returns: how long it took, in seconds.
        mutating func send(frames: Int) -> Double {
            let beganNs = nowNs
            for _ in 0..<frames {
                let line = lineBytesPerSecond.map { UInt64($0) }
                var sent = Double(frameBytes)
                if policy.wants(choice, frameBytes: frameBytes, line: line, nowNs: nowNs) {
                    let tookNs = Int64(Double(frameBytes) * 1e9 / zstdBytesPerSecond)
                    sent = max(min(sent / shrinks, sent), 1)
                    nowNs += tookNs
                    packingNs += tookNs
                    packedFrames += 1
                    policy.note(
                        rawBytes: frameBytes, saved: frameBytes - Int(sent), tookNs: tookNs,
                        line: line, nowNs: nowNs)
                }
                nowNs += Int64(sent * 1e9 / (lineBytesPerSecond ?? 2e9))
                rawBytes += frameBytes
            }
            return Double(nowNs - beganNs) / 1e9
        }
    }

    @Test func onASlowLineWhatShrinksIsCompressed() {
        var line = Line(lineBytesPerSecond: 12.5e6)
        let seconds = line.send(frames: 1000)
        #expect(line.packedFrames == 1000)
        let plain = Double(line.rawBytes) / 12.5e6
        #expect(seconds < plain / 2.5, "\(seconds) s instead of \(plain)")
    }

    /// What is tried in vain is a small part of the time, and less and less.
    @Test func whatDoesNotShrinkIsLeftAlone() {
        var line = Line(lineBytesPerSecond: 12.5e6, shrinks: 1)
        _ = line.send(frames: 4000)
        #expect(line.packedFrames > 3, "it is tried now and then")
        #expect(line.packedFrames < 30, "\(line.packedFrames)")
        #expect(line.packingNs < line.nowNs / 1000)
    }

    @Test func aLineThatKeepsUpIsSentWhatThereIs() {
        var line = Line(lineBytesPerSecond: nil)
        _ = line.send(frames: 1000)
        #expect(line.packedFrames == 0)
        // Faster than compressing: it would only be longer in coming.
        line.lineBytesPerSecond = 900e6
        let seconds = line.send(frames: 100_000)
        #expect(line.packedFrames < 100)
        #expect(seconds < 1.01 * 100_000 * 262_144 / 900e6)
    }

    /// What is sent changes, and so does the line; it follows within seconds, both ways.
    @Test func itFollowsWhatChanges() {
        var line = Line(lineBytesPerSecond: 12.5e6)
        _ = line.send(frames: 100)
        #expect(line.policy.state == .compressing)
        line.shrinks = 1
        _ = line.send(frames: 40)
        guard case .resting = line.policy.state else {
            Issue.record("\(line.policy.state)")
            return
        }
        // However long it did not pay.
        _ = line.send(frames: 4000)
        line.shrinks = 4
        let before = line.packedFrames
        var seconds = 0.0
        while line.policy.state != .compressing { seconds += line.send(frames: 1) }
        #expect(seconds < 17, "\(seconds)")
        #expect(line.packedFrames - before <= 2)
        line.lineBytesPerSecond = nil
        _ = line.send(frames: 17)
        #expect(line.policy.state == .resting(untilNs: .min))
        // A line that is slow again is not made to wait for a pause.
        line.lineBytesPerSecond = 1e6
        _ = line.send(frames: 1)
        #expect(line.policy.state == .compressing)
    }

    @Test func whatWasChosenIsDone() {
        var line = Line(choice: .on, lineBytesPerSecond: nil, shrinks: 1)
        _ = line.send(frames: 100)
        #expect(line.packedFrames == 100)
        line.choice = .off
        line.lineBytesPerSecond = 1e3
        line.shrinks = 100
        _ = line.send(frames: 100)
        #expect(line.packedFrames == 100)
        line.choice = .auto
        line.nowNs += CompressionPolicy.longestPauseNs
        _ = line.send(frames: 100)
        #expect(line.packedFrames == 200)
        line.frameBytes = CompressionPolicy.leastBytes - 1
        _ = line.send(frames: 100)
        #expect(line.packedFrames == 200, "there is nothing to gain")
    }

    /// Whatever the line and the content do: it costs next to nothing where it does not help, and is used where it
    /// does.
    @Test(arguments: Seeds.run(20)) func itIsNearTheBestOfBoth(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var line = Line()
        var best = 0.0
        for _ in 0..<10 {
            line.lineBytesPerSecond = [1e6, 10e6, 100e6][random.below(3)]
            line.shrinks = [1.0, 1.02, 2, 10][random.below(4)]
            line.frameBytes = [16 << 10, 64 << 10, 1 << 20][random.below(3)]
            let rate = line.lineBytesPerSecond!
            // As long as half a minute, so that what it takes to notice is little of it.
            let frames = Int(30 * rate) / line.frameBytes + 1
            let plain = Double(frames * line.frameBytes) / rate
            let packed = plain / line.shrinks + Double(frames * line.frameBytes) / 400e6
            best += min(plain, packed)
            _ = line.send(frames: frames)
        }
        let seconds = Double(line.nowNs) / 1e9
        #expect(seconds < best * 1.35, "seed \(seed): \(seconds) s instead of \(best)")
    }

    // MARK: The line

    @Test func aLineIsAsFastAsItWas() {
        let line = LineRate()
        #expect(line.current(nowNs: 0) == nil)
        line.note(1 << 20, inNs: 100_000_000, nowNs: 5)
        #expect(line.current(nowNs: 5) == 10 << 20)
        for _ in 0..<10 { line.note(1 << 20, inNs: 1_000_000_000, nowNs: 9) }
        let now = line.current(nowNs: 10) ?? 0
        #expect((1 << 20)..<(11 << 17) ~= now, "\(now)")
        #expect(line.current(nowNs: 9 + LineRate.memoryNs) == nil, "it keeps up since then")
    }
}
