# SPDX-License-Identifier: MIT
"""The journal against a plain model of bytes, with crashes at each store it makes.

`Plain` is a region of ordinary memory that counts the journal's stores and can stop
before one of them; the media below it (daxfs.testing.media) say what a crash leaves.
"""

import errno
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daxfs import layout as L
from daxfs._iomap import RangeTable
from daxfs.errors import CorruptError, DaxfsError
from daxfs.meta.journal import Journal, decode, encode
from daxfs.pfn import PAGE_SIZE
from daxfs.testing.log import DRAIN, FLUSH, NT_STORE, STORE, Event
from daxfs.testing.media import Media

RING_PAGES = 4
PAGES = 16
BASE = 2  # first page of the journal
DATA = (BASE + 1 + RING_PAGES) * PAGE_SIZE
END = PAGES * PAGE_SIZE
SEED = 0x1234


class Flush:
    """Fails where it is told to: the next check raises and counts, as Flush.check does after an msync."""

    def __init__(self):
        self.failures, self.failing = 0, False

    def check(self):
        if self.failing:
            self.failures, self.failing = self.failures + 1, False
            raise OSError(errno.EIO, "msync")


class Crash(Exception):
    pass


class Plain:
    """A region of plain bytes. ``mem``: what was stored; ``media``: what of it a power failure leaves."""

    def __init__(self, mem=None):
        self.mem = mem or bytearray(END)
        self.media = Media(self.mem)
        self.flush = Flush()
        self.table = RangeTable()
        self.drains, self.stop_at, self.calls = 0, None, 0

    def _call(self):
        self.calls += 1
        if self.stop_at is not None and self.calls > self.stop_at:
            raise Crash

    def _note(self, kind, place=0, length=0, data=b""):
        self.media.apply(Event(kind, place, length, data, thread=0, site=0, op=0))

    def store(self, place, data, kind=STORE):
        self._call()
        self._note(kind, place, len(data), bytes(data))
        self.mem[place : place + len(data)] = data

    def nt_store(self, place, data):
        self.store(place, data, NT_STORE)

    def nt_fill(self, place, byte, length):
        self.nt_store(place, bytes([byte]) * length)

    def flush_range(self, place, length):
        assert 0 <= place and place + length <= END
        self._note(FLUSH, place, length)

    def drain(self):
        self._call()
        self.drains += 1
        if not self.flush.failing:
            self._note(DRAIN)

    def check(self, place, length):
        if place < 0 or place + length > END:
            raise CorruptError("outside")

    def after_crash(self, rng) -> "Plain":
        """One of the images that a power failure may leave now."""
        image = bytearray(self.media.sure)
        for place, data in rng.choice(list(self.media.images(8, rng))).delta:
            image[place : place + len(data)] = data
        return Plain(image)


def journal_on(region) -> Journal:
    return Journal(region, BASE, 1 + RING_PAGES, SEED)


def formatted() -> tuple[Plain, Journal]:
    region = Plain()
    journal = journal_on(region)
    journal.format()
    region.drain()
    return region, journal


def apply(model: bytearray, entries) -> None:
    for place, data in entries:
        length = data if isinstance(data, int) else len(data)
        model[place : place + length] = bytes(data)


def data_of(region) -> bytes:
    return bytes(region.mem[DATA:])


