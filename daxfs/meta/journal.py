# SPDX-License-Identifier: MIT
"""The journal: one record for each operation, physical redo, one drain to commit.

A record holds (place, bytes) pairs. It is written to the ring by non-temporal
stores; one drain makes it durable, and with it the operation. Then the bytes are
stored in place and their lines queued; the *next* drain (of the next record, or
of `settle`) makes those durable. So at any time only the last two records may
not stand in place yet, but replay simply redoes everything from the tail on:
physical redo in order is idempotent, and a crash during replay replays again.

`settle` moves the tail to the head. It must run before
- ring space is reused,
- a block that a record since the tail wrote to is given a new use that is not
  journalled (replay would write over it): `Allocator.quarantine`,
- a word that such a record holds is changed in place and that change must last.

Where a source reports errors (msync), two things can be unknown. A record whose
drain failed may be on the media or not: `ready` takes it back before anything else
changes. Lines in place that were queued before a failure may not be durable, and
the kernel may not try again: `settle` stores them anew before the tail moves.

One thread: the metadata thread. Knows nothing of inodes and directories.
"""

import errno

import numpy as np

from .. import layout as L
from ..errors import CorruptError, fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE

_ALIGN = 64
_HEADER = L.RECORD.itemsize
_PADS = [bytes(n) for n in range(8)]
_pack = L.ENTRY_CODEC.pack
_TAIL = L.JOURNAL_FIELDS.offset["tail"]


def encode(entries, lsn: int, seed: int) -> bytes:
    """A record as bytes, padded to 64. *entries*: (place, bytes) or (place, length to zero)."""
    parts = []
    for place, data in entries:
        if isinstance(data, int):
            parts.append(_pack(place, data, L.ENTRY_ZERO))
            continue
        length = len(data)
        parts += (_pack(place, length, L.ENTRY_BYTES), data, _PADS[-length & 7])
    body = b"".join(parts)
    pad = -(_HEADER + len(body)) % _ALIGN
    length = _HEADER + len(body) + pad
    body = L.RECORD_FIELDS.pack(L.RECORD_MAGIC, 0, lsn, length, len(entries), 0) + body + bytes(pad)
    crc = L.crc32c(body, seed)
    return body[:4] + crc.to_bytes(4, "little") + body[8:]


def decode(body: bytes):
    """Yield (place, bytes) or (place, length to zero) of a record whose checksum was right.

    CorruptError where an entry leaves the record: a right checksum over wrong
    content means that a program wrote it, and nothing may be applied.
    """
    count = L.RECORD_FIELDS.unpack_from(body)[4]
    at = _HEADER
    for _ in range(count):
        if at + 16 > len(body):
            raise CorruptError("journal record: entries leave the record")
        place, length, kind = L.ENTRY_CODEC.unpack_from(body, at)
        at += 16
        if kind == L.ENTRY_ZERO:
            yield place, length
        elif kind == L.ENTRY_BYTES and at + length <= len(body):
            yield place, body[at : at + length]
            at += length + (-length & 7)
        else:
            raise CorruptError(f"journal record: entry of unknown kind {kind} or length {length}")


