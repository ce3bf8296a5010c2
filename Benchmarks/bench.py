#!/usr/bin/env python3
"""Measures Doppel against peers in one run, interleaved, and prints Markdown tables.

    make bench                                  everything (about half an hour)
    make bench BENCH="--only throughput"        one part: throughput, fsync, snapshots, scale,
                                                mirror, resync, tracking
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
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

DOPPEL = os.path.realpath(os.environ.get("DOPPEL", ".build/release/doppel"))
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def call(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout


def doppel(*arguments):
    return call(DOPPEL, *arguments)


def wait_for(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not ready after {seconds} s")
        time.sleep(0.02)


def fill(path, size):
    """Writes every byte once: touching fresh pages is dear and would be measured otherwise."""
    chunk = os.urandom(MIB)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


# --- Peers: each is a context that yields the path of a file to load -----------------------------


@contextlib.contextmanager
def bare(folder, size):
    path = os.path.join(folder, "disk.raw")
    fill(path, size)
    yield path


@contextlib.contextmanager
def mounted(pool, mount_point, *options):
    os.makedirs(mount_point, exist_ok=True)
    doppel("mount", pool, mount_point, *options)
    try:
        yield
    finally:
        doppel("unmount", mount_point)


@contextlib.contextmanager
def doppel_mount(folder, size):
    pool = os.path.join(folder, "pool")
    doppel("init", pool)
    raw = os.path.join(folder, "disk.raw")
    fill(raw, size)
    doppel("import", pool, raw)
    os.remove(raw)
    with mounted(pool, os.path.join(folder, "mnt")):
        yield os.path.join(folder, "mnt", "disk.raw")


@contextlib.contextmanager
def served(command, path, size):
    """A server in the foreground that shows a disk of `size` bytes at `path`."""
    log = tempfile.TemporaryFile()
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ready():
        if server.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"{command[0]} ended: {log.read().decode()}")
        with contextlib.suppress(OSError):
            return os.path.ismount(path) or os.path.ismount(os.path.dirname(path))
        return False

    try:
        wait_for(command[0], ready)
        wait_for(command[0], lambda: os.stat(path).st_size == size)
        yield path
    finally:
        # Both unmount when they are asked to end.
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        for place in (path, os.path.dirname(path)):
            if os.path.ismount(place):
                subprocess.run(["fusermount3", "-uz", place], check=False)


@contextlib.contextmanager
def qemu_export(folder, size):
    store, mount_point = os.path.join(folder, "store.raw"), os.path.join(folder, "disk.raw")
    fill(store, size)
    open(mount_point, "wb").close()
    command = [
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=file,filename={store}",
        "--blockdev", "driver=raw,node-name=raw,file=file",
        "--export", f"type=fuse,id=disk,node-name=raw,mountpoint={mount_point},writable=on",
    ]
    with served(command, mount_point, size) as path:
        yield path


@contextlib.contextmanager
def nbdfuse(folder, size):
    store, mount_point = os.path.join(folder, "store.raw"), os.path.join(folder, "mnt")
    fill(store, size)
    os.makedirs(mount_point)
    path = os.path.join(mount_point, "disk.raw")
    command = ["nbdfuse", path, "[", "qemu-nbd", "-f", "raw", "-e", "8", store, "]"]
    with served(command, path, size) as path:
        yield path


PEERS = {
    "bare file": (bare, None),
    "doppel": (doppel_mount, None),
    "qemu FUSE export": (qemu_export, "qemu-storage-daemon"),
    "nbdfuse": (nbdfuse, "nbdfuse"),
}


def available(names):
    for name in names:
        program = PEERS[name][1]
        if program and not shutil.which(program):
            say(f"left out: {name} ({program} is not installed)")
        else:
            yield name


# --- Load -------------------------------------------------------------------------------------


def fio(path, seconds, job, size=None):
    """Operations a second of one fio job on one file."""
    options = {
        "name": "job", "filename": path, "direct": "1", "time_based": "1", "runtime": str(seconds),
        "ramp_time": "0", "allow_file_create": "0", "group_reporting": "1", "ioengine": "psync",
        "randrepeat": "0", "norandommap": "1", "thread": "1", "size": str(size or os.stat(path).st_size),
    }
    options.update(job)
    command = ["fio", "--output-format=json"]
    command += [f"--{key}={value}" for key, value in options.items() if value is not None]
    report = json.loads(re.sub(r"^[^{]*", "", call(*command), count=1))["jobs"][0]
    return report["read"]["iops"] + report["write"]["iops"]


def random_4k(kind, depth=1, jobs=1):
    job = {"rw": f"rand{kind}", "bs": "4k", "numjobs": str(jobs)}
    if depth > 1:
        job.update(ioengine="libaio", iodepth=str(depth))
    return job


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


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


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



# --- Mirrors -----------------------------------------------------------------------------------


@contextlib.contextmanager
def mirrored_mount(folder, size, mode):
    """A mount with a mirror on the same disk, in step, and its pool."""
    with doppel_mount(folder, size) as path:
        pool = os.path.join(folder, "pool")
        doppel("target", "add", pool, os.path.join(folder, "mirror"), "--mode", mode)
        doppel("wait", pool)
        yield path, pool


@contextlib.contextmanager
def qemu_quorum(folder, size):
    """Two raw files behind one FUSE export: each write goes to both."""
    stores = [os.path.join(folder, f"store{number}.raw") for number in (1, 2)]
    mount_point = os.path.join(folder, "disk.raw")
    for store in stores:
        fill(store, size)
    open(mount_point, "wb").close()
    command = ["qemu-storage-daemon"]
    for number, store in enumerate(stores):
        command += ["--blockdev", f"driver=file,node-name=file{number},filename={store}"]
        command += ["--blockdev", f"driver=raw,node-name=raw{number},file=file{number}"]
    command += [
        "--blockdev",
        "driver=quorum,node-name=both,vote-threshold=2,children.0=raw0,children.1=raw1",
        "--export", f"type=fuse,id=disk,node-name=both,mountpoint={mount_point},writable=on",
    ]
    with served(command, mount_point, size) as path:
        yield path


class LagWatch(threading.Thread):
    """The largest lag that status shows, in seconds and bytes."""

    def __init__(self, pool):
        super().__init__(daemon=True)
        self.pool, self.stopped = pool, threading.Event()
        self.seconds, self.bytes = 0.0, 0

    def run(self):
        while not self.stopped.wait(0.1):
            for target in json.loads(doppel("target", "list", self.pool, "--json")):
                self.seconds = max(self.seconds, target["lagMs"] / 1000)
                self.bytes = max(self.bytes, target["lagBytes"])

    def stop(self):
        self.stopped.set()
        self.join()


MIRRORED = [
    ("4 KiB write, depth 1", random_4k("write"), "0.85 x"),
    ("4 KiB write + fsync", {"rw": "randwrite", "bs": "4k", "fsync": "1"}, "0.85 x"),
    ("4 KiB write, 2 x depth 32", random_4k("write", 32, 2), "reported"),
    ("sequential write 1 MiB", {"rw": "write", "bs": "1m"}, "reported"),
]


# Job, and what the design wants of mode sync as a multiple of the quorum.
WAITED_FOR = [
    ("random write 4 KiB, depth 1", random_4k("write"), 1.3),
    ("random write 4 KiB, 2 x depth 32", random_4k("write", 32, 2), 1.5),
    ("4 KiB write + fsync", FSYNC[0][1], 1.0),
]


def mirror(arguments):
    """A mirror in async beside the same mount without one; the other modes beside qemu's quorum."""
    size, seen = arguments.size * MIB, {}
    with contextlib.ExitStack() as stack:
        homes = {}
        for name in ("without", "async", "flush", "semi-sync", "sync", "quorum"):
            homes[name] = os.path.join(arguments.disk_folder, f"mirror-{name}")
            os.makedirs(homes[name])
            say(f"preparing {name}")
        without = stack.enter_context(doppel_mount(homes["without"], size))
        path, pool = stack.enter_context(mirrored_mount(homes["async"], size, "async"))
        lag, drain = {}, {}
        for _ in range(arguments.rounds):
            for job, options, _ in MIRRORED:
                seen.setdefault((job, "without"), []).append(fio(without, arguments.seconds, options))
                watch = LagWatch(pool)
                watch.start()
                seen.setdefault((job, "async"), []).append(fio(path, arguments.seconds, options))
                watch.stop()
                start = time.monotonic()
                doppel("wait", pool)
                drain[job] = max(drain.get(job, 0), time.monotonic() - start)
                lag[job] = max(lag.get(job, (0, 0)), (watch.seconds, watch.bytes))
        places = {
            mode: stack.enter_context(mirrored_mount(homes[mode], size, mode))[0]
            for mode in ("flush", "semi-sync", "sync")}
        places["quorum"] = stack.enter_context(qemu_quorum(homes["quorum"], size))
        for _ in range(arguments.rounds):
            for job, options, _ in WAITED_FOR:
                for name, place in places.items():
                    seen.setdefault((job, name), []).append(fio(place, arguments.seconds, options))
    median = {key: statistics.median(rates) for key, rates in seen.items()}
    print(f"### A mirror in async, both on one disk (operations a second, medians of {arguments.rounds})\n")
    table(
        ["job", "without", "with", "ratio", "reach", "largest lag", "time to drain"],
        [[job, f"{median[job, 'without']:,.0f}", f"{median[job, 'async']:,.0f}",
          f"{median[job, 'async'] / median[job, 'without']:.2f} x", wanted,
          f"{lag[job][0]:.1f} s, {lag[job][1] / MIB:.1f} MiB", f"{drain[job]:.1f} s"]
         for job, _, wanted in MIRRORED])
    print("### A mirror that is waited for, against qemu's quorum of two raw files\n")
    table(
        ["job", "flush", "semi-sync", "sync", "qemu quorum", "sync / quorum", "reach"],
        [[job, *(f"{median[job, name]:,.0f}" for name in places),
          f"{median[job, 'sync'] / median[job, 'quorum']:.2f} x", f"{wanted} x"]
         for job, _, wanted in WAITED_FOR])
    return {f"{job} / {name}": rates for (job, name), rates in seen.items()}


