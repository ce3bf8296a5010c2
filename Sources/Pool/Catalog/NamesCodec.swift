// Changes of names as bytes, for the write stream, a target's journal and the wire.
//
//   version    4   1
//   count      4
//   changes        count of them, each:
//     tag      1   1 = put, 2 = remove
//     id       8   and that is all of a remove
//     kind     1   as in `NodeRecord.Kind`
//     flags    1   bit 0 = has a parent, 1 = symlink, 2 = image
//     mode, uid, gid                     4 each
//     accessed, modified, changed        8 each, nanoseconds since 1970
//     parent                             8, where flagged
//     name                               4 length, bytes
//     symlink                            4 length, bytes, where flagged
//     image                              8, where flagged
//     xattrs                             4 count, then name and value, each 4 length, bytes;
//                                        ascending by the bytes of their names
//
// All little-endian. One list of changes has one encoding: what does not encode to the very bytes
// it was decoded from is refused.

import BlockCore

/// A change of one name. Both are absolute, so applying a stretch of changes twice leaves what
/// applying it once leaves.
package enum NameChange: Sendable, Hashable {
    case put(NodeRecord)
    case remove(NodeID)
}

package enum NamesCodec {
    private static let version: UInt32 = 1
    private static let shortestChangeBytes = 9

    // MARK: Encoding

    package static func encode(_ changes: [NameChange]) -> [UInt8] {
        var writer = ByteWriter(capacity: 8 + changes.count * 128)
        writer.put(version)
        writer.put(UInt32(changes.count))
        for change in changes {
            switch change {
            case .remove(let id):
                writer.put(UInt8(2))
                writer.put(id.rawValue)
            case .put(let node):
                writer.put(UInt8(1))
                put(node, &writer)
            }
        }
        return writer.bytes
    }

    private static func put(_ node: NodeRecord, _ writer: inout ByteWriter) {
        writer.put(node.id.rawValue)
        writer.put(UInt8(node.kind.rawValue))
        writer.put(
            UInt8(node.parentID == nil ? 0 : 1) | (node.symlinkTarget == nil ? 0 : 2)
                | (node.imageID == nil ? 0 : 4))
        for word in [node.mode, node.uid, node.gid] { writer.put(word) }
        for time in [node.accessNs, node.modifyNs, node.changeNs] { writer.put(time) }
        if let parent = node.parentID { writer.put(parent.rawValue) }
        writer.putCounted(node.name)
        if let target = node.symlinkTarget { writer.putCounted(target) }
        if let image = node.imageID { writer.put(image.rawValue) }
        writer.put(UInt32(node.xattrs.count))
        let sorted = node.xattrs.map { (name: Array($0.key.utf8), value: $0.value) }
            .sorted { $0.name.lexicographicallyPrecedes($1.name) }
        for (name, value) in sorted {
            writer.putCounted(name)
            writer.putCounted(value)
        }
    }

    // MARK: Decoding

    /// - Returns: nil for anything that ``encode(_:)`` does not make.
    package static func decode(_ bytes: UnsafeRawBufferPointer) -> [NameChange]? {
        var reader = CheckedReader(bytes)
        guard reader.take(UInt32.self) == version, let count = reader.take(UInt32.self),
            // Nothing is reserved for a count that the bytes cannot hold.
            Int(count) <= reader.remaining / shortestChangeBytes
        else { return nil }
        var changes: [NameChange] = []
        changes.reserveCapacity(Int(count))
        for _ in 0..<count {
            guard let tag = reader.take(UInt8.self), let id = nodeID(&reader) else { return nil }
            switch tag {
            case 1:
                guard let node = node(id, &reader) else { return nil }
                changes.append(.put(node))
            case 2: changes.append(.remove(id))
            default: return nil
            }
        }
        return reader.remaining == 0 ? changes : nil
    }

    private static func nodeID(_ reader: inout CheckedReader) -> NodeID? {
        reader.take(UInt64.self).map(NodeID.init).flatMap { $0.isPlausible ? $0 : nil }
    }

    private static func node(_ id: NodeID, _ reader: inout CheckedReader) -> NodeRecord? {
        guard let kindByte = reader.take(UInt8.self),
            let kind = NodeRecord.Kind(rawValue: Int(kindByte)),
            let flags = reader.take(UInt8.self), flags < 8,
            let mode = reader.take(UInt32.self), let uid = reader.take(UInt32.self),
            let gid = reader.take(UInt32.self), let accessNs = reader.take(Int64.self),
            let modifyNs = reader.take(Int64.self), let changeNs = reader.take(Int64.self)
        else { return nil }
        var parent: NodeID?
        if flags & 1 != 0 {
            guard let id = nodeID(&reader) else { return nil }
            parent = id
        }
        guard let name = reader.takeCounted() else { return nil }
        var node = NodeRecord(
            id: id, parentID: parent, name: name, kind: kind, mode: mode, uid: uid, gid: gid,
            accessNs: accessNs, modifyNs: modifyNs, changeNs: changeNs)
        if flags & 2 != 0 {
            guard let target = reader.takeCounted() else { return nil }
            node.symlinkTarget = target
        }
        if flags & 4 != 0 {
            guard let image = reader.take(Int64.self).map(ImageID.init), image.isPlausible else {
                return nil
            }
            node.imageID = image
        }
        guard let xattrs = xattrs(&reader) else { return nil }
        node.xattrs = xattrs
        return node
    }

    private static func xattrs(_ reader: inout CheckedReader) -> [String: [UInt8]]? {
        guard let count = reader.take(UInt32.self) else { return nil }
        var result: [String: [UInt8]] = [:]
        var last: [UInt8]?
        for _ in 0..<count {
            guard let name = reader.takeCounted(), let value = reader.takeCounted(),
                last.map({ $0.lexicographicallyPrecedes(name) }) ?? true,
                let text = String(validating: name, as: UTF8.self),
                result.updateValue(value, forKey: text) == nil
            else { return nil }
            last = name
        }
        return result
    }
}

extension ByteWriter {
    /// Length, then the bytes.
    fileprivate mutating func putCounted(_ bytes: [UInt8]) {
        put(UInt32(bytes.count))
        append(bytes)
    }
}

/// Reads fields from bytes that may be anything.
private struct CheckedReader {
    private var reader: ByteReader
    private let bytes: UnsafeRawBufferPointer

    init(_ bytes: UnsafeRawBufferPointer) {
        self.bytes = bytes
        reader = ByteReader(bytes)
    }

    var remaining: Int { reader.remaining }

    mutating func take<T: FixedWidthInteger>(_ type: T.Type) -> T? {
        reader.remaining >= MemoryLayout<T>.size ? reader.take(type) : nil
    }

    mutating func takeCounted() -> [UInt8]? {
        guard let count = take(UInt32.self), Int(count) <= remaining else { return nil }
        let start = reader.position
        reader.skip(Int(count))
        return [UInt8](bytes[start..<start + Int(count)])
    }
}
