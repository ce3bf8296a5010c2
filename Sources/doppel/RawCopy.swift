import BlockCore
import Daemon
import SystemIO
import Volume

/// Copies raw content, holes staying holes.
enum RawCopy {
    enum End: Sendable {
        case file(DiskFile)
        case image(Image)
        case view(LayerView)

        func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws -> Int {
            switch self {
            case .file(let file): try file.read(into: buffer, at: offset)
            case .image(let image): try image.read(into: buffer, at: offset)
            case .view(let view): try view.read(into: buffer, at: offset)
            }
        }
        func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws {
            switch self {
            case .file(let file): try file.write(buffer, at: offset)
            case .image(let image): try image.write(buffer, at: offset)
            case .view: preconditionFailure("a snapshot is never written")
            }
        }
        func seekData(_ offset: UInt64) throws -> UInt64? {
            switch self {
            case .file(let file): try file.seekData(from: offset)
            case .image(let image): try image.seekData(from: offset)
            case .view(let view): try view.seekData(from: offset)
            }
        }
        func seekHole(_ offset: UInt64) throws -> UInt64? {
            switch self {
            case .file(let file): try file.seekHole(from: offset)
            case .image(let image): try image.seekHole(from: offset)
            case .view(let view): try view.seekHole(from: offset)
            }
        }
        func sizeBytes() throws -> UInt64 {
            switch self {
            case .file(let file): try file.status().sizeBytes
            case .image(let image): image.sizeBytes
            case .view(let view): view.sizeBytes
            }
        }
        func finish(sizeBytes: UInt64) throws {
            switch self {
            case .file(let file):
                try file.truncate(to: sizeBytes)
                try file.sync()
            case .image(let image):
                try image.resize(to: sizeBytes)
                try image.flush()
            case .view: break
            }
        }
    }

    /// Standard input, which cannot be sought: runs of zeros become holes.
    static func copyStream(to target: End, _ progress: Progress) throws {
        let stream = StandardStream.input
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        var position: UInt64 = 0
        while true {
            let got = try stream.read(into: buffer)
            if got == 0 { break }
            let part = UnsafeRawBufferPointer(rebasing: buffer[0..<got])
            if part.contains(where: { $0 != 0 }) { try target.write(part, at: position) }
            position += UInt64(got)
            progress.update(position)
        }
        try target.finish(sizeBytes: position)
    }

    /// To standard output, holes as zeros.
    static func copyStream(from source: End, _ progress: Progress) throws {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        let size = try source.sizeBytes()
        var position: UInt64 = 0
        while true {
            let got = try source.read(into: buffer, at: position)
            if got == 0 { return }
            try StandardStream.output.write(UnsafeRawBufferPointer(rebasing: buffer[0..<got]))
            position += UInt64(got)
            progress.update(position, of: size)
        }
    }
}