class LatencyWatch(threading.Thread):
    """4 KiB writes at 500 a second, as long as something else goes on."""

    LONGEST_SECONDS = 600

    def __init__(self, path, seconds=None):
        super().__init__(daemon=True)
        self.p99, command = None, [
            "fio", "--output-format=json", "--name=job", f"--filename={path}", "--direct=1", "--rw=randwrite",
            "--bs=4k", "--time_based=1", f"--runtime={seconds or self.LONGEST_SECONDS}", "--ioengine=psync",
            "--thread=1", "--size=64m", "--rate_iops=500", "--allow_file_create=0"]
        self.fio = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self):
        report, errors = self.fio.communicate()
        job = json.loads(re.sub(r"^[^{]*", "", report, count=1))["jobs"][0]
        if job["error"]:
            raise RuntimeError(f"fio: {errors}")
        self.p99 = job["write"]["clat_ns"]["percentile"]["99.000000"] / 1000

    def stop(self):
        """The 99th percentile, in microseconds."""
        # It ends its report, and itself.
        self.fio.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self):
        self.join()
        return self.p99


def forget_caches():
    """Who reads first must not pay for who reads second."""
    os.sync()
    if os.geteuid() == 0:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("1")


def timed(*command):
    start = time.monotonic()
    call(*command)
    return time.monotonic() - start


