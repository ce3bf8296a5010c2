# Two hosts on one machine: a network namespace each, joined by a pair of virtual interfaces, with a key and a list of
# peers each. Everything goes when the script ends, however it ends.

# Names of this run, so that two can go on at once. 192.0.2.0/24 is for examples, and nobody's.
declare -A namespace=([web1]=doppel-web1-$$ [backup1]=doppel-backup1-$$)
declare -A address=([web1]=192.0.2.1 [backup1]=192.0.2.2)
declare -A server=()

also_clean_up() {
    for host in "${!server[@]}"; do stop_serving "$host" || true; done
    for host in "${!namespace[@]}"; do ip netns delete "${namespace[$host]}" 2>/dev/null || true; done
}

make_hosts() {
    for host in web1 backup1; do
        ip netns add "${namespace[$host]}"
        mkdir -p "$folder/$host/pools" "$folder/$host/state"
        echo "state-directory = \"$folder/$host/state\"" >"$folder/$host/doppel.toml"
    done
    ip link add wire0 netns "${namespace[web1]}" type veth peer name wire0 netns "${namespace[backup1]}"
    for host in web1 backup1; do
        ip -n "${namespace[$host]}" address add "${address[$host]}/24" dev wire0
        ip -n "${namespace[$host]}" link set lo up
        ip -n "${namespace[$host]}" link set wire0 up
    done
}

# A command on one of them. `ip netns exec` would make a mount namespace of its own, in which nobody else saw the mount.
at() {
    local host=$1
    shift
    nsenter --net="/run/netns/${namespace[$host]}" env DOPPEL_CONFIG="$folder/$host/doppel.toml" "$@"
}
on() {
    printf '    %s# %s\n' "$1" "${*:2}" | sed "s|$folder/$1|~|g; s|$doppel|doppel|g; s|$folder/||g"
    at "$@"
}
# What it says does not matter.
quietly_on() {
    on "$1" true "${@:2}" | sed 's/# true /# /'
    at "$@" >"$folder/out" 2>&1 || fail "$(cat "$folder/out")"
}

cut_link() { ip -n "${namespace[web1]}" link set wire0 down; }
mend_link() { ip -n "${namespace[web1]}" link set wire0 up; }

serve() {
    local host=$1 log=$folder/$1/serve.log
    printf '    %s# doppel serve ~/pools --listen %s:7420 &\n' "$host" "${address[$host]}"
    (exec nsenter --net="/run/netns/${namespace[$host]}" env DOPPEL_CONFIG="$folder/$host/doppel.toml" \
        "$doppel" serve "$folder/$host/pools" --listen "${address[$host]}:7420" </dev/null >"$log" 2>&1) &
    server[$host]=$!
    for _ in $(seq 400); do
        grep -q " at ${address[$host]}:7420" "$log" && return
        sleep 0.05
    done
    fail "the server on $host does not listen: $(cat "$log")"
}
stop_serving() {
    kill "${server[$1]}" 2>/dev/null || true
    wait "${server[$1]}" 2>/dev/null || true
    unset "server[$1]"
}
