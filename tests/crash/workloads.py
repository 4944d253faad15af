# SPDX-License-Identifier: MIT
"""Which sequences of operations are crashed: all short ones over a few names, samples of longer ones.

The bounds are those of the crash testers of other file systems: two directories, a few files, positions at
edges (in a page, across pages, unaligned, at and behind the end). A pair is left out only where it is
provably a shorter sequence (an operation in it fails, and what fails changes nothing) and a policy only
where it makes no difference (no data go over written blocks). `random_long` is for what short ones can't
reach: large directories, fragmented files, attributes that grow, deep trees.
"""

import functools
import itertools
import random
from typing import NamedTuple

from daxfs.data.file_io import FileIo
from daxfs.meta import file

from .model import Model, Policy
from .tree import show

HAVE_FALLOCATE = hasattr(FileIo, "fallocate") or hasattr(file, "fallocate")
DEFAULT = Policy("nt", "write")
POLICIES = (DEFAULT, Policy("nt", "fsync"), Policy("cached", "write"), Policy("cached", "fsync"))
LAZY = Policy("nt", "write", lazytime=True)
NATIVE = Policy("nt", "write", native=True)
LONG = "t" * 200  # a symlink's target that needs a page
OLD = 10**15  # a time of long ago: the next read moves the access time


class Sequence(NamedTuple):
    """*ops* on what *setup* (a name in SETUPS) made. ``name``: plays it again, with ``find``."""

    name: str
    setup: str
    ops: tuple
    policy: Policy


SMALL = (
    ("create", "a"),
    ("write", "a", 0, 12003, 1),
    ("create", "b"),
    ("write", "b", 0, 101, 2),
    ("mkdir", "d"),
    ("create", "d/c"),
    ("write", "d/c", 0, 5000, 3),
    ("mkdir", "e"),
    ("symlink", "s", "target"),
    ("link", "a", "d/l"),
    ("create", "x"),
    ("setxattr", "x", "user.one", 100, 4),
    ("setxattr", "x", "user.two", 2000, 5),
    ("write", "x", 0, 4096, 6),
)
SETUPS = {
    "empty": (),
    "tree": SMALL + (("sync",),),
    # Nothing is settled, the caches are empty, time words stand in place only.
    "unsynced": SMALL + (("write", "a", 8, 16, 7), ("read", "b"), ("list", "d"), ("evict",)),
    # Files with holes and tails behind their end; a deleted file, open; a symlink with a page.
    "holes": SMALL
    + (
        ("truncate", "a", 5001),
        ("truncate", "a", 30000),
        ("write", "b", 20000, 5000, 8),
        ("truncate", "d/c", 4096),
        ("symlink", "t", LONG),
        ("create", "gone"),
        ("write", "gone", 0, 9000, 9),
        ("open_unlink", "gone"),
        ("sync",),
    ),
    # a is open and has a chunk of written pages behind its end: the third append of an open file gets one.
    "stream": SMALL + (("open", "a"),) + tuple(("append", "a", 4000, 60 + n) for n in range(3)),
    # The root's and d's first block are full: the next name needs a block.
    "full": SMALL
    + tuple(("create", f"{n:02}" + "n" * 236) for n in range(14))
    + tuple(("link", "a", f"d/{n:02}" + "n" * 236) for n in range(15))
    + (("sync",),),
    # Six single pages, in no order: the next extent of a needs an extent block.
    "scattered": SMALL
    + tuple(("write", name, 8192 * n, 4096, 10 + n) for n in (5, 2, 4, 3, 6) for name in ("a", "b"))
    + (("sync",),),
}

