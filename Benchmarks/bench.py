#!/usr/bin/env python3
"""Measures Doppel against peers in one run, interleaved, and prints Markdown tables.

    make bench                                  everything (about half an hour)
    make bench BENCH="--only throughput"        one part: throughput, fsync, snapshots, scale,
                                                mirror, modes, resync, tracking, remote, line
    Benchmarks/bench.py --seconds 1 --rounds 1  a smoke run

Each round runs each job once on every peer, so that a drift of the machine meets all of them; a cell
is the median over the rounds. The store of `throughput` and `scale` is on tmpfs (--fast), that of
`fsync` and `snapshots` on a disk (--disk). All files are written once before anything is measured.
Peers that are not installed are left out and named.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time

from mirrors import mirror, modes, resync, tracking
from peers import PEERS, available, doppel_mount, mounted
from remote import line, remote
from tools import DOPPEL, MIB, TIB, call, doppel, fio, random_4k, say, table

# Job, and what the design wants of it as a multiple of qemu's FUSE export.
THROUGHPUT = [
    ("sequential write 1 MiB", {"rw": "write", "bs": "1m"}, 3.0),
    ("sequential read 1 MiB", {"rw": "read", "bs": "1m"}, 3.0),
    ("random write 4 KiB, depth 1", random_4k("write"), 2.0),
    ("random write 4 KiB, 2 x depth 32", random_4k("write", 32, 2), 3.0),
    ("random read 4 KiB, depth 1", random_4k("read"), 2.0),
    ("random read 4 KiB, depth 32", random_4k("read", 32), 2.5),
]
FSYNC = [("4 KiB write + fsync", {"rw": "randwrite", "bs": "4k", "fsync": "1"}, 0.8)]


def compare(title, folder, jobs, names, arguments):
    """Runs each job on every peer in turn, round after round."""
    with contextlib.ExitStack() as stack:
        paths = {}
        for name in available(names):
            home = os.path.join(folder, re.sub(r"\W+", "-", f"{title} {name}"))
            os.makedirs(home)
            say(f"preparing {name}")
            paths[name] = stack.enter_context(PEERS[name][0](home, arguments.size * MIB))
        seen = {}
        for round_number in range(arguments.rounds):
            for job, options, _ in jobs:
                for name, path in paths.items():
                    rate = fio(path, arguments.seconds, options)
                    seen.setdefault((job, name), []).append(rate)
                    say(f"round {round_number + 1}: {job}: {name}: {rate:,.0f}/s")
    medians = {key: statistics.median(rates) for key, rates in seen.items()}
    rows = []
    for job, _, wanted in jobs:
        row = [job] + [f"{medians[job, name]:,.0f}" for name in paths]
        for peer in paths:
            if peer != "doppel":
                row.append(f"{medians[job, 'doppel'] / medians[job, peer]:.2f} x")
        row.append(f"{wanted:g} x")
        rows.append(row)
    print(f"### {title} (operations a second, medians of {arguments.rounds})\n")
    table(
        ["job", *paths, *[f"doppel : {peer}" for peer in paths if peer != "doppel"], "reach : qemu"],
        rows)
    return {f"{job} / {name}": rates for (job, name), rates in seen.items()}


def throughput(arguments):
    return compare(
        "Throughput, store on tmpfs", arguments.fast_folder, THROUGHPUT, list(PEERS), arguments)


def fsync(arguments):
    return compare(
        "Write and fsync, store on disk", arguments.disk_folder, FSYNC,
        ["bare file", "doppel", "qemu FUSE export"], arguments)


def snapshots(arguments):
    """Eight snapshots with scattered layers under an image, against the same image without."""
    folder, size = arguments.disk_folder, arguments.size * MIB
    jobs = [
        ("random write 4 KiB, depth 1", random_4k("write")),
        ("random write 4 KiB, 2 x depth 32", random_4k("write", 32, 2)),
        ("random read 4 KiB, depth 1", random_4k("read")),
        ("random read 4 KiB, depth 32", random_4k("read", 32)),
    ]
    # Load stays in the first quarter, which is then wholly in the head.
    hot = size // 4
    seen = {}
    with contextlib.ExitStack() as stack:
        paths, pools = {}, {}
        for name in ("without", "with eight"):
            home = os.path.join(folder, f"snapshots-{name.replace(' ', '-')}")
            os.makedirs(home)
            say(f"preparing an image {name}")
            paths[name] = stack.enter_context(doppel_mount(home, size))
            pools[name] = os.path.join(home, "pool")
        scattered = dict(random_4k("write", 32), time_based=None, io_size=str(size // 16))
        for number in range(8):
            doppel("snapshot", "create", pools["with eight"], f"s{number + 1}")
            fio(paths["with eight"], 60, scattered)
        for path in paths.values():
            fio(path, 60, {"rw": "write", "bs": "1m", "time_based": None, "end_fsync": "1"}, hot)
        for _ in range(arguments.rounds):
            for job, options in jobs:
                for name, path in paths.items():
                    rate = fio(path, arguments.seconds, options, hot)
                    seen.setdefault((job, name), []).append(rate)
                    say(f"{job}: {name}: {rate:,.0f}/s")
        # Each block at most once, on a layer that has none of them yet.
        first = dict(random_4k("write"), norandommap="0")
        for number in range(arguments.rounds):
            doppel("snapshot", "create", pools["with eight"], f"first{number + 1}")
            for name, path in paths.items():
                rate = fio(path, min(arguments.seconds, 2), first, size)
                seen.setdefault(("first write after a snapshot, depth 1", name), []).append(rate)
                say(f"first writes: {name}: {rate:,.0f}/s")
    rows = []
    for job in dict.fromkeys(job for job, _ in seen):
        without = statistics.median(seen[job, "without"])
        with_eight = statistics.median(seen[job, "with eight"])
        wanted = "0.4 x (guide)" if job.startswith("first") else "0.85 x"
        rows.append(
            [job, f"{without:,.0f}", f"{with_eight:,.0f}", f"{with_eight / without:.2f} x", wanted])
    print(f"### Eight snapshots, store on disk (operations a second, medians of {arguments.rounds})\n")
    table(["job", "without snapshots", "with eight", "ratio", "reach"], rows)
    return {f"{job} / {name}": rates for (job, name), rates in seen.items()}


# --- Many large images ------------------------------------------------------------------------


class Writer(threading.Thread):
    """Writes 4 KiB in a loop and keeps the longest time that one write took."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.file = os.open(path, os.O_RDWR)
        self.longest = 0.0
        self.going = True

    def run(self):
        block, number = os.urandom(4096), 0
        while self.going:
            start = time.perf_counter()
            os.pwrite(self.file, block, (number % 4096) * 4096)
            self.longest = max(self.longest, time.perf_counter() - start)
            number += 1

    def worst_since_asked(self):
        worst, self.longest = self.longest, 0.0
        return worst

    def stop(self):
        self.going = False
        self.join()
        os.close(self.file)


