import Glibc
import TestSupport
import Testing

/// mount(8) and fstab. Each test runs in a mount namespace of its own, where /usr/sbin has the links
/// that `make install` makes: the machine's own is not touched.
@Suite(.enabled(if: Machine.canMountGuests, "needs root and /dev/fuse")) struct MountHelperTests {
    private static let prepare = """
        set -e
        mount --make-rprivate /
        mkdir "$F/sbin"
        mount --bind /usr/sbin "$F/sbin"
        mount -t tmpfs tmpfs /usr/sbin
        ln -s "$F/sbin"/* /usr/sbin/
        ln -sf "$DOPPEL" /usr/sbin/mount.fuse.doppel
        ln -sf "$DOPPEL" /usr/sbin/mount.doppel
        trap 'umount -l "$M" 2>/dev/null || :' EXIT
        fail() { echo "$*"; findmnt "$M"; exit 1; }

        """

    private func inNamespace(_ box: Sandbox, _ script: String) throws {
        let variables = "F='\(box.folder)' P='\(box.pool)' M='\(box.mountPoint)'; export F P M\n"
        let outcome = try box.execute(
            ["/usr/bin/unshare", "-m", "/bin/sh", "-c", variables + Self.prepare + script],
            input: "/dev/null")
        #expect(outcome.code == 0, "\(outcome)")
    }

    /// Each option alone, as a line of fstab may have it.
    @Test(arguments: [
        ["defaults", "nofail", "noauto", "auto", "user", "users", "owner", "group", "nouser"],
        [
            "_netdev", "x-systemd.automount", "x-systemd.requires=/srv", "x-gvfs-hide",
            "comment=disks", "x-systemd.device-timeout=10s", "x-mount.mkdir",
        ],
        ["rw", "ro", "noexec", "nosuid", "nodev", "noatime", "sync", "dirsync"],
        [
            "exec", "suid", "dev", "relatime", "strictatime", "lazytime", "async", "nodiratime",
            "norelatime",
        ],
    ])
    func everyOptionOfMountEightIsTaken(options: [String]) throws {
        try Sandbox.withPool("a.img") { box in
            try inNamespace(
                box,
                """
                for o in \(options.joined(separator: " ")); do
                    mount -t fuse.doppel -o "$o" "$P" "$M" || fail "mount -o $o"
                    test -f "$M/a.img" || fail "$o: no image"
                    case "$o" in ro|noexec|nosuid|nodev|noatime|sync|dirsync)
                        findmnt -no OPTIONS "$M" | grep -qw "$o" || fail "$o is not in force";;
                    esac
                    if test "$o" = ro; then ! touch "$M/x" 2>/dev/null || fail "ro: written"
                    else echo "$o" >"$M/x" && test "$(cat "$M/x")" = "$o" || fail "$o: no write"; fi
                    umount "$M" || fail "umount after $o"
                done
                """)
        }
    }

    @Test func linesOfFstabWork() throws {
        try Sandbox.withPool("a.img") { box in
            try inNamespace(
                box,
                """
                mount -t doppel "$P" "$M"; umount "$M"
                echo "$P $M fuse.doppel defaults,nofail,x-systemd.requires-mounts-for=/srv 0 0" >"$F/fstab"
                mount --fstab "$F/fstab" "$M" || fail "by the mount point"
                findmnt -no FSTYPE,SOURCE "$M" | grep -q "^fuse.doppel  *$P" || fail "type and source"
                umount "$M"
                mount --fstab "$F/fstab" -a || fail "all"
                mount --fstab "$F/fstab" -a || fail "all, when it is there already"
                test "$(grep -c " $M " /proc/self/mounts)" = 1 || fail "mounted twice"
                umount "$M"
                echo "$P $M fuse.doppel noauto,ro,snapdir=visible,reserve=1M,cache=read 0 0" >"$F/fstab"
                mount --fstab "$F/fstab" -a
                ! mountpoint -q "$M" || fail "noauto was mounted"
                mount --fstab "$F/fstab" "$M" || fail "our own options"
                ls -A "$M" | grep -q .snapshots || fail "snapdir"
                umount "$M"
                # mount(8) gives its own switches on to its helper.
                mount -v -t fuse.doppel "$P" "$M"; umount "$M"
                mount -n -t fuse.doppel "$P" "$M"; umount "$M"
                mount -s -t fuse.doppel -o bogus "$P" "$M" || fail "-s: sloppy"; umount "$M"
                mount -r -t fuse.doppel "$P" "$M"
                ! touch "$M/x" 2>/dev/null || fail "-r: written"
                umount "$M"
                mount -f -t fuse.doppel "$P" "$M"
                ! mountpoint -q "$M" || fail "-f mounted"
                # What cannot be done is told by mount's own exit code.
                ! mount -t fuse.doppel -o bogus "$P" "$M" 2>"$F/said" || fail "bogus was taken"
                grep -q bogus "$F/said" || fail "nobody says what is wrong"
                ! mount -t fuse.doppel "$F" "$M" 2>"$F/said" || fail "no pool was mounted"
                grep -q "not a pool" "$F/said" || fail "nobody says that it is no pool"
                """)
        }
    }
}
