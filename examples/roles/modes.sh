#!/usr/bin/env bash
# Which mode a mirror is to have: docs/operations.md, "Which mode?".
. "$(dirname "$0")/common.sh"

in_force() {
    for _ in $(seq 400); do
        "$doppel" target list "$one" --json | grep -E "\"modeInForce\" ?: ?\"$1\"" >/dev/null && return
        sleep 0.05
    done
    fail "mode $1 did not come in force"
}
shown() {
    for _ in $(seq 400); do
        { "$doppel" status "$one" || true; } | grep -F -- "$1" >/dev/null && { good "status: $1"; return; }
        sleep 0.05
    done
    fail "status does not show '$1'"
}
# What is left when the primary's process dies now.
after_a_crash() {
    kill_daemon_of "$one"
    run "$doppel" mount "$two" "$look"
    is "$(get "$look/$1" "$2")" "$3" "$4"
    run "$doppel" unmount "$look"
    run "$doppel" mount "$one" "$mnt"
}

step "Without a choice it is flush: an fsync waits for the mirror"
run "$doppel" init "$one" >/dev/null
for image in disk.img db.img; do run "$doppel" create "$one" "$image" --size 16M; done
run "$doppel" mount "$one" "$mnt" --mirror "$two,timeout=1s" 2>/dev/null
in_step "$one" "$two"
put "$mnt/disk.img" flushed 1
after_a_crash disk.img 1 flushed "what was flushed is in the mirror"

step "sync: every write waits for it"
run "$doppel" target set "$one" "$two" --mode sync
in_force sync
printf '%-16s' written | dd of="$mnt/disk.img" bs=4096 seek=2 conv=notrunc status=none
after_a_crash disk.img 2 written "what was never flushed is there, too"

step "adaptive: as much as it answers within 50 ms"
run "$doppel" target set "$one" "$two" --mode adaptive --latency-budget 50ms
in_force sync
good "it is quick enough for sync"

step "async, with a bound: nobody waits, and writers are slowed before 64 MiB are at risk"
run "$doppel" target set "$one" "$two" --mode async --latency-budget 0ms --rpo 64MiB --on-rpo throttle
shown "rpo 64 MiB, on-rpo throttle"

step "async, once in an hour: a line that is slow or dear"
run "$doppel" target set "$one" "$two" --rpo 0 --on-rpo alarm --interval 1h
put "$mnt/disk.img" later 3
shown "every 1h, next at"
in_step "$one" "$two"
run "$doppel" mount "$two" "$look"
is "$(get "$look/disk.img" 3)" later "who waits has it now"
run "$doppel" unmount "$look"

step "One image that is not to go on alone"
run "$doppel" target set "$one" "$two" --mode flush --interval 0s
run "$doppel" target set "$one" "$two" --image db.img --mode sync --on-timeout fail
in_force flush
put "$mnt/db.img" both 1
mv "$two" "$two.away"
put "$mnt/disk.img" alone 4
good "the others go on without the mirror"
shown "behind since"
refused put "$mnt/db.img" alone 1
good "a write to that one fails"
is "$(get "$mnt/db.img" 1)" both "and changed nothing"

step "The mirror is back"
mv "$two.away" "$two"
in_step "$one" "$two"
for _ in $(seq 200); do put "$mnt/db.img" again 1 2>/dev/null && break; sleep 0.05; done
is "$(get "$mnt/db.img" 1)" again "it takes writes again"
run "$doppel" unmount "$mnt"

printf '\nAll %d steps went well.\n' "$number"
