import BlockCore
import Synchronization
import SystemIO
import Volume

/// What the open files of one inode share.
final class OpenInode: @unchecked Sendable {  // `files` is under the file system's lock
    /// Ticket of the last change of names that an fsync has to wait for.
    let ticket: Atomic<UInt64>
    var files: [ObjectIdentifier: OpenFile] = [:]

    init(ticket: UInt64) { self.ticket = Atomic(ticket) }

    var hasWriters: Bool { files.values.contains { $0.isWritable } }
}

/// An open file of the mount. Reads, writes and flushes go straight to what backs it.
package final class OpenFile: Sendable {
    package enum Backing: Sendable {
        case image(Image)
        case view(LayerView)
        case bytes([UInt8])
    }
    package enum Access: Sendable, Hashable { case read, write, readWrite }

    package let inode: UInt64
    package let backing: Backing
    package let access: Access
    /// The process that opened it; for messages that name who is in the way.
    package let clientPID: Int32
    private let shared: OpenInode
    private let fileSystem: VirtualFS

    init(
        inode: UInt64, backing: Backing, access: Access, clientPID: Int32, shared: OpenInode,
        fileSystem: VirtualFS
    ) {
        self.inode = inode
        self.backing = backing
        self.access = access
        self.clientPID = clientPID
        self.shared = shared
        self.fileSystem = fileSystem
    }

    package var isWritable: Bool { access != .read }
    package var isImmutable: Bool { if case .view = backing { true } else { false } }

    @inline(__always)
    package func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(FSError) -> Int {
        switch backing {
        case .image(let image):
            do throws(VolumeError) { return try image.read(into: buffer, at: offset) } catch {
                throw FSError(error)
            }
        case .view(let view):
            do throws(VolumeError) { return try view.read(into: buffer, at: offset) } catch {
                throw FSError(error)
            }
        case .bytes(let bytes):
            guard offset < UInt64(bytes.count) else { return 0 }
            let part = bytes[Int(offset)...].prefix(buffer.count)
            buffer.copyBytes(from: part)
            return part.count
        }
    }

    /// - Parameter reply: sent once, when the targets that a write waits for have it, by whichever
    ///   thread learns of it; not when this throws.
    @inline(__always)
    package func write(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64, _ reply: PendingReply
    ) throws(FSError) {
        guard case .image(let image) = backing else { throw FSError(.readOnly) }
        guard isWritable else { throw FSError(.badHandle) }
        do throws(VolumeError) {
            let place = try image.placedWrite(buffer, at: offset)
            fileSystem.volume.gate.finishWrite(place, of: image.id, reply)
        } catch { throw FSError(error) }
    }

    /// As the other, for who does not ask what targets have.
    package func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws(FSError) {
        guard case .image(let image) = backing else { throw FSError(.readOnly) }
        guard isWritable else { throw FSError(.badHandle) }
        do throws(VolumeError) { try image.write(buffer, at: offset) } catch {
            throw FSError(error)
        }
    }

    /// A change of this many bytes is not to begin now: see ``hold(bytes:_:)``.
    @inline(__always)
    package func mustHold(_ bytes: Int) -> Bool {
        guard case .image(let image) = backing else { return false }
        return image.mustHold(bytes)
    }

    /// Runs `body` later, when the image may go on; see ``HeldChanges``.
    package func hold(bytes: Int, _ body: @escaping @Sendable (_ isGivenUp: Bool) -> Void) {
        guard case .image(let image) = backing else { return body(false) }
        fileSystem.held.hold(image, bytes: bytes, body)
    }

    /// Replies when the targets that a write waits for have what was changed before the call: the end
    /// of a trim, an allocation or a resize.
    package func finishChange(_ reply: PendingReply) {
        guard let imageID else { return reply.send(reply.context, reply.value, 0) }
        let volume = fileSystem.volume
        volume.gate.finishWrite(volume.sequence, of: imageID, reply)
    }

    /// As ``flush()``, and on the targets that count. Returns when this machine has done its part.
    /// - Parameter reply: sent once, by whichever thread learns that all of it is done; not when this
    ///   throws.
    @inline(__always)
    package func flush(_ reply: PendingReply) throws(FSError) {
        let gate = fileSystem.volume.gate
        if case .image(let image) = backing {
            do throws(VolumeError) { try image.requireTargets() } catch { throw FSError(error) }
        }
        let sequence = gate.begin(fileSystem.volume.sequence)
        try flush()
        gate.finish(sequence, of: imageID, reply)
    }

    /// Makes the data, and the name where it is not durable yet, survive power loss here.
    package func flush() throws(FSError) {
        guard case .image(let image) = backing else { return }
        try fileSystem.requireUnfenced()
        try fileSystem.journal.waitDurable(shared.ticket.load(ordering: .acquiring))
        do throws(VolumeError) { try image.flush() } catch { throw FSError(error) }
    }

    @inline(__always)
    private var imageID: ImageID? { if case .image(let image) = backing { image.id } else { nil } }

    package func image() throws(FSError) -> Image {
        guard case .image(let image) = backing else { throw FSError(.readOnly) }
        return image
    }

    package func seekData(from offset: UInt64) throws(FSError) -> UInt64? {
        switch backing {
        case .image(let image):
            try volumed { () throws(VolumeError) in try image.seekData(from: offset) }
        case .view(let view):
            try volumed { () throws(VolumeError) in try view.seekData(from: offset) }
        case .bytes(let bytes): offset < UInt64(bytes.count) ? offset : nil
        }
    }
    package func seekHole(from offset: UInt64) throws(FSError) -> UInt64? {
        switch backing {
        case .image(let image):
            try volumed { () throws(VolumeError) in try image.seekHole(from: offset) }
        case .view(let view):
            try volumed { () throws(VolumeError) in try view.seekHole(from: offset) }
        case .bytes(let bytes): offset < UInt64(bytes.count) ? UInt64(bytes.count) : nil
        }
    }

    package func close() { fileSystem.closed(self) }
}
