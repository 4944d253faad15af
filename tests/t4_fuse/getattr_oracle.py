# SPDX-License-Identifier: MIT
"""A program for test_serve_getattr.py: GETATTR natively and through pyfuse3 and libfuse, byte for byte.

Requests go to libfuse over a socket pair in place of /dev/fuse, so nothing is mounted. A program of its own,
because a pyfuse3 session may only run once in a process. With the argument `own` the files have ranges of
their own. Prints how many replies were compared.
"""

import os
import socket
import struct
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "t3_data"), str(TESTS / "t2_meta")]

import datakit  # noqa: E402
import pyfuse3  # noqa: E402
import rawmsg as R  # noqa: E402
import trio  # noqa: E402

from daxfs import layout as L  # noqa: E402
from daxfs.fuse.ops import make_operations  # noqa: E402
from daxfs.meta import attr, namespace, own, prealloc  # noqa: E402


class Config:
    """What make_operations asks of the options of a mount."""

    track, write, drain, flushers, nt_threshold = "pte", "nt", "write", 1, 0
    flags: dict = {}


CHANGES = (
    {}, {"mode": 0o4755}, {"mode": 0o2755}, {"uid": 4294967294, "gid": 65534},
    {"atime": -1, "mtime": -(10**9)},
    {"atime": -(1 << 63), "mtime": (1 << 63) - 1}, {"mtime": 1_999_999_999}, {"size": 1 << 44},
)  # fmt: skip
# Changes, and the modification time that a store through a mapping has left to the range afterwards.
OWN = (
    ({}, None), ({"mtime": 5}, None), ({"mtime": 5}, 6), ({"mtime": 5}, 4), ({"mtime": 5}, 5),
    ({"mtime": 4 * 10**18}, None), ({"mtime": 4 * 10**18}, 7), ({"mtime": 5}, 5 * 10**18),
    ({"mtime": -(10**9)}, -1), ({"mtime": -1}, -(10**9)), ({"mode": 0o6755}, 8), ({"size": 7}, None),
    ({"size": 5}, 1_999_999_999), ({"uid": 7}, 3 * 10**18), ({"size": 0}, None),
)  # fmt: skip


def inodes(ops):
    """Inode numbers of all sorts, one after the other; each is as it shall be when it is yielded."""
    fs, creds = ops.fs, namespace.Creds(5, 6)
    yield 1
    for number, change in enumerate(CHANGES):
        inode = namespace.create(fs, 1, b"file%d" % number, 0o100640, creds)
        node = fs.open(inode.ino)
        ops.files.opened(node)
        ops.files.write(node, 0, datakit.noise(5000 * number))
        if change:
            attr.setattr(fs, inode.ino, change)
        yield inode.ino
    for n in range(3 * prealloc.STREAM):
        ops.files.write(node, node.map.size, b"x" * 5000) if n else attr.setattr(fs, node.ino, {"size": 0})
    assert fs.inodes.flags(node.ino) & L.FLAG_PREALLOC
    yield node.ino
    yield namespace.create(fs, 1, b"dir", 0o41777, creds).ino
    yield namespace.create(fs, 1, b"link", 0o120777, creds, target=b"there").ino
    for mode in (0o10600, 0o20600, 0o60600, 0o140600):
        yield namespace.create(fs, 1, b"node%o" % mode, mode, creds, rdev=os.makedev(259, 70000)).ino


def own_inodes(ops):
    """The same of files in ranges of their own, which programs map."""
    fs, creds = ops.fs, namespace.Creds(5, 6)
    future = 4 * 10**18
    for number, (change, below) in enumerate(OWN):
        inode = namespace.create(fs, 1, b"own%d" % number, 0o100640, creds)
        node = fs.open(inode.ino)
        ops.files.opened(node)
        assert node.map.own is not None
        ops.files.write(node, 0, datakit.noise(5000 * number))
        attr.setattr(fs, inode.ino, change)
        if below is not None:
            os.utime(node.map.own.fd, ns=(below, below))
        if number % 2:
            own.fold_times(fs, node)
        yield inode.ino
    attr.setattr(fs, inode.ino, {"size": 9999, "mode": 0o600, "mtime": future})
    yield inode.ino
    os.utime(node.map.own.fd, ns=(1, future - 1))
    yield inode.ino


async def compare(ops, ours, inodes) -> int:
    """Ask both for each inode; how many there were."""
    init = R.message("init", 0, struct.pack("<IIII", 7, 31, 1 << 17, 1 << 13))
    await ours.send(init)
    await ours.recv(1 << 16)
    count = 0
    for ino in inodes:
        ops.tell_limits()
        raw = R.getattr_(ino)
        await ours.send(raw)
        reply = await ours.recv(1 << 16)
        verdict, error, native = ops.server.feed(raw)
        assert (verdict, error) == ("done", 0), ino
        assert struct.unpack_from("<Ii", reply) == (16 + len(native), 0), ino
        assert native == reply[16:], (ino, native.hex(), reply[16:].hex())
        count += 1
    pyfuse3.terminate()
    return count


async def run(ops, ours, inodes) -> int:
    done = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        done.append(await compare(ops, ours, inodes(ops)))
        ours.close()
    return done[0]


def main() -> None:
    pool = sys.argv[1:] == ["own"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with datakit.Kit(pool) as kit:
        ops = make_operations(kit.make(inodes=512), Config())
        pyfuse3.init(ops, f"/dev/fd/{theirs.fileno()}", set())
        print(trio.run(run, ops, trio.socket.from_stdlib_socket(ours), own_inodes if pool else inodes))


if __name__ == "__main__":
    main()
