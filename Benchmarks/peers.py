"""Peers: each is a context that yields the path of a file to load."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile

from tools import doppel, fill, say, wait_for


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
def running(command, ready):
    """A program in the foreground, until the block ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def is_ready():
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended: exit {process.returncode}: {log.read().decode()}")
            return ready()

        try:
            wait_for(command[0], is_ready)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def served(command, path, size):
    """A server in the foreground that shows a disk of `size` bytes at `path`."""
    def ready():
        with contextlib.suppress(OSError):
            return os.path.ismount(path) or os.path.ismount(os.path.dirname(path))
        return False

    try:
        # It unmounts when it is asked to end.
        with running(command, ready):
            wait_for(command[0], lambda: os.stat(path).st_size == size)
            yield path
    finally:
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


class Monitor:
    """QMP on a Unix socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


@contextlib.contextmanager
def qemu_mirror(folder, size):
    """blockdev-mirror between two raw files."""
    second = os.path.join(folder, "store2.raw")
    fill(second, size)
    with blockdev_mirror(folder, size, [
            "--blockdev", f"driver=file,node-name=file1,filename={second}",
            "--blockdev", "driver=raw,node-name=raw1,file=file1"]) as path:
        yield path


@contextlib.contextmanager
def blockdev_mirror(folder, size, second):
    """blockdev-mirror in write-blocking mode behind NBD and nbdfuse: each write goes to a raw file and to the
    block device that the options `second` name raw1."""
    first = os.path.join(folder, "store1.raw")
    nbd, qmp, mount_point = (os.path.join(folder, name) for name in ("nbd.sock", "qmp.sock", "mnt"))
    fill(first, size)
    os.makedirs(mount_point)
    command = [
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=file0,filename={first}",
        "--blockdev", "driver=raw,node-name=raw0,file=file0",
        *second,
        "--nbd-server", f"addr.type=unix,addr.path={nbd}",
        "--export", "type=nbd,id=disk,node-name=raw0,name=disk,writable=on",
        "--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp",
    ]
    with running(command, lambda: os.path.exists(nbd) and os.path.exists(qmp)):
        monitor = Monitor(qmp)
        monitor.ask("blockdev-mirror", **{
            "job-id": "mirror", "device": "raw0", "target": "raw1", "sync": "full",
            "copy-mode": "write-blocking"})
        wait_for("blockdev-mirror",
                 lambda: any(job["ready"] for job in monitor.ask("query-block-jobs")), 300)
        path = os.path.join(mount_point, "disk.raw")
        with served(["nbdfuse", path, f"nbd+unix:///disk?socket={nbd}"], path, size) as path:
            yield path
