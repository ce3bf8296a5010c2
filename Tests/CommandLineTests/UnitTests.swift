import Foundation
import TestSupport
import Testing

/// The units of examples/systemd: what they ask of systemd, and what it says of them.
@Suite struct UnitTests {
    private static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("examples/systemd").path

    static let units = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [])
        .sorted()

    /// What a unit sets, lines of one name together.
    private func settings(of unit: String) throws -> [String: String] {
        let text = try String(contentsOfFile: Self.folder + "/" + unit, encoding: .utf8)
        var result: [String: String] = [:]
        for line in text.split(separator: "\n") where !line.hasPrefix("#") && !line.hasPrefix("[") {
            let pair = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            try #require(pair.count == 2, "\(line)")
            result[String(pair[0]), default: ""] +=
                (result[String(pair[0])] == nil ? "" : "\n") + pair[1]
        }
        return result
    }

    /// systemd.exec(5): each of these gives the service a mount namespace, where a mount is seen by nobody else.
    @Test func theMountIsSeenByAll() throws {
        let found = try settings(of: "doppel-mount@.service")
        let namespaces = [
            "ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules",
            "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProtectHostname",
            "ProtectClock",
            "ProcSubset", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateNetwork",
            "PrivateUsers",
            "PrivateIPC", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "ExecPaths",
            "NoExecPaths",
            "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "MountFlags", "MountImages",
            "ExtensionImages", "ExtensionDirectories", "RootDirectory", "RootImage", "MountAPIVFS",
            "DynamicUser", "LogNamespace", "LoadCredential", "SetCredential",
            "NetworkNamespacePath",
            "IPCNamespacePath",
        ]
        for name in namespaces { #expect(found[name] == nil, "\(name)") }
    }

    @Test func theMountHasWhatItNeedsAndNoMore() throws {
        let found = try settings(of: "doppel-mount@.service")
        #expect(found["Type"] == "notify")
        #expect(found["ExecStart"]?.contains(" mount --foreground ") == true)
        #expect(found["OOMScoreAdjust"] == "-900")
        #expect(found["RequiresMountsFor"] == "%f")
        for daemon in ["libvirtd.service", "virtqemud.service", "libvirt-guests.service"] {
            #expect(found["Before"]?.contains(daemon) == true)
        }
        // Targets are waited for up to 10 s, and each sync of a slow disk may take its time.
        #expect(found["TimeoutStopSec"].flatMap(Int.init) ?? 0 >= 120)
        let may = found["CapabilityBoundingSet"]?.split(separator: " ") ?? []
        #expect(may.contains("CAP_SYS_ADMIN") && may.allSatisfy { $0.hasPrefix("CAP_") })
        for word in [
            "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_NET_ADMIN", "CAP_SYS_BOOT", "CAP_SETUID",
        ] {
            #expect(!may.contains { $0 == word })
        }
        #expect(found["SystemCallFilter"] == "@system-service @mount")
        #expect(found["NoNewPrivileges"] == "yes")
    }

    @Test func theServerSeesItsPoolsAndNothingElse() throws {
        let found = try settings(of: "doppel-serve.service")
        #expect(found["Type"] == "notify")
        #expect(found["ExecStart"]?.contains(" serve /srv/mirrors") == true)
        #expect(found["ReadWritePaths"] == "/srv/mirrors")
        #expect(found["RequiresMountsFor"] == "/srv/mirrors")
        #expect(found["CapabilityBoundingSet"]?.isEmpty == true)
        #expect(found["ProtectSystem"] == "strict")
        // One that ends would take away the sockets of those that go on.
        #expect(found["RuntimeDirectoryPreserve"] == "yes")
        guard access("/usr/bin/systemd-analyze", X_OK) == 0 else {
            return print("UnitTests/theServerSeesItsPools: there is no systemd-analyze here")
        }
        try Sandbox.with { box in
            // Of 100: a service that says nothing has 96. What is left is the network, and /proc.
            let judged = try box.shell(
                "systemd-analyze security --offline=true --threshold=20 --no-pager "
                    + "'\(Self.folder)/doppel-serve.service'")
            #expect(judged.code == 0, "\(judged)")
        }
    }

    /// Where systemd is not installed nobody can ask it: the packages of the tests bring it.
    @Test(arguments: units) func systemdTakesEveryUnit(unit: String) throws {
        guard access("/usr/bin/systemd-analyze", X_OK) == 0 else {
            return print("UnitTests/systemdTakesEveryUnit: there is no systemd-analyze here")
        }
        try Sandbox.with { box in
            // The program as it will be installed.
            let text = try String(contentsOfFile: Self.folder + "/" + unit, encoding: .utf8)
                .replacingOccurrences(of: "/usr/local/bin/doppel", with: Sandbox.binary)
            try text.write(toFile: box.folder + "/" + unit, atomically: true, encoding: .utf8)
            let verified = try box.shell("systemd-analyze verify --man=no '\(box.folder)/\(unit)'")
            #expect(verified.code == 0, "\(verified)")
            let said = (verified.output + verified.errors).split(separator: "\n")
            #expect(!said.contains { $0.contains(unit) }, "\(verified)")
        }
    }
}
