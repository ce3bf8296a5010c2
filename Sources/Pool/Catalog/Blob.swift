import Foundation

/// Bytes as SQLite blobs: names are not always UTF-8.
enum Blob {
    static func encode(_ bytes: [UInt8]) -> Data { Data(bytes) }
    static func bytes(_ data: Data?) -> [UInt8] { data.map { [UInt8]($0) } ?? [] }
    static func optionalBytes(_ data: Data?) -> [UInt8]? { data.map { [UInt8]($0) } }

    /// Count, then for each attribute: length of the name, name, length of the value, value.
    static func encode(_ attributes: [String: [UInt8]]) -> Data {
        var writer = ByteWriter(capacity: 256)
        writer.put(UInt32(attributes.count))
        for (name, value) in attributes.sorted(by: { $0.key < $1.key }) {
            for part in [Array(name.utf8), value] {
                writer.put(UInt32(part.count))
                for byte in part { writer.put(byte) }
            }
        }
        return Data(writer.bytes)
    }

    static func attributes(_ data: Data?) -> [String: [UInt8]] {
        guard let data else { return [:] }
        let bytes = [UInt8](data)
        return bytes.withUnsafeBytes { raw in
            var reader = ByteReader(raw)
            guard reader.remaining >= 4 else { return [:] }
            var result: [String: [UInt8]] = [:]
            func part() -> [UInt8]? {
                guard reader.remaining >= 4 else { return nil }
                let count = Int(reader.take(UInt32.self))
                guard reader.remaining >= count else { return nil }
                return (0..<count).map { _ in reader.take(UInt8.self) }
            }
            for _ in 0..<reader.take(UInt32.self) {
                guard let name = part(), let value = part() else { break }
                result[String(decoding: name, as: UTF8.self)] = value
            }
            return result
        }
    }
}
