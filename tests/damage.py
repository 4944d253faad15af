# SPDX-License-Identifier: MIT
"""Damage to a region made by `populate.make`: one field, one record, one block, sealed or not; `chaos`."""

import contextlib
import os
import random

from daxfs import layout as L
from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs, superblock
from daxfs.meta.inode import COLD, F
from daxfs.meta.transaction import InodeEdit
from daxfs.region import Region

PAGE = 4096
STATE = L.STATE_PFN * PAGE
MOUNTED = STATE + L.STATE_FIELDS.offset["mounted"]


class Facts:
    """Where things stand on a good image: ``ino``, ``data`` (first pfn), by path; looked up once."""

    PATHS = (
        b"/file", b"/dir", b"/dir/inner", b"/dir/empty", b"/dir/hard", b"/short", b"/long", b"/null",
        b"/fifo", b"/big", b"/sparse",
    )  # fmt: skip
    OWN = (
        b"/dax/small", b"/dax/twin", b"/dax/empty", b"/dax/sparse", b"/dax/cut", b"/dax/sub/heir",
        b"/dax/moved", b"/dax", b"/own",
    )  # fmt: skip

    def __init__(self, sources: list[str], lookup):
        with Region.open(sources, "cow") as region:
            fs = meta_fs.mount(region)
            paths = self.PATHS + (self.OWN if os.path.isdir(sources[0]) else ())
            self.ino = {path: lookup(fs, path).ino for path in paths} | {b"/": 1}
            self.generation = {ino: fs.inodes.read(ino).generation for ino in self.ino.values()}
            nodes = {path: fs.node(ino) for path, ino in self.ino.items()}
            self.data = {p: n.map.extents(0, 1)[0][2] for p, n in nodes.items() if len(n.map)}
            self.chain = list(nodes[b"/sparse"].blocks)
            self.xattr = fs.inodes.read(self.ino[b"/file"]).xattr_pfn
            self.free_ino = int(fs.inodes.free[-1])
            self.limit = fs.inodes.limit


class Damage:
    """An open region to be damaged; bytes are changed straight in the mapping."""

    def __init__(self, region, facts: Facts):
        self.region, self.mem, self.facts = region, region.mem, facts
        self.sb = superblock.find_backup(region)
        self.seed = self.sb.seed

    def ino(self, path: bytes) -> int:
        return self.facts.ino[path]

    def range(self, path=None) -> str:
        """The file of a range: of the inode at *path*, of (ino, generation), or the folder of them all."""
        name = ""
        if path is not None:
            ino, generation = path if isinstance(path, tuple) else (self.ino(path), None)
            name = L.range_name(ino, self.facts.generation[ino] if generation is None else generation)
        return os.path.join(self.region.sources[0].path, L.RANGES_NAME, name)

    def place(self, ino: int) -> int:
        return self.sb.inode_pfn * PAGE + ino * L.INODE_SIZE

    def put(self, at: int, data: bytes) -> None:
        self.mem[at : at + len(data)] = data

    def get(self, at: int, length: int) -> bytes:
        return bytes(self.mem[at : at + length])

    def flip(self, at: int) -> None:
        self.mem[at] ^= 0xFF

    def inode(self, path, **fields) -> None:
        """Set fields of an inode (path or number) and seal it, as a wrong program would."""
        ino = path if isinstance(path, int) else self.ino(path)
        edit = InodeEdit(ino, self.place(ino), bytearray(self.get(self.place(ino), L.INODE_SIZE)))
        for name, value in fields.items():
            setattr(edit, name, value)
        edit.buf[COLD:] = L.sealed(edit.buf[COLD:], 4, self.seed)
        self.put(edit.place, bytes(edit.buf))

    def field(self, path, name: str) -> int:
        ino = path if isinstance(path, int) else self.ino(path)
        return F.codec[name].unpack_from(self.mem, self.place(ino) + F.offset[name])[0]

    def slot(self, path, index: int, pgoff=None, length=None, pfn=None, state=None) -> None:
        """Change an inline extent."""
        raw = bytearray(self.field(path, "inline"))
        old = L.EXTENT_CODEC.unpack_from(raw, 16 * index)
        word = (old[2] & L.EXTENT_PFN_MASK) if pfn is None else pfn
        word |= (old[2] >> 48 if state is None else state) << 48
        new = (old[0] if pgoff is None else pgoff, old[1] if length is None else length, word)
        L.EXTENT_CODEC.pack_into(raw, 16 * index, *new)
        self.inode(path, inline=bytes(raw))

    def block(self, pfn: int, offset: int, data: bytes, length: int = PAGE) -> None:
        """Change bytes of a metadata block and seal it."""
        raw = bytearray(self.get(pfn * PAGE, length))
        raw[offset : offset + len(data)] = data
        self.put(pfn * PAGE, L.sealed(raw, 4, self.seed))

    def record(self, pfn: int, name: bytes | None) -> tuple[int, int]:
        """(offset, rec_len) of a name's record, or (None) of the largest free one."""
        at, best = L.BLOCK_SIZE, (0, 0)
        while at < PAGE:
            ino, rec_len, name_len, _ = L.DIRENT_CODEC.unpack_from(self.mem, pfn * PAGE + at)
            own = self.get(pfn * PAGE + at + L.DIRENT_SIZE, name_len)
            if ino and own == name:
                return at, rec_len
            if not ino and name is None and rec_len > best[1]:
                best = at, rec_len
            at += rec_len
        assert name is None, name
        return best

    def add_name(self, directory: bytes, name: bytes, ino: int, kind: int) -> None:
        """A further record in the directory's first block."""
        pfn = self.facts.data[directory]
        at, room = self.record(pfn, None)
        need = L.DIRENT_SIZE + (len(name) + 7 & ~7)
        new = L.DIRENT_CODEC.pack(ino, need, len(name), kind) + name.ljust(need - L.DIRENT_SIZE, b"\0")
        self.block(pfn, at, new + L.DIRENT_CODEC.pack(0, room - need, 0, 0))

    def drop_name(self, directory: bytes, name: bytes) -> None:
        pfn = self.facts.data[directory]
        self.block(pfn, self.record(pfn, name)[0], bytes(8))

    def superblock(self, **fields) -> bytes:
        """A sealed superblock page with some fields changed."""
        sb = superblock.parse(self.get(0, PAGE))
        for name, value in fields.items():
            setattr(sb, name, value)
        return sb.pack()

    def state(self, limit: int) -> None:
        self.put(STATE, mkfs.state_line(self.seed, limit))


