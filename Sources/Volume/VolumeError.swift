import BlockCore
import Pool
import SystemIO

/// A request on an image, a snapshot or the whole volume that failed: what happened, to which
/// image, and what to do next.
package struct VolumeError: Error, CustomStringConvertible, Sendable {
    package enum Kind: Sendable, Hashable {
        case noSpace, io, latched, checksum, readOnly, tooLarge, busy, damaged, notFound, exists
        case invalid
    }

    package var kind: Kind
    package var image: ImageID?
    package var message: String
    package var errno: Int32

    package init(_ kind: Kind, image: ImageID? = nil, errno: Int32 = 0, _ message: String) {
        self.kind = kind
        self.image = image
        self.errno = errno
        self.message = message
    }

    package init(_ error: SystemError, image: ImageID? = nil) {
        if error.isTooLarge {
            self.init(
                .tooLarge, image: image, errno: error.errno,
                "\(error.description): the pool's file system (ext4 ends at 16 TiB), or a limit on "
                    + "the size of files (`ulimit -f`), does not take an image this large; make it "
                    + "smaller, or move the pool to a file system for larger files, such as XFS")
            return
        }
        self.init(
            error.isNoSpace ? .noSpace : .io, image: image, errno: error.errno, error.description)
    }

    package init(_ error: LayerError, image: ImageID? = nil) {
        switch error {
        case .system(let system): self.init(system, image: image)
        case .damaged: self.init(.damaged, image: image, error.description)
        case .checksumMismatch: self.init(.checksum, image: image, error.description)
        }
    }

    static func latched(_ image: ImageID, _ failure: VolumeError) -> VolumeError {
        VolumeError(
            .latched, image: image, errno: failure.errno,
            "an earlier sync failed (\(failure.message)); check the disk, then remount")
    }

    /// Something is wrong with this image alone: the others can be served. A store that is full or a
    /// process without descriptors says nothing about an image.
    var isOfOneImage: Bool {
        switch kind {
        case .damaged, .checksum: true
        case .io: errno == Self.notFoundErrno || errno == Self.ioErrno
        default: false
        }
    }
    /// The disk did not give something back, or did not make it durable; the next time it may.
    var isOfTheDisk: Bool { kind == .io && errno == Self.ioErrno }
    private static var notFoundErrno: Int32 { 2 }  // ENOENT: a file that must be there
    private static var ioErrno: Int32 { 5 }  // EIO: a disk that does not give it back

    package var description: String {
        image.map { "image \($0.rawValue): \(message)" } ?? message
    }
}

extension VolumeError {
    /// Runs `body`, turning what the store says into what a user of the volume is told.
    @inline(__always)
    static func wrapping<T>(
        _ image: ImageID? = nil, _ body: () throws(LayerError) -> T
    ) throws(VolumeError) -> T {
        do throws(LayerError) { return try body() } catch { throw VolumeError(error, image: image) }
    }

    @inline(__always)
    static func system<T>(
        _ image: ImageID? = nil, _ body: () throws(SystemError) -> T
    ) throws(VolumeError) -> T {
        do throws(SystemError) { return try body() } catch {
            throw VolumeError(error, image: image)
        }
    }
}
