# SPDX-License-Identifier: MIT
"""What moves between packed pages and a range of its own, besides the data."""

import os

import populate
import pytest
import regions

from daxfs import layout as L
from daxfs.meta import file, namespace, own, prealloc


@pytest.fixture
def fs():
    with regions.Maker(pool=True) as maker:
        yield maker.make()


def range_of(fs, ino: int) -> str:
    name = L.range_name(ino, fs.inodes.read(ino).generation)
    return os.path.join(fs.region.sources[0].path, L.RANGES_NAME, name)


def test_times_of_stores_after_the_last_close_come_along(fs):
    """A mapping outlives its descriptor, and nobody closes it at the mount."""
    fs.dax = "always"
    ino = namespace.create(fs, 1, b"f", 0o100644, populate.CREDS).ino
    populate.write(fs, ino, 0, b"x" * 5000)
    later = fs.clock() + 10**12
    os.utime(range_of(fs, ino), ns=(later, later))
    fs.dax = "inode"
    populate.follow(fs, ino, 0)
    inode = fs.inodes.read(ino)
    assert not inode.flags & L.FLAG_OWN and not os.path.exists(range_of(fs, ino))
    assert inode.mtime == later


def test_preallocated_pages_do_not_come_along(fs):
    ino = namespace.create(fs, 1, b"f", 0o100644, populate.CREDS).ino
    node = fs.open(ino)
    pages_of_data = 0
    while not fs.inodes.flags(ino) & L.FLAG_PREALLOC:
        i, pages_of_data = pages_of_data, pages_of_data + 1
        plan = file.prepare_write(fs, node, i * 4096, 4096)
        node.appends += 1
        for _, pages, pfn in plan.fresh:
            fs.region.nt_store(pfn << 12, bytes([i]) * (pages << 12))
        plan.commit(fs.clock())
    assert ino in fs.preallocated
    node.opens = 0
    populate.follow(fs, ino, L.FLAG_DAX)
    inode = fs.inodes.read(ino)
    assert inode.flags == L.FLAG_DAX | L.FLAG_OWN and not inode.blocks and ino not in fs.preallocated
    assert populate.read(fs, ino) == b"".join(bytes([i]) * 4096 for i in range(pages_of_data))
    prealloc.give_back_all(fs)
    assert own.shown(fs, inode)[1] == 8 * pages_of_data
