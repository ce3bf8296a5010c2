"""Parts that measure replication to another machine: over the loopback, and over a slow line between two network
namespaces. Servers are on free ports, keys in folders of their own; all of it ends with the part."""

import contextlib
import os
import random
import shutil
import socket
import statistics
import subprocess
import time

from mirrors import forget_caches, largest_file, resync_of, timed
from peers import blockdev_mirror, doppel_mount, running
from tools import DOPPEL, MIB, call, doppel, fill, fio, random_4k, say, table, wait_for


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port, host="127.0.0.1"):
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


@contextlib.contextmanager
def configured(folder):
    """A host's settings, with its key; what this process starts meanwhile has them."""
    os.makedirs(folder)
    path = os.path.join(folder, "doppel.toml")
    with open(path, "w") as file:
        file.write(f'state-directory = "{folder}/state"\n')
    yield path


@contextlib.contextmanager
def doppel_server(folder, keys=True, host="127.0.0.1", prefix=()):
    """`doppel serve`, with a client that it knows: the address of a pool there."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        client, server = (stack.enter_context(configured(os.path.join(folder, name)))
                          for name in ("client", "server"))
        before = os.environ.get("DOPPEL_CONFIG")
        os.environ["DOPPEL_CONFIG"] = client
        try:
            root = os.path.join(folder, "served")
            os.makedirs(root)
            command = [*prefix, DOPPEL, "serve", root, "--listen", f"{host}:{port}", "--config", server]
            if keys:
                line = {name: call(DOPPEL, "pair", "--config", config, "--name", name).strip()
                        for name, config in (("client", client), ("server", server))}
                call(DOPPEL, "pair", "--config", server, "--accept", line["client"], "--pools", "vms")
                call(DOPPEL, "pair", "--accept", line["server"], "--host", f"{host}:{port}")
            else:
                command.append("--without-keys")
            ready = (lambda: listens(port)) if not prefix else (
                lambda: subprocess.run([*prefix, "bash", "-c", f": </dev/tcp/{host}/{port}"],
                                       stderr=subprocess.DEVNULL).returncode == 0)
            stack.enter_context(running(command, ready))
            yield f"doppel://{host}:{port}/vms"
        finally:
            os.environ.pop("DOPPEL_CONFIG")
            if before is not None:
                os.environ["DOPPEL_CONFIG"] = before


@contextlib.contextmanager
def ssh_server(folder):
    """sshd on the loopback, for this user alone: what rsync is to be called with."""
    keys = {}
    for name in ("host", "user"):
        keys[name] = os.path.join(folder, name)
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys[name])
    os.makedirs("/run/sshd", exist_ok=True)
    port = free_port()
    options = ["Port=" + str(port), "ListenAddress=127.0.0.1", "HostKey=" + keys["host"], "PidFile=none",
               "AuthorizedKeysFile=" + keys["user"] + ".pub", "StrictModes=no", "UsePAM=no"]
    command = [shutil.which("sshd"), "-D", "-f", "/dev/null"]
    for option in options:
        command += ["-o", option]
    with running(command, lambda: listens(port)):
        yield (f"ssh -p {port} -i {keys['user']} -o BatchMode=yes -o StrictHostKeyChecking=no "
               "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR")


@contextlib.contextmanager
def nbd_server(path, tls_folder=None):
    """qemu-nbd over TCP, with TLS by a shared key where a folder for it is given: its URI."""
    port, command = free_port(), ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-b", "127.0.0.1"]
    uri = f"nbd://127.0.0.1:{port}/"
    if tls_folder:
        key = os.path.join(tls_folder, "keys.psk")
        with open(key, "w") as file:
            file.write(f"doppel:{os.urandom(32).hex()}\n")
        command += ["--object", f"tls-creds-psk,id=tls,endpoint=server,dir={tls_folder}", "--tls-creds", "tls"]
        uri = f"nbds://doppel@127.0.0.1:{port}/?tls-psk-file={key}"
    with running([*command, "-p", str(port), path], lambda: listens(port)):
        yield uri


@contextlib.contextmanager
def qemu_mirror_over_nbd(folder, size, over):
    """blockdev-mirror from a local file to a plain NBD export, over TCP or over a Unix socket."""
    os.makedirs(folder)
    second = os.path.join(folder, "store2.raw")
    fill(second, size)
    with contextlib.ExitStack() as stack:
        if over == "tcp":
            port = stack.enter_context(nbd_server(second)).rsplit(":", 1)[1].rstrip("/")
            server = f"server.type=inet,server.host=127.0.0.1,server.port={port}"
        else:
            path = os.path.join(folder, "target.sock")
            stack.enter_context(
                running(["qemu-nbd", "-f", "raw", "-t", "-k", path, second], lambda: os.path.exists(path)))
            server = f"server.type=unix,server.path={path}"
        yield stack.enter_context(
            blockdev_mirror(folder, size, ["--blockdev", f"driver=nbd,node-name=raw1,{server}"]))


@contextlib.contextmanager
def remote_mount(folder, size, mode, keys=True):
    """A mount whose mirror is behind a server, in step."""
    os.makedirs(folder)
    with doppel_server(folder, keys) as address, doppel_mount(folder, size) as path:
        pool = os.path.join(folder, "pool")
        doppel("target", "add", pool, address, "--mode", mode)
        doppel("wait", pool)
        yield path, pool, address


def missing(part, *programs):
    absent = [name for name in programs if not shutil.which(name)]
    if absent:
        say(f"{part} is left out: {', '.join(absent)} are not installed")
    return absent


def remote(arguments):
    """A first copy and a resync with TLS beside rsync over ssh and nbdcopy over NBD with TLS; what sync costs; what TLS costs."""
    if missing("remote", "rsync", "sshd", "ssh-keygen", "nbdcopy", "qemu-nbd", "nbdfuse"):
        return None
    figures = {}
    figures.update(copies(arguments))
    figures.update(waiting(arguments))
    figures.update(stream(arguments))
    return figures


def copies(arguments):
    size, seen = arguments.size * MIB, {}
    folder = os.path.join(arguments.disk_folder, "copies")
    os.makedirs(folder)
    copy = os.path.join(folder, "copy.raw")
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(doppel_server(folder))
        path = stack.enter_context(doppel_mount(folder, size))
        pool = os.path.join(folder, "pool")
        store = largest_file(os.path.join(pool, "images"))
        ssh = stack.enter_context(ssh_server(folder))
        changed = size // 4096 // 100
        for _ in range(arguments.rounds):
            forget_caches()
            start = time.monotonic()
            doppel("target", "add", pool, address, "--mode", "async")
            doppel("wait", pool)
            seen.setdefault("doppel", []).append(time.monotonic() - start)
            forget_caches()
            seen.setdefault("rsync", []).append(
                timed("rsync", "--whole-file", "--fsync", "-e", ssh, store, f"127.0.0.1:{copy}"))
            seen.setdefault("doppel, resync", []).append(
                resync_of(changed, pool, address, path, size))
            forget_caches()
            seen.setdefault("rsync, resync", []).append(
                timed("rsync", "-I", "--inplace", "--no-whole-file", "--fsync", "-e", ssh, store,
                      f"127.0.0.1:{copy}"))
            doppel("target", "remove", pool, address)
            stack_of_served = os.path.join(folder, "served", "vms")
            # The server lets go of it a moment after the session's end.
            wait_for("the server lets go", lambda: not os.path.exists(stack_of_served + "/owner"))
            shutil.rmtree(stack_of_served)
            os.remove(copy)
            with open(copy, "wb") as file:
                file.truncate(size)
            with nbd_server(copy, folder) as uri:
                forget_caches()
                seen.setdefault("nbdcopy", []).append(timed("nbdcopy", "--flush", store, uri))
            os.remove(copy)
    median = {name: statistics.median(times) for name, times in seen.items()}
    print(f"### {arguments.size} MiB over the loopback, with TLS (medians of {arguments.rounds})\n")
    table(["job", "against", "peer", "doppel", "ratio", "reach"], [
        [job, against, f"{median[peer]:.2f} s", f"{median[ours]:.2f} s", f"{median[peer] / median[ours]:.2f} x", reach]
        for job, against, peer, ours, reach in (
            ("first copy", "rsync over ssh", "rsync", "doppel", "1.5 x"),
            ("first copy", "nbdcopy, NBD with TLS", "nbdcopy", "doppel", "0.7 x"),
            (f"resync of 1 % ({changed:,} blocks)", "rsync over ssh", "rsync, resync", "doppel, resync", "1.5 x"),
            (f"resync of 1 % ({changed:,} blocks)", "nbdcopy, which copies all", "nbdcopy", "doppel, resync",
             "0.7 x"))])
    return {f"copies / {name}": times for name, times in seen.items()}


WAITED = [("sync, 4 KiB, depth 1", random_4k("write"), "0.8 x"),
          ("sync, 4 KiB, 2 x depth 32", random_4k("write", 32, 2), "1.5 x")]


def waiting(arguments):
    size, seen = arguments.size * MIB, {}
    folder = os.path.join(arguments.disk_folder, "waiting")
    with contextlib.ExitStack() as stack:
        places = {}
        for name, keys in (("with TLS", True), ("without", False)):
            say(f"preparing {name}")
            places[name] = stack.enter_context(
                remote_mount(os.path.join(folder, name.replace(" ", "-")), size, "sync", keys))[0]
        # Its server answers several requests at a time late over TCP, as the kernel delays acknowledgements: a Unix
        # socket, which knows no such thing, is what it is held against where that is quicker.
        for over in ("tcp", "unix"):
            say(f"preparing blockdev-mirror over {over}")
            places[over] = stack.enter_context(qemu_mirror_over_nbd(os.path.join(folder, over), size, over))
        for round_number in range(arguments.rounds):
            for job, options, _ in WAITED:
                for name, place in places.items():
                    seen.setdefault((job, name), []).append(fio(place, arguments.seconds, options))
                say(f"round {round_number + 1}: {job}")
    median = {key: statistics.median(rates) for key, rates in seen.items()}
    print(f"### Each write waits for the other side (a second, medians of {arguments.rounds})\n")
    rows = []
    for job, _, reach in WAITED:
        best = max(median[job, "tcp"], median[job, "unix"])
        rows.append(
            [job, f"{median[job, 'tcp']:,.0f}", f"{median[job, 'unix']:,.0f}",
             f"{median[job, 'without']:,.0f}", f"{median[job, 'without'] / best:.2f} x",
             f"{median[job, 'with TLS']:,.0f}", f"{median[job, 'with TLS'] / best:.2f} x", reach])
    table(["job", "blockdev-mirror to NBD over TCP", "over a Unix socket", "doppel without TLS", "to the better",
           "doppel with TLS", "to the better", "reach"], rows)
    return {f"{job} / {name}": rates for (job, name), rates in seen.items()}


def stream(arguments):
    """A whole image written in one go, until the other side has it durably."""
    size, seen = arguments.size * MIB, {}
    folder = os.path.join(arguments.fast_folder, "stream")
    with contextlib.ExitStack() as stack:
        places = {name: stack.enter_context(remote_mount(os.path.join(folder, name), size, "async", name == "tls"))
                  for name in ("tls", "plain")}
        for _ in range(arguments.rounds):
            for name, (path, pool, _) in places.items():
                start = time.monotonic()
                call("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={arguments.size}", "conv=notrunc,fsync",
                     "oflag=direct")
                doppel("wait", pool)
                seen.setdefault(name, []).append(arguments.size / (time.monotonic() - start))
    median = {name: statistics.median(rates) for name, rates in seen.items()}
    print(f"### The sequential stream over the loopback, store on tmpfs (MiB/s, medians of {arguments.rounds})\n")
    table(["without TLS", "with TLS", "TLS costs", "at most"], [
        [f"{median['plain']:,.0f}", f"{median['tls']:,.0f}", f"{100 - 100 * median['tls'] / median['plain']:.0f} %",
         "40 %"]])
    return {f"stream / {name}": rates for name, rates in seen.items()}


LINE_BITS = 100_000_000


@contextlib.contextmanager
def slow_line():
    """Two network namespaces on a line of 100 Mbit/s: how to run something in either."""
    names = [f"doppel-bench{number}-{os.getpid()}" for number in (1, 2)]
    try:
        for name in names:
            call("ip", "netns", "add", name)
        call("ip", "link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire0",
             "netns", names[1])
        for number, name in enumerate(names, 1):
            call("ip", "-n", name, "address", "add", f"192.0.2.{number}/24", "dev", "wire0")
            call("ip", "-n", name, "link", "set", "lo", "up")
            call("ip", "-n", name, "link", "set", "wire0", "up")
            call("tc", "-n", name, "qdisc", "add", "dev", "wire0", "root", "tbf", "rate", f"{LINE_BITS}bit",
                 "burst", "256kb", "latency", "50ms")
        yield [["nsenter", f"--net=/run/netns/{name}"] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def text_like(path, size):
    """Words and numbers in lines, as logs and databases have them."""
    source = random.Random(5)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(3, 11))) for _ in range(4000)]
    with open(path, "wb") as file:
        written = 0
        while written < size:
            lines = [f"{source.randrange(10 ** 9)} " + " ".join(source.choices(words, k=12)) for _ in range(2000)]
            part = ("\n".join(lines) + "\n").encode()[:size - written]
            written += file.write(part)
        file.flush()
        os.fsync(file.fileno())


def line(arguments):
    """How much of a line of 100 Mbit/s a first copy uses, and what compression makes of it."""
    if os.geteuid() != 0:
        return say("line is left out: it makes network namespaces, as root alone can")
    if missing("line", "ip", "tc", "nsenter"):
        return None
    size, seen = min(arguments.size, 256) * MIB, {}
    folder = os.path.join(arguments.fast_folder, "line")
    with contextlib.ExitStack() as stack:
        here, there = stack.enter_context(slow_line())
        os.makedirs(folder)
        address = stack.enter_context(doppel_server(folder, True, "192.0.2.2", there))
        pool, raw = os.path.join(folder, "pool"), os.path.join(folder, "disk.raw")
        doppel("init", pool)
        text_like(raw, size)
        doppel("import", pool, raw)
        os.remove(raw)
        mount_point = os.path.join(folder, "mnt")
        os.makedirs(mount_point)
        call(*here, DOPPEL, "mount", pool, mount_point)
        stack.callback(doppel, "unmount", mount_point)
        for _ in range(min(arguments.rounds, 3)):
            for compress in ("off", "auto"):
                start = time.monotonic()
                doppel("target", "add", pool, address, "--mode", "async", "--compress", compress)
                doppel("wait", pool)
                seen.setdefault(compress, []).append(size / (time.monotonic() - start))
                doppel("target", "remove", pool, address)
                there_pool = os.path.join(folder, "served", "vms")
                wait_for("the server lets go", lambda: not os.path.exists(there_pool + "/owner"))
                shutil.rmtree(there_pool)
    median = {name: statistics.median(rates) for name, rates in seen.items()}
    print(f"### First copy of {size // MIB} MiB of text over a line of {LINE_BITS // 10 ** 6} Mbit/s\n")
    table(["", "MiB/s", "", "reach"], [
        ["as it is", f"{median['off'] / MIB:.2f}", f"{median['off'] * 8 / LINE_BITS * 100:.1f} % of the line", "95 %"],
        ["compressed where it pays", f"{median['auto'] / MIB:.2f}", f"{median['auto'] / median['off']:.2f} x", "2 x"]])
    return {f"line / {name}": rates for name, rates in seen.items()}
