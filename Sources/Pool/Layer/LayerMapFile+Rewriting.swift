// Rewriting a map whose chain of commits has grown far beyond what it says in the end.
//
//   read      the map so far, while commits may go on            nothing is changed
//   write     `.new` beside it: what it says, synced             crash: `.new` is removed at open
//   hold      no commit from here on (the caller)
//   follow    what was committed meanwhile, synced, then a slot  crash: as above
//             that names the end, synced
//   rename    over the map                                       crash: either file; they say the same
//   directory synced; only then may commits go to the new file

import BlockCore
import SystemIO

/// A rewritten map that does not have its name yet.
package struct RewrittenMap {
    /// Reads on in the old file.
    fileprivate let source: LayerMapFile
    fileprivate let map: LayerMapFile
    fileprivate let path: String
}

extension LayerMapFile {
    /// Bytes of records that these contents need.
    package static func bytesNeeded(for contents: LayerContents) -> UInt64 {
        let extents = contents.data.ranges.count + contents.zero.ranges.count
        return bytesNeeded(after: 0, extentCount: extents)
    }

    /// Writes what the map says into a new file beside it; nil when that is not much shorter.
    package static func rewrite(
        disk: Disk, path: String, layer: LayerID, image: ImageID, unlessAbove limitBytes: UInt64
    ) throws(LayerError) -> RewrittenMap? {
        var contents = LayerContents()
        let source = try open(
            disk: disk, path: path, layer: layer, isSealed: false, readOnly: true
        ) { contents.apply($0) }
        guard let last = source.lastCommit, bytesNeeded(for: contents) <= limitBytes else {
            return nil
        }
        let temporary = path + ".new"
        do throws(LayerError) {
            let map = try create(
                disk: disk, path: temporary, layer: layer, image: image,
                imageSizeBytes: last.imageSizeBytes, sequence: last.sequence)
            let extents =
                contents.data.ranges.map { MapExtent(range: $0, state: .data) }
                + contents.zero.ranges.map { MapExtent(range: $0, state: .zero) }
            // A slot may name what is not durable yet: nobody reads the file before it has its name.
            try map.append(
                extents, imageSizeBytes: last.imageSizeBytes, sequence: last.sequence,
                isSealed: false)
            try layered { () throws(SystemError) in try map.file.sync() }
            return RewrittenMap(source: source, map: map, path: path)
        } catch {
            try? disk.removeFile(temporary)
            throw error
        }
    }

    /// Gives a rewritten map the name of this one. No commit may be under way until it returns.
    /// - Parameter noted: extents that the next commit has already (Layer's L4).
    /// - Throws: the old map is in force still; unless `isInDoubt` says that nobody knows.
    package func put(
        _ rewritten: RewrittenMap, disk: Disk, noted: Int, isInDoubt: inout Bool,
        adopt: (LayerMapFile) -> Void
    ) throws(LayerError) {
        let (source, map, path) = (rewritten.source, rewritten.map, rewritten.path)
        do throws(LayerError) {
            var extents: [MapExtent] = []
            try source.readOn(to: endOffset) { extents.append($0) }
            guard let last = source.lastCommit, source.endOffset == endOffset, last == lastCommit
            else { throw .damaged(path: path, reason: "it is not what was written") }
            try map.append(
                extents, imageSizeBytes: last.imageSizeBytes, sequence: last.sequence,
                isSealed: last.isSealed)
            try layered { () throws(SystemError) in
                try map.reserve(
                    to: Self.bytesNeeded(after: map.endOffset, extentCount: noted + 1))
                try map.file.sync()
                try map.writeSlot(naming: map.lastCommit!)
                try map.file.sync()
                try disk.rename(path + ".new", to: path)
            }
        } catch {
            try? disk.removeFile(path + ".new")
            throw error
        }
        isInDoubt = true
        try layered { () throws(SystemError) in
            try disk.syncDirectory(parentPath(path))
            map.file = try disk.open(path, .readWrite)
        }
        adopt(map)
        isInDoubt = false
    }

    /// Takes the place of this map in memory; the caller holds the layer's lock.
    func takeOver(_ other: LayerMapFile) {
        file = other.file
        lastCommit = other.lastCommit
        chain = other.chain
        endOffset = other.endOffset
        allocatedEnd = other.allocatedEnd
    }

    private func readOn(to end: UInt64, each: (MapExtent) -> Void) throws(LayerError) {
        guard end > endOffset else { return }
        var bytes = [UInt8](repeating: 0, count: Int(end - endOffset))
        let base = endOffset
        let got = try layered { () throws(SystemError) in
            try bytes.withTypedMutableBytes { (raw) throws(SystemError) in
                try file.read(into: raw, at: base)
            }
        }
        bytes.withUnsafeBytes { raw in
            replay(UnsafeRawBufferPointer(rebasing: raw[0..<got]), base: base, each: each)
        }
    }
}
