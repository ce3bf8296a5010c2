import Glibc
import TestSupport
import Testing

/// Mounts by an ordinary user (fusermount3 wants one with a name: nobody; another is daemon), and what others may do on root's. In a mount namespace with a device
/// node and a fuse.conf of its own: whoever may open the machine's /dev/fuse is left as it is.
@Suite(.enabled(if: Machine.canMountGuests, "needs root and /dev/fuse")) struct OrdinaryUserTests {
    private static let prepare = """
        set -e
        mount --make-rprivate /
        mkdir "$F/dev" "$F/run"
        mount -t tmpfs tmpfs "$F/dev"
        mknod -m 666 "$F/dev/fuse" c 10 229
        mount --bind "$F/dev/fuse" /dev/fuse
        : >"$F/fuse.conf"
        test -e /etc/fuse.conf && mount --bind "$F/fuse.conf" /etc/fuse.conf
        trap 'umount -l "$M" 2>/dev/null || :' EXIT
        fail() { echo "$*"; findmnt "$M"; exit 1; }
        as() { u=$1; shift; setpriv --reuid=$u --regid=$u --clear-groups \
            env HOME="$F" XDG_RUNTIME_DIR="$F/run" "$@"; }

        """

    private func inNamespace(_ box: Sandbox, _ script: String) throws {
        let variables = "F='\(box.folder)' P='\(box.pool)' M='\(box.mountPoint)'; export F P M\n"
        let outcome = try box.execute(
            ["/usr/bin/unshare", "-m", "/bin/sh", "-c", variables + Self.prepare + script],
            input: "/dev/null")
        #expect(outcome.code == 0, "\(outcome)")
    }

    @Test func aUsersMountIsTheirsAloneUnlessFuseConfAllowsMore() throws {
        try Sandbox.with { box in
            chmod(box.folder, 0o755)
            try inNamespace(
                box,
                """
                chown -R 65534:65534 "$F/run" "$M"
                mkdir "$F/home"; chown 65534:65534 "$F/home"; P="$F/home/pool"
                as 65534 "$DOPPEL" init "$P"
                as 65534 "$DOPPEL" create "$P" a.img --size 1M
                as 65534 "$DOPPEL" mount "$P" "$M" || fail "a user cannot mount: $(cat "$F"/run/doppel/*.log)"
                o=$(grep " $M " /proc/self/mounts)
                echo "$o" | grep -q user_id=65534 || fail "whose is it: $o"
                ! echo "$o" | grep -Eq 'allow_other|default_permissions' || fail "open to all: $o"
                as 65534 sh -c 'echo mine >"$M/a.txt" && cat "$M/a.txt"' | grep -q mine || fail "own files"
                ! as 1 ls "$M" 2>/dev/null || fail "another user got in"
                ! ls "$M" 2>/dev/null || fail "root got in"
                as 65534 "$DOPPEL" snapshot create "$M" one || fail "snapshot"
                as 65534 "$DOPPEL" status "$M" >/dev/null || fail "status"
                as 65534 "$DOPPEL" unmount "$M" || fail "a user cannot unmount"

                # More takes the administrator's word, and the refusal says where.
                r=0; as 65534 "$DOPPEL" mount "$P" "$M" -o allow_other 2>"$F/said" || r=$?
                test $r = 1 || fail "allow_other: exit $r"
                grep -q user_allow_other "$F/said" && grep -q /etc/fuse.conf "$F/said" ||
                    fail "no hint: $(cat "$F/said")"
                ! mountpoint -q "$M" || fail "it was mounted all the same"
                echo user_allow_other >"$F/fuse.conf"
                test -e /etc/fuse.conf || exit 0
                as 65534 "$DOPPEL" mount "$P" "$M" -o allow_other || fail "with user_allow_other"
                o=$(grep " $M " /proc/self/mounts)
                echo "$o" | grep -q default_permissions || fail "nobody checks modes: $o"
                as 65534 chmod 755 "$M"; as 65534 chmod 644 "$M/a.txt"; as 65534 chmod 600 "$M/a.img"
                as 1 cat "$M/a.txt" | grep -q mine || fail "a file for all"
                ! as 1 sh -c 'echo x >"$M/a.txt"' 2>/dev/null || fail "another user wrote"
                ! as 1 cat "$M/a.img" 2>/dev/null || fail "another user read"
                # Killed: the user's next mount clears it.
                p=$(as 65534 "$DOPPEL" status "$P" --json | sed -n 's/.*"ownerPID" : \\([0-9]*\\).*/\\1/p')
                kill -9 "$p"
                as 65534 "$DOPPEL" mount "$P" "$M" || fail "after a kill"
                as 65534 cat "$M/a.txt" | grep -q mine || fail "after a kill: no file"
                as 65534 "$DOPPEL" unmount "$M"
                """)
        }
    }

    /// The kernel checks modes and owners on root's mount, and chown works: libvirt gives an image to
    /// its guest's user.
    @Test func onRootsMountModesAndOwnersDecide() throws {
        try Sandbox.withPool("a.img", "b.img") { box in
            chmod(box.folder, 0o755)
            try inNamespace(
                box,
                """
                "$DOPPEL" mount "$P" "$M"
                chmod 755 "$M"; chmod 600 "$M/a.img" "$M/b.img"
                ! as 4001 dd if="$M/a.img" of=/dev/null count=1 2>/dev/null || fail "read"
                chown 4001:4002 "$M/a.img"
                test "$(stat -c %u:%g:%a "$M/a.img")" = 4001:4002:600 || fail "chown"
                as 4001 sh -c 'printf guest | dd of="$M/a.img" conv=notrunc 2>/dev/null' || fail "write"
                test "$(head -c 5 "$M/a.img")" = guest || fail "what was written"
                ! as 4001 dd if="$M/b.img" of=/dev/null count=1 2>/dev/null || fail "the other image"
                ! as 4001 chown 4001 "$M/b.img" 2>/dev/null || fail "took another's image"
                ! as 4001 touch "$M/new" 2>/dev/null || fail "made a file in root's folder"
                mkdir -m 1777 "$M/all"; as 4001 touch "$M/all/x" || fail "a folder for all"
                test "$(stat -c %u "$M/all/x")" = 4001 || fail "who made it"
                ! as 4002 rm -f "$M/all/x" 2>/dev/null || fail "sticky"
                "$DOPPEL" snapshot create "$M" one
                ! as 4001 dd if="$M/.snapshots/one/b.img" of=/dev/null count=1 2>/dev/null ||
                    fail "read in a snapshot what is not theirs"
                as 4001 head -c 5 "$M/.snapshots/one/a.img" | grep -q guest || fail "own snapshot"
                ! as 4001 "$DOPPEL" snapshot create "$M" two 2>/dev/null || fail "ran a pool not theirs"
                "$DOPPEL" unmount "$M"
                """)
        }
    }
}
