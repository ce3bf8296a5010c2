import SystemIO

/// Who could still write to files by the names they have now: processes, and loop devices, whose
/// hold on their file no process shows.
enum FileUsers {
    /// - Returns: one sentence for each.
    static func writers(of files: [FileIdentity: String], disk: Disk) -> [String] {
        guard !files.isEmpty else { return [] }
        return OpenFiles.writers(of: files).map {
            "\($0.path) is open for writing by process \($0.pid) (\($0.command))"
        } + loopDevices(on: files, disk: disk)
    }

    private static func loopDevices(on files: [FileIdentity: String], disk: Disk) -> [String] {
        ((try? disk.list("/sys/block")) ?? []).filter { $0.name.hasPrefix("loop") }.compactMap {
            let system = "/sys/block/\($0.name)"
            guard let backing = line(system + "/loop/backing_file", disk),
                line(system + "/ro", disk) == "0",
                let status = (try? disk.status(backing)) ?? nil,
                let path = files[FileIdentity(device: status.device, inode: status.inode)]
            else { return nil }
            return "\(path) is the backing file of /dev/\($0.name); `losetup -d /dev/\($0.name)` "
                + "detaches it"
        }
    }

    private static func line(_ path: String, _ disk: Disk) -> String? {
        guard let bytes = try? disk.readSmall(path, limit: 4096), !bytes.isEmpty else { return nil }
        return String(decoding: bytes.prefix { $0 != 10 }, as: UTF8.self)
    }
}
