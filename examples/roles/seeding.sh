#!/usr/bin/env bash
# A mirror that was carried over by hand: docs/operations.md, "Seeding".
. "$(dirname "$0")/common.sh"

step "A pool in use, with more in it than its line could carry"
run "$doppel" init "$one" >/dev/null
run "$doppel" mount "$one" "$mnt"
head -c 8M /dev/urandom > "$mnt/disk.img"
head -c 1M /dev/urandom > "$mnt/small.img"
sync

step "Copy its images to a disk, and carry that over"
run "$doppel" snapshot create "$one" carried >/dev/null
run cp -r --sparse=always "$mnt/.snapshots/carried" "$two"
run "$doppel" snapshot delete "$one" carried >/dev/null
chmod -R u+w "$two"
put "$mnt/disk.img" meanwhile 5

step "Attach what arrived"
run "$doppel" target add "$one" "$two" --seed 2>&1 | sed "s|$folder|~|g"
in_step "$one" "$two"
sent=$("$doppel" status "$one" --json | sed -nE 's/.*"resyncedBytes" ?: ?([0-9]+).*/\1/p' | head -n 1)
compared=$("$doppel" status "$one" --json | sed -nE 's/.*"comparedBytes" ?: ?([0-9]+).*/\1/p' | head -n 1)
[ "$compared" -ge $((9 << 20)) ] || fail "only $compared bytes were compared"
[ "$sent" -lt $((1 << 20)) ] || fail "$sent bytes were sent"
good "everything was compared, and less than 1 MiB was sent"

step "Look into it"
run "$doppel" mount "$two" "$look"
is "$(get "$look/disk.img" 5)" meanwhile "what was written since is there"
cmp "$mnt/disk.img" "$look/disk.img" || fail "the images differ"
kept=$(ls "$look/.snapshots")
case $kept in diverged-*) good "what was carried over is kept as $kept" ;; *) fail "nothing was kept" ;; esac
run "$doppel" unmount "$look"
run "$doppel" unmount "$mnt"

step "The same with plain files that others are to read"
run "$doppel" target remove "$one" "$two"
run "$doppel" mount "$one" "$mnt"
run cp -r --sparse=always "$mnt" "$three"
put "$mnt/disk.img" later 6
run "$doppel" target add "$one" "raw:$three" --seed 2>&1 | sed "s|$folder|~|g"
in_step "$one" "raw:$three"
cmp "$mnt/disk.img" "$three/disk.img" || fail "the images differ"
run "$doppel" unmount "$mnt"
is "$(get "$three/disk.img" 6)" later "what was written since is there"

printf '\nAll %d steps went well.\n' "$number"
