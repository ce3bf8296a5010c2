import TestSupport
import Testing

/// The walks that docs/operations.md refers to are as it says: each checks itself.
@Suite(.enabled(if: hasFuse)) struct RoleExamplesTests {
    @Test(
        arguments: ["failover", "failback", "split-brain", "seeding", "modes"]
            + (isRoot ? ["full-disk"] : []))
    func aWalkGoesWell(name: String)
        throws
    {
        try Sandbox.with { box in
            let script = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
            let outcome = try box.shell(
                "TMPDIR='\(box.folder)' DOPPEL='\(Sandbox.binary)' "
                    + "'/\(script)/examples/roles/\(name).sh'")
            #expect(outcome.code == 0, "\(outcome)")
            #expect(outcome.output.contains("steps went well"))
        }
    }

    @Test(.enabled(if: hasFuse && hasNamespaces, "needs root, ip and nsenter"))
    func theWalkBetweenTwoHostsGoesWell() throws {
        try Sandbox.with { box in
            let tree = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
            let outcome = try box.shell(
                "TMPDIR='\(box.folder)' DOPPEL='\(Sandbox.binary)' "
                    + "'/\(tree)/examples/two-hosts/run.sh'", limitSeconds: 300)
            #expect(outcome.code == 0, "\(outcome)")
            #expect(outcome.output.contains("all is as it should be"))
        }
    }
}
