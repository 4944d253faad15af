# SPDX-License-Identifier: MIT
"""Long random sequences, mostly valid: what short ones can't reach.

Deep trees, directories of several blocks, attributes of several pages, files in many extents,
hard links, files that are deleted while they are open. The model says what exists; some
operations are drawn blindly and mostly fail, as they should. Small enough for a region of
8 MiB with 256 inodes.
"""

import random

from .node import CHR, DIR, FIFO, LNK, REG
from .workloads import HAVE_FALLOCATE, LAZY, POLICIES, Sequence, started

SETUP = "tree"
MAX_NODES, MAX_PAGES = 150, 700
SIZES = (1, 7, 8, 100, 512, 4000, 4096, 4097, 9000, 20000)
PLACES = (0, 1, 8, 100, 4088, 4090, 4096, 8192, 10000, 16384)
KINDS = {
    **{"create": 12, "fill": 3, "mkdir": 5, "mknod": 1, "symlink": 3, "link": 5, "rename": 10, "exchange": 3},
    **{"unlink": 5, "rmdir": 2, "open": 2, "open_unlink": 2, "close": 2, "evict": 1},
    **{"whiteout": 2, "tmpfile": 2, "link_held": 3, "copy": 5},
    **{"write": 14, "append": 10, "interleave": 3, "truncate": 6, "open_trunc": 1, "msync": 3},
    **{"read": 3, "list": 2, "readlink": 1, "chmod": 2, "chown": 2, "utimens": 2, "utimens_same": 1},
    **{"setxattr": 6, "removexattr": 2, "fsync": 4, "fdatasync": 1, "fsyncdir": 2, "sync": 1},
}


class Drawer:
    """Draws one operation after the other, and follows them in a model."""

    def __init__(self, seed: int, policy):
        self.rng = random.Random(seed)
        self.model = started(SETUP, policy).clone()
        self.kinds, self.weights = list(KINDS), list(KINDS.values())
        if HAVE_FALLOCATE:
            self.kinds.append("fallocate")
            self.weights.append(8)
        self.seed = 0

    def paths(self, *kinds: int) -> list[str]:
        """Paths of what exists, of these kinds (none: all but the root)."""
        nodes = self.model.nodes
        found = sorted(self.model.tree().items())
        return [path for path, number in found if (nodes[number].kind in kinds if kinds else path)]

    def old(self, *kinds: int) -> str:
        """A path that exists; now and then one that may not, or is of another kind."""
        choice = self.paths(*kinds) if self.rng.random() < 0.97 else self.paths()
        return self.rng.choice(choice) if choice and self.rng.random() < 0.99 else "missing"

    def new(self) -> str:
        """A path in some directory, mostly a new one. Half of the names are long, to fill blocks."""
        parent = self.rng.choice(self.paths(DIR))
        if parent.count("/") > 4:
            parent = ""
        name = f"{self.rng.randrange(60)}" + "n" * self.rng.choice((0, 0, 0, 100, 200, 250))
        return f"{parent}/{name}" if parent else name

    def noise(self) -> int:
        self.seed += 1
        return self.seed

    def full(self) -> bool:
        nodes = self.model.nodes.values()
        return len(nodes) > MAX_NODES or sum(node.space()[1] for node in nodes) > MAX_PAGES

    def draw(self) -> list[tuple]:
        """The next operations (one, or a group that makes extents)."""
        kind = self.rng.choices(self.kinds, self.weights)[0]
        if self.full():
            kind = self.rng.choice(("unlink", "unlink", "rmdir", "truncate", "close"))
        build = getattr(self, "_" + kind, None)
        return build() if build else [(kind, *self._arguments(kind))]

    def _arguments(self, kind: str) -> tuple:
        rng = self.rng
        if kind in ("create", "mkdir", "mknod"):
            return (self.new(),)
        if kind == "symlink":
            return self.new(), "t" * rng.choice((1, 96, 97, 1000))
        if kind == "link":
            return self.old(), self.new()
        if kind == "link_held":
            return (self.new(),)
        if kind in ("rename", "whiteout"):
            return self.old(), self.new() if rng.random() < 0.7 else self.old()
        if kind == "exchange":
            return self.old(), self.old()
        if kind in ("rmdir", "list", "fsyncdir"):
            return (self.old(DIR),)
        if kind in ("open", "open_unlink", "read", "open_trunc", "fsync", "fdatasync"):
            return (self.old(REG),)
        if kind in ("unlink", "readlink"):
            return (self.old(LNK) if kind == "readlink" else self.old(REG, LNK, FIFO, CHR),)
        if kind == "utimens_same":
            return (self.old(),)
        return ()

    def _write(self):
        return [("write", self.old(REG), self.rng.choice(PLACES), self.rng.choice(SIZES), self.noise())]

    def _append(self):
        return [("append", self.old(REG), self.rng.choice(SIZES), self.noise())]

    def _interleave(self):
        """Two files grow in turn, page by page: extents that can't join."""
        pair = self.old(REG), self.old(REG)
        count = self.rng.choice((2, 5, 9))
        return [("append", path, 4096, self.noise()) for _ in range(count) for path in pair]

    def _fill(self):
        """Many long names in one directory: it gets more blocks, scattered among those of files."""
        parent = self.rng.choice(self.paths(DIR))
        stem = f"{parent}/f{self.noise()}" if parent else f"f{self.noise()}"
        return [("create", f"{stem}-{n}" + "m" * 240) for n in range(self.rng.choice((5, 20)))]

    def _tmpfile(self):
        return [("tmpfile", self.rng.choice(self.paths(DIR)), self.rng.choice(SIZES), self.noise())]

    def _copy(self):
        places = self.rng.choices(PLACES, k=2)
        return [("copy", self.old(REG), places[0], self.old(REG), places[1], self.rng.choice(SIZES))]

    def _truncate(self):
        return [("truncate", self.old(REG), self.rng.choice(PLACES) + self.rng.choice((0, 0, 5000)))]

    def _msync(self):
        return [("msync", self.old(REG), self.rng.choice(PLACES), self.rng.choice(SIZES), self.noise())]

    def _chmod(self):
        return [("chmod", self.old(), self.rng.choice((0o644, 0o4755, 0o2755, 0o600)))]

    def _chown(self):
        return [("chown", self.old(), self.rng.randrange(3), self.rng.randrange(3))]

    def _utimens(self):
        return [("utimens", self.old(), self.rng.choice((None, 10**15)), self.rng.choice((None, 10**15 + 1)))]

    def _setxattr(self):
        size = self.rng.choice((0, 10, 1000, 5000, 20000))
        return [("setxattr", self.old(REG, DIR), f"user.{self.rng.randrange(5)}", size, self.noise())]

    def _removexattr(self):
        return [("removexattr", self.old(REG, DIR), f"user.{self.rng.randrange(5)}")]

    def _fallocate(self):
        mode = self.rng.choice((0, 1, 3, 3, 0x10, 0x11))
        return [("fallocate", self.old(REG), mode, self.rng.choice(PLACES), self.rng.choice(SIZES))]


def random_long(seed: int, n: int) -> Sequence:
    """*n* operations, drawn with *seed*, under one of the policies."""
    policy = (*POLICIES, LAZY)[seed % 5]
    drawer = Drawer(seed, policy)
    ops: list[tuple] = []
    while len(ops) < n:
        for op in drawer.draw()[: n - len(ops)]:
            drawer.model.apply(op)
            ops.append(op)
    return Sequence(f"random {seed} {n}", SETUP, tuple(ops), policy)

