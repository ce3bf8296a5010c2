import BlockCore
import Replication
import TestSupport
import Testing

@testable import Pool
@testable import Targets
@testable import Volume

@Suite struct ComparedMirrorTests {
    /// What a mirror has behind an image's end is in no block that the image had when everything was compared.
    @Test(arguments: [0, 10]) func anImageThatGrowsMeanwhileGrowsOverNothing(blocks: UInt64) throws
    {
        let pair = try RecoveryPair(mode: .flush)
        let image = pair.images[0]
        _ = try pattern(9000, seed: 5).withUnsafeBytes { try image.write($0, at: 1000 * 4096) }
        try pair.untilLevel()
        // Added again it is one of which nothing is known.
        try pair.hub.remove(RecoveryPair.first)
        try image.resize(to: blocks * 4096)
        let again = try pair.hub.add(
            TargetRecord(
                address: "/mirror", poolID: "mirror", mode: .flush, timeoutMs: 5000, addedNs: 0)
        ).id
        let target = try #require(pair.hub.target(again))
        let driver = try #require(target.driver)
        var wasCompared = false
        for _ in 0..<100 where !wasCompared {
            let before = driver.snapshot.state
            _ = driver.step()
            wasCompared = before == .negotiating && driver.snapshot.state == .resyncing
        }
        #expect(wasCompared)
        try image.resize(to: 2048 * 4096)
        try pair.untilLevel(again)
        let expected = try pair.contents()
        #expect(pair.hub.close())
        let shown = try #require(try pair.mirror.showAlone())
        for (id, bytes) in expected {
            #expect(
                difference(try #require(shown.images[id]), from: bytes) == nil,
                "image \(id.rawValue)")
        }
    }
}
