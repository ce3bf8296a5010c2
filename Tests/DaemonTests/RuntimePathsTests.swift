import Glibc
import SystemIO
import Testing
import TestSupport

@testable import Daemon

/// Sockets and logs: where they are, and that they do not pile up.
@Suite struct RuntimePathsTests {
    private let disk = LinuxDisk()

    private func write(_ path: String, count: Int = 1) throws {
        let file = try disk.open(path, [.readWrite, .create], mode: 0o600)
        defer { file.close() }
        try [UInt8](repeating: 65, count: count).withUnsafeBytes { try file.write($0, at: 0) }
    }

    private func names(_ folder: String) throws -> [String] {
        try disk.list(folder).map(\.name).sorted()
    }

    @Test func aSocketOfADeadDaemonIsSweptAndALivingOneKept() throws {
        try withFolder { folder in
            let living = try ControlServer(path: folder + "/living.sock") { _, _ in ControlReply() }
            defer { living.close() }
            // Bound by a process that is gone: nobody listens.
            let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            let name = Array((folder + "/dead.sock").utf8)
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
            let bound = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(fd, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
            #expect(bound == 0)
            close(fd)
            #expect(try names(folder).contains("dead.sock"))
            try RuntimePaths.withSweptSockets(in: folder, disk: disk) { () throws(SystemError) in }
            #expect(try names(folder) == [".lock", "living.sock"])
        }
    }

    @Test func aLogThatGrewTooLongIsKeptOnceBeside() throws {
        try withFolder { folder in
            let path = try RuntimePaths.log(of: "/srv/vms", in: folder, disk: disk)
            #expect(path == folder + "/srv-vms.log")
            for round in 1...3 {
                try write(path, count: Int(RuntimePaths.logLimitBytes) + round)
                #expect(try RuntimePaths.log(of: "/srv/vms", in: folder, disk: disk) == path)
                #expect(try names(folder) == ["srv-vms.log.1"])
            }
            try write(path)
            #expect(try RuntimePaths.log(of: "/srv/vms", in: folder, disk: disk) == path)
            #expect(try names(folder) == ["srv-vms.log", "srv-vms.log.1"])
        }
    }

    @Test func logsGoAWeekAfterTheirLastWord() throws {
        try withFolder { folder in
            for name in ["old.log", "old.log.1", "new.log", "srv-vms.log"] {
                try write(folder + "/" + name)
            }
            for name in ["old.log", "old.log.1", "srv-vms.log"] {
                let ns = disk.now() - 8 * 86_400 * 1_000_000_000
                try disk.setTimes(folder + "/" + name, accessNs: ns, modifyNs: ns)
            }
            RuntimePaths.sweepLogs(in: folder, disk: disk, mounted: ["/srv/vms"])
            #expect(try names(folder) == ["new.log", "srv-vms.log"])
        }
    }
}