def daemon_memory(pool):
    """Resident memory of the pool's daemon, in MiB."""
    status = json.loads(doppel("status", pool, "--json"))
    text = json.dumps(status)
    pid = int(re.search(r'"ownerPID": (\d+)', text)[1])
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1]) / 1024


def scale(arguments):
    """100 sparse images of 1 TiB: opening, memory, a snapshot and the pause of a writer."""
    pool, mount_point = (os.path.join(arguments.fast_folder, part) for part in ("big", "big-mnt"))
    doppel("init", pool)
    say("creating 100 images of 1 TiB")
    for number in range(100):
        doppel("create", pool, f"disk{number:03}.raw", "--size", "1T")
    opening, taking, pauses, usual = [], [], [], []
    for round_number in range(arguments.rounds):
        start = time.monotonic()
        with mounted(pool, mount_point):
            opening.append(time.monotonic() - start)
            if round_number == 0:
                time.sleep(2)
                idle = daemon_memory(pool)
            writer = Writer(os.path.join(mount_point, "disk000.raw"))
            writer.start()
            time.sleep(1)
            writer.worst_since_asked()
            time.sleep(1)
            usual.append(writer.worst_since_asked())
            start = time.monotonic()
            doppel("snapshot", "create", pool, f"s{round_number + 1}")
            taking.append(time.monotonic() - start)
            pauses.append(writer.worst_since_asked())
            writer.stop()
            if round_number == arguments.rounds - 1:
                before = daemon_memory(pool)
                for number in range(4):
                    call("fallocate", "--punch-hole", "--offset", "0", "--length", str(TIB),
                         os.path.join(mount_point, f"disk{10 + number:03}.raw"))
                each = (daemon_memory(pool) - before) / 4
    start = time.monotonic()
    doppel("version")
    command = time.monotonic() - start
    milli = [f"{statistics.median(times) * 1000:.1f} ms" for times in (opening, taking, pauses, usual)]
    print("### 100 sparse images of 1 TiB, store on tmpfs\n")
    table(["what", "measured", "reach"], [
        ["`doppel mount` of the pool, until ready", milli[0], "1 s"],
        ["`doppel snapshot create`, whole command", milli[1], "100 ms"],
        ["a bare `doppel version` (what starting the program costs)", f"{command * 1000:.1f} ms", ""],
        ["longest 4 KiB write while the snapshot was taken", milli[2], "5 ms"],
        ["longest 4 KiB write in a second without a snapshot", milli[3], ""],
        ["resident memory, idle", f"{idle:.1f} MiB", "64 MiB"],
        ["more for each TiB trimmed over a snapshot (one piece)", f"{each:.1f} MiB", "32 MiB"],
    ])
    return {"open": opening, "snapshot": taking, "pause": pauses, "usual": usual,
            "idle MiB": [idle], "MiB a TiB": [each]}


PARTS = {
    "throughput": throughput, "fsync": fsync, "snapshots": snapshots, "scale": scale,
    "mirror": mirror, "modes": modes, "resync": resync, "tracking": tracking,
    "remote": remote, "line": line,
}


def machine():
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*:\s*(.*)", file.read())
    print(f"{os.cpu_count()} cores ({model[1] if model else 'unknown'}), Linux {os.uname().release}, "
          f"{doppel('version').strip().splitlines()[0]}, {time.strftime('%Y-%m-%d')}\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part (repeatable)")
    parser.add_argument("--seconds", type=int, default=3, help="of each fio run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="of a disk image, in MiB")
    parser.add_argument("--resync-size", type=int, default=16384, help="of the image of `resync`, in MiB")
    parser.add_argument("--fast", default="/dev/shm", help="a folder on tmpfs")
    parser.add_argument("--disk", default="/var/tmp", help="a folder on a disk")
    parser.add_argument("--json", help="write every single figure to this file")
    arguments = parser.parse_args()
    if not os.access(DOPPEL, os.X_OK):
        sys.exit(f"No {DOPPEL}: run make build first.")
    figures = {}
    with contextlib.ExitStack() as stack:
        for name in ("fast", "disk"):
            folder = tempfile.mkdtemp(prefix="doppel-bench-", dir=getattr(arguments, name))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            setattr(arguments, f"{name}_folder", folder)
        machine()
        for part in arguments.only or PARTS:
            figures[part] = PARTS[part](arguments)
            # The next part may need the room.
            for folder in (arguments.fast_folder, arguments.disk_folder):
                for left in os.listdir(folder):
                    shutil.rmtree(os.path.join(folder, left), ignore_errors=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
