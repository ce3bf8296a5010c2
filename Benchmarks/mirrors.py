"""Parts that measure replication."""

import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time

from peers import doppel_mount, mirrored_mount, qemu_mirror, qemu_quorum
from tools import DOPPEL, GIB, MIB, call, doppel, fio, random_4k, say, table


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


def mirror(arguments):
    """A mirror in async beside the same mount without one, and beside one with two."""
    size, seen = arguments.size * MIB, {}
    with contextlib.ExitStack() as stack:
        homes = {}
        for name in ("without", "async", "two"):
            homes[name] = os.path.join(arguments.disk_folder, f"mirror-{name}")
            os.makedirs(homes[name])
            say(f"preparing {name}")
        without = stack.enter_context(doppel_mount(homes["without"], size))
        path, pool = stack.enter_context(mirrored_mount(homes["async"], size, "async"))
        with_two, pool_of_two = stack.enter_context(mirrored_mount(homes["two"], size, "async"))
        doppel("target", "add", pool_of_two, os.path.join(homes["two"], "mirror2"), "--mode", "async")
        doppel("wait", pool_of_two)
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
                seen.setdefault((job, "two"), []).append(fio(with_two, arguments.seconds, options))
                doppel("wait", pool_of_two)
    median = {key: statistics.median(rates) for key, rates in seen.items()}
    print(f"### A mirror in async, both on one disk (operations a second, medians of {arguments.rounds})\n")
    table(
        ["job", "without", "with", "ratio", "reach", "largest lag", "time to drain"],
        [[job, f"{median[job, 'without']:,.0f}", f"{median[job, 'async']:,.0f}",
          f"{median[job, 'async'] / median[job, 'without']:.2f} x", wanted,
          f"{lag[job][0]:.1f} s, {lag[job][1] / MIB:.1f} MiB", f"{drain[job]:.1f} s"]
         for job, _, wanted in MIRRORED])
    print("### A second target in async\n")
    table(
        ["job", "one target", "two", "ratio", "reach"],
        [[job, f"{median[job, 'async']:,.0f}", f"{median[job, 'two']:,.0f}",
          f"{median[job, 'two'] / median[job, 'async']:.2f} x",
          "0.85 x" if "depth 1" in job else "reported"] for job, _, _ in MIRRORED])
    return {f"{job} / {name}": rates for (job, name), rates in seen.items()}


def dd(path):
    """MiB a second of `dd conv=fsync` over the whole file."""
    size = os.stat(path).st_size
    start = time.monotonic()
    call("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size // MIB}", "conv=notrunc,fsync")
    return size / MIB / (time.monotonic() - start)


# Job, its options (none: dd), and what the design wants of mode sync as a multiple of the better peer.
WAITED_FOR = [
    ("random write 4 KiB, depth 1", random_4k("write"), 1.3),
    ("random write 4 KiB, 2 x depth 32", random_4k("write", 32, 2), 1.5),
    ("4 KiB write + fsync", {"rw": "randwrite", "bs": "4k", "fsync": "1"}, 1.0),
    ("dd conv=fsync, MiB/s", None, 1.0),
]


def modes(arguments):
    """The modes that wait, beside what qemu has that writes two copies."""
    size, seen, places = arguments.size * MIB, {}, {}
    with contextlib.ExitStack() as stack:
        for name in ("async", "flush", "semi-sync", "sync", "quorum", "mirror"):
            say(f"preparing {name}")
            home = os.path.join(arguments.disk_folder, f"modes-{name}")
            os.makedirs(home)
            if name in ("quorum", "mirror"):
                peer = qemu_quorum if name == "quorum" else qemu_mirror
                places[name] = stack.enter_context(peer(home, size))
            else:
                places[name] = stack.enter_context(mirrored_mount(home, size, name))[0]
        for round_number in range(arguments.rounds):
            for job, options, _ in WAITED_FOR:
                for name, place in places.items():
                    rate = fio(place, arguments.seconds, options) if options else dd(place)
                    seen.setdefault((job, name), []).append(rate)
                    if name == "async":
                        doppel("wait", os.path.dirname(os.path.dirname(place)) + "/pool")
                say(f"round {round_number + 1}: {job}")
    median = {key: statistics.median(rates) for key, rates in seen.items()}
    print(f"### Two copies of each write (a second, medians of {arguments.rounds})\n")
    rows = []
    for job, _, wanted in WAITED_FOR:
        best = max(median[job, "quorum"], median[job, "mirror"])
        rows.append(
            [job, *(f"{median[job, name]:,.0f}" for name in places),
             f"{median[job, 'sync'] / best:.2f} x", f"{wanted} x"])
    table(
        ["job", "async", "flush", "semi-sync", "sync", "qemu quorum", "qemu blockdev-mirror",
         "sync : the better", "reach"], rows)
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


def resync_of(changed, pool, target, path, size):
    """Seconds until the target has so many blocks that were written while it was paused."""
    doppel("target", "pause", pool, target)
    call("fio", "--name=job", f"--filename={path}", "--direct=1", "--rw=randwrite", "--bs=4k",
         f"--number_ios={changed}", f"--size={size}", "--ioengine=psync", "--allow_file_create=0")
    call("sync", path)
    forget_caches()
    start = time.monotonic()
    doppel("target", "resume", pool, target)
    doppel("wait", pool)
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
        changed = size // 4096 // 100
        delta = resync_of(changed, pool, target, path, size)
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
