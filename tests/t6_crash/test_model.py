# SPDX-License-Identifier: MIT
"""The oracle of the crash tests, without a crash: model and judge must agree with the live file system.

After each operation of every sequence of length one, and of long random ones, and on a copy that is
mounted again. Then the other way round: planted differences must be found. In process, no mount.
"""

import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "t2_meta"))  # regions.Maker

import regions
from crash import workloads
from crash.judge import drain_space, judge, space, step
from crash.longrun import random_long
from crash.model import Model, Policy
from crash.tree import show
from crash.vfs import NativeIo, Vfs, open_io

from daxfs.meta import attr, namespace, xattr

MIB = 1 << 20


class World:
    """A live file system, its model, and what of a sequence was done on both."""

    def __init__(self, maker, policy=workloads.DEFAULT, setup="empty"):
        self.maker, self.policy = maker, policy
        self.fs = maker.make(8 * MIB, 256)
        self.io = open_io(self.fs, policy)
        self.baseline = space(self.io)
        self.model = Model(policy, self.fs.sb.created)
        self.vfs = Vfs(self.io, self.model.now)
        for op in workloads.SETUPS[setup]:
            self.do(op)

    def do(self, op):
        """One operation; before and after it the judge must be content."""
        before = self.model.clone()
        complaints = step(self.vfs, self.model, op)
        complaints += judge(self.io, self.model) + judge(self.io, before, self.model)
        assert not complaints, f"{show(op)}: {complaints}"

    def killed(self, empty=False):
        """The judge on what a killed daemon leaves; *empty*: everything is removed there, too."""
        copy = self.maker.crash_copy(self.fs)
        io = open_io(copy, self.policy)
        complaints = judge(io, self.model)
        if empty:
            complaints += drain_space(io, self.baseline)
        self.maker.drop(copy)
        assert not complaints, complaints

    def close(self):
        self.maker.drop(self.fs)


@pytest.fixture
def maker():
    with regions.Maker() as made:
        yield made


@pytest.fixture
def world(maker):
    return World(maker, setup="tree")


ONE = list(workloads.length_one())


@pytest.mark.parametrize("setup", workloads.SETUPS)
def test_length_one(maker, setup):
    for sequence in ONE:
        if sequence.setup != setup:
            continue
        world = World(maker, sequence.policy, setup)
        for op in sequence.ops:
            world.do(op)
        world.killed(empty=True)
        world.close()


TENS = [pytest.param(first, marks=[pytest.mark.slow] if first >= 30 else []) for first in range(0, 100, 10)]


@pytest.mark.parametrize("first", TENS)
def test_random(maker, first):
    """Ten sequences of 100 operations; killed copies at every tenth one."""
    for seed in range(first, first + 10):
        sequence = random_long(seed, 100)
        world = World(maker, sequence.policy, sequence.setup)
        for number, op in enumerate(sequence.ops):
            world.do(op)
            if number % 10 == 9:
                world.killed()
        world.killed(empty=True)
        world.close()


def test_operations_that_fail(maker):
    """Every operation on an empty tree, and twice in a row: the errno is the one that is due."""
    world = World(maker)
    for op in workloads.VOCABULARY + workloads.VOCABULARY:
        world.do(op)
    world.killed(empty=True)


@pytest.mark.skipif(not workloads.HAVE_FALLOCATE, reason="there is no fallocate yet")
def test_blocks_behind_the_end(maker):
    """They stay where the file grows by truncate(2), and go with a truncation to what it is or less."""
    world = World(maker)
    world.do(("create", "a"))
    world.do(("write", "a", 0, 100, 1))
    for op in (
        ("fallocate", "a", 1, 4096, 12288),
        ("truncate", "a", 4097),
        ("write", "a", 4200, 100, 2),
        ("truncate", "a", 4300),
        ("fallocate", "a", 1, 8192, 8192),
        ("truncate", "a", 4200),
        ("fallocate", "a", 3, 4096, 200),
        ("truncate", "a", 0),
    ):
        world.do(op)
    world.killed(empty=True)


def test_size_of_the_systematic_sets():
    assert len(workloads.VOCABULARY) >= 60
    pairs = [s for s in workloads.length_two() if s.policy == workloads.DEFAULT]
    assert len(pairs) >= 3000
    names = [s.name for s in ONE]
    assert len(names) == len(set(names))
    assert list(workloads.length_three(7, 5)) == list(workloads.length_three(7, 5))
    assert random_long(3, 50) == random_long(3, 50)


# -- planted differences ---------------------------------------------------------------------


def _ino(world, path):
    parent = namespace.lookup(world.fs, 1, b"d").ino if path.startswith("d/") else 1
    return namespace.lookup(world.fs, parent, path.rpartition("/")[2].encode()).ino


