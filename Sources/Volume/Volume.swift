// All live images of one pool, the cut that a snapshot makes through them, and what runs behind:
// settling, checksums, merges.
//
// Locks, in the order they are taken:
//   structure   one change of images, layers or snapshots at a time; may be held across a sync,
//               never wanted by a read, write or flush
//   core.cut    see Image
//   stripes     see Image
//   state       the tables below; leaf, never held across anything

import BlockCore
import Logging
import Pool
import SystemIO

package struct VolumeOptions: Sendable {
    /// Checksums and merges run on their own thread, and what can be done side by side on several;
    /// off for tests that step by hand and want the same order each time.
    package var runsInBackground = true
    package var isReadOnly = false
    /// A target of replication: no activity log is kept.
    package var isReplica = false
    /// Blocks that a merge moves between two syncs.
    package var mergeBatchBlocks: UInt64 = 8 << 10
    /// A map is rewritten when its records take more than this, and four times what they need.
    package var mapRewriteBytes: UInt64 = 1 << 20
    package init(
        runsInBackground: Bool = true, isReadOnly: Bool = false, isReplica: Bool = false
    ) {
        self.runsInBackground = runsInBackground
        self.isReadOnly = isReadOnly
        self.isReplica = isReplica
    }
}

package final class Volume: @unchecked Sendable {  // tables are under `state`
    package let store: PoolStore
    package let options: VolumeOptions
    let core: VolumeCore
    let log: Logger
    let structure = Lock()
    private let state = Lock()
    private var images: [ImageID: Image] = [:]
    private var layers: [LayerID: Layer] = [:]
    private var views: [OpenView] = []
    /// Layers whose maps a merge may have left with a torn tail; set at open.
    var mergingLayers: Set<LayerID> = []
    /// Layers that were a head again when the pool was last in use: something drained into them.
    var drainTargets: Set<LayerID> = []
    /// Layers with a block that could not be moved or covered; under `structure`.
    var stoppedLayers: Set<LayerID> = []
    /// What failed changes of structure still owe, the oldest first; under `structure`.
    var overdue: [() throws(VolumeError) -> Void] = []
    /// A merge waits for space on the disk; under `structure`.
    var isMergeWaiting = false
    /// The layer that is being covered with checksums; under `structure`.
    var coverage: Coverage?
    /// Records of a head's map when it was last looked at and not rewritten; under `structure`.
    var mapBytesSeen: [LayerID: UInt64] = [:]
    let background = BackgroundWork()
    /// Where writes and flushes wait for targets.
    package var gate: AckGate { core.gate }
    let keeperBox = TargetKeeperBox()
    /// Images that do not open: EIO to whoever asks for them, while the others are served.
    private var damaged: [ImageID: DamagedImage] = [:]
    /// Layers that do not open, with why; what is built on them does not either.
    private var broken: [LayerID: VolumeError] = [:]
    /// What recovery did at open, for the log and the events.
    package private(set) var recoveryNotes: [String] = []

    var disk: Disk { store.disk }
    package var sequence: SequenceNumber { core.sequence }

    /// Opens every image of the pool, after what a crash left was mended. An image of which something
    /// known durable does not verify is set aside (``damagedImages``): never served with older data,
    /// and no reason to refuse the others.
    package init(store: PoolStore, options: VolumeOptions = VolumeOptions()) throws(VolumeError) {
        self.store = store
        self.options = options
        log = Logger(label: "doppel.volume")
        try Self.refuseMirror(store, options)
        let start = try Self.firstSequence(of: store, isReadOnly: options.isReadOnly)
        core = VolumeCore(
            disk: store.disk, lastSequence: start, marksActivity: !options.isReplica,
            settlesBehind: options.runsInBackground && !options.isReadOnly)
        try loadAll()
        if options.runsInBackground && !options.isReadOnly {
            background.start { [weak self] in self?.runBackgroundStep() ?? false }
        }
    }

    // MARK: Tables

    package func image(_ id: ImageID) throws(VolumeError) -> Image {
        guard let image = state.withLock({ images[id] }) else {
            if let error = state.withLock({ damaged[id]?.error }) { throw error }
            throw VolumeError(.notFound, image: id, "there is no such image in the pool")
        }
        return image
    }

    var allImages: [Image] { state.withLock { images.values.sorted { $0.id < $1.id } } }
    func put(_ image: Image) { state.withLock { images[image.id] = image } }
    func forget(image id: ImageID) {
        state.withLock {
            images[id] = nil
            damaged[id] = nil
        }
    }
    /// An image that cannot be opened, and what is known of it all the same.
    package struct DamagedImage: Sendable {
        package var id: ImageID
        package var error: VolumeError
        /// As the last commit that verifies has it; 0 where none does.
        package var sizeBytes: UInt64
        /// Its files could not be read, or not be made durable: they may be sound all the same.
        package var mayBeSound: Bool
    }
    package var damagedImages: [DamagedImage] {
        state.withLock { damaged.values.sorted { $0.id < $1.id } }
    }
    package func damagedImage(_ id: ImageID) -> DamagedImage? { state.withLock { damaged[id] } }
    func put(_ image: DamagedImage) { state.withLock { damaged[image.id] = image } }
    func brokenLayer(_ id: LayerID) -> VolumeError? { state.withLock { broken[id] } }
    func put(broken id: LayerID, _ error: VolumeError) { state.withLock { broken[id] = error } }
    func layer(_ id: LayerID) -> Layer? { state.withLock { layers[id] } }
    func put(_ layer: Layer) { state.withLock { layers[layer.id] = layer } }
    func forget(layer id: LayerID) { _ = state.withLock { layers.removeValue(forKey: id) } }
    func withViews<T>(_ body: (inout [OpenView]) -> T) -> T { state.withLock { body(&views) } }
    func note(_ text: String) {
        recoveryNotes.append(text)
        log.warning("\(text)")
    }

    // MARK: Catalog

    static func catalog<T>(
        _ store: PoolStore, _ body: (CatalogTransaction) throws -> T
    ) throws(VolumeError) -> T {
        do { return try store.catalog.read(body) } catch { throw VolumeError(.io, "\(error)") }
    }

    func commit<T>(_ body: (CatalogTransaction) throws -> T) throws(VolumeError) -> T {
        do { return try store.catalog.write(body) } catch {
            let isNoSpace = (error as? CatalogError)?.isNoSpace ?? false
            throw VolumeError(
                isNoSpace ? .noSpace : .io, "the catalog did not take a change: \(error)")
        }
    }

    func read<T>(_ body: (CatalogTransaction) throws -> T) throws(VolumeError) -> T {
        try Self.catalog(store, body)
    }

    // MARK: Ending

    /// Makes everything acknowledged before the call durable, in every image.
    package func flushAll() throws(VolumeError) {
        var first: VolumeError?
        for image in allImages {
            do throws(VolumeError) { try image.flush() } catch { first = first ?? error }
        }
        if let first { throw first }
    }

    /// Stops the background work, makes all durable and empties the activity logs.
    /// - Returns: whether the pool may be marked clean.
    package func close() throws(VolumeError) {
        background.stop()
        guard !options.isReadOnly else { return }
        structure.withLock { try? settleOverdue() }
        try flushAll()
        for image in allImages { try settle(image, all: true) }
        for image in allImages { makePlain(image) }
    }

    // MARK: Settling the activity log

    /// Clears the bits of regions that were not written since the last call (all, at the end). Under
    /// the structure lock: a restore marks regions that nobody writes.
    package func settle(_ image: Image, all: Bool) throws(VolumeError) {
        defer { image.activity.noteSettled() }
        try structure.withLock { () throws(VolumeError) in
            let idle = core.cut.withWrite { image.activity.retire(all: all) }
            guard !idle.isEmpty else { return }
            let sequence = core.sequence
            try image.flush()
            try secure(upTo: sequence)
            do throws(SystemError) { try image.activity.clear(idle) } catch {
                // Marks too many, in the middle of things, are no reason to complain of a full disk.
                guard error.isNoSpace, !all else { throw VolumeError(error, image: image.id) }
            }
        }
    }
}
