# SPDX-License-Identifier: MIT
"""Own ranges replaced under programs that have them mapped (meta/revoke.py): content, SIGBUS, crashes.

Programs are children: what was taken away gives them SIGBUS, which ends them. A store of one that goes on all
the time is a counter in each page, so that a later one is never smaller.
"""

import errno
import mmap
import os
import signal
import subprocess
import sys
import time

import pytest
from datakit import MIB, PAGE, create, noise, reopen
from test_own import program, range_path, ranges_of

from daxfs.data import ranges
from daxfs.data.file_io import FileIo
from daxfs.meta import attr, namespace, own, revoke
from daxfs.meta import fs as metafs
from daxfs.region import Region

# Loads a byte of each of the first pages when told to, by a line; SIGBUS ends it.
READER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    m = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if "private" in sys.argv else mmap.ACCESS_WRITE)
if "private" in sys.argv:
    m[:4] = b"mine"
print("ready", flush=True)
for line in sys.stdin:
    print(sum(m[at] for at in range(0, 1 << 16, 4096)), flush=True)
"""
# Stores a number that grows into all pages, and says the last one that every page has had, until SIGBUS.
WRITER = """
import mmap, os, struct, sys
with open(sys.argv[1], "r+b") as file:
    m = mmap.mmap(file.fileno(), 0)
done = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 4096)
print("ready", flush=True)
pages, n = range(0, len(m), 4096 * int(sys.argv[3])), 0
while True:
    n += 1
    word = struct.pack("<Q", n)
    for at in pages:
        m[at : at + 8] = word
    done[:8] = word