places = st.integers(DATA // 8, END // 8 - 1).map(lambda n: n * 8)


@st.composite
def records(draw, most=600):
    out = []
    for place in draw(st.lists(places, min_size=1, max_size=5)):
        length = draw(st.integers(1, min(most, END - place)))
        if draw(st.booleans()):
            out.append((place, length))
        else:
            out.append((place, draw(st.randoms(use_true_random=False)).randbytes(length)))
    return out


class JournalMachine(RuleBasedStateMachine):
    """commit, settle and replay; after any of them, and inside them, a crash."""

    @initialize()
    def start(self):
        self.region, self.journal = formatted()
        self.model = bytearray(self.region.mem)
        self.settled = 0
        self.journal.on_settle.append(self.count)

    def count(self):
        self.settled += 1

    @rule(entries=records())
    def commit(self, entries):
        self._commit(entries)

    @rule(near=st.integers(-80, 80), byte=st.integers(1, 255))
    def commit_near_half(self, near, byte):
        length = self.journal.limit - 32 - 16 + near // 8 * 8
        entries = [(DATA, bytes([byte]) * length)]
        if len(encode(entries, 0, SEED)) <= self.journal.limit:
            self._commit(entries)
            return
        before, calls = bytes(self.region.mem), self.region.calls
        with pytest.raises(DaxfsError):
            self.journal.commit(entries)
        assert bytes(self.region.mem) == before and self.region.calls == calls

    @rule(entries=records(most=100), seed=st.integers(0, 1 << 30), stop=st.integers(0, 14))
    def crash_inside_commit(self, entries, seed, stop):
        """The daemon or the machine dies at the stop-th store: all of the record, or nothing."""
        self.region.stop_at = self.region.calls + stop
        try:
            self._commit(entries)
            returned = True
        except Crash:
            returned = False
        self.region.stop_at = None
        region = self.region.after_crash(random.Random(seed))
        done = bytearray(self.model)
        if not returned:
            apply(done, entries)
        self._recover(region, [bytes(self.model)] if returned else [bytes(self.model), bytes(done)])

    @rule(entries=records(most=100), seed=st.integers(0, 1 << 30))
    def failed_commit(self, entries, seed):
        """The source reports an error: the record may be there or not, until it is taken back."""
        self.region.flush.failing = True
        with pytest.raises(OSError):
            self.journal.commit(entries)
        done = bytearray(self.model)
        apply(done, entries)
        self._look(seed, [data_of(self.region), bytes(done[DATA:])])
        self.journal.ready()
        self._look(seed, [data_of(self.region)])

    def _look(self, seed, allowed):
        """What replay makes of a crash now, on a copy."""
        copy = self.region.after_crash(random.Random(seed))
        journal_on(copy).replay()
        assert data_of(copy) in allowed

    @rule(seed=st.integers(0, 1 << 30), stop=st.integers(0, 20))
    def crash_inside_replay(self, seed, stop):
        region = self.region.after_crash(random.Random(seed))
        region.stop_at = region.calls + stop
        try:
            journal_on(region).replay()
        except Crash:
            pass
        self._recover(region.after_crash(random.Random(seed + 1)), [bytes(self.model)])

    def _commit(self, entries):
        self.journal.commit(entries)
        apply(self.model, entries)

    def _recover(self, region, allowed):
        journal = journal_on(region)
        journal.replay()
        found = data_of(region)
        assert found in [state[DATA:] for state in allowed]
        again = journal_on(region)
        assert again.replay() == 0 and data_of(region) == found, "a second replay differs"
        self.region, self.journal = region, journal
        self.model[DATA:] = found
        self.journal.on_settle.append(self.count)

    @rule()
    def settle(self):
        self.journal.settle()
        assert self.journal.tail == self.journal.head
        assert self.region.media.sure.tobytes() == self.region.mem

    @invariant()
    def in_place(self):
        if hasattr(self, "model"):
            assert data_of(self.region) == bytes(self.model[DATA:])
            assert 0 <= self.journal.head - self.journal.tail <= self.journal.size


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=120, stateful_step_count=30)


@pytest.mark.parametrize("seed", range(16))
def test_the_tail_stays_where_the_lines_in_place_failed(seed):
    """The commit has to settle first, and that is what fails: the record before it must still be redone."""
    machine = JournalMachine()
    machine.start()
    for byte, near in ((1, 8), (1, 0), (1, 0), (1, 0), (1, 0), (2, 0), (1, -9)):
        machine.commit_near_half(near, byte)
    machine.failed_commit([(DATA, b"\0")], seed)
    machine.settle()


def test_many_laps_with_a_crash_at_every_record():
    """The ring is passed some twenty times; after each record a power failure, on a copy."""
    region, journal = formatted()
    model, rng = bytearray(region.mem), random.Random(5)
    laps = 0
    while journal.head < 20 * journal.size:
        length = rng.choice((8, 64, 500, 3000, journal.limit - 48))
        entries = [(DATA + 8 * rng.randrange(100), rng.randbytes(length)) for _ in range(1)]
        before = region.drains
        journal.commit(entries)
        assert region.drains >= before + 1
        apply(model, entries)
        copy = region.after_crash(rng)
        journal_on(copy).replay()
        assert data_of(copy) == bytes(model[DATA:])
        laps = journal.head // journal.size
    assert laps == 20 and journal.settles >= 10


def test_one_drain_for_a_record_inside_a_lap():
    region, journal = formatted()
    for _ in range(5):
        before = region.drains
        journal.commit([(DATA, b"x" * 64)])
        assert region.drains == before + 1


@pytest.mark.parametrize("cut", range(0, 248, 8))
def test_torn_last_record_is_ignored_wholly(cut):
    """The record's bytes from *cut* on did not arrive: nothing of it is there after replay."""
    region, journal = formatted()
    journal.commit([(DATA, b"a" * 64)])
    before = bytes(region.mem)
    lsn = journal.head
    body = encode([(DATA, b"b" * 100), (DATA + 512, 100), (DATA + 2048, b"c" * 64)], lsn, SEED)
    assert len(body) == 256 and not any(body[248:])
    place = journal.ring + lsn
    torn = Plain(bytearray(before))
    torn.mem[place : place + cut] = body[:cut]
    recovered = journal_on(torn)
    assert recovered.replay() == 1
    assert data_of(torn) == before[DATA:] and recovered.head == lsn
    whole = Plain(bytearray(before))
    whole.mem[place : place + len(body)] = body
    assert journal_on(whole).replay() == 2 and whole.mem[DATA : DATA + 100] == b"b" * 100