class Journal:
    """The ring of one region.

    *region*: with ``mem``, ``store``, ``nt_store``, ``nt_fill``, ``flush_range``
    and ``drain`` on byte offsets. ``head`` and ``tail`` are lsns: positions in an
    endless log, whose place in the ring is their remainder.
    """

    def __init__(self, region, start_pfn: int, pages: int, seed: int):
        self.region = region
        self.base = start_pfn << PAGE_SHIFT
        self.ring = self.base + PAGE_SIZE
        self.size = (pages - 1) << PAGE_SHIFT
        self.limit = self.size // 2
        self.seed = seed
        self.head = self.tail = 0
        self.doubt = False  # a record that failed may stand at the head
        self.failures = region.flush.failures  # when all in-place lines were last known to be queued well
        self.records = self.bytes = self.settles = 0
        self.on_settle = []

    def format(self) -> None:
        """Write an empty journal (mkfs). The caller drains before it publishes the superblock."""
        region = self.region
        region.nt_fill(self.ring, 0, self.size)
        page = bytearray(PAGE_SIZE)
        L.JOURNAL_FIELDS.codec["magic"].pack_into(page, 0, L.JOURNAL_MAGIC)
        L.JOURNAL_FIELDS.codec["ring_pages"].pack_into(page, 8, self.size >> PAGE_SHIFT)
        page[:64] = L.sealed(page[:64], 4, self.seed)
        L.WORD.pack_into(page, _TAIL, L.tail_word(0))
        region.nt_store(self.base, bytes(page))

    def check_header(self) -> int:
        """The tail's lsn. CorruptError where the header is damaged."""
        head = bytes(self.region.mem[self.base : self.base + 128])
        magic, _, ring_pages = L.JOURNAL_FIELDS.struct.unpack_from(head)[:3]
        if magic != L.JOURNAL_MAGIC or not L.is_sealed(head[:64], 4, self.seed):
            raise CorruptError("journal header: wrong magic or checksum")
        if ring_pages << PAGE_SHIFT != self.size:
            raise CorruptError("journal header: its size differs from the superblock's")
        lsn = L.tail_lsn(L.WORD.unpack_from(head, _TAIL)[0])
        if lsn is None or lsn % _ALIGN:
            raise CorruptError("journal header: the tail is damaged")
        return lsn

    def record_at(self, lsn: int) -> bytes | None:
        """The record at *lsn*, or None where there is no valid one."""
        mem, place = self.region.mem, self.ring + lsn % self.size
        room = self.size - lsn % self.size
        magic, crc, own, length, _, _ = L.RECORD_FIELDS.unpack_from(mem, place)
        if magic != L.RECORD_MAGIC or own != lsn or length % _ALIGN or not 0 < length <= room:
            return None
        body = bytes(mem[place : place + length])
        if L.crc32c(body[:4] + b"\0\0\0\0" + body[8:], self.seed) != crc:
            return None
        return body

    def pending(self):
        """Yield (lsn, record) from the tail to the end of the log."""
        lsn = self.check_header()
        end = lsn + self.size
        while lsn < end and (body := self.record_at(lsn)) is not None:
            yield lsn, body
            lsn += len(body)

    def gap(self, lsn: int) -> int | None:
        """The lsn of a valid record after the log's end *lsn*, if there is one.

        A record is written only after the one before it is durable, so a later
        one behind an invalid one means that the medium was damaged.
        """
        words = np.frombuffer(self.region.mem, "<u4", self.size // 4, self.ring).reshape(-1, _ALIGN // 4)
        lsns = np.frombuffer(self.region.mem, "<u8", self.size // 8, self.ring).reshape(-1, _ALIGN // 8)[:, 1]
        end = self.check_header() + self.size
        later = lsns[(words[:, 0] == L.RECORD_MAGIC) & (lsns > lsn) & (lsns < end)]
        return next((int(at) for at in np.sort(later) if self.record_at(int(at)) is not None), None)

    def replay(self) -> int:
        """Redo what may not stand in place; returns the number of records.

        Run before anything else reads metadata. CorruptError, with nothing
        changed, where the log has a gap or an entry points outside the region.
        """
        tail = lsn = self.check_header()
        todo = []
        for at, body in self.pending():
            for place, data in decode(body):
                length = data if isinstance(data, int) else len(data)
                self.region.check(place, length)
                todo.append((place, data))
            self.records += 1
            lsn = at + len(body)
        later = self.gap(lsn)
        if later is not None:
            raise CorruptError(f"journal: record {lsn:#x} is damaged, {later:#x} after it is not")
        self._apply_all(todo)
        self.tail, self.head = tail, lsn
        replayed, self.records = self.records, 0
        if lsn != tail:
            self.settle()
        return replayed

    def _apply_all(self, entries) -> None:
        """Store *entries* in place and queue their lines; who reads an inode meanwhile, reads it again."""
        self.region.table.begin_stores()
        try:
            for place, data in entries:
                self._apply(place, data)
        finally:
            self.region.table.end_stores()

    def _apply(self, place: int, data) -> None:
        region = self.region
        if isinstance(data, int):
            region.nt_fill(place, 0, data)
        else:
            region.store(place, data)
            region.flush_range(place, len(data))

    def commit(self, entries) -> int:
        """Make *entries* durable as one atom, then store them in place. Returns the lsn.

        Costs one drain, and one more where a lap of the ring ends. An OSError of a
        source (msync) is raised before anything is stored in place; the record then
        counts as not committed (`ready`). ENOSPC where it is larger than half of the ring.
        """
        self.ready()
        region = self.region
        body = encode(entries, self.head, self.seed)
        length = len(body)
        if length > self.limit:
            raise fail(errno.ENOSPC, f"needs a journal record of {length} bytes, over {self.limit}")
        room = self.size - self.head % self.size
        skip = room if room < length else 0
        if self.head + skip + length - self.tail > self.size:
            self.settle()
        if skip:
            region.nt_store(self.ring + self.head % self.size, self._skip(room))
            # Orders the skip before the record behind it: a record that reached the media without
            # the skip would look like damage, or come to life once the log has got to its lsn.
            region.drain()
            self.head += room
            body = encode(entries, self.head, self.seed)
        lsn = self.head
        self.doubt = True
        region.nt_store(self.ring + lsn % self.size, body)
        # Orders this record (and the in-place lines of the one before it) before the stores
        # below: live metadata never change before their record is durable.
        region.drain()
        region.flush.check()
        self.doubt = False
        self.head = lsn + length
        self._apply_all(entries)
        self.records += 1
        self.bytes += length
        return lsn

    def ready(self) -> None:
        """Take back a record that failed; call before anything changes. OSError while that can't be done.

        A crash would redo it. By then its pages may be another file's, its words older
        than those in place. So there must be no change between its failure and this.
        """
        if self.doubt:
            region, place = self.region, self.ring + self.head % self.size
            region.store(place, bytes(8))  # magic and checksum, in one atom
            region.flush_range(place, 8)
            # Orders the end of the failed record before every further change.
            region.drain()
            region.flush.check()
            self.doubt = False

    def _skip(self, room: int) -> bytes:
        """A record header that says: nothing up to the end of this lap."""
        head = L.RECORD_FIELDS.pack(L.RECORD_MAGIC, 0, self.head, room, 0, 0) + bytes(_ALIGN - _HEADER)
        # Its checksum covers the whole rest of the lap, which still holds older records.
        place = self.ring + self.head % self.size
        crc = L.crc32c(head + bytes(self.region.mem[place + _ALIGN : place + room]), self.seed)
        return head[:4] + crc.to_bytes(4, "little") + head[8:]

    def settle(self) -> None:
        """Move the tail to the head: every record so far stands in place and is never redone."""
        if self.tail != self.head:
            region, word = self.region, self.base + _TAIL
            if self.failures != region.flush.failures:
                self._store_again()
            # Orders the in-place lines of all records before the tail that gives them up.
            region.drain()
            region.flush.check()  # a write-back that failed: they may not be there, so the tail has to stay
            region.store(word, L.WORD.pack(L.tail_word(self.head)))
            region.flush_range(word, 8)
            # Orders the tail before the reuse of ring space, of freed blocks, of words in place.
            region.drain()
            region.flush.check()
            self.tail = self.head
            self.settles += 1
        for call in self.on_settle:
            call()

    def _store_again(self) -> None:
        """A write-back failed since the last settle: make every line of the records dirty again."""
        region = self.region
        failures = region.flush.failures
        for _, body in self.pending():
            for place, data in decode(body):
                length = data if isinstance(data, int) else len(data)
                # What stands there now: words in place may be newer than the record. Native threads store
                # none meanwhile: where msync is used, which alone can fail, they serve no writes.
                region.nt_store(place, bytes(region.mem[place : place + length]))
        # Orders these lines before the tail that gives their records up. A failure leaves all as it was.
        region.drain()
        region.flush.check()
        self.failures = failures
