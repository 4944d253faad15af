# SPDX-License-Identifier: MIT
"""The bugs that are planted into daxfs, each with operations that show it (how: plant.py).

Left out, because no power failure can tell them from the original:

* a run that is freed before its record is durable, not after (`Transaction.free`): there is one thread, and
  no transaction takes pages after it has given some back, so nobody can have them in between;
* `Journal.replay` without its look for a gap, `Journal.pending` without its bound of one lap: both are
  there for damaged media;
* `DaxIo.writeback` that clears its marks before its drain: in one thread no store can come in between;
* an append that does not zero the rest of a preallocated page: nobody reads it, but who maps the file sees
  it (tests/t3_data/test_prealloc.py looks into the region).
"""


from . import edges, observed, owned
from .model import Policy
from .mutants_observed import OBSERVED
from .mutants_owned import OWNED
from .mutants_tracked import TRACKED
from .plant import Mutant, edit, gone, lame, table
from .workloads import LAZY, LONG, NATIVE, SETUPS

SYNC = ("sync",)
CREATE = (("create", "n"),)
OVERWRITE = ("write", "a", 100, 50, 31)
# Older times in a record, newer ones in place, and the promise that these last.
TIMES = (("chmod", "a", 0o600), OVERWRITE, ("fsync", "a"))
LAP = tuple(("setxattr", "x", "user.one", 60000, seed) for seed in range(5))
NT_FSYNC, CACHED = Policy("nt", "fsync"), Policy("cached", "write")
LOST = "(missing|torn|partly) "  # a store of which not all has reached the media

# "pages": two files in single pages. "third": the next append of a gets a chunk.
OWN_SETUPS = {
    **SETUPS,
    "pages": SETUPS["tree"]
    + tuple(("write", name, 4096 * n, 4096, n) for n in range(3, 10) for name in ("a", "b")),
    "third": SETUPS["stream"][:-1],
}

# -- the journal -----------------------------------------------------------------------------

