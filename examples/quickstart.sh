#!/usr/bin/env bash
# Doppel in two minutes: a real disk image, a pool, a mount, a snapshot, damage, a crash under load,
# both ways back, and a mirror that has everything when its primary dies. Runs as an ordinary user who may use FUSE; needs no loop device. Every claim is
# checked; the first that fails ends the run with a message and exit code 1.
#
#   make quickstart            builds Doppel, installs what is missing, runs this
#   DOPPEL=... KEEP=1 examples/quickstart.sh
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
cd "$(dirname "$0")/.."

doppel=$(realpath "${DOPPEL:-.build/release/doppel}")
[ -x "$doppel" ] || { echo "No $doppel: run make build first." >&2; exit 1; }
[ -r /dev/fuse ] && [ -w /dev/fuse ] || {
    echo "No access to /dev/fuse: this user may not use FUSE (on Debian everybody may: is the" >&2
    echo "module loaded, and is this a container without the device?)." >&2
    exit 1
}

folder=$(mktemp -d "${TMPDIR:-/tmp}/doppel-quickstart.XXXXXX")
pool=$folder/vms mnt=$folder/mnt mirror=$folder/mirror look=$folder/look
writer= number=0

clean_up() {
    code=$?
    trap - EXIT
    [ -z "$writer" ] || kill "$writer" 2>/dev/null || true
    for place in "$look" "$mnt"; do
        grep -qs " $place " /proc/mounts || continue
        "$doppel" unmount "$place" --force >/dev/null 2>&1 || fusermount3 -uz "$place" || true
    done
    if [ -n "${KEEP:-}" ]; then echo "Kept: $folder"; else rm -rf "$folder"; fi
    [ "$code" -eq 0 ] || echo "The quickstart failed (exit code $code)." >&2
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

step() { number=$((number + 1)); printf '\n%2d. %s\n' "$number" "$*"; }
run() { printf '    $ %s\n' "$*" | sed "s|$folder|~|g; s|$doppel|doppel|g"; "$@"; }
good() { printf '    ok: %s\n' "$*"; }
fail() { printf '    FAILED: %s\n' "$*" >&2; exit 1; }
sum() { sha256sum "$1" | cut -d' ' -f1; }
same() { [ "$1" = "$2" ] || fail "$3: $1 is not $2"; good "$3"; }
# The e2fsprogs tools find the partition inside a file by "?offset=".
partition=1048576
fs_of() { printf '%s?offset=%s' "$1" "$partition"; }
fsck() { e2fsck -fn "$(fs_of "$1")" >"$folder/fsck.log" 2>&1; }
block_of() { printf '%-4095s\n' "block $1 was acknowledged"; }
# Kills the daemon while a program writes with fsync, as soon as a hundred blocks were acknowledged.
# Arguments: a file for their numbers; what the blocks say besides theirs.
kill_under_load() {
    local log=$1 word=$2 daemon
    : >"$log"
    (
        for ((i = 0; i < 16384; i++)); do
            block_of "$i$word" | dd of="$mnt/db/data.raw" bs=4096 seek="$i" conv=notrunc,fsync \
                status=none 2>/dev/null || exit 0
            echo "$i" >>"$log"
        done
    ) &
    writer=$!
    for _ in $(seq 300); do
        [ "$(wc -l <"$log")" -lt 100 ] || break
        sleep 0.1
    done
    daemon=$("$doppel" status "$pool" --json | sed -nE 's/.*"ownerPID" ?: ?([0-9]+).*/\1/p' | head -n 1)
    [ -n "$daemon" ] || fail "doppel status names no daemon"
    run kill -KILL "$daemon"
    wait "$writer" || true
    writer=
}
copy_in() { debugfs -w -R "write $2 $3" "$(fs_of "$1")" >/dev/null 2>&1; }
copy_out() { debugfs -R "dump $2 $3" "$(fs_of "$1")" >/dev/null 2>&1; }

step "A folder with a virtual machine's disk: one partition, ext4, with files in it"
mkdir -p "$pool/db" "$mnt" "$folder/tree/etc"
echo "hello from inside the disk" >"$folder/tree/etc/motd"
head -c 8M /dev/urandom >"$folder/tree/photos.bin"
truncate -s 512M "$pool/disk.img"
echo "start=2048, type=83" | sfdisk --quiet "$pool/disk.img"
mkfs.ext4 -q -F -d "$folder/tree" -E "offset=$partition" "$pool/disk.img" $((511 * 1024))k
truncate -s 64M "$pool/db/data.raw"
fsck "$pool/disk.img" || fail "mkfs.ext4 made a file system that e2fsck does not like"
photos=$(sum "$folder/tree/photos.bin") adopted=$(sum "$pool/disk.img")
good "$(du -h --apparent-size "$pool/disk.img" | cut -f1) image, $(du -h "$pool/disk.img" | cut -f1) on disk"

step "The folder becomes a pool: a rename for each image, not a copy"
run "$doppel" adopt "$pool" --dry-run
run "$doppel" adopt "$pool"
run "$doppel" list "$pool"

step "Mount it: the images are ordinary files again"
run "$doppel" mount "$pool" "$mnt"
same "$(sum "$mnt/disk.img")" "$adopted" "every byte of disk.img is as before"
sfdisk --quiet --dump "$mnt/disk.img" | grep -q 'start= *2048' || fail "the partition table is gone"
good "its partition table reads"

step "Write through the mount: a new file into the file system inside the disk"
head -c 4M /dev/urandom >"$folder/report.bin"
report=$(sum "$folder/report.bin")
copy_in "$mnt/disk.img" "$folder/report.bin" report.bin
sync "$mnt/disk.img"
fsck "$mnt/disk.img" || fail "e2fsck after writing: $(tail -n 3 "$folder/fsck.log")"
good "e2fsck finds nothing to say"

step "A snapshot of the whole pool"
run "$doppel" snapshot create "$pool" monday
run "$doppel" snapshot list "$pool"
at_snapshot=$(sum "$mnt/disk.img")

step "Tuesday: a bad day for the disk"
debugfs -w -R "rm report.bin" "$(fs_of "$mnt/disk.img")" >/dev/null 2>&1
dd if=/dev/urandom of="$mnt/disk.img" bs=4k seek=$((partition / 4096 + 1)) count=600 \
    conv=notrunc,fsync status=none
if fsck "$mnt/disk.img"; then fail "the damage did no damage"; fi
good "report.bin is deleted, the file system is damaged, and e2fsck says so"

step "And a crash: the daemon is killed (SIGKILL) while a program writes with fsync"
kill_under_load "$folder/acknowledged" ""
acknowledged=$(wc -l <"$folder/acknowledged")
[ "$acknowledged" -ge 100 ] || fail "only $acknowledged writes came through before the crash"
good "$acknowledged writes had been acknowledged when it died"

step "Mount again: no repair, no questions; the dead mount point is cleared"
run "$doppel" mount "$pool" "$mnt"
for ((i = 0; i < acknowledged; i++)); do block_of "$i"; done >"$folder/expected"
cmp -n $((acknowledged * 4096)) "$folder/expected" "$mnt/db/data.raw" ||
    fail "an acknowledged write is lost"
good "all $acknowledged acknowledged writes are there"

step "Back, the first way: copy out of the snapshot folder"
old=$mnt/.snapshots/monday/disk.img
same "$(sum "$old")" "$at_snapshot" "the snapshot is what the disk was on Monday, byte for byte"
fsck "$old" || fail "e2fsck on the snapshot: $(tail -n 3 "$folder/fsck.log")"
copy_out "$old" report.bin "$folder/rescued.bin"
same "$(sum "$folder/rescued.bin")" "$report" "report.bin came back out of the snapshot"
run cp --sparse=auto "$old" "$folder/monday.img"
same "$(sum "$folder/monday.img")" "$at_snapshot" "and so does a copy of the whole image"

step "Back, the second way: roll the image back, in an instant, nothing copied"
run "$doppel" restore "$pool" disk.img --snapshot monday
same "$(sum "$mnt/disk.img")" "$at_snapshot" "disk.img is Monday's"
fsck "$mnt/disk.img" || fail "e2fsck after the restore: $(tail -n 3 "$folder/fsck.log")"
copy_out "$mnt/disk.img" photos.bin "$folder/photos.bin"
same "$(sum "$folder/photos.bin")" "$photos" "photos.bin inside it is intact, e2fsck is content"
run "$doppel" snapshot list "$pool"

step "A mirror: every write in a second place (best on another disk), in order, always mountable"
mkdir -p "$look"
run "$doppel" unmount "$mnt"
run "$doppel" mount "$pool" "$mnt" --mirror "$mirror"
run "$doppel" wait "$pool" --timeout 5m
run "$doppel" target list "$pool"
kill_under_load "$folder/mirrored" ", again,"
mirrored=$(wc -l <"$folder/mirrored")
[ "$mirrored" -ge 100 ] || fail "only $mirrored writes came through before the primary died"
run "$doppel" mount "$mirror" "$look"
for ((i = 0; i < mirrored; i++)); do block_of "$i, again,"; done >"$folder/expected"
cmp -n $((mirrored * 4096)) "$folder/expected" "$look/db/data.raw" ||
    fail "a write that was flushed is not in the mirror"
good "the primary is dead; all $mirrored flushed writes are in the mirror"
same "$(sum "$look/disk.img")" "$at_snapshot" "and so is every byte of disk.img"
run "$doppel" unmount "$look"
run "$doppel" mount "$pool" "$mnt"
run "$doppel" wait "$pool" --timeout 5m
good "the primary is back, and its mirror is in step again"
run "$doppel" target remove "$pool" "$mirror"

step "Unmount: the pool is settled and clean"
run "$doppel" unmount "$mnt"
run "$doppel" check "$pool"

step "And out again: eject gives the plain folder back"
"$doppel" snapshot list "$pool" --json | sed -nE 's/.*"name" ?: ?"([^"]+)".*/\1/p' |
    xargs -r -d '\n' "$doppel" snapshot delete "$pool"
run "$doppel" eject "$pool"
same "$(sum "$pool/disk.img")" "$at_snapshot" "disk.img is a plain file with Monday's bytes"

printf '\nAll %d steps went well.\n' "$number"
