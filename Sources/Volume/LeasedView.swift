import BlockCore
import SystemIO

/// Until when views may be read. Their layers may be changed by somebody else afterwards.
package final class ViewLease: @unchecked Sendable {  // `isOver` is under `lock`
    private let lock = Lock()
    private var isOver = false

    package init() {}
    package func end() { lock.withLock { isOver = true } }
    package var hasEnded: Bool { lock.withLock { isOver } }

    func check() throws(VolumeError) {
        guard lock.withLock({ isOver }) else { return }
        throw VolumeError(
            .io, errno: 5, "what this shows was closed underneath: unmount it and mount it again")
    }
}

/// A view that is an error, and never something else, once its lease has ended.
package final class LeasedView: LayerView, @unchecked Sendable {
    private let view: LayerView
    private let lease: ViewLease

    package init(_ view: LayerView, _ lease: ViewLease) {
        self.view = view
        self.lease = lease
        super.init(sizeBytes: view.sizeBytes, chain: view.chain)
    }

    /// What was read before the lease ended is what the view shows: it is looked at afterwards.
    private func leased<T>(_ body: () throws(VolumeError) -> T) throws(VolumeError) -> T {
        let result = try body()
        try lease.check()
        return result
    }

    package override func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(VolumeError) -> Int {
        try leased { () throws(VolumeError) in try view.read(into: buffer, at: offset) }
    }
    package override func seekData(from offset: UInt64) throws(VolumeError) -> UInt64? {
        try leased { () throws(VolumeError) in try view.seekData(from: offset) }
    }
    package override func seekHole(from offset: UInt64) throws(VolumeError) -> UInt64? {
        try leased { () throws(VolumeError) in try view.seekHole(from: offset) }
    }
    package override func allocatedBytes() -> UInt64 { view.allocatedBytes() }
}