_COMMIT, _SETTLE = "meta.journal:Journal.commit", "meta.journal:Journal.settle"
_REPLAY = "meta.journal:Journal.replay"
_D4, _D8 = "\n    region.drain()", "\n        region.drain()"
_APPLY_ALL = "    self._apply_all(entries)\n"
_TAIL_STORE = """        region.store(word, L.WORD.pack(L.tail_word(self.head)))
        region.flush_range(word, 8)
"""
_TAIL_EARLY = r"(?s)(missing|torn) [^\n]* flushed[^\n]*\n[^\n]*_apply <.*there [^\n]*\n[^\n]*settle <"
_REDO = "    self._apply_all(todo)\n"
JOURNAL = (
    Mutant(
        "commit without its drain",
        gone(_COMMIT, "before their record is durable.", _D4),
        CREATE,
        "n: is missing", LOST + r".*nt_store.*\n.* commit <",
    ),
    Mutant(
        "stores in place before the record",
        edit(_COMMIT, _APPLY_ALL, "", "    region.nt_store(self.ring + lsn % self.size, body)\n",
             _APPLY_ALL + "    region.nt_store(self.ring + lsn % self.size, body)\n"),
        CREATE,
        "nor as after|fsck", r"(?s)(there|torn) [^\n]* store .*_apply <.*" + LOST + r"[^\n]*nt_store",
    ),
    Mutant(
        "stores in place not flushed",
        edit("meta.journal:Journal._apply", "region.flush_range(place, len(data))", "pass"),
        (*CREATE, SYNC),
        "fsck|missing", r"not flushed.*\n.*_apply <", setup="empty",
    ),
    Mutant(
        "settle without its first drain",
        gone(_SETTLE, "the tail that gives them up.", _D8),
        (*CREATE, SYNC),
        "fsck|missing", _TAIL_EARLY,
    ),
    Mutant(
        "settle without its second drain",
        gone(_SETTLE, "words in place.", _D8),
        TIMES,
        "a: ctime is", r"missing .*store of 8 .*, flushed\n.*settle <",
    ),
    Mutant(
        "the tail not flushed",
        edit(_SETTLE, "region.flush_range(word, 8)", "pass"),
        TIMES,
        "a: ctime is", r"missing .*store of 8 .*not flushed\n.*settle <",
    ),
    Mutant(
        "the tail moves before the lines in place",
        edit(_SETTLE, _TAIL_STORE, "",
             "        # Orders the in-place", _TAIL_STORE + "        # Orders the in-place"),
        (*CREATE, SYNC),
        "fsck|missing", _TAIL_EARLY,
    ),
    Mutant(
        "the end of a lap not drained",
        gone(_COMMIT, "once the log has got to its lsn.", _D8),
        (("chmod", "a", 0o640),),
        "journal-gap", r"(?s)(missing|torn) [^\n]*nt_store of 64 .*there [^\n]*nt_store", setup="lap",
    ),
    Mutant(
        "a lap over records that are not settled",
        edit(_COMMIT, "> self.size:\n        self.settle()", "> self.size:\n        pass"),
        LAP,
        "journal-gap",
    ),
    Mutant(
        "a record's checksum not looked at",
        edit("meta.journal:Journal.record_at", "!= crc:", "is None:"),
        CREATE,
        # Half a record: a table of pieces that makes no sense, or one that does and half an inode.
        "journal-entry|inode-checksum", r"(torn|partly) .*nt_store.*\n.*commit <",
    ),
    Mutant(
        "the log ends after one record",
        edit("meta.journal:Journal.pending", "lsn += len(body)", "return"),
        (*CREATE, ("chmod", "n", 0o600)),
        "n: mode is 0o100644, not 0o100600|journal-gap",
    ),
    Mutant(
        "replay stops after one record, gap or not",
        edit(_REPLAY, "lsn = at + len(body)", "lsn = at + len(body)\n        break",
             "if later is not None:", "if False:"),
        (*CREATE, ("chmod", "n", 0o600)),
        "n: mode is 0o100644, not 0o100600|again: size is 0",
    ),
    Mutant(
        "replay in the wrong order",
        edit(_REPLAY, "self._apply_all(todo)", "self._apply_all(reversed(todo))"),
        (("chmod", "a", 0o600), ("chmod", "a", 0o640)),
        "mode is 0o100600, not 0o100640|again: ", r"(missing|torn) .*\n.*_apply <",
    ),
    Mutant(
        "replay without flush",
        edit(_REPLAY, "self._apply_all(todo)",
             "[self.region.store(place, bytes(data)) for place, data in todo]"),  # zeros or bytes
        CREATE,
        "after a second power failure", r"not flushed.*\n.* replay <", again=True,
    ),
    Mutant(
        "replay does not settle",
        edit(_REPLAY, "    if lsn != tail:\n        self.settle()\n", ""),
        (("setxattr", "b", "user.k", 10, 20), ("removexattr", "b", "user.k")),
        r"again: \d+ words", "after a second power failure", again=True,
    ),
    Mutant(
        "replay moves the tail first",
        edit(_REPLAY, _REDO, "", "        self.settle()\n", "        self.settle()\n" + _REDO),
        CREATE,
        "after a second power failure", LOST + r".*\n.*_apply < .* replay <", again=True,
    ),
)

# -- data ------------------------------------------------------------------------------------