def _poke(world, path, pos, raw):
    """Change bytes of a file behind everybody's back."""
    pfn = world.fs.node(_ino(world, path)).map.lookup(pos // 4096)[3]
    at = pfn * 4096 + pos % 4096
    world.fs.region.array[at : at + len(raw)] = np.frombuffer(raw, np.uint8)


def _edit(world, path, **fields):
    with world.fs.begin() as tx:
        edit = tx.inode(_ino(world, path))
        for name, value in fields.items():
            setattr(edit, name, value)


def _attr(name, value):
    return lambda world: _edit(world, "a", **{name: value})


PLANTED = {
    "a changed byte": (lambda w: _poke(w, "a", 12002, b"\0"), "a: 1 words are neither"),
    "a stale word": (lambda w: _poke(w, "d/c", 4096, bytes(8)), "d/c: 1 words are neither"),
    "a missing name": (lambda w: namespace.unlink(w.fs, 1, b"s"), "s: is missing"),
    "a name too much": (
        lambda w: namespace.create(w.fs, 1, b"z", 0o100644, namespace.ROOT),
        "z: should not be there",
    ),
    "two files exchanged": (lambda w: namespace.rename(w.fs, 1, b"a", 1, b"x", 2), "a: "),
    "a hard link to another inode": (
        lambda w: (namespace.unlink(w.fs, _ino(w, "d"), b"l"),
                   namespace.link(w.fs, _ino(w, "b"), _ino(w, "d"), b"l")),
        "d/l: names the wrong inode",
    ),
    "wrong nlink": (_attr("nlink", 3), "a: nlink is 3, not 2"),
    "wrong mode": (_attr("mode", 0o100600), "a: mode is 0o100600"),
    "wrong owner": (_attr("uid", 9), "a: uid is 9"),
    "wrong group": (_attr("gid", 9), "a: gid is 9"),
    "wrong rdev": (_attr("rdev", 9), "a: rdev is 9"),
    "wrong birth": (_attr("btime", 9), "a: btime is 9"),
    "wrong size": (_attr("size", 12002), "a: size is 12002"),
    "wrong ctime": (_attr("ctime", 9), "a: ctime is 9"),
    "wrong blocks": (_attr("blocks", 4), "pages are not free, files have"),
    "a page too much": (lambda w: w.io.fallocate(w.fs.node(_ino(w, "b")), 1, 4096, 4096), "b: has 2 pages")
    if workloads.HAVE_FALLOCATE
    else (lambda w: xattr.put(w.fs, _ino(w, "b"), b"user.z", b"1"), "b: has 2 pages"),
    "a lost page": (lambda w: w.fs.alloc.alloc(1), "pages are not free"),
    "a lost inode": (lambda w: setattr(w.fs.inodes, "used", 20), "20 inodes are in use"),
    "another target": (
        lambda w: (namespace.unlink(w.fs, 1, b"s"),
                   namespace.create(w.fs, 1, b"s", 0o120777, namespace.ROOT, target=b"targe_")),
        "s: points to",
    ),
    "another attribute value": (
        lambda w: xattr.put(w.fs, _ino(w, "x"), b"user.one", b"1"), "x: extended attribute one differs",
    ),
    "an attribute that is gone": (
        lambda w: xattr.remove(w.fs, _ino(w, "x"), b"user.two"), "x: extended attribute two differs",
    ),
    "wrong parent": (lambda w: _edit(w, "e", parent=_ino(w, "d")), ".. is inode"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_difference_is_found(world, name):
    plant, text = PLANTED[name]
    plant(world)
    complaints = judge(world.io, world.model)
    assert any(text in complaint for complaint in complaints), complaints
    # It is no excuse that something was in flight, unless it leads there.
    after = world.model.clone()
    assert after.apply(("mkdir", "n")) == 0
    assert judge(world.io, world.model, after)


def test_mixture_of_names_and_attributes(world):
    """A rename over of which only the names are there, a chmod with the ctime missing."""
    after = world.model.clone()
    after.apply(("rename", "a", "b"))
    namespace.rename(world.fs, 1, b"a", 1, b"b")
    for ino in (1, _ino(world, "b")):
        attr.setattr(world.fs, ino, {"mtime": 5})
    assert judge(world.io, world.model, after)

    world = World(world.maker, setup="tree")
    after = world.model.clone()
    after.apply(("chmod", "a", 0o600))
    _edit(world, "a", mode=0o100600)
    assert any("mode" in text for text in judge(world.io, world.model, after))
    assert any("ctime" in text for text in judge(world.io, world.model, after))


@pytest.mark.parametrize("policy", workloads.POLICIES, ids=lambda p: f"{p.write},{p.drain}")
def test_overwrite_in_flight_mixes_words_and_no_more(maker, policy):
    world = World(maker, policy, "tree")
    world.do(("open", "a"))
    before = world.model.clone()
    op = ("write", "a", 4090, 20, 31)
    old = before.nodes[before.find("a")].content.data.copy()
    world.do(op)
    after = world.model
    new = after.nodes[after.find("a")].content.data
    _poke(world, "a", 4088, old[4088:4096].tobytes())
    assert judge(world.io, before, after) == []
    lasting = policy == workloads.DEFAULT
    assert bool(judge(world.io, after)) == lasting, "after return: only as long as nothing made it durable"
    _poke(world, "a", 4092, new[4092:4096].tobytes())  # the word is torn: two bytes old, six new
    _poke(world, "a", 4088, old[4088:4091].tobytes())
    assert judge(world.io, before, after), "a word that is half old"
    _poke(world, "a", 4088, new[4088:4096].tobytes())
    _poke(world, "a", 4080, bytes(8))
    assert judge(world.io, before, after), "a word beside the write"
    _poke(world, "a", 4080, old[4080:4088].tobytes())
    world.do(("fsync", "a"))
    _poke(world, "a", 4096, old[4096:4104].tobytes())
    assert judge(world.io, world.model), "an old word after fsync"


def test_write_that_grows_in_flight(maker):
    """Cached: what goes over old blocks may be old yet although the record is there; what is new may not."""
    for policy in workloads.POLICIES:
        world = World(maker, policy, "tree")
        before = world.model.clone()
        world.do(("write", "d/c", 4000, 4000, 40))
        after = world.model
        node = before.nodes[before.find("d/c")]
        _poke(world, "d/c", 4008, node.content.data[4008:4016].tobytes())
        assert bool(judge(world.io, before, after)) == (policy == workloads.DEFAULT)
        _poke(world, "d/c", 5000, bytes(8))
        assert judge(world.io, before, after)
        world.close()


def test_times_in_place(world):
    """After an overwrite mtime and ctime may be old or new, each by itself; after fsync they are new."""
    before = world.model.clone()
    world.do(("write", "a", 0, 8, 1))
    node = before.nodes[before.find("a")]
    place = world.fs.inodes.place(_ino(world, "a"))
    mem = world.fs.mem
    mem[place + 16 : place + 24] = node.mtime[0].to_bytes(8, "little")
    assert judge(world.io, world.model) == judge(world.io, before, world.model) == []
    mem[place + 16 : place + 24] = (5).to_bytes(8, "little")
    assert judge(world.io, world.model) and judge(world.io, before, world.model)
    mem[place + 16 : place + 24] = world.vfs.now.to_bytes(8, "little")
    world.do(("fsync", "a"))
    mem[place + 16 : place + 24] = node.mtime[0].to_bytes(8, "little")
    assert judge(world.io, world.model)


def test_space_that_does_not_come_back(world):
    world.fs.alloc.alloc(1)
    assert any("after removing everything" in text for text in drain_space(world.io, world.baseline))


def test_images_are_judged_in_time(world):
    """The sweep needs 5,000 images a minute."""
    best = 1.0
    for _ in range(20):
        start = perf_counter()
        judge(world.io, world.model, world.model)
        best = min(best, perf_counter() - start)
    assert best < 0.002


def test_policy_is_what_the_data_path_does(maker):
    """Without this a sweep over policies would test one of them five times."""
    for policy in (*workloads.POLICIES, workloads.LAZY, workloads.NATIVE):
        world = World(maker, Policy(*policy))
        shown = world.io.snapshot()
        native = isinstance(world.io, NativeIo)
        pool = world.fs.pool is not None
        assert (shown["write"], shown["drain"], world.fs.lazytime, native, pool) == tuple(policy)[:5]
        world.close()


@pytest.mark.parametrize("policy", [workloads.DEFAULT, workloads.NATIVE])
def test_the_start_tree_with_a_chunk_has_one_and_appends_into_it_have_no_record(maker, policy):
    """Without this the sweep would test nothing of preallocation."""
    world = World(maker, policy, "stream")
    (node,) = world.vfs.held
    assert world.fs.preallocated == {node.ino} and node.map.end() > node.map.size // 4096 + 8
    served, records = getattr(world.io, "served", 0), world.fs.journal.records
    for seed in range(3):
        world.do(("append", "a", 3000, seed))
    assert world.fs.journal.records == records
    assert not policy.native or world.io.served == served + 3
    world.killed()
    world.close()
