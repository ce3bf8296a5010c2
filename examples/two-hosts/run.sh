#!/usr/bin/env bash
# A primary and a standby on two hosts, paired by their keys: a link that is cut, a planned failover, a forced one, and
# back again each time: docs/operations.md, "Failover between two machines". As root, for it makes network namespaces.
[ "$(id -u)" -eq 0 ] || { echo "This makes network namespaces: run it as root." >&2; exit 1; }
command -v ip >/dev/null && command -v nsenter >/dev/null || { echo "ip or nsenter is missing: apt-get install iproute2 util-linux" >&2; exit 1; }
here=$(dirname "${BASH_SOURCE[0]}")
. "$here/../roles/common.sh"
. "$here/hosts.sh"

web=$folder/web1/pools/vms backup=$folder/backup1/pools/vms
at_web=doppel://${address[web1]}:7420/vms at_backup=doppel://${address[backup1]}:7420/vms

# Waits until what `doppel status` says of a pool has a line with these words.
shown() {
    for _ in $(seq 400); do
        { at "$1" "$doppel" status "$2" || true; } >"$folder/status" 2>&1
        grep -q -- "$3" "$folder/status" && { good "status: $(grep -m 1 -- "$3" "$folder/status" | sed "s/^ *//; s|$folder/[a-z0-9]*|~|g")"; return; }
        sleep 0.05
    done
    fail "status does not show '$3': $(cat "$folder/status")"
}
settled() { on "$1" "$doppel" wait "$2" --timeout 1m; good "the other host holds everything"; }
# While its primary is connected, or was a moment ago, the server of a mirror has it.
promote() {
    local code
    for _ in $(seq 300); do
        code=0
        at "$1" "$doppel" promote "$2" --force >"$folder/out" 2>&1 || code=$?
        [ "$code" -eq 3 ] || break
        sleep 0.1
    done
    printf '    %s# doppel promote ~/pools/vms --force\n' "$1"
    [ "$code" -eq 0 ] || fail "it was not promoted: $(cat "$folder/out")"
    grep "is a primary now" "$folder/out" | sed "s|$folder/$1|~|; s|^|    |"
}
indented() { sed "s|$folder/[a-z0-9]*/|~/|g; /^    [a-z0-9]*# /!s|^|    |"; }
content() { sha256sum <"$1" | cut -d ' ' -f 1; }
# What a mirror shows that nobody serves just now.
mirror_holds() {
    stop_serving "$1"
    on "$1" "$doppel" mount "$2" "$look"
    is "$(content "$look/disk.img")" "$(content "$mnt/disk.img")" "every byte is the same on $1"
    is "$(ls "$look/.snapshots")" "" "and nothing had to be kept aside"
    at "$1" "$doppel" unmount "$look"
    serve "$1"
}

step "Two hosts, and a link between them"
make_hosts
good "web1 is ${address[web1]}, backup1 is ${address[backup1]}"

step "Each has a key, and accepts the other's, as a client and as a server"
web_line=$(at web1 "$doppel" pair --name web1 2>/dev/null)
backup_line=$(at backup1 "$doppel" pair --name backup1 2>/dev/null)
quietly_on web1 "$doppel" pair --accept "$backup_line" --pools vms --right admin --host "${address[backup1]}:7420"
quietly_on backup1 "$doppel" pair --accept "$web_line" --pools vms --right admin --host "${address[web1]}:7420"

step "backup1 serves a folder, web1 replicates a pool into it"
serve backup1
quietly_on web1 "$doppel" init "$web"
on web1 "$doppel" create "$web" disk.img --size 16M
on web1 "$doppel" mount "$web" "$mnt" --mirror "$at_backup,timeout=1s"
put "$mnt/disk.img" first 1
head -c 3M /dev/urandom | dd of="$mnt/disk.img" bs=1M seek=4 conv=notrunc,fsync iflag=fullblock status=none
settled web1 "$web"
shown web1 "$web" "in step"
mirror_holds backup1 "$backup"

step "The link is cut: the guest goes on, and status says what is at risk"
cut_link
put "$mnt/disk.img" alone 2
good "a write was flushed on web1 alone"
shown web1 "$web" "behind since"
is "$({ at web1 "$doppel" status "$web" >/dev/null; } && echo 0 || echo $?)" 4 "status ends with exit code 4"

step "It is back"
mend_link
settled web1 "$web"
shown web1 "$web" "in step"
mirror_holds backup1 "$backup"

step "web1 gets another key, while it replicates"
old_key=${web_line%% *}
new=$(at web1 "$doppel" pair --rotate 2>/dev/null)
web_line="${new%% *} web1"
quietly_on backup1 "$doppel" pair --accept "$web_line" --second-key
quietly_on web1 "$doppel" pair --retire "$old_key"
quietly_on backup1 "$doppel" pair --remove "$old_key"
put "$mnt/disk.img" rotated 1
settled web1 "$web"

step "web1 is taken out of backup1's list, and let in again"
quietly_on backup1 "$doppel" pair --remove web1
put "$mnt/disk.img" meanwhile 1
good "the guest goes on"
shown web1 "$web" "does not take this host's key"
at backup1 "$doppel" events --host >"$folder/out"
grep -q "${web_line%% *}" "$folder/out" || fail "backup1 did not write down who was refused: $(cat "$folder/out")"
good "and on backup1 it is written down who was refused"
quietly_on backup1 "$doppel" pair --accept "$web_line" --pools vms --right admin --host "${address[web1]}:7420"
settled web1 "$web"

step "Planned failover: backup1 takes over, with nothing lost"
before=$(content "$mnt/disk.img")
on web1 "$doppel" failover "$web" --to "$at_backup" --planned | indented
refused put "$mnt/disk.img" late 1
good "the mount on web1 is read-only"
on web1 "$doppel" unmount "$mnt"
on backup1 "$doppel" mount "$backup" "$mnt"
is "$(content "$mnt/disk.img")" "$before" "every byte is there"
put "$mnt/disk.img" second 1

step "The old primary is a mirror now, reached at an address that somebody has to say once"
serve web1
old=$(at backup1 "$doppel" target list "$backup" --json | sed -nE 's/.*"address" ?: ?"([^"]*)".*/\1/p' | sed 's|\\/|/|g')
on backup1 "$doppel" target set "$backup" "$old" --address "$at_web" --timeout 1s
settled backup1 "$backup"
sent=$({ at backup1 "$doppel" status "$backup" --json || true; } | sed -nE 's/.*"resyncedBytes" ?: ?([0-9]+).*/\1/p' | head -n 1)
[ "$sent" -le $((1 << 20)) ] || fail "$sent bytes were sent"
good "$sent bytes were sent: what changed, and no more"
mirror_holds web1 "$web"

step "Failback: the same, the other way round"
before=$(content "$mnt/disk.img")
on backup1 "$doppel" failover "$backup" --to "$at_web" --planned | indented
on backup1 "$doppel" unmount "$mnt"
on web1 "$doppel" mount "$web" "$mnt"
is "$(content "$mnt/disk.img")" "$before" "every byte is there"
put "$mnt/disk.img" third 1
settled web1 "$web"
good "nobody had to say an address again"
mirror_holds backup1 "$backup"

step "The link is cut, and backup1 takes over by force, while web1 goes on"
cut_link
put "$mnt/disk.img" lost 3
shown web1 "$web" "behind since"
promote backup1 "$backup"
on backup1 "$doppel" mount "$backup" "$look"
is "$(get "$look/disk.img" 1)" third "what both had is there"
put "$look/disk.img" fourth 1
good "both are primaries, and neither knows of the other"

step "The link is back: web1 hears that it was replaced"
mend_link
shown web1 "$web" "role  *fenced"
refused put "$mnt/disk.img" later 5
good "its mount is read-only"
on web1 "$doppel" unmount "$mnt"
on web1 "$doppel" demote "$web" | indented
settled backup1 "$backup"
stop_serving web1
on web1 "$doppel" mount "$web" "$mnt"
is "$(content "$mnt/disk.img")" "$(content "$look/disk.img")" "every byte is the same on web1"
kept=$(ls "$mnt/.snapshots" | grep diverged- | head -n 1)
is "$(get "$mnt/.snapshots/$kept/disk.img" 3)" lost "and what it did alone is in its snapshot $kept"
at web1 "$doppel" unmount "$mnt"

step "Home again"
serve web1
settled backup1 "$backup"
quietly_on backup1 "$doppel" failover "$backup" --to "$at_web" --planned
on backup1 "$doppel" unmount "$look"
on web1 "$doppel" mount "$web" "$mnt"
is "$(get "$mnt/disk.img" 1)" fourth "web1 has what was written on backup1"
put "$mnt/disk.img" fifth 1
settled web1 "$web"
mirror_holds backup1 "$backup"
on web1 "$doppel" unmount "$mnt"

printf '\nAll %d steps went well: all is as it should be.\n' "$number"