DATA = (
    Mutant("new data not drained before their record", lame(("fill",), "drain"), (("append", "a", 5000, 37),),
           r"nor as after: a: \d+ words", LOST + r".*nt_store.*\n.*file_io.py:\d+ write"),
    Mutant("a write not drained", lame(("write",), "drain"), (OVERWRITE,),
           r"a: \d+ words", LOST + r".*nt_store of 50 .*\n.*file_io.py:\d+ write"),
    Mutant("the edges of non-temporal stores not flushed", lame(("write",), "nt_store", "plain_edges"),
           (OVERWRITE,),
           r"a: \d+ words", r"missing .* store of \d+ .*not flushed\n.* nt_store <"),
    Mutant("the edges of new data not flushed", lame(("fill",), "nt_store", "plain_edges"),
           (("create", "a"), ("write", "a", 100, 5000, 37)),
           r"a: \d+ words", LOST + r".* store of \d+ .*not flushed.*\n.* nt_store <", setup="empty"),
    Mutant("writeback without flush", lame(("writeback",), "flush"), (OVERWRITE,),
           r"a: \d+ words", r"missing .* store of 50 .*not flushed\n.*file_io.py:\d+ write", policy=CACHED),
    Mutant("writeback without its last line", lame(("writeback",), "flush", "without_last_line"),
           (("write", "a", 4000, 96, 31),),
           r"a: \d+ words .* byte 40\d\d", "store of 96 .*(not|partly) flushed", policy=CACHED),
    Mutant("writeback without drain", lame(("writeback",), "drain"), (OVERWRITE,),
           r"a: \d+ words", r"missing .* store of 50 .*, flushed\n.*file_io.py:\d+ write", policy=CACHED),
    Mutant(
        "fsync clears the marks and flushes nothing",
        edit("data.file_io:FileIo.fsync", "self.dax.writeback(node.map, times=times)",
             "node.map.unmark(0, 1 << 32)"),
        (("open", "a"), OVERWRITE, ("fsync", "a")),
        r"a: \d+ words", r"missing .*not flushed\n.*file_io.py:\d+ write", policy=CACHED,
    ),
    Mutant(
        "the last close writes nothing back",
        edit("data.file_io:FileIo._last_close", "        self.dax.writeback(node.map)", "        pass"),
        (OVERWRITE,),
        r"a: \d+ words", r"missing .*not flushed\n.*file_io.py:\d+ write", policy=CACHED,
    ),
    Mutant(
        "zeros behind the old end not drained",
        gone("meta.file:_truncate", "with the new size.", "\n        fs.region.drain()"),
        (("truncate", "a", 5001), ("truncate", "a", 8000)),
        r"nor as after: a: \d+ words", LOST + ".*nt_fill",
    ),
    Mutant(
        "no zeros behind the old end, truncation",
        edit("meta.file:_truncate", "if size > old and zero_tail(fs, node, size):", "if False:"),
        (("truncate", "a", 5001), ("truncate", "a", 8000)),
        "nor as after: a: 375 words", silent=False,
    ),
    Mutant(
        "no zeros behind the old end, write",
        edit("meta.file:prepare_write", "zero_tail(fs, node, pos)", "pass"),
        (("truncate", "a", 5001), ("write", "a", 8000, 100, 40)),
        "nor as after: a: 375 words", silent=False,
    ),
    Mutant(
        "the size in a record before the extents",
        edit("meta.file:WritePlan.commit", "    try:\n        edit = tx.inode(node.ino)\n",
             "    with self.fs.begin() as first:\n"
             "        first.inode(node.ino).size = max(node.map.size, self.pos + self.length)\n"
             "    try:\n        edit = tx.inode(node.ino)\n"),
        (("append", "a", 5000, 37),),
        r"nor as after: a: \d+ words",
    ),
    Mutant(
        "a hole's edges zeroed after its record",
        edit("meta.fallocate:_punch", "    if at == first:\n", "if at == first:\n"),
        (("fallocate", "a", 3, 100, 200),),
        r"a: \d+ words", LOST + ".*nt_zero|nt_fill",
    ),
    Mutant(
        "zeroed pages stay written",
        edit("meta.fallocate:_pieces", "(high, extent.UNWRITTEN)", "(high, kind)"),
        (("fallocate", "a", 0x10, 4096, 4096),),
        "a: 512 words", silent=False,
    ),
    Mutant(
        "fallocate: zeros behind the old end not drained",
        gone("meta.fallocate:_allocate", "with the new size.", "\n            fs.region.drain()"),
        (("truncate", "a", 5001), ("fallocate", "a", 0, 0, 20000)),
        r"nor as after: a: \d+ words", LOST + ".*nt_fill",
    ),
)

# -- times and fsync -------------------------------------------------------------------------

_SYNC_INODE, _S4 = "meta.fs:FileSystem.sync_inode", "\n    self.region.drain()"
FSYNC = (
    Mutant(
        "fsync without settle",
        edit(_SYNC_INODE, "if ino in self.unsettled:", "if False:"),
        TIMES,
        "a: ctime is",
    ),
    Mutant(
        "fsync without drain",
        gone(_SYNC_INODE, "before the reply to fsync.", _S4),
        (OVERWRITE, ("fsync", "a")),
        r"a: \d+ words", LOST + ".*nt_store of 50 ", policy=NT_FSYNC,
    ),
    Mutant(
        "times not flushed",
        edit("meta.fs:FileSystem.store_times", "region.flush_range(place, len(data))", "pass"),
        (OVERWRITE, ("fsync", "a")),
        "a: mtime is", r"missing .*not flushed\n.*store_times <",
    ),
    Mutant(
        "lazy times not flushed by fsync",
        edit(_SYNC_INODE, "    self.sync_times(ino)\n", ""),
        (("open", "a"), OVERWRITE, ("fsync", "a")),
        "a: mtime is", r"missing .*not flushed\n.*store_times <", policy=LAZY,
    ),
    Mutant(
        "lazy times forgotten with the inode",
        edit("meta.fs:FileSystem.drop_unused",
             "elif ino in self.nodes:\n        self.sync_times(ino)\n", "elif ino in self.nodes:\n"),
        (OVERWRITE, ("evict",), ("fsync", "a")),
        "a: mtime is", r"missing .*not flushed\n.*store_times <", policy=LAZY,
    ),
    Mutant(
        "sync without the last drain",
        gone("meta.fs:FileSystem.sync_all", "something to do.", "\n        self.region.drain()"),
        (("read", "a"), SYNC),
        "a: atime is", r"missing .*, flushed\n.*store_times <",
    ),
)