NAMES = (
    ("create", "n"),
    ("create", "d/n"),
    ("mkdir", "n"),
    ("mkdir", "d/n"),
    ("mknod", "n"),
    ("symlink", "n", "x"),
    ("symlink", "d/n", LONG),
    ("link", "a", "n"),
    ("link", "d/c", "e/n"),
    ("link", "x", "d/n"),
    ("rename", "a", "n"),
    ("rename", "a", "e/n"),
    ("rename", "a", "b"),
    ("rename", "b", "d/l"),
    ("rename", "d/c", "a"),
    ("rename", "a", "d/l"),  # two names of one inode
    ("rename", "x", "d/n"),
    ("rename", "d", "e"),
    ("rename", "e", "d/n"),
    ("rename", "d", "n"),
    ("rename", "n", "a"),
    ("rename", "s", "x"),
    ("exchange", "a", "b"),
    ("exchange", "a", "d/c"),
    ("exchange", "d", "x"),
    ("exchange", "e", "d/l"),
    ("unlink", "a"),
    ("unlink", "b"),
    ("unlink", "d/l"),
    ("unlink", "d/c"),
    ("unlink", "s"),
    ("unlink", "x"),
    ("unlink", "n"),
    ("rmdir", "e"),
    ("rmdir", "n"),
    ("whiteout", "a", "n"),
    ("whiteout", "d/c", "b"),
    ("whiteout", "e", "d/n"),
    ("tmpfile", "d", 5000, 51),
    ("link_held", "n"),
    ("link_held", "d/n"),
    ("open_unlink", "b"),
    ("close",),
    ("evict",),
)
ATTRIBUTES = (
    ("setxattr", "b", "user.k", 10, 20),
    ("setxattr", "x", "user.one", 90, 21),
    ("setxattr", "x", "user.big", 6000, 22),
    ("setxattr", "d", "user.k", 10, 23),
    ("removexattr", "x", "user.one"),
    ("removexattr", "x", "user.two"),
    ("removexattr", "b", "user.k"),
    ("chmod", "a", 0o4755),
    ("chmod", "d", 0o700),
    ("chown", "a", 7, 8),
    ("utimens", "a", OLD, OLD + 1),
    ("utimens", "b", None, OLD),
    ("utimens_same", "a"),
    ("chattr", "a", 0x100),
    ("chattr", "d", 0xF00),
    ("chattr", "s", 0x200),
)
DATA = (
    ("write", "a", 4096 + 8, 16, 30),  # in a page
    ("write", "a", 4090, 20, 31),  # across pages, unaligned
    ("write", "a", 0, 12003, 32),  # all of it
    ("write", "a", 12000, 10, 33),  # across the end, in the last word
    ("write", "b", 3, 2, 34),  # in a word
    ("write", "b", 8192, 100, 35),  # behind a gap
    ("append", "a", 100, 36),  # into the last page
    ("append", "a", 5000, 37),
    ("append", "b", 3, 38),
    ("append", "n", 10, 39),
    ("write", "d/c", 4000, 4000, 40),
    ("truncate", "a", 0),
    ("truncate", "a", 5001),
    ("truncate", "a", 8192),
    ("truncate", "a", 12100),
    ("truncate", "b", 40),
    ("truncate", "b", 9000),
    ("open_trunc", "a"),
    ("open_trunc", "d/c"),
    ("msync", "a", 5000, 100, 41),
    ("msync", "b", 90, 11, 42),
    ("read", "a"),
    ("read", "b"),
    ("list", "d"),
    ("readlink", "s"),
)
SYNCS = (
    ("fsync", "a"),
    ("fdatasync", "b"),
    ("fsync", "x"),
    ("fsyncdir", "d"),
    ("sync",),
)
FALLOCATE = tuple(
    ("fallocate", path, mode, pos, length)
    for path, mode, pos, length in (
        ("a", 0, 0, 20000),
        ("b", 0, 4096, 8192),
        ("a", 1, 12288, 8192),
        ("a", 3, 4096, 4096),
        ("a", 3, 100, 200),
        ("a", 3, 4000, 5000),
        ("b", 3, 0, 4096),
        ("a", 0x10, 4096, 4096),
        ("a", 0x10, 5, 8000),
        ("a", 0x10, 12000, 5000),
        ("a", 0x11, 8000, 8000),
    )
)
COPIES = (
    ("copy", "a", 100, "d/c", 7, 3000),  # over written blocks
    ("copy", "a", 4096, "b", 8192, 5000),  # behind the end
    ("copy", "a", 8192, "a", 0, 3000),  # in one file; on "holes" a hole over data
    ("copy", "a", 8192, "b", 12000, 100),  # on "holes" a hole behind the end
)
VOCABULARY = NAMES + ATTRIBUTES + DATA + SYNCS + COPIES + (FALLOCATE if HAVE_FALLOCATE else ())
OPEN_FIRST = (("open", "a"), ("open", "b"))  # else every write would be the last close, too


@functools.cache
def started(setup: str, policy: Policy) -> Model:
    """The model after a setup; clone it."""
    return set_up(SETUPS, setup, policy)


def set_up(setups: dict, name: str, policy: Policy) -> Model:
    """The model after the operations *name* of *setups*, each of which has to succeed."""
    model = Model(policy)
    for op in setups[name]:
        code = model.apply(op)
        if code:
            raise AssertionError(f"setup {name}: {op} fails with {code}")
    return model


def tried(setup: str, ops) -> tuple[bool, bool] | None:
    """(data go over written blocks, times are stored in place), None where an operation fails."""
    model = started(setup, DEFAULT).clone()
    data = times = False
    for op in ops:
        if model.apply(op):
            return None
        data = data or any(stored.ranges for stored in model.stored.values())
        times = times or bool(model.in_place)
    return data, times


def with_policies(setup: str, ops: tuple):
    """The sequences of *ops* under every policy that makes a difference."""
    text = f"{setup}: {'; '.join(map(show, ops))}"
    effect, opened = tried(setup, ops), tried(setup, OPEN_FIRST + ops)
    if effect:
        yield Sequence(text, setup, ops, DEFAULT)
    if effect and effect[0]:
        yield Sequence(f"{text} [nt,fsync]", setup, ops, Policy("nt", "fsync"))
    for policy in POLICIES[2:]:
        tag = f"{policy.write},{policy.drain}"
        if opened and opened[0]:
            yield Sequence(f"{text} [{tag}, open]", setup, OPEN_FIRST + ops, policy)
        elif effect and effect[0]:
            yield Sequence(f"{text} [{tag}]", setup, ops, policy)
    if effect and any(op[0] in ("write", "append", "msync") for op in ops):
        yield Sequence(f"{text} [native, open]", setup, OPEN_FIRST + ops, NATIVE)
    if effect and effect[1]:
        yield Sequence(f"{text} [lazytime]", setup, ops, LAZY)


def length_one():
    """Every operation on every setup; also, a closed file is written with the cached policy."""
    for setup, op in itertools.product(SETUPS, VOCABULARY):
        for sequence in with_policies(setup, (op,)):
            yield sequence
            if sequence.policy.write == "cached" and len(sequence.ops) > 1:
                yield sequence._replace(name=sequence.name.replace(", open]", "]"), ops=(op,))


def length_two(setup: str = "tree"):
    """Every pair of operations of which none fails."""
    for pair in itertools.product(VOCABULARY, repeat=2):
        yield from with_policies(setup, pair)


def length_three(seed: int, count: int, setup: str = "tree"):
    """*count* triples of which no operation fails, each with one of its policies, drawn with *seed*."""
    rng = random.Random(seed)
    while count:
        choice = list(with_policies(setup, tuple(rng.choices(VOCABULARY, k=3))))
        if choice:
            yield rng.choice(choice)
            count -= 1