"""


@pytest.fixture
def io(pool_kit):
    made = pool_kit.io()
    made.fs.clock = time.time_ns  # the kernel's, which ranges have
    return made


@pytest.fixture
def start():
    """Call it for a running program, which has said that it is ready."""
    running = []

    def run(code, *args):
        child = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True)
        running.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield run
    for child in running:
        child.kill()
        child.communicate()


def owner_of(io, node):
    return node.ino, io.fs.inodes.read(node.ino).generation


def content(io, node) -> bytes:
    return bytes(io.read(node, 0, node.map.size))


@pytest.mark.parametrize("kind", ["shared", "private"])
def test_the_content_stays_and_the_mapping_is_gone(io, start, kind):
    node, data = create(io, b"f"), noise(5 * MIB + 100)
    io.write(node, 0, data)
    attr.setattr(io.fs, node.ino, {"size": 20 * MIB})
    io.write(node, 15 * MIB, b"behind a hole")
    child = start(READER, range_path(io, node), kind)
    print("look", file=child.stdin, flush=True)
    assert int(child.stdout.readline()) > 0
    owner = owner_of(io, node)
    assert revoke.is_busy(io.fs, owner)
    before, inode = os.stat(range_path(io, node)), io.fs.inodes.read(node.ino)
    revoke.take(io.fs, owner)
    assert not revoke.is_busy(io.fs, owner) and len(ranges_of(io)) == 1
    print("look", file=child.stdin, flush=True)
    assert child.wait(10) == -signal.SIGBUS
    after = os.stat(range_path(io, node))
    assert after.st_ino != before.st_ino and after.st_size == before.st_size == node.map.own.pages * PAGE
    assert after.st_blocks == before.st_blocks, "holes stay holes"
    assert io.fs.inodes.read(node.ino) == inode and own.shown(io.fs, inode)[0] == inode
    whole = data + bytes(15 * MIB - len(data)) + b"behind a hole"
    assert content(io, node) == whole + bytes(20 * MIB - len(whole))
    assert ranges.seek(node, 0, data=False) == 5 * MIB + PAGE
    assert io.write(node, 3 * MIB, b"and on it goes") == 14
    assert content(io, node)[3 * MIB : 3 * MIB + 14] == b"and on it goes"


@pytest.mark.parametrize("loaded", [True, False])
def test_ranges_of_files_that_nobody_has_open_here(pool_kit, io, loaded):
    """Mappings of an earlier mount: nothing of ours has the file, or the kernel has closed it."""
    node, data = create(io, b"f"), noise(3 * PAGE)
    io.write(node, 0, data)
    mapping, ino = program(io, node), node.ino
    times = io.fs.clock()
    mapping[0:5] = b"store"
    owner = owner_of(io, node)
    io.release(node)
    if not loaded:
        io = pool_kit.remount(io)
        assert ino not in io.fs.nodes
    assert revoke.ranges(io.fs) == [owner] and revoke.is_busy(io.fs, owner)
    place = revoke.place(io.fs, owner)
    assert place["ino"] == ino and place["range_ino"] == os.stat(place["range"]).st_ino
    assert revoke.take_all(io.fs) == 1
    assert revoke.take_all(io.fs) == 0
    node = reopen(io, ino)
    assert content(io, node) == b"store" + data[5:]
    assert own.shown(io.fs, io.fs.inodes.read(ino))[0].mtime >= times - 20_000_000


def test_an_unlinked_file_that_is_open(io):
    node = create(io, b"f")
    io.write(node, 0, b"still here")
    mapping = program(io, node)
    namespace.unlink(io.fs, 1, b"f")
    revoke.take(io.fs, owner_of(io, node))
    assert content(io, node) == b"still here" and mapping.size() == 0
    io.release(node)
    assert ranges_of(io) == []


@pytest.mark.parametrize("step", [1, 7])
def test_no_store_of_a_program_that_never_stops_is_lost(io, start, tmp_path, step):
    """Pages that had storage: what a store got into before SIGBUS is in the copy, each time."""
    counter = tmp_path / "counter"
    node = create(io, b"f")
    for lap in range(5):
        io.write(node, 0, b"\1" * (9 * MIB))
        counter.write_bytes(bytes(PAGE))
        child = start(WRITER, range_path(io, node), counter, step)
        while not any(counter.read_bytes()):
            time.sleep(0.001 * lap)
        revoke.take(io.fs, owner_of(io, node))
        assert child.wait(10) == -signal.SIGBUS
        done = int.from_bytes(counter.read_bytes()[:8], "little")
        found = content(io, node)
        words = [int.from_bytes(found[at : at + 8], "little") for at in range(0, len(found), PAGE * step)]
        # It went through the pages in order until one of the last was gone: nothing of a whole round is
        # missing, and the round that was cut short is in all pages before the first that lacks it.
        assert set(words) <= {done, done + 1}
        assert words == sorted(words, reverse=True)


@pytest.mark.parametrize("beside", [True, False], ids=["beside data", "alone"])
def test_a_store_to_storage_that_nobody_had_touched(io, monkeypatch, beside):
    """Allocated, as for a fault that is being answered, and first stored to right before the cut."""
    node = create(io, b"f")
    attr.setattr(io.fs, node.ino, {"size": 6 * MIB})
    if beside:
        io.write(node, 3 * MIB, noise(PAGE, 1))
    file, at = os.open(range_path(io, node), os.O_RDWR), 2 * MIB + 5 * PAGE
    os.posix_fallocate(file, at, PAGE)
    program, cut = mmap.mmap(file, 6 * MIB), revoke.shorten

    def shorten(fd, size, syncs):
        if size <= at and os.path.samestat(os.fstat(fd), os.fstat(file)):
            program[at : at + 5] = b"store"
            monkeypatch.undo()
        cut(fd, size, syncs)

    monkeypatch.setattr(revoke, "shorten", shorten)
    revoke.take(io.fs, revoke.ranges(io.fs)[0])
    assert os.fstat(file).st_size == 0 and bytes(io.read(node, at, 6)) == b"store\0"
    os.close(file)


def test_no_room_for_the_copy_changes_nothing(io, monkeypatch):
    node, data = create(io, b"f"), noise(3 * PAGE)
    io.write(node, 0, data)
    mapping = program(io, node)
    monkeypatch.setattr(io.fs.pool, "space", lambda: (1 << 20, 2))
    with pytest.raises(OSError) as caught:
        revoke.take(io.fs, owner_of(io, node))
    assert caught.value.errno == errno.ENOSPC
    mapping[:5] = b"alive"
    assert content(io, node) == b"alive" + data[5:] and len(ranges_of(io)) == 1


# -- crashes --------------------------------------------------------------------------------

CALLS = ("open", "ftruncate", "pwrite", "utime", "rename", "splice", "unlink", "fsync", "fdatasync")


@pytest.mark.parametrize("syncs", [False, True])
def test_a_crash_at_each_step_leaves_the_whole_file(pool_kit, io, monkeypatch, syncs):
    """Before each call that changes the folder or a file: what is there then mounts, and has all the data."""
    data = noise(4 * MIB + 3 * PAGE)
    io.fs.pool.syncs = syncs
    node = create(io, b"f")
    io.write(node, 0, data)
    mapping, steps = program(io, node), []
    owner = owner_of(io, node)

    def look(name):
        steps.append(name)
        copy = pool_kit.crash_copy(io.fs)
        again = copy.open(node.ino)
        assert again.map.own.pages == len(data) // PAGE
        assert os.pread(again.map.own.fd, len(data), 0) == data, f"at step {len(steps)}, {name}"
        assert list(copy.pool.owners()) == [owner], "and nothing else is left"
        pool_kit.drop(copy)

    for where, name in [*((os, name) for name in CALLS), (revoke, "shorten")]:
        real = getattr(where, name)

        def call(*args, _real=real, _name=name, **kwargs):
            if not looking:
                looking.append(True)
                look(_name)
                looking.clear()
            return _real(*args, **kwargs)

        monkeypatch.setattr(where, name, call)
    looking = []
    revoke.take(io.fs, owner)
    looking.append(True)
    assert steps.count("rename") == 1 and steps.count("shorten") > 3 and mapping.size() == 0
    assert steps.index("rename") < steps.index("shorten")
    assert content(io, node) == data


KILLED = """
import os, signal, sys
from daxfs.meta import fs as metafs, revoke
from daxfs.region import Region
left = int(sys.argv[2])
def counted(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
fs = metafs.mount(Region.open([sys.argv[1]]))
for name in ("open", "ftruncate", "pwrite", "utime", "rename", "splice", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
revoke.shorten = counted(revoke.shorten)
revoke.take(fs, revoke.ranges(fs)[0])
os._exit(0)
"""


def test_killed_at_any_step(pool_kit, io):
    """The same with a process that dies: nothing that it would have done later may be needed."""
    data = noise(2 * MIB + 3 * PAGE)
    node = create(io, b"f")
    io.write(node, 0, data)
    io.release(node)
    source, ino = io.fs.region.sources[0].path, node.ino
    for step in range(100):
        with open(range_path(io, node), "r+b") as file:
            mapping = mmap.mmap(file.fileno(), 0)
        io.fs.unmount()
        io.fs.region.close()
        done = subprocess.run([sys.executable, "-P", "-c", KILLED, source, str(step)], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        io = FileIo(metafs.mount(Region.open([source])))
        node = reopen(io, ino)
        assert content(io, node) == data, step
        assert len(ranges_of(io)) == 1
        io.release(node)
        if not done.returncode:
            break
        mapping.close()
    io.fs.region.close()
    assert 10 < step < 100
