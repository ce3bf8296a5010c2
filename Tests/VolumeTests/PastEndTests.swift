import BlockCore
import Foundation
import Pool
import SystemIO
import TestSupport
import Testing
import Volume

/// What a crash leaves past an image's end is zeros when the image grows again.
@Suite struct PastEndTests {
    /// - Parameter isCut: whether a cut that was not settled lies between the write and the crash.
    @Test(arguments: [false, true])
    func anAppendThatWasLostDoesNotTurnUpAgain(isCut: Bool) throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let (_, volume) = try open(folder + "/pool", new: true)
        let image = try volume.createImage()
        try write(pattern(5000), to: image, at: 0)
        _ = try volume.createSnapshot(name: "s") { { [] } }
        try write(pattern(100, seed: 2), to: image, at: 5000)
        try image.flush()
        // In the same block, in the file, and in no commit.
        try write(pattern(600, seed: 3), to: image, at: 5100)

        // A copy of the files as they are now is what a killed process leaves.
        func crash() throws {
            try FileManager.default.copyItem(atPath: folder + "/pool", toPath: folder + "/after")
        }
        if isCut {
            // Asked for when the heads are switched and nothing of the old ones is durable yet.
            _ = try volume.createSnapshot(name: "cut off") {
                let result = Result { try crash() }
                return {
                    #expect(throws: Never.self) { try result.get() }
                    return []
                }
            }
        } else {
            try crash()
        }
        let (_, recovered) = try open(folder + "/after", new: false)
        let found = try recovered.image(image.id)
        #expect(found.sizeBytes == 5100)
        try found.resize(to: 20_000)
        var bytes = [UInt8](repeating: 0xee, count: 20_000)
        let got = try bytes.withUnsafeMutableBytes { try found.read(into: $0, at: 0) }
        #expect(got == 20_000)
        #expect(Array(bytes[..<5100]) == pattern(5000) + pattern(100, seed: 2))
        #expect(bytes[5100...].allSatisfy { $0 == 0 })
        try recovered.close()
    }

    private func open(_ path: String, new: Bool) throws -> (PoolStore, Volume) {
        if new { try PoolStore.initialize(path: path, disk: LinuxDisk()) }
        let store = try PoolStore.open(path: path, disk: LinuxDisk())
        return (store, try Volume(store: store, options: VolumeOptions(runsInBackground: false)))
    }

    private func write(_ bytes: [UInt8], to image: Image, at offset: UInt64) throws {
        try bytes.withUnsafeBytes { try image.write($0, at: offset) }
    }
}