# -- appends in place and preallocation --------------------------------------------------------

_IN_PLACE = "data.file_io:FileIo._append"
_APPEND = (("append", "a", 3000, 70),)  # into the chunk
_FILL = "    try:\n        self.dax.fill(node.map, pos, data, pieces, ())\n"
APPENDS = (
    Mutant(
        "an append in place, its data not drained before its size",
        lame(("fill",), "drain"),
        _APPEND,
        r"nor as after: a: \d+ words", LOST + r".*nt_store.*\n.*file_io.py:\d+ _append", setup="stream",
    ),
    Mutant(
        "an append in place, its size before its data",
        edit(_IN_PLACE, _FILL, "    file.grow(fs, node, end, fs.clock())\n" + _FILL),
        _APPEND,
        r"nor as after: a: \d+ words", r"there .*store of 8 .*\n.* grow <", setup="stream",
    ),
    Mutant(
        "an append in place, its size not flushed",
        edit("meta.file:grow", "region.flush_range(place, L.INODE_HOT)", "pass"),
        _APPEND,
        r"a: size is \d+, not \d+", r"missing .*store of 8 .*not flushed\n.* grow <", setup="stream",
    ),
    Mutant(
        "an append in place, its size not drained",
        gone("meta.file:grow", "that has returned is durable.", "\n    region.drain()"),
        _APPEND,
        r"a: size is \d+, not \d+", r"missing .*store of 8 .*, flushed\n.* grow <", setup="stream",
    ),
    Mutant(
        "an append in place over a record that is not settled",
        edit(_IN_PLACE, "fs.journal.settle()", "pass"),
        (("utimens_same", "a"), ("truncate", "a", 24000), ("append", "a", 90, 70)),
        r"a: size is 24000, not 24090", setup="stream",
    ),
    Mutant(
        "a record does not say that it holds the inode",
        edit("meta.fs:FileSystem.journalled", "node.map.set_state(UNSETTLED)", "pass"),
        (("truncate", "a", 24000), ("append", "a", 90, 70)),
        r"a: size is 24000, not 24090", setup="stream",
    ),
    Mutant(
        "a record does not say that it holds the inode, native",
        edit("meta.fs:FileSystem.journalled", "node.map.set_state(UNSETTLED)", "pass"),
        (("truncate", "a", 24000), ("append", "a", 90, 70)),
        r"a: size is 24000, not 24090", setup="stream", policy=NATIVE,
    ),
    Mutant(
        "a chunk without its flag",
        edit("meta.file:WritePlan.commit", "edit.flags |= L.FLAG_PREALLOC", "pass"),
        (("append", "a", 4000, 70),),
        "fsck: extent-beyond-size: inode 2", setup="third", silent=False,
    ),
    Mutant(
        "chunks not given back by recovery",
        edit("meta.recover:rebuild", "L.FLAG_TRUNCATING | L.FLAG_PREALLOC", "L.FLAG_TRUNCATING"),
        _APPEND,
        r"inode 2: \d+ pages behind its end, flags 0x2", setup="stream",
    ),
)

# -- space -----------------------------------------------------------------------------------

