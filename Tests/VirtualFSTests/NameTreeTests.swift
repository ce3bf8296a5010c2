import BlockCore
import Pool
import Testing

@testable import VirtualFS

@Suite struct NameTreeTests {
    private func node(
        _ id: UInt64, _ parent: UInt64?, _ name: String, _ kind: NodeRecord.Kind = .file
    ) -> NodeRecord {
        NodeRecord(
            id: NodeID(rawValue: id), parentID: parent.map { NodeID(rawValue: $0) },
            name: Array(name.utf8), kind: kind, mode: 0o644, uid: 0, gid: 0, accessNs: 0,
            modifyNs: 0, changeNs: 0)
    }
    private func id(_ value: UInt64) -> NodeID { NodeID(rawValue: value) }

    private var sample: NameTree {
        NameTree([
            node(1, nil, "", .directory), node(2, 1, "db", .directory), node(3, 2, "a"),
            node(4, 2, "deep", .directory), node(5, 4, "b"),
        ])
    }

    @Test func findsByPathAndTellsPaths() {
        let tree = sample
        #expect(tree.resolve("db/deep/b")?.id == id(5))
        #expect(tree.resolve("/db//deep/b")?.id == id(5), "slashes more or less do not matter")
        #expect(tree.resolve("")?.id == .root)
        #expect(tree.resolve("db/a/b") == nil, "a file has nothing beneath it")
        #expect(tree.path(of: id(5)) == "db/deep/b")
        #expect(tree.ancestors(of: id(5)).map(\.id) == [.root, id(2), id(4)])
        #expect(tree.isInside(id(5), id(2)) && !tree.isInside(id(2), id(5)))
        #expect(tree.isInside(id(2), id(2)))
    }

    @Test func aCopyStaysAsItWas() {
        var tree = sample
        let copy = tree
        tree.remove(id(3))
        tree.put(node(4, 1, "moved", .directory))
        #expect(tree.resolve("moved/b")?.id == id(5) && tree.resolve("db/a") == nil)
        #expect(copy.resolve("db/deep/b")?.id == id(5) && copy.resolve("db/a") != nil)
    }

    @Test func countsFoldersInFolders() {
        var tree = sample
        #expect(tree.subdirectoryCount(.root) == 1 && tree.subdirectoryCount(id(2)) == 1)
        tree.put(node(4, 1, "deep", .directory))
        #expect(tree.subdirectoryCount(.root) == 2 && tree.subdirectoryCount(id(2)) == 0)
        tree.put(node(4, 1, "other", .directory))
        #expect(tree.subdirectoryCount(.root) == 2, "a new name is no new folder")
        tree.put(node(4, 1, "other", .directory))
        #expect(tree.subdirectoryCount(.root) == 2)
        tree.remove(id(4))
        #expect(tree.subdirectoryCount(.root) == 1)
    }

    @Test func aNameLostIsGoneFromItsFolder() {
        var tree = sample
        tree.put(node(3, nil, "a"))
        #expect(tree.child(id(2), Array("a".utf8)) == nil && tree[id(3)] != nil)
        tree.put(node(6, 2, "a"))
        tree.remove(id(3))
        #expect(tree.child(id(2), Array("a".utf8))?.id == id(6), "the orphan takes no name along")
    }
}