def chaos(d, dice: random.Random) -> None:
    """A few random changes to metadata; half of them sealed, so that they get past the checksums."""
    blocks = [*d.facts.chain, d.facts.xattr, *(d.facts.data[p] for p in (b"/", b"/dir", b"/big"))]
    if os.path.isdir(d.region.sources[0].path) and dice.randrange(2):
        chaos_of_ranges(d, dice)
    for _ in range(dice.randint(1, 4)):
        what = dice.randrange(5)
        if what == 0:
            at = dice.randrange(d.sb.data_pfn * PAGE + 64 * PAGE)
            d.put(at, dice.randbytes(dice.choice((1, 8, 64, 256))))
        elif what == 1:
            name = dice.choice([n for n in F.names if n not in ("magic", "crc", "inline", "hot_reserved")])
            size = F.codec[name].size
            value = dice.choice((0, 1, (1 << 8 * size - 1) - 1, dice.getrandbits(8 * size - 1), 4096))
            d.inode(dice.randrange(1, 40), **{name: value})
        elif what == 2:
            raw = bytearray(d.field(1 + dice.randrange(30), "inline"))
            raw[dice.randrange(96)] = dice.randrange(256)
            d.inode(1 + dice.randrange(30), inline=bytes(raw))
        elif what == 3:
            pfn = dice.choice(blocks)
            d.block(pfn, dice.randrange(8, 300), dice.randbytes(dice.choice((1, 2, 8))))
        else:
            one, two = dice.choice(blocks), dice.choice(blocks)
            d.put(one * PAGE, d.get(two * PAGE, PAGE))


def chaos_of_ranges(d, dice: random.Random) -> None:
    """A few random changes to the folder of ranges, and to the inodes that have them."""
    for _ in range(dice.randint(1, 4)):
        path = dice.choice([path for path in d.facts.OWN if path != b"/dax"])
        range_, what = d.range(path), dice.randrange(6)
        with contextlib.suppress(OSError):  # gone, or no file any more
            if what == 0:
                os.unlink(range_)
            elif what == 1:
                os.truncate(range_, dice.randrange(1 << dice.randrange(20)))
            elif what == 2:
                os.rename(range_, d.range((dice.randrange(1, 400), dice.randrange(4))))
            elif what == 3:
                os.unlink(range_)
                dice.choice((os.mkdir, os.mkfifo, lambda name: os.symlink("/etc/passwd", name)))(range_)
            elif what == 4:
                d.inode(path, flags=dice.choice((0, L.FLAG_OWN, L.FLAG_DAX, L.FLAG_OWN | L.FLAG_PREALLOC)))
            else:
                d.inode(path, generation=dice.randrange(5), size=dice.randrange(1 << dice.randrange(24)))
