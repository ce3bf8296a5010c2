import BlockCore
import SystemIO

/// What one layer itself says of an image's blocks; all others are absent.
package struct LayerContents: Sendable {
    package var data = BlockSet()
    package var zero = BlockSet()

    package init() {}
    package init(_ extents: [MapExtent]) { for extent in extents { apply(extent) } }

    package mutating func apply(_ extent: MapExtent) {
        switch extent.state {
        case .data:
            data.insert(extent.range)
            zero.remove(extent.range)
        case .zero:
            zero.insert(extent.range)
            data.remove(extent.range)
        case .absent:
            data.remove(extent.range)
            zero.remove(extent.range)
        }
    }

    /// What of its data is read where a layer is above it.
    package func visibleData(below above: LayerContents) -> BlockSet {
        var visible = data
        visible.subtract(above.data)
        visible.subtract(above.zero)
        return visible
    }

    package static func read(
        disk: Disk, path: String, layer: LayerID
    ) throws(LayerError) -> LayerContents {
        var contents = LayerContents()
        _ = try LayerMapFile.open(
            disk: disk, path: path, layer: layer, isSealed: false, readOnly: true
        ) { contents.apply($0) }
        return contents
    }

    /// A root layer's data is what its file has; its holes are zeros of the image.
    package static func ofRoot(_ file: DiskFile) throws(LayerError) -> LayerContents {
        var contents = LayerContents()
        var position: UInt64 = 0
        try layered { () throws(SystemError) in
            while let start = try file.seekData(from: position) {
                let end = try file.seekHole(from: start) ?? start
                if end <= start { break }
                contents.data.insert(
                    BlockRange(coveringBytesAt: start, lengthBytes: end - start))
                position = end
            }
        }
        return contents
    }
}
