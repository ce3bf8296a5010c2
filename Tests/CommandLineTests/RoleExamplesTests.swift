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
}
