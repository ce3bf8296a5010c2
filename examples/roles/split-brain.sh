#!/usr/bin/env bash
# Two mirrors of one pool, both promoted: docs/operations.md, "Split brain".
. "$(dirname "$0")/common.sh"

step "A pool with two mirrors dies"
run "$doppel" init "$one" >/dev/null
run "$doppel" create "$one" disk.img --size 16M
run "$doppel" mount "$one" "$mnt" --mirror "$two" 2>/dev/null
run "$doppel" target add "$one" "$three" 2>/dev/null
put "$mnt/disk.img" both 5
run "$doppel" wait "$one" --timeout 2m
kill_daemon_of "$one"

step "Both are promoted, and both are used"
run "$doppel" promote "$two" --force >/dev/null
run "$doppel" promote "$three" --force >/dev/null
for place in "$two" "$three"; do
    run "$doppel" mount "$place" "$look" --no-targets
    put "$look/disk.img" "$(basename "$place")" 6
    run "$doppel" unmount "$look"
done

step "When they meet, nothing is sent, and that is said"
run "$doppel" mount "$two" "$look"
for _ in $(seq 200); do
    { "$doppel" status "$two" || true; } | grep -q "split brain" && break
    sleep 0.1
done
code=0
"$doppel" status "$two" >"$folder/status" || code=$?
is "$code" 4 "status gives exit code 4"
grep -q "target resolve" "$folder/status" || fail "status does not say what to do"
good "and says what to do"

step "The first one goes on"
run "$doppel" target resolve "$two" "$three" --keep here | sed "s|$folder|~|g"
in_step "$two" "$three"
is "$(get "$look/disk.img" 6)" two "it is as it was"
run "$doppel" unmount "$look"
run "$doppel" mount "$three" "$look"
is "$(get "$look/disk.img" 6)" two "the other is its mirror"
kept=$(ls "$look/.snapshots" | grep diverged-)
is "$(get "$look/.snapshots/$kept/disk.img" 6)" three "and keeps what it had alone in $kept"
run "$doppel" unmount "$look"

printf '\nAll %d steps went well.\n' "$number"
