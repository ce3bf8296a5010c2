import Glibc

/// What the machine and this process's rights offer.
public enum HostSystem {
    public static var kernelRelease: String {
        var name = utsname()
        uname(&name)
        return withUnsafeBytes(of: &name.release) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
    }

    /// As the machine calls itself.
    public static var hostName: String {
        var name = utsname()
        uname(&name)
        return withUnsafeBytes(of: &name.nodename) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
    }

    public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }
    public static func mayReadAndWrite(_ path: String) -> Bool { access(path, R_OK | W_OK) == 0 }

    /// Where a program is, looked for as a shell does and where Debian puts what only root calls.
    public static func program(_ name: String) -> String? {
        let path = (ProcessControl.environment("PATH") ?? "") + ":/usr/sbin:/sbin"
        return path.split(separator: ":").map { "\($0)/\(name)" }.first { access($0, X_OK) == 0 }
    }

    /// Whether the capability with this number is in effect.
    public static func hasCapability(_ number: Int) -> Bool {
        let bytes = (try? LinuxDisk().readSmall("/proc/self/status", limit: 1 << 14)) ?? []
        let line = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
            .first { $0.hasPrefix("CapEff:") }
        guard let word = line?.split(whereSeparator: { $0 == "\t" || $0 == " " }).last,
            let mask = UInt64(word, radix: 16)
        else { return false }
        return mask >> UInt64(number) & 1 == 1
    }

    /// What the process may raise its own limit to.
    public static var openFileLimit: UInt64 {
        var limit = rlimit()
        return getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0
            ? UInt64(limit.rlim_max) : 0
    }
}