_FREE = "meta.transaction:Transaction.free"
_REUSE = ("write", "b", 4096, 30000, 50)
SPACE = (
    Mutant(
        "metadata blocks used again before settle",
        edit(_FREE, "self.fs.alloc.quarantine if metadata", "self.fs.alloc.free if metadata"),
        (("setxattr", "b", "user.k", 10, 20), ("removexattr", "b", "user.k"), _REUSE),
        r"nor as after: b: \d+ words",
    ),
    Mutant(
        "a symlink's page used again before settle",
        edit("meta.fs:FileSystem.free_inode", "!= 0o100000", "== 0o040000"),
        (("symlink", "n", LONG), ("unlink", "n"), _REUSE),
        "nor as after: b: 512 words .*: 0x7474747474747474",
    ),
    Mutant(
        "a directory's block used again before settle",
        edit("meta.fs:FileSystem.free_inode", "!= 0o100000", "== 0o120000"),
        (("mkdir", "n"), ("create", "n/m"), ("unlink", "n/m"), ("rmdir", "n"), _REUSE),
        r"nor as after: b: \d+ words",
    ),
    Mutant(
        "a run freed twice",
        edit(_FREE, "self._after.append(lambda: [give(*run) for run in runs])",
             "twice = lambda: [give(*run) for run in runs]\n"
             "    self._after += [twice, lambda: self.fs.journal.on_settle.append(twice)]"),
        (("unlink", "d/c"), ("append", "a", 5000, 37), SYNC, ("write", "b", 4096, 8192, 38)),
        r"not as before: a: \d+ words", r"nt_store.*\n.*file_io", silent=False,
    ),
)

# -- one operation, one record -----------------------------------------------------------------

_NEXT = "    with fs.begin() as tx:\n"  # the next transaction of the same function
_NEW_INO = "meta.fs:FileSystem.new_ino"
_ZEROS = "        tx.zero(table.place(ino), (limit - ino) * L.INODE_SIZE)\n"
_LATE = edit("meta.namespace:_move", "        if whiteout",
             _NEXT + "        old_dir, new_dir = tx.inode(parent), tx.inode(new_parent)\n"
             "        edit = tx.inode(inode.ino)\n"
             "        if whiteout")
TORN = (
    Mutant(
        "unlink: the name first, the link count later",
        edit("meta.namespace:unlink", "        _unlinked(", _NEXT + "        _unlinked("),
        (("unlink", "d/l"),),
        "link-count: inode 2: 2 links, has 1",
    ),
    Mutant(
        "unlink: the link count first, the name later",
        edit("meta.namespace:unlink", "        _unlinked(tx, fs, tx.inode(inode.ino), now)\n", "",
             _NEXT, _NEXT + "        _unlinked(tx, fs, tx.inode(inode.ino), now)\n" + _NEXT),
        (("unlink", "d/l"),),
        "link-count: inode 2: 1 links, has 2",
    ),
    Mutant(
        "link: the link count first, the name later",
        edit("meta.namespace:link", "        directory.insert(",
             _NEXT + "        dir_edit = tx.inode(parent)\n        directory.insert("),
        (("link", "a", "n"),),
        "link-count: inode 2: 3 links, has 2",
    ),
    Mutant("rename: link, then unlink", _LATE, (("rename", "a", "n"),), "inode 2: 2 links, has 3"),
    Mutant("whiteout: a record of its own", _LATE, (("whiteout", "a", "n"),), "inode 2: 2 links, has 3"),
    Mutant(
        "exchange: one name after the other",
        edit("meta.namespace:_exchange", "        directory.change(tx, fs, new_node",
             _NEXT + "        old_dir, new_dir = tx.inode(parent), tx.inode(new_parent)\n"
             "        one, two = tx.inode(inode.ino), tx.inode(other.ino)\n"
             "        directory.change(tx, fs, new_node"),
        (("exchange", "a", "b"),),
        "link-count: inode 3: 1 links, has 2",
    ),
    Mutant(
        "create: the inode first, the name later",
        edit("meta.namespace:create", "        dir_edit = tx.i", _NEXT + "        dir_edit = tx.i"),
        CREATE,
        "unreachable: inode 9: has 1 links and no name",
    ),
    Mutant(
        "mkdir: the parent's link count later",
        edit("meta.namespace:create", "        if is_dir:\n            dir_edit.nlink += 1",
             "    if is_dir:\n        with fs.begin() as tx:\n            tx.inode(parent).nlink += 1"),
        (("mkdir", "n"),),
        "link-count: inode 1: 4 links, has 5",
    ),
    Mutant(
        "attributes written in place",
        edit("meta.xattr:_store", "tx.raw(start + L.BLOCK_SIZE + first,",
             "fs.region.nt_store(start + L.BLOCK_SIZE + first,"),
        (("setxattr", "x", "user.one", 90, 21),),
        "xattr-block: inode 8: .*checksum", "there .*nt_store|(torn|partly) .*nt_store",
    ),
    Mutant(
        "an inode's checksum not renewed",
        edit("meta.transaction:InodeEdit.entries",
             "    if buf[COLD:] != live[COLD:]:\n        buf[COLD:] = L.sealed(buf[COLD:], 4, seed)\n",
             "    if buf[COLD:] != live[COLD:]:\n"),
        (*CREATE, ("chmod", "n", 0o600)),
        "inode-checksum: inode [23]", setup="empty",
    ),
    Mutant(
        "a block's checksum not renewed",
        edit("meta.transaction:BlockEdit.entries", "    L.seal(self.buf, 4, seed)\n", ""),
        CREATE,
        "dir-block: directory 1 .*checksum", setup="empty",
    ),
    Mutant(
        "a new chunk of inodes not zeroed",
        edit(_NEW_INO, _ZEROS, ""),
        CREATE,
        r"inode-checksum: inode (6[5-9]|[789]\d|1\d\d)", setup="chunk",
    ),
    Mutant(
        "a new chunk of inodes zeroed after the record",
        edit(_NEW_INO, _ZEROS, "",
             "tx.after(lambda: table.grown(limit))",
             "tx.after(lambda: table.grown(limit))\n        rest = (limit - ino - 1) * L.INODE_SIZE\n"
             "        tx.after(lambda: self.region.nt_fill(table.place(ino + 1), 0, rest))"),
        CREATE,
        r"inode-checksum: inode (6[5-9]|[789]\d|1\d\d)", setup="chunk",
    ),
    Mutant(
        "a new chunk of inodes zeroed in place with the record",
        edit(_NEW_INO, "tx.zero(table.place(ino), ", "self.region.nt_fill(table.place(ino), 0, "),
        CREATE,
        r"inode-checksum: inode (6[5-9]|[789]\d|1\d\d)", LOST + ".*nt_fill", setup="chunk",
    ),
)

