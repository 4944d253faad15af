# SPDX-License-Identifier: MIT
"""Bugs planted into what daxfs does with ranges of their own (mutants.py has the others; how: plant.py).

Not here: the zeros behind an old end of file. Nobody but a program that maps the file can have stored there:
mutants_observed.py.
"""

from .owned import DAX, POLICIES, POOL
from .plant import Mutant, edit, gone

SYNCS, CACHED = POLICIES["syncs"], POLICIES["cached"]
_RANGE = r"range \S+: \S+ pages, should have"
SHORT, MISSING = "own-short", "own-missing"
_CUT = "    if size < old:\n        range_.resize(node.map, pages_of(size))\n"
_RECORD = "        _record(fs, node, size, now, changes)\n"
_own = Mutant.beginning("own", POOL)


OWNED = (
    _own(
        "a range cut before its inode's record",
        edit("meta.own:_truncate", _RECORD, _CUT.replace("    ", "        ") + _RECORD),
        (("truncate", "d/o", 4000),), SHORT,
    ),
    _own(
        "a range made longer after its inode's record",
        edit("meta.own:_truncate", "            range_.resize(node.map, pages_of(size))\n", "",
             "    if size < old:\n", _CUT.replace("<", ">") + "    if size < old:\n"),
        (("truncate", "d/o", 30000),), SHORT,
    ),
    _own(
        "a longer range not synced before its inode's record",
        gone("meta.own:_truncate", "before the record with the new size.", "\n            range_.sync()"),
        (("truncate", "d/o", 30000),), SHORT, SYNCS,
    ),
    _own(
        "fallocate: a longer range not synced",
        gone("meta.own:_allocate", "before the record with the new size.", "\n        range_.sync()"),
        (("fallocate", "d/o", 0, 0, 30000),), SHORT, SYNCS,
    ),
    _own(
        "a range removed before its inode's record",
        edit("meta.own:freed", "tx.after(lambda: remove(fs, ino, generation))",
             "remove(fs, ino, generation)"),
        (("unlink", "d/p"),), MISSING,
    ),
    _own(
        "a new range's name not synced",
        edit("pool:Pool.create", "self.sync_names()", "pass"),
        (("create", "d/n"), ("append", "d/n", 10, 40)), MISSING, SYNCS,
    ),
    _own(
        "a hole not synced",
        gone("meta.own:punch", "and the reply.", "\n        range_.sync()"),
        (("fallocate", "d/o", 3, 4096, 4096),), "neither old nor new", SYNCS,
    ),
    _own(
        "an append to a range, its size before its data",
        edit("data.file_io:FileIo._write_own", "    try:\n        self.dax.fill",
             "    file.grow(fs, node, end, fs.clock())\n    try:\n        self.dax.fill",
             "    file.grow(fs, node, end, fs.clock())\n    return", "    return"),
        (("append", "d/p", 5000, 39),), "neither old nor new",
    ),
    _own(
        "an append to a range over a record that is not settled",
        edit("data.file_io:FileIo._write_own", "if fmap.state & UNSETTLED:", "if False:"),
        (("truncate", "d/p", 5000), ("append", "d/p", 5000, 39)), "size is 5000",
    ),
    _own(
        "data moved to a range, not drained before the record",
        edit("meta.placement:_to_own", "        fs.region.drain()\n", ""),
        (("chattr", "a", DAX),), "neither old nor new",
    ),
    _own(
        "data moved to a range, its length not synced",
        edit("meta.placement:_to_own", "        range_.sync()\n", ""),
        (("truncate", "a", 0), ("truncate", "a", 9000), ("chattr", "a", DAX)), SHORT, SYNCS,
    ),
    _own(
        "data moved to a range, the flag in a record of its own",
        edit("meta.placement:_to_own", "            extent.clear(tx, edit, node)\n", "",
             "            tx.after(lambda: range_.attach(node.map))\n",
             "        with fs.begin() as tx:\n            extent.clear(tx, tx.inode(node.ino), node)\n"
             "            tx.after(lambda: range_.attach(node.map))\n"),
        (("chattr", "a", DAX),), ".",
    ),
    _own(
        "data moved from a range, not drained before the record",
        edit("meta.placement:_to_packed", "        fs.region.drain()\n", ""),
        (("chattr", "d/o", 0),), "neither old nor new",
    ),
    _own(
        "data moved from a range, the range removed before the record",
        edit("meta.placement:_to_packed", "own.freed(tx, fs, edit)",
             "own.remove(fs, node.ino, edit.generation)"),
        (("chattr", "d/o", 0),), MISSING,
    ),
    _own(
        "ranges without an inode stay",
        edit("meta.own:recover", "for name in () if clean else found.stray:", "for name in ():"),
        (("unlink", "d/p"),), _RANGE,
    ),
    _own(
        "ranges longer than their inodes stay",
        edit("meta.own:recover", "for ino in found.long:", "for ino in ():"),
        (("truncate", "d/o", 4000),), _RANGE,
    ),
    _own(
        "fsync flushes no page of a range",
        edit("data.file_io:FileIo.fsync", "self.dax.writeback(node.map, times=times)",
             "node.map.unmark(0, 1 << 32)"),
        (("open", "d/h"), ("write", "d/h", 20490, 50, 31), ("fsync", "d/h")), "neither old nor new", CACHED,
    ),
)  # fmt: skip
