# SPDX-License-Identifier: MIT
"""What the checker looks for, and what it found: `CHECKS`, `Problem`, `Findings`.

Plain values; knows the names of the invariants and nothing of how they are tested
(`check_super`, `check_inode`, `check_tree`) or mended (`mend`).
"""

from collections import Counter
from dataclasses import dataclass, field

MAX_KEPT = 20000  # problems of one check that are kept one by one; the others are only counted

CHECKS = {
    "sb-magic": "the first page says that it is a daxfs superblock",
    "sb-checksum": "the superblock's checksum is right",
    "sb-geometry": "the superblock's areas are in order, inside the region and belong to it",
    "sb-backup": "the backup superblock equals the superblock",
    "source-label": "every further source carries the label that the superblock expects",
    "journal-header": "the journal's header line is right",
    "journal-tail": "the journal's tail word carries its own check",
    "journal-gap": "no valid journal record follows a damaged one",
    "journal-entry": "every entry of a valid journal record stays inside the metadata and data areas",
    "state-line": "the state page's journalled line is right",
    "inode-limit": "the number of valid inodes fits the inode table",
    "root-inode": "inode 1 is a directory in use",
    "inode-checksum": "every inode's checksum is right",
    "inode-number": "every inode carries its own number",
    "inode-mode": "every inode in use is of a known type",
    "inode-flags": "an inode has only flags that this format knows and its type can have",
    "inode-size": "an inode's size is one that its type and its extents allow",
    "inode-times": "an inode's size and time words were not wiped",
    "inode-free-dirty": "a free inode holds nothing but its number and generation",
    "extent-range": "every extent lies inside one data area",
    "extent-state": "every extent is written or unwritten",
    "extent-overlap": "no two extents of an inode map the same page of the file",
    "extent-shared": "no page of the region has two owners",
    "extent-beyond-size": "a regular file has no extents beyond its size, unless it is being truncated",
    "extent-block": "every extent block belongs where its chain says and has the right checksum",
    "extent-count": "an inode's extent count is right",
    "blocks-count": "an inode's page count is right",
    "dir-hole": "every page of a directory is mapped and written",
    "dir-block": "every directory block belongs to its place and has the right checksum",
    "dir-record": "the records of a directory block fill it exactly",
    "dir-name": "a name is 1 to 255 bytes without NUL and slash, and not . or ..",
    "dir-duplicate": "a directory has no name twice",
    "dirent-target": "every name's inode is in use",
    "dirent-type": "a name's type is its inode's",
    "dir-parent": "a directory's parent is the directory that names it",
    "dir-links": "a directory has one name",
    "unreachable": "every inode with links can be reached from the root",
    "link-count": "an inode's link count is the number of its names",
    "symlink-target": "a symbolic link's target is as long as its size and has no NUL",
    "xattr-block": "an inode's run of extended attributes is its own and has the right checksum",
    "xattr-entry": "the entries of extended attributes fill their run, each once, in a known name space",
    "own-feature": "the superblock says where inodes may have ranges of their own",
    "own-extents": "an inode with a range of its own has no extents",
    "own-folder": "the folder of ranges is there where files have their data in it",
    "own-missing": "every inode with a range of its own has that range",
    "own-file": "a range is a regular file",
    "own-shared": "no two ranges are the same file",
    "own-short": "a range has all pages of its inode",
    "own-long": "a range has no page behind its inode's last, unless a crash left it",
    "own-mode": "a range is for its owner alone",
    "own-stray": "every range has its inode, unless a crash left it",
    "poison-list": "the list of poisoned pages has the right checksum and order",
    "poison-feature": "the superblock says where pages are poisoned",
    "poison-entry": "every poisoned page is one of the region, or of a range that an inode has",
    "poison-metadata": "no metadata are on poisoned pages",
    "acl": "an access control list is one that may be set and agrees with the mode",
}


@dataclass(frozen=True)
class Problem:
    """One broken invariant. ``where`` names the place ("inode 12"); ``action``: what `mend` does, or None.

    ``rank`` orders mending: names (0) before reconnecting and freeing (1) before link counts (2) before
    what nobody has (3).
    ``done``: put right while looking (superblock, journal header, state line), since
    nothing behind it can be read otherwise.
    """

    check: str
    message: str
    where: str
    action: tuple | None = field(default=None, compare=False, repr=False)
    rank: int = field(default=0, compare=False, repr=False)
    done: bool = field(default=False, compare=False, repr=False)

    @property
    def mendable(self) -> bool:
        return self.action is not None

    @property
    def key(self) -> tuple[str, str]:
        return self.check, self.where

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


class Findings:
    """The problems of one look at a region. ``leftovers``: actions for what a crash left, which are none."""

    def __init__(self):
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.leftovers: list[tuple] = []
        self.stats: dict[str, int] = {}
        self.replayed = 0

    def add(self, check: str, where: str, what: str, action=None, rank: int = 0, done: bool = False) -> None:
        """Note a problem; its message is "*where*: *what*". KeyError for a check that is not in `CHECKS`."""
        CHECKS[check]
        self.counts[check] += 1
        if self.counts[check] <= MAX_KEPT:
            self.problems.append(Problem(check, f"{where}: {what}", where, action, rank, done))
        elif self.counts[check] == MAX_KEPT + 1:
            self.notes.append(f"{check}: more than {MAX_KEPT}, the others are not listed")


@dataclass
class Report:
    """What `check_region` found and did.

    ``problems``: all that was found; ``mended``: those that were put right and did not
    come back in the check after it; ``left``: what that check still found (without
    mending: everything). ``stats``: counts of what was looked at; ``replayed``: journal
    records that were redone first; ``notes``: sentences for the reader.
    """

    problems: list[Problem]
    mended: list[Problem]
    left: list[Problem]
    stats: dict[str, int]
    replayed: int
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status as fsck(8) has it: 0 clean, 1 mended, 4 problems left."""
        return 4 if self.left else 1 if self.mended else 0
