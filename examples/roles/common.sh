# What the walks through changes of roles share: two places, checks that end the run, an end that leaves
# nothing behind. Runs as an ordinary user who may use FUSE.
set -euo pipefail
export LC_ALL=C
doppel=$(realpath "${DOPPEL:-$(dirname "${BASH_SOURCE[0]}")/../../.build/release/doppel}")
[ -x "$doppel" ] || { echo "No $doppel: run make build first." >&2; exit 1; }

folder=$(mktemp -d "${TMPDIR:-/tmp}/doppel-roles.XXXXXX")
one=$folder/one two=$folder/two three=$folder/three mnt=$folder/mnt look=$folder/look
mkdir "$mnt" "$look"
# File systems that a walk mounted for itself.
disks=()
# What else a walk has to take away, after its mounts.
also_clean_up() { :; }

clean_up() {
    code=$?
    trap - EXIT
    for place in "$look" "$mnt"; do
        grep -qs " $place " /proc/mounts || continue
        "$doppel" unmount "$place" --force >/dev/null 2>&1 || fusermount3 -uz "$place" || true
    done
    also_clean_up
    for disk in "${disks[@]}"; do umount -l "$disk" 2>/dev/null || true; done
    rm -rf "$folder"
    [ "$code" -eq 0 ] || echo "The walk failed (exit code $code)." >&2
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

number=0
step() { number=$((number + 1)); printf '\n%2d. %s\n' "$number" "$*"; }
run() { printf '    $ %s\n' "$*" | sed "s|$folder|~|g; s|$doppel|doppel|g"; "$@"; }
good() { printf '    ok: %s\n' "$*"; }
fail() { printf '    FAILED: %s\n' "$*" >&2; exit 1; }
# What is written, and flushed, to a block of the disk; and what is there.
put() { printf '%-16s' "$2" | dd of="$1" bs=4096 seek="$3" conv=notrunc,fsync status=none; }
get() { dd if="$1" bs=4096 skip="$2" count=1 status=none | head -c 16 | tr -d ' \0'; }
is() { [ "$1" = "$2" ] || fail "$3: it is '$1' instead of '$2'"; good "$3"; }
in_step() { run "$doppel" wait "$1" --target "$2" --timeout 2m >/dev/null; good "$2 holds everything" | sed "s|$folder|~|"; }
kill_daemon_of() {
    local pid
    # A pool that is degraded is told by the exit code, too.
    pid=$({ "$doppel" status "$1" --json || true; } | sed -nE 's/.*"ownerPID" ?: ?([0-9]+).*/\1/p' | head -n 1)
    [ -n "$pid" ] || fail "doppel status names no daemon"
    run kill -KILL "$pid"
    while kill -0 "$pid" 2>/dev/null && [ "$(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null)" != Z ]; do
        sleep 0.05
    done
}
refused() { if "$@" >"$folder/out" 2>&1; then fail "this should have been refused: $*"; fi; }
