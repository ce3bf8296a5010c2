import Foundation
import TestSupport
import Testing

/// Real mounts: the life of the daemon as its users see it.
@Suite(.enabled(if: hasFuse)) struct MountTests {
    @Test func mountReturnsWhenTheMountIsReady() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            #expect(box.isMounted)
            try box.write("hello", to: box.mountPoint + "/a.img", at: 4095)
            try box.ok("unmount", box.mountPoint)
            #expect(!box.isMounted)
            try box.mount()
            #expect(try box.text(box.mountPoint + "/a.img", count: 5, at: 4095) == "hello")
        }
    }

    /// A caller that reads the output to its end would wait for a daemon that kept it.
    @Test func theDaemonKeepsNoOutputOfItsCaller() throws {
        try Sandbox.withPool { box in
            let outcome = try box.shell(
                "x=$(timeout 20 \"$DOPPEL\" mount '\(box.pool)' '\(box.mountPoint)' 2>&1); echo $?")
            #expect(outcome.output == "0\n")
            _ = try box.daemon()
        }
    }

    /// A lock that a script holds while it mounts ends with the script.
    @Test func theDaemonKeepsNoOtherFileOfItsCaller() throws {
        try Sandbox.withPool { box in
            let lock = box.folder + "/lock"
            let outcome = try box.shell(
                "exec 9>'\(lock)'; flock 9; \"$DOPPEL\" mount '\(box.pool)' '\(box.mountPoint)'")
            #expect(outcome.code == 0, "\(outcome)")
            _ = try box.daemon()
            #expect(try box.shell("flock -n '\(lock)' true").code == 0)
        }
    }

    @Test func everyVerbWorksThroughTheMountPoint() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let mount = box.mountPoint
            try box.ok("create", mount, "b.img", "--size", "1M")
            try box.ok("resize", mount, "b.img", "2M")
            #expect(
                try FileManager.default.contentsOfDirectory(atPath: mount).sorted()
                    == ["a.img", "b.img"])
            var status = stat()
            #expect(stat(mount + "/b.img", &status) == 0)
            #expect(status.st_size == 2 << 20)
            try box.write("first", to: mount + "/b.img")
            try box.ok("snapshot", "create", mount, "one")
            try box.write("other", to: mount + "/b.img")
            #expect(try box.text(mount + "/.snapshots/one/b.img", count: 5) == "first")
            try box.ok("restore", mount, "b.img", "--snapshot", "one", "--as", "c.img")
            #expect(try box.text(mount + "/c.img", count: 5) == "first")
            try box.ok("clone", mount, "b.img", "d.img")
            #expect(try box.text(mount + "/d.img", count: 5) == "other")
            try box.ok("restore", mount, "b.img", "--snapshot", "one")
            #expect(try box.text(mount + "/b.img", count: 5) == "first")
            try box.ok("rename", mount, "d.img", "e.img")
            try box.ok("delete", mount, "e.img")
            #expect(access(mount + "/e.img", F_OK) != 0)
            #expect(access(mount + "/d.img", F_OK) != 0)
            try box.ok("scrub", mount)
            try box.ok("check", mount)
            let status2 = try box.json(box.ok("status", mount, "--json"), [StatusLine].self)
            #expect(status2.first?.mountPoint == mount)
            #expect(status2.first?.state == "healthy")
            #expect(status2.first?.images == 3)
            // Other mounts of this machine are in the list too, and may not answer.
            #expect(try box.run("status").output.contains(mount))
            #expect(try box.ok("list").contains(mount))
            #expect(box.read(mount + "/.doppel/status.json").contains("\"state\" : \"healthy\""))
        }
    }

    @Test func anImageInUseIsRefusedByName() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try box.ok("snapshot", "create", box.mountPoint, "one")
            try box.holdingOpen(box.mountPoint + "/a.img") {
                for words in [
                    ["restore", box.mountPoint, "a.img", "--snapshot", "one"],
                    ["delete", box.mountPoint, "a.img"],
                ] {
                    let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                    #expect(outcome.code == 3, "\(outcome)")
                    #expect(outcome.errors.contains("\(getpid())"), "\(outcome)")
                }
                #expect(try box.run("eject", box.pool).code == 3)
                try box.ok(
                    "restore", box.mountPoint, "a.img", "--snapshot", "one", "--as", "b.img")
                try box.ok(
                    "restore", box.mountPoint, "a.img", "--snapshot", "one", "--force")
            }
            let kept = try box.json(
                box.ok("snapshot", "list", box.pool, "--json"), [SnapshotLine].self)
            #expect(kept.contains { $0.origin == "restore" })
        }
    }

    @Test func aPoolIsMountedOnce() throws {
        try Sandbox.withPool { box in
            try box.mount()
            let other = box.folder + "/other"
            mkdir(other, 0o755)
            let second = try box.run("mount", box.pool, other)
            #expect(second.code == 3)
            let owner = try box.daemon()
            #expect(second.errors.contains("\(owner)"))
            #expect(try box.run("mount", box.pool, box.mountPoint).code == 3)
        }
    }

    @Test func aBusyMountGoesOnServing() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try box.holdingOpen(box.mountPoint + "/a.img") {
                #expect(try box.run("unmount", box.mountPoint).code == 3)
                try box.signalDaemon(SIGTERM)
                usleep(300_000)
                #expect(box.isMounted)
                try box.write("still", to: box.mountPoint + "/a.img")
            }
            try box.until("the stop that SIGTERM asked for") { !box.isMounted }
        }
    }

    @Test func forceTakesTheNameAndServesWhatIsOpen() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let file = open(box.mountPoint + "/a.img", O_RDWR | O_CLOEXEC)
            defer { close(file) }
            let started = Date()
            try box.ok("unmount", box.mountPoint, "--force")
            #expect(Date().timeIntervalSince(started) < 10)
            #expect(!box.isMounted)
            #expect(pwrite(file, "late", 4, 0) == 4)
            #expect(fsync(file) == 0)
        }
    }

    @Test(arguments: [SIGTERM, SIGINT])
    func aSignalLeavesACleanPool(signal: Int32) throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let before = try box.json(box.ok("status", box.pool, "--json"), [StatusLine].self)
            let pid = try box.daemon()
            try box.signalDaemon(signal)
            try box.until("the daemon's end") { kill(pid, 0) != 0 }
            #expect(!box.isMounted)
            let after = try box.json(box.ok("status", box.pool, "--json"), [StatusLine].self)
            // An unclean end would have begun a new incarnation.
            #expect(after.first?.incarnation == before.first?.incarnation)
        }
    }

    @Test func afterAKillTheNextMountClearsTheDeadMountPoint() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            for round in 1...3 {
                try box.write("round\(round)", to: box.mountPoint + "/a.img")
                try box.killDaemon()
                try box.mount()
                #expect(try box.text(box.mountPoint + "/a.img", count: 6) == "round\(round)")
                let mounts = box.read("/proc/self/mounts").split(separator: "\n")
                    .filter { $0.contains(" \(box.mountPoint) ") }
                #expect(mounts.count == 1)
            }
        }
    }

    @Test func unmountClearsADeadMountPoint() throws {
        try Sandbox.withPool { box in
            try box.mount()
            try box.killDaemon()
            try box.ok("unmount", box.mountPoint)
            #expect(!box.isMounted)
        }
    }

    /// Plain umount returns before the daemon has settled: mount waits for it.
    @Test func mountUmountMountInALoop() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            for round in 1...15 {
                try box.write("\(round)", to: box.mountPoint + "/a.img")
                let umount = try box.shell("umount '\(box.mountPoint)'")
                try #require(umount.code == 0, "\(umount)")
                try box.mount()
            }
        }
    }

    /// The same after a signal: the name is gone a moment before the daemon says that it drains.
    @Test func mountRightAfterASignal() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            for _ in 1...10 {
                try box.signalDaemon(SIGTERM)
                try box.until("the name is gone") { !box.isMounted }
                try box.mount()
            }
        }
    }

    @Test func anotherVerbRightAfterUmountWaitsForTheOwner() throws {
        try Sandbox.withPool("a.img") { box in
            for round in 1...10 {
                try box.mount()
                try #require(try box.shell("umount '\(box.mountPoint)'").code == 0)
                try box.ok("create", box.pool, "b\(round).img", "--size", "1M")
            }
        }
    }

    @Test func readOnlyRefusesEveryChange() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount("--read-only")
            #expect(open(box.mountPoint + "/a.img", O_RDWR) < 0)
            #expect(errno == EROFS)
            let refused = try box.run("create", box.mountPoint, "b.img", "--size", "1M")
            #expect(refused.code == 1)
            #expect(refused.errors.contains("read-only"))
            #expect(try box.run("snapshot", "create", box.mountPoint, "one").code == 1)
        }
    }

    @Test func theDotFoldersAreListedOnRequest() throws {
        try Sandbox.withPool { box in
            try box.mount()
            #expect(try box.shell("ls -A '\(box.mountPoint)'").output == "")
            #expect(access(box.mountPoint + "/.snapshots", F_OK) == 0)
            try box.ok("unmount", box.mountPoint)
            try box.mount("--snapdir", "visible")
            #expect(try box.shell("ls -A '\(box.mountPoint)'").output == ".doppel\n.snapshots\n")
        }
    }

    @Test func theReserveIsASizeOrAShare() throws {
        try Sandbox.withPool { box in
            try box.mount("--reserve", "3 MiB")
            let status = try box.json(box.ok("status", box.pool, "--json"), [StatusLine].self)
            #expect((3 << 20..<4 << 20).contains(status.first?.reserveBytes ?? 0))
            try box.ok("unmount", box.mountPoint)
            for wrong in ["77%", "much", "-1%"] {
                let outcome = try box.run(
                    "mount", box.pool, box.mountPoint, "--reserve=\(wrong)")
                #expect(outcome.code == 2, "\(wrong): \(outcome)")
            }
        }
    }

    @Test(.enabled(if: isRoot)) func rootLetsOthersInAndHasTheKernelCheckPermissions() throws {
        try Sandbox.withPool { box in
            try box.mount()
            let line =
                box.read("/proc/self/mounts").split(separator: "\n")
                .first { $0.contains(" \(box.mountPoint) ") } ?? ""
            #expect(line.contains("allow_other"))
            #expect(line.contains("default_permissions"))
        }
    }

    @Test(.enabled(if: isRoot)) func mountEightsOptionsAreUnderstood() throws {
        try Sandbox.withPool { box in
            let options =
                "rw,nosuid,nodev,noexec,noatime,_netdev,noauto,nofail,user,x-systemd.automount,"
                + "x-gvfs-show,comment=disks,snapdir=visible,reserve=1M"
            let outcome = try box.run(
                box.pool, box.mountPoint, "-o", options, as: "mount.fuse.doppel")
            #expect(outcome.code == 0, "\(outcome)")
            _ = try box.daemon()
            let line =
                box.read("/proc/self/mounts").split(separator: "\n")
                .first { $0.contains(" \(box.mountPoint) ") } ?? ""
            for word in ["nosuid", "nodev", "noexec", "noatime"] { #expect(line.contains(word)) }
            #expect(try box.shell("ls -A '\(box.mountPoint)'").output.contains(".snapshots"))
            try box.ok("unmount", box.mountPoint)
            let ro = try box.run(box.pool, box.mountPoint, "-o", "ro", as: "mount.doppel")
            #expect(ro.code == 0, "\(ro)")
            _ = try box.daemon()
            #expect(try box.shell("touch '\(box.mountPoint)/x'").code != 0)
        }
    }

    @Test func optionsThatNobodyKnowsAreRefused() throws {
        try Sandbox.withPool { box in
            let refused = try box.run("mount", box.pool, box.mountPoint, "-o", "bogus")
            #expect(refused.code == 2)
            #expect(!box.isMounted)
        }
    }

    @Test func foregroundTellsTheServiceManager() throws {
        try Sandbox.withPool { box in
            let script = """
                import os, signal, socket, subprocess, sys
                path = sys.argv[1] + '/notify'
                s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(path); s.settimeout(20)
                p = subprocess.Popen([os.environ['DOPPEL'], 'mount', '--foreground', sys.argv[2],
                                      sys.argv[3]], env=dict(os.environ, NOTIFY_SOCKET=path))
                try:
                    assert b'READY=1' in s.recv(4096)
                    assert os.path.ismount(sys.argv[3])
                    p.send_signal(signal.SIGTERM)
                    assert b'STOPPING=1' in s.recv(4096)
                    assert p.wait(20) == 0, p.returncode
                finally:
                    p.kill()
                """
            let outcome = try box.execute(
                ["/usr/bin/env", "python3", "-c", script, box.folder, box.pool, box.mountPoint],
                input: "/dev/null")
            #expect(outcome.code == 0, "\(outcome)")
            #expect(!box.isMounted)
        }
    }
}