def largest_file(folder):
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return max(paths, key=os.path.getsize)


def resync(arguments):
    """First copy beside cp, resync of 1 % of the blocks beside rsync, the guest's latency meanwhile.

    The peers copy the image's own file, without a mount between."""
    size, rows = arguments.resync_size * MIB, []
    folder = os.path.join(arguments.disk_folder, "resync")
    os.makedirs(folder)
    room = shutil.disk_usage(folder).free
    if room < 3 * size + GIB:
        return say(f"resync needs {(3 * size + GIB) >> 30} GiB at {folder}: --resync-size is smaller")
    copy, pool, target = (os.path.join(folder, name) for name in ("copy.raw", "pool", "mirror"))
    say("preparing the image")
    with doppel_mount(folder, size) as path:
        store = largest_file(pool)

        def first_copy():
            start = time.monotonic()
            doppel("target", "add", pool, target, "--mode", "async")
            doppel("wait", pool)
            return time.monotonic() - start

        forget_caches()
        copied = timed("sh", "-c", f"cp --sparse=always {store} {copy} && sync {copy}")
        forget_caches()
        first = first_copy()
        rows.append(["first copy, against cp --sparse=always", f"{copied:.1f} s", f"{first:.1f} s",
                     f"{copied / first:.2f} x", "at least 0.5 x"])
        doppel("target", "pause", pool, target)
        changed = size // 4096 // 100
        call("fio", "--name=job", f"--filename={path}", "--direct=1", "--rw=randwrite", "--bs=4k",
             f"--number_ios={changed}", f"--size={size}", "--ioengine=psync", "--allow_file_create=0")
        call("sync", path)
        forget_caches()
        start = time.monotonic()
        doppel("target", "resume", pool, target)
        doppel("wait", pool)
        delta = time.monotonic() - start
        forget_caches()
        plain = timed("rsync", "-I", "--inplace", "--no-whole-file", store, copy)
        rows.append([f"resync of 1 % of the blocks ({changed:,}), against rsync", f"{plain:.1f} s",
                     f"{delta:.1f} s", f"{delta / plain:.3f} x", "at most 0.1 x"])
        doppel("target", "remove", pool, target)
        shutil.rmtree(target)
        os.remove(copy)
        # Before, not meanwhile: it makes everybody wait.
        forget_caches()
        quiet = LatencyWatch(path, 10)
        quiet.start()
        quiet.wait()
        busy = LatencyWatch(path)
        busy.start()
        loaded = first_copy()
        rows.append([f"p99 of 4 KiB writes during a first copy of {loaded:.0f} s", f"{quiet.p99:,.0f} us",
                     f"{busy.stop():,.0f} us", f"{busy.p99 / quiet.p99:.2f} x", "at most 2 x"])
    print(f"### First copy and resync of an image of {arguments.resync_size} MiB, store on disk\n")
    table(["job", "peer, or without", "doppel", "ratio", "reach"], rows)
    return {row[0]: row[1:] for row in rows}


def tracking(arguments):
    """What the activity log costs a write, and the memory that dirty blocks take."""
    bench = os.path.join(os.path.dirname(DOPPEL), "volume-bench")
    if not os.access(bench, os.X_OK):
        return say(f"tracking is left out: no {bench}; "
                   "swift build -c release --product volume-bench")
    lines = [call(bench, "dirty", "--blocks", str(blocks)) for blocks in (1, 100)]
    lines.append(call(bench, "activity", "--folder", arguments.disk_folder))
    print("### Activity log and dirty tracking\n")
    print("".join("- " + line + "\n" for text in lines for line in text.splitlines()))
    return {"lines": lines}


PARTS = {
    "throughput": throughput, "fsync": fsync, "snapshots": snapshots, "scale": scale,
    "mirror": mirror, "resync": resync, "tracking": tracking,
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