def near_lap_end() -> tuple[Plain, Journal]:
    """A settled journal with less room to the end of the ring than the next record needs."""
    region, journal = formatted()
    while journal.size - journal.head % journal.size > 1024:
        journal.commit([(DATA, b"1" * 400)])
    journal.settle()
    return region, journal


@pytest.mark.parametrize("stop", range(5))
def test_crash_between_the_skip_and_the_record_after_it(stop):
    """The record at the ring's start may arrive where the skip before it did not.

    That must not look like damage, nor come to life when the log reaches its lsn.
    """
    for seed in range(40):
        region, journal = near_lap_end()
        model, room, head = data_of(region), journal.size - journal.head % journal.size, journal.head
        region.stop_at = region.calls + stop
        with pytest.raises(Crash):
            journal.commit([(DATA + 4096, b"2" * 3000)])
        image = region.after_crash(random.Random(seed))
        again = journal_on(image)
        again.replay()
        if data_of(image) != model:
            assert again.head > head + room
            continue
        if again.head == head:
            again.commit([(DATA, b"3" * (room - 48))])  # to the end of the lap exactly
        assert again.head == head + room
        state = data_of(image)
        journal_on(image).replay()
        assert data_of(image) == state, "a record that was never committed came to life"


def test_gap_is_reported_and_nothing_changed():
    region, journal = formatted()
    lsns = [journal.commit([(DATA + 64 * i, bytes([i + 1]) * 64)]) for i in range(4)]
    damaged = Plain(bytearray(region.mem))
    damaged.mem[journal.ring + lsns[1] + 40] ^= 0xFF
    before = bytes(damaged.mem)
    with pytest.raises(CorruptError, match="damaged"):
        journal_on(damaged).replay()
    assert bytes(damaged.mem) == before


@pytest.mark.parametrize(
    "place, data", [(END - 4, b"12345678"), (END + 4096, b"x"), (1 << 63, 4096), (DATA, 1 << 31)]
)
def test_entry_outside_the_region_changes_nothing(place, data):
    region, journal = formatted()
    journal.commit([(DATA, b"good")])
    body = encode([(DATA, b"never"), (place, data)], journal.head, SEED)
    region.mem[journal.ring + journal.head : journal.ring + journal.head + len(body)] = body
    before = bytes(region.mem)
    with pytest.raises(CorruptError):
        journal_on(region).replay()
    assert bytes(region.mem) == before


def test_wrong_content_under_a_right_checksum():
    region, journal = formatted()
    for kind, length, count in ((7, 8, 1), (L.ENTRY_BYTES, 4096, 1), (L.ENTRY_ZERO, 8, 9)):
        body = bytearray(L.RECORD_FIELDS.pack(L.RECORD_MAGIC, 0, 0, 64, count, 0))
        body += L.ENTRY_CODEC.pack(DATA, length, kind) + bytes(16)
        region.mem[journal.ring : journal.ring + 64] = L.sealed(body, 4, SEED)
        with pytest.raises(CorruptError):
            journal_on(region).replay()


@pytest.mark.parametrize("offset", [0, 4, 8, 64, 71])
def test_damaged_header_is_refused(offset):
    region, journal = formatted()
    journal.commit([(DATA, b"x")])
    region.mem[journal.base + offset] ^= 0x10
    with pytest.raises(CorruptError):
        journal_on(region).replay()


def test_records_of_another_region_are_not_replayed():
    region, journal = formatted()
    journal.commit([(DATA, b"x" * 8)])
    page = bytes(region.mem[journal.base : journal.base + 128])
    other = Journal(region, BASE, 1 + RING_PAGES, SEED + 1)
    with pytest.raises(CorruptError):
        other.check_header()
    assert other.record_at(0) is None and journal.record_at(0) is not None
    assert page == bytes(region.mem[journal.base : journal.base + 128])


def test_encode_and_decode_agree():
    rng = random.Random(1)
    for count in (0, 1, 2, 40):
        entries = [(rng.randrange(1 << 44), rng.randbytes(n) if n % 3 else n + 1) for n in range(count)]
        body = encode(entries, 1 << 40, SEED)
        assert len(body) % 64 == 0 and L.is_sealed(body, 4, SEED)
        assert list(decode(body)) == entries
