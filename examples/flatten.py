#!/usr/bin/env python3
"""Writes one image of a pool that is not mounted as a plain raw file, without Doppel.

    examples/flatten.py POOL IMAGE[@SNAPSHOT] FILE

For the day when there is no Doppel at hand: Python's standard library is enough. It follows
docs/disk-format.md, "Flattening an image by hand", changes nothing in the pool, and verifies no
hashes (they are XXH3, which that library lacks): prefer `doppel export` wherever it runs.
"""

import bisect
import os
import shutil
import sqlite3
import struct
import sys
import tempfile

BLOCK = 4096
DATA, ZERO = 1, 2


def catalog(pool):
    """The catalog, opened on a copy: its write-ahead log may hold commits of a crashed daemon."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            path = os.path.join(pool, "catalog.sqlite" + suffix)
            if os.path.exists(path):
                shutil.copy(path, folder)
        source = sqlite3.connect(os.path.join(folder, "catalog.sqlite"))
        memory = sqlite3.connect(":memory:")
        source.backup(memory)
        source.close()
        return memory


def find(database, image, snapshot):
    """The top layer of what is asked for, and its size (None: as the layer says)."""
    if snapshot is None:
        rows = "SELECT id, parent, name, image FROM nodes"
        parameters = ()
    else:
        rows = """SELECT node, n.parent, n.name, layer, size_bytes FROM snapshot_nodes n
                  JOIN snapshots s ON s.id = n.snapshot WHERE s.name = ? AND s.state = 1"""
        parameters = (snapshot,)
    tree = {row[0]: row for row in database.execute(rows, parameters)}

    def path(row):
        parent = tree.get(row[1])
        name = os.fsdecode(bytes(row[2]))
        above = path(parent) if parent and parent[0] != row[0] else ""
        return f"{above}/{name}" if above else name

    for row in tree.values():
        if row[3] is not None and path(row) == image:
            if snapshot is not None:
                return row[3], row[4]
            head, = database.execute("SELECT head FROM images WHERE id = ?", (row[3],)).fetchone()
            return head, None
    sys.exit(f"no image {image!r}" + (f" in snapshot {snapshot!r}" if snapshot else ""))


def records(path):
    """The commits of a map: (sequence, size of the image, extents), up to where it makes sense."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] != b"DPLMAP01":
        sys.exit(f"{path} is no map")
    chain, position = data[40:48], 4096
    while data[position:position + 4] == b"COMT":
        count, = struct.unpack_from("<I", data, position + 4)
        end = position + 48 + 16 * count
        if end + 8 > len(data) or data[position + 40:position + 48] != chain:
            break
        sequence, size = struct.unpack_from("<QQ", data, position + 16)
        yield sequence, size, struct.iter_unpack("<QQ", data[position + 48:end])
        chain, position = data[end:end + 8], end + 8


def contents(path):
    """What one map says in the end: pieces (first, end, state) in blocks, sequence, image's size."""
    pieces, sequence, size = [], 0, 0
    for sequence, size, extents in records(path):
        for first, word in extents:
            end, state = first + (word >> 8), word & 0xFF
            # What a later extent covers of an earlier one is gone; its ends may stay.
            at = bisect.bisect_left(pieces, first, key=lambda piece: piece[1])
            until = bisect.bisect_left(pieces, end, key=lambda piece: piece[0])
            over = pieces[at:until]
            new = [(first, end, state)]
            if over and over[0][0] < first:
                new.insert(0, (over[0][0], first, over[0][2]))
            if over and over[-1][1] > end:
                new.append((end, over[-1][1], over[-1][2]))
            pieces[at:until] = new
    return pieces, sequence, size


def copy(source, target, offset, length):
    """Copies what is stored and leaves holes; what is past the source's end is zeros."""
    while length > 0:
        source.seek(offset)
        piece = source.read(min(length, 1 << 20))
        part = piece.ljust(min(length, 1 << 20), b"\0")
        if part.count(0) != len(part):
            target.seek(offset)
            target.write(part)
        else:
            clear(target, offset, len(part))
        offset += len(part)
        length -= len(part)


def clear(target, offset, length):
    target.seek(offset)
    if any(target.read(length)):
        target.seek(offset)
        target.write(bytes(length))


def copy_root(source, target):
    position = 0
    while True:
        try:
            position = os.lseek(source.fileno(), position, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(source.fileno(), position, os.SEEK_HOLE)
        copy(source, target, position, end - position)
        position = end


def flatten(pool, image, snapshot, out):
    database = catalog(pool)
    layer, size = find(database, image, snapshot)
    chain = []
    while layer is not None:
        row = database.execute("SELECT image, parent FROM layers WHERE id = ?", (layer,)).fetchone()
        chain.insert(0, (layer, row[0]))
        layer = row[1]
    top = chain[-1][0]
    drain = database.execute(
        "SELECT l.id FROM merges m JOIN layers l ON l.id = m.into_layer"
        " WHERE m.layer = ? AND m.direction = 1 AND NOT l.sealed", (top,)).fetchone()
    newest = {}
    # The oldest first; each one lays its blocks over what was there.
    for layer, owner in chain:
        base = os.path.join(pool, "images", str(owner), str(layer))
        with open(base + ".data", "rb") as source:
            if not os.path.exists(base + ".map"):
                copy_root(source, out)
                last_size = os.stat(base + ".data").st_size
                continue
            pieces, sequence, last_size = contents(base + ".map")
            newest[layer] = (sequence, last_size)
            for first, end, state in pieces:
                for start in range(first * BLOCK, end * BLOCK, 1 << 20):
                    length = min(end * BLOCK - start, 1 << 20)
                    if state == DATA:
                        copy(source, out, start, length)
                    elif state == ZERO:
                        clear(out, start, length)
    if drain and newest.get(drain[0], (0, 0))[0] > newest[top][0]:
        last_size = newest[drain[0]][1]
    out.truncate(last_size if size is None else size)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    image, _, snapshot = sys.argv[2].partition("@")
    with open(sys.argv[3], "xb+") as out:
        flatten(sys.argv[1], image, snapshot or None, out)
        os.fsync(out.fileno())


if __name__ == "__main__":
    main()
