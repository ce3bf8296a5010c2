#!/usr/bin/env bash
# The primary is lost, its mirror takes over, the old primary comes back with writes of its own:
# docs/operations.md, "The primary is lost" and "The old primary comes back".
. "$(dirname "$0")/common.sh"

step "A pool with a mirror, which is not in step when the primary dies"
run "$doppel" init "$one" >/dev/null
run "$doppel" create "$one" disk.img --size 16M
run "$doppel" mount "$one" "$mnt" --mirror "$two" 2>/dev/null
put "$mnt/disk.img" both 5
in_step "$one" "$two"
run "$doppel" target pause "$one" "$two"
put "$mnt/disk.img" alone 6
kill_daemon_of "$one"

step "What would be lost?"
run "$doppel" promote "$two" --dry-run | sed "s|$folder|~|g" | tee "$folder/plan"
grep -q "disk.img: changed, 4 KiB in 1 range" "$folder/plan" || fail "the loss is not listed"
refused "$doppel" promote "$two"
good "without --force it is not promoted"

step "Take over all the same"
run "$doppel" promote "$two" --force >/dev/null
run "$doppel" mount "$two" "$look"
is "$(get "$look/disk.img" 5)" both "what both had is there"
put "$look/disk.img" new 7

step "The old primary comes back: it is refused, and becomes a mirror"
run "$doppel" mount "$one" "$mnt"
run "$doppel" target resume "$one" "$two"
for _ in $(seq 200); do
    { "$doppel" status "$one" || true; } | grep -q "role  *fenced" && break
    sleep 0.1
done
refused put "$mnt/disk.img" later 8
good "its mount is read-only"
run "$doppel" unmount "$mnt"
run "$doppel" demote "$one" | sed "s|$folder|~|g"
in_step "$two" "$one"

step "What it had alone is kept"
run "$doppel" unmount "$look"
kept=$("$doppel" snapshot list "$one" --json | sed -nE 's/.*"name" ?: ?"(diverged-[^"]+)".*/\1/p')
[ -n "$kept" ] || fail "there is no snapshot diverged-..."
run "$doppel" snapshot diff "$one" "$kept"
run "$doppel" mount "$one" "$look"
is "$(get "$look/disk.img" 7)" new "it has what the new primary wrote"
is "$(get "$look/.snapshots/$kept/disk.img" 6)" alone "and its own in $kept"
run "$doppel" unmount "$look"

printf '\nAll %d steps went well.\n' "$number"
