#!/usr/bin/env bash
# Planned failover, and back again: docs/operations.md, "Planned failover".
. "$(dirname "$0")/common.sh"

step "A pool with a mirror, in use"
run "$doppel" init "$one" >/dev/null
run "$doppel" create "$one" disk.img --size 16M
run "$doppel" mount "$one" "$mnt" --mirror "$two" 2>/dev/null
put "$mnt/disk.img" before 5
in_step "$one" "$two"

step "Hand it over"
run "$doppel" failover "$one" --to "$two" --planned | sed "s|$folder|~|g"
refused put "$mnt/disk.img" late 6
good "the old mount is read-only"

step "Go on with the other one"
run "$doppel" unmount "$mnt"
run "$doppel" mount "$two" "$mnt"
is "$(get "$mnt/disk.img" 5)" before "what was flushed before is there"
put "$mnt/disk.img" after 6
in_step "$two" "$one"

step "And back again"
run "$doppel" unmount "$mnt"
run "$doppel" failover "$two" --to "$one" --planned >/dev/null
run "$doppel" mount "$one" "$mnt"
is "$(get "$mnt/disk.img" 6)" after "what was flushed meanwhile is there"
put "$mnt/disk.img" again 7
in_step "$one" "$two"
run "$doppel" unmount "$mnt"
[ -z "$("$doppel" snapshot list "$one" --json | grep diverged)" ] || fail "something had to be kept"
good "nothing was lost, and nothing had to be kept"

printf '\nAll %d steps went well.\n' "$number"
