// What a raw mirror says of itself: a folder of plain files, and in it, hidden,
//
//   .doppel-mirror/
//     state.json      this, replaced as a whole
//     names           which file is what: RawFolderNames
//     unnamed/        files that have no name, or none yet
//     lock            held by who writes
//     README
//
// A pool may be made of the folder by `doppel promote`, or by `doppel adopt`; the state goes with that.

import BlockCore
import Foundation
import SystemIO

package struct RawFolderState: Sendable, Hashable, Codable {
    package static let currentFormatVersion = 1
    package static let folderName = ".doppel-mirror"

    package enum Content: String, Sendable, Codable {
        /// The files are what the primary showed at `checkpoint`, and nothing else.
        case clean
        /// They are that, and some of what came after: who brings all that came after makes it whole.
        case based
        /// They are being written to, or were when their machine or its process died.
        case torn
    }

    package struct Staging: Sendable, Hashable, Codable {
        package var id: UInt64
        package var durableBatch: UInt64
        package init(id: UInt64, durableBatch: UInt64) {
            self.id = id
            self.durableBatch = durableBatch
        }
    }

    package var formatVersion = currentFormatVersion
    /// A random UUID; the primary is bound to it.
    package var id: String
    package var primaryPoolID: String
    package var primaryAddress: String?
    /// Of the primary that it follows; a lower one is refused.
    package var generation: Generation?
    /// The generations that led to the content.
    package var history = GenerationHistory()
    /// Of the primary whose stream it took last; nil before the first checkpoint.
    package var incarnationID: String?
    package var checkpoint = SequenceNumber.zero
    package var content = Content.based
    /// Since when it is not clean.
    package var sinceNs: Int64?
    package var staging: Staging?
    /// Of the state's own folder: another one there means that the mirror was copied.
    package var folderInode: UInt64 = 0

    package init(id: String, primaryPoolID: String) {
        self.id = id
        self.primaryPoolID = primaryPoolID
    }

    /// Until it is brought in order by its primary, or by force.
    package var isWhole: Bool { content == .clean && incarnationID != nil }

    // MARK: The file

    package static func folder(of path: String) -> String { path + "/" + folderName }
    private static func file(of path: String) -> String { folder(of: path) + "/state.json" }

    package static func isThere(_ path: String, disk: Disk) -> Bool {
        ((try? disk.status(file(of: path))) ?? nil) != nil
    }

    /// - Returns: nil where there is no raw mirror.
    /// - Throws: `.damaged` where its state says nothing one can trust.
    package static func read(of path: String, disk: Disk) throws(PoolError) -> RawFolderState? {
        let file = file(of: path)
        let bytes: [UInt8]
        do throws(SystemError) {
            guard try disk.status(file) != nil else { return nil }
            bytes = try disk.readAll(file)
        } catch { throw PoolError(error) }
        let state: RawFolderState
        do { state = try JSONDecoder().decode(RawFolderState.self, from: Data(bytes)) } catch {
            throw PoolError(.damaged, "\(file) cannot be read: \(error)")
        }
        guard state.formatVersion == currentFormatVersion else {
            throw PoolError(
                .damaged,
                "\(file) has format \(state.formatVersion), which this version of Doppel does not know"
            )
        }
        return state
    }

    /// Durably, as a whole or not at all.
    package func write(to path: String, disk: Disk) throws(SystemError) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
        guard let data = try? encoder.encode(self) else {
            throw SystemError(operation: "encode", path: Self.file(of: path), errno: 5)
        }
        try disk.writeDurably(Self.file(of: path), contents: [UInt8](data))
    }

    /// Lays out an empty mirror; the folder is there, and empty.
    package static func lay(
        _ path: String, primaryPoolID: String, disk: Disk
    ) throws(SystemError) -> RawFolderState {
        let folder = folder(of: path)
        if try disk.status(folder) == nil { try disk.createDirectory(folder, mode: 0o700) }
        if try disk.status(folder + "/unnamed") == nil {
            try disk.createDirectory(folder + "/unnamed", mode: 0o700)
        }
        try disk.writeDurably(
            folder + "/README",
            contents: Array(
                """
                The folder above is a raw mirror: plain copies of the images of a Doppel pool, which can
                be read without Doppel. Doppel writes them; whoever else does has it compared and put
                right. `doppel promote raw:\(path)` makes a pool of it.

                """.utf8))
        // Until its primary says more of it.
        let root = NodeRecord(
            id: .root, parentID: nil, name: [], kind: .directory, mode: 0o755, uid: 0, gid: 0,
            accessNs: 0, modifyNs: 0, changeNs: 0)
        try RawFolderNames.write(
            RawFolderNames.Entry(names: [.put(root)]), to: RawFolderNames.path(of: path), disk: disk
        )
        try disk.syncDirectory(folder)
        try disk.syncDirectory(path)
        var state = RawFolderState(id: PoolStore.randomUUID(), primaryPoolID: primaryPoolID)
        state.folderInode = try disk.status(folder)?.inode ?? 0
        try state.write(to: path, disk: disk)
        return state
    }
}
