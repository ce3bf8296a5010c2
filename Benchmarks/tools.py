"""What every part of the benchmark uses: running programs, fio, tables."""

import json
import os
import re
import subprocess
import sys
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


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)

