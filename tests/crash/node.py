# SPDX-License-Identifier: MIT
"""An inode of the model, and the mount options that change what is promised."""

from typing import NamedTuple

from .content import PAGE, Content

XATTR_HEAD, XATTR_ENTRY = 64, 8  # docs/on-media.md
INLINE_TARGET = 96
DIR, REG, LNK, FIFO, CHR = 0o040000, 0o100000, 0o120000, 0o010000, 0o020000
DAX, NOATIME, USER_FLAGS, ANY_TYPE = 0x100, 0x400, 0xFFFFFF00, 0x600  # docs/on-media.md


class Policy(NamedTuple):
    """Mount options that change what is promised."""

    write: str = "nt"
    drain: str = "write"
    lazytime: bool = False
    native: bool = False  # requests go to native service first
    pool: bool = False  # the source is a pool directory: files with the DAX flag have ranges of their own
    syncs: bool = False  # which lies on a file system that loses what is not synced
    fault: str = ""  # with observed mappings: kernel, user
    track: str = "pte"


class Node:
    """An inode. Times are tuples, now first. ``added``: bytes of all names ever put in. ``own``: its data are
    in a range of their own; ``loose``: were once, so which of its pages are holes now is not known;
    ``sparse``: it may have holes that are not known. ``lost``: stored with track=none, and closed then: no
    fsync makes it durable.
    """

    __slots__ = (
        *("kind", "is_dir", "mode", "uid", "gid", "nlink", "rdev", "target", "flags", "xattrs"),
        *("atime", "mtime", "ctime", "btime"),
        *("content", "names", "parent", "added", "own", "loose", "sparse", "lost"),
    )

    def __init__(self, mode: int, now: int, uid=0, gid=0, rdev=0, target=b""):
        self.mode, self.uid, self.gid, self.rdev, self.target = mode, uid, gid, rdev, target
        self.kind = mode & 0o170000
        self.is_dir = self.kind == DIR
        self.nlink = 2 if self.is_dir else 1
        self.atime = self.mtime = self.ctime = (now,)
        self.btime = now
        self.flags = 0  # those of users
        self.xattrs: dict[str, bytes] = {}
        self.names: dict[bytes, int] | None = {} if self.is_dir else None
        self.parent = self.added = 0
        self.content = Content() if self.kind == REG else None
        self.own = self.loose = self.sparse = self.lost = False

    @property
    def xattr_pages(self) -> int:
        if not self.xattrs:
            return 0
        names = sum(len(name.partition(".")[2]) for name in self.xattrs)
        values = sum(map(len, self.xattrs.values()))
        return -(-(XATTR_HEAD + XATTR_ENTRY * len(self.xattrs) + names + values) // PAGE)

    def space(self) -> tuple[int, int]:
        """(fewest, most) pages that it has: exact for small files and directories."""
        fixed = self.xattr_pages
        if self.own:
            return fixed, fixed
        if self.loose:
            return fixed, fixed + self.content.pages + self.content.extent_blocks
        if self.content is not None:
            fixed += self.content.pages
            return fixed, fixed + self.content.extent_blocks
        if self.is_dir:
            # A block has room for 4032 bytes of names; a hole of less than 272 may fit no further one.
            most = 1 + -(-max(self.added - 3900, 0) // (4032 - 272)) if self.added else 0
            most += -(-max(most - 6, 0) // 252)
            return fixed + (1 if self.added else 0), fixed + most
        fixed += self.kind == LNK and len(self.target) > INLINE_TARGET
        return fixed, fixed
