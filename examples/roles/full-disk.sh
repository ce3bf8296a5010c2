#!/usr/bin/env bash
# The disk under the pool is full, then the one under its mirror: docs/operations.md, "The disk under the pool is full".
# Small disks are made of memory, in a mount namespace of the script's own: as root, or as a user who may have one.
if [ -z "${DOPPEL_WALK:-}" ]; then
    export DOPPEL_WALK=1
    if [ "$(id -u)" -eq 0 ]; then exec unshare -m "$0" "$@"; else exec unshare -Urm "$0" "$@"; fi
fi
. "$(dirname "$0")/common.sh"

small() {
    mkdir -p "$1"
    mount -t tmpfs -o "size=$2" none "$1"
    disks+=("$1")
}
# A stretch of the disk, in MiB; tells whether it went through.
stretch() { head -c "$3M" /dev/urandom | dd of="$1" bs=1M seek="$2" iflag=fullblock conv=notrunc,fsync status=none; }

step "A pool on a disk of 40 MiB"
small "$folder/disk" 40m
pool=$folder/disk/pool
run "$doppel" init "$pool" >/dev/null
run "$doppel" create "$pool" disk.img --size 64M
run "$doppel" mount "$pool" "$mnt" --reserve 2M
stretch "$mnt/disk.img" 0 16
put "$mnt/disk.img" kept 0
run "$doppel" snapshot create "$pool" old >/dev/null

step "It is written until the disk is full"
refused stretch "$mnt/disk.img" 0 40
grep -q "No space left" "$folder/out" || fail "it was something else: $(cat "$folder/out")"
good "the write says so"
refused put "$mnt/disk.img" more 12000
good "and again"
is "$(get "$mnt/.snapshots/old/disk.img" 0)" kept "what was there before can be read"

step "Snapshots give way"
run "$doppel" snapshot list "$pool" >/dev/null
run "$doppel" snapshot delete "$pool" old --wait >/dev/null
put "$mnt/disk.img" again 100
is "$(get "$mnt/disk.img" 100)" again "there is room again"
run "$doppel" unmount "$mnt"

step "The disk of a mirror is full"
small "$folder/far" 24m
run "$doppel" init "$one" >/dev/null
run "$doppel" create "$one" disk.img --size 64M
run "$doppel" mount "$one" "$mnt" --mirror "$folder/far/mirror,timeout=1s" 2>/dev/null
run "$doppel" wait "$one" --timeout 2m
stretch "$mnt/disk.img" 0 30
good "the guest goes on"
for _ in $(seq 200); do
    { "$doppel" status "$one" || true; } >"$folder/status"
    grep -q "No space left" "$folder/status" && break
    sleep 0.1
done
grep -q "No space left" "$folder/status" || fail "status does not say it: $(cat "$folder/status")"
good "and status says what is the matter"

step "Room is made on it"
run mount -o remount,size=128m "$folder/far"
in_step "$one" "$folder/far/mirror"
run "$doppel" unmount "$mnt"

printf '\nAll %d steps went well.\n' "$number"