# -- recovery ----------------------------------------------------------------------------------

_WRITES = "    if not readonly:\n        now"  # what mount changes after all that it reads
_REPLAYED, _STATE = "    fs.replayed = fs.journal.replay()\n", "    state = state_of(fs.mem, fs.seed)\n"
_STEPS = (("meta.file:EXTENTS_PER_STEP", 3),)
RECOVERY = (
    Mutant(
        "orphans not finished",
        edit("meta.fs:mount", "recover.finish_orphans(fs)", "pass"),
        (("open_unlink", "b"),),
        "inodes .3. are unlinked and were not freed",
    ),
    Mutant(
        "orphans not finished, inodes without a name",
        edit("meta.recover:rebuild", '(table["nlink"][used] == 0) | ', ""),
        (("open_unlink", "b"),),
        "8 inodes are in use, 7 were found",
    ),
    Mutant(
        "orphans not finished, truncations",
        edit("meta.recover:rebuild", "L.FLAG_TRUNCATING | L.FLAG_PREALLOC", "L.FLAG_PREALLOC"),
        (("truncate", "a", 4096),),
        r"inode 2: \d+ pages behind its end, flags 0x1", setup="pages", values=_STEPS,
    ),
    Mutant(
        "free space read before replay",
        edit("meta.fs:mount", _REPLAYED, "", _WRITES, _REPLAYED + _WRITES),
        (("append", "a", 5000, 37),),
        r"\d+ pages are not free, files have \d+",
    ),
    Mutant(
        "the state page read before replay",
        edit("meta.fs:mount", _REPLAYED, "", _STATE, _STATE + _REPLAYED),
        CREATE,
        "names inode 64, which is not in use", setup="chunk",
    ),
    Mutant(
        "orphans finished before free space is known",
        edit("meta.recover:rebuild", "    fs.inodes.limit = limit\n",
             "    fs.inodes.limit = limit\n    fs.orphans.update(used[table['nlink'][used] == 0].tolist())\n"
             "    finish_orphans(fs)\n"),
        (("open_unlink", "b"),),
        "CorruptError: pages .* are freed twice",
    ),
    Mutant(
        "attributes and extent blocks count as free",
        edit("meta.recover:_find_free", "if more:", "if False:"),
        (("chmod", "a", 0o600),),
        "9 pages are not free, files have 10", silent=False,
    ),
)

MUTANTS = JOURNAL + DATA + FSYNC + APPENDS + SPACE + TORN + RECOVERY + OWNED + OBSERVED + TRACKED


def setups() -> dict:
    """What the mutants' operations start on."""
    return OWN_SETUPS | edges.setups() | owned.SETUPS | observed.SETUPS


if __name__ == "__main__":
    table(MUTANTS, setups())
