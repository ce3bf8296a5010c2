import Foundation
import TestSupport
import Testing

/// A machine where packages are missing, as .ci/scripts/ensure-packages sees it: programs of the system's
/// names that write down how they were called.
@Suite struct PackagesTests {
    private static let script =
        URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().path
        + "/.ci/scripts/ensure-packages"

    /// - Parameters:
    ///   - missing: packages that dpkg does not know.
    ///   - programs: scripts by name, beside those that are always there.
    private func run(
        _ box: Sandbox, missing: [String], user: Int, programs: [String: String], _ tasks: String
    ) throws -> (outcome: Outcome, calls: String) {
        let bin = box.folder + "/bin"
        let log = box.folder + "/calls"
        _ = try box.shell("rm -rf '\(bin)' '\(log)'; mkdir '\(bin)'; touch '\(log)'")
        let known = missing.map { "[ \"$4\" != \($0) ]" }.joined(separator: " && ")
        var all = programs
        all["dpkg-query"] = "\(known.isEmpty ? "true" : known) || exit 1; echo installed"
        all["id"] = "echo \(user)"
        for (name, body) in all {
            let path = bin + "/" + name
            try "#!/bin/bash\n\(body)\n".write(toFile: path, atomically: true, encoding: .utf8)
            chmod(path, 0o755)
        }
        for tool in ["bash", "head", "env"] {
            symlink(
                try box.shell("command -v \(tool)").output.filter { $0 != "\n" }, bin + "/" + tool)
        }
        let outcome = try box.shell("PATH='\(bin)' LOG='\(log)' bash '\(Self.script)' \(tasks)")
        return (outcome, box.read(log))
    }

    private let apt = "echo \"apt-get $*\" >> \"$LOG\""

    @Test func nothingMissingIsNothingSaid() throws {
        try Sandbox.with { box in
            let (outcome, calls) = try run(
                box, missing: [], user: 0, programs: ["apt-get": apt], "build run quickstart test")
            #expect(outcome.code == 0 && outcome.output.isEmpty && calls.isEmpty, "\(outcome)")
        }
    }

    @Test func rootInstallsWhatIsMissingAfterSayingWhatAndWhy() throws {
        try Sandbox.with { box in
            let (outcome, calls) = try run(
                box, missing: ["libfuse3-dev", "fdisk"], user: 0, programs: ["apt-get": apt],
                "build run quickstart")
            #expect(outcome.code == 0, "\(outcome)")
            #expect(outcome.output.contains(/libfuse3-dev +headers of the mount/))
            #expect(outcome.output.contains(/fdisk +sfdisk partitions/))
            #expect(calls == "apt-get install --yes --no-install-recommends libfuse3-dev fdisk\n")
        }
    }

    @Test func aUserGoesThroughSudo() throws {
        try Sandbox.with { box in
            let sudo = "echo \"sudo $*\" >> \"$LOG\"; exec \"$@\""
            let (outcome, calls) = try run(
                box, missing: ["fuse3"], user: 1000, programs: ["apt-get": apt, "sudo": sudo], "run"
            )
            #expect(outcome.code == 0, "\(outcome)")
            let lines = calls.split(separator: "\n")
            #expect(
                lines.first?.hasPrefix("sudo env DEBIAN_FRONTEND=noninteractive apt-get") == true)
            #expect(lines.last == "apt-get install --yes --no-install-recommends fuse3")
        }
    }

    @Test func aListThatIsOutOfDateIsFetchedOnce() throws {
        try Sandbox.with { box in
            let outdated = apt + "; [ \"$1\" = update ] || [ \"$(grep -c . \"$LOG\")\" -gt 1 ]"
            let grep = "exec /usr/bin/env -i /bin/grep \"$@\""
            let (outcome, calls) = try run(
                box, missing: ["fuse3"], user: 0, programs: ["apt-get": outdated, "grep": grep],
                "run")
            #expect(outcome.code == 0, "\(outcome)")
            let verbs = calls.split(separator: "\n").compactMap {
                $0.split(separator: " ").dropFirst().first
            }
            #expect(verbs == ["install", "update", "install"])
        }
    }

    @Test func withoutAWayTheCommandToTypeIsSaid() throws {
        try Sandbox.with { box in
            let user = try run(
                box, missing: ["fuse3"], user: 1000, programs: ["apt-get": apt], "run")
            #expect(user.outcome.code == 1 && user.calls.isEmpty)
            #expect(user.outcome.errors.contains("apt-get install fuse3"), "\(user.outcome)")
            let other = try run(box, missing: ["fuse3"], user: 0, programs: [:], "run")
            #expect(other.outcome.code == 1)
            #expect(other.outcome.output.contains("fuse3"), "\(other.outcome)")
        }
    }

    @Test func aTaskThatIsUnknownIsRefused() throws {
        try Sandbox.with { box in
            let (outcome, calls) = try run(
                box, missing: [], user: 0, programs: ["apt-get": apt], "everything")
            #expect(outcome.code == 2 && calls.isEmpty, "\(outcome)")
        }
    }
}
