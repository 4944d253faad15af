# SPDX-License-Identifier: MIT
"""Many extended attributes on one inode: agreement with a dict through changes and crashes, cost, damage."""

import errno

import oracle
import pytest
import regions
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from daxfs import layout as L
from daxfs.errors import CorruptError, DaxfsError
from daxfs.meta import attr, xattr, xattr_run
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT, PAGE_SIZE

NAMES = st.binary(min_size=1, max_size=5).filter(lambda name: b"\0" not in name)
KEYS = st.tuples(st.sampled_from([L.XATTR_USER, L.XATTR_TRUSTED, L.XATTR_SECURITY]), NAMES)
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([96, 500, 1500, 3000, 9000]))


def make(fs, name=b"f"):
    return ns.create(fs, L.ROOT_INO, name, 0o100644, ns.ROOT).ino


def name_of(n: int) -> bytes:
    return b"user.name-%d" % n


def fill(fs, ino: int, count: int) -> dict:
    """Give *ino* so many small attributes; they as a dict."""
    model = {name_of(n): b"value %d" % n for n in range(count)}
    for name, value in model.items():
        xattr.put(fs, ino, name, value)
    return model


def all_of(fs, ino: int) -> dict:
    return {name: xattr.get(fs, ino, name) for name in xattr.names(fs, ino)}


def value_of(size: int, seed: int) -> bytes:
    return bytes((seed + i * i) % 251 for i in range(size))


class Redo:
    """What replay alone makes of *fs*: the bytes of when the journal settled, with its ring of now."""

    def __init__(self, maker, fs):
        self.maker, self.fs = maker, fs
        fs.journal.on_settle.append(self._settled)
        fs.journal.settle()
        self._settled()

    def _settled(self) -> None:
        self.bytes = bytes(self.fs.region.mem)

    def mounted(self):
        """A FileSystem in which no store in place since then has reached the media."""
        journal, copy = self.fs.journal, self.maker.copy(self.fs.region)
        end = journal.ring + journal.size
        copy.store(0, self.bytes[: journal.ring])
        copy.store(end, self.bytes[end:])
        return self.maker._mounted(copy)


class Model(RuleBasedStateMachine):
    """Two inodes with attributes against two dicts: live, after a crash, by replay alone."""

    def __init__(self):
        super().__init__()
        self.maker = regions.Maker()
        self.fs = self.maker.make(32 << 20)
        self.inos = [make(self.fs, b"a"), make(self.fs, b"b")]
        self.models: list[dict] = [{}, {}]
        self.redo = Redo(self.maker, self.fs)

    def teardown(self):
        self.maker.close()

    def put(self, which: int, name: bytes, value: bytes, flags: int = 0) -> None:
        model = self.models[which]
        try:
            xattr.put(self.fs, self.inos[which], name, value, flags)
        except DaxfsError as error:
            assert error.errno == errno.ENOSPC and sum(map(len, model.values())) > 100_000
        else:
            model[name] = value

    def some(self, which: int, pick: int) -> bytes | None:
        """One of the names, or None where there is none."""
        names = sorted(self.models[which])
        return names[pick % len(names)] if names else None

    @initialize(count=st.sampled_from([0, 3, 70, 400]))
    def begin(self, count):
        self.many(0, 0, count, 8)

    @rule(which=st.integers(0, 1), first=st.integers(0, 300), count=st.integers(1, 150), size=SIZES)
    def many(self, which, first, count, size):
        for n in range(first, first + count):
            self.put(which, name_of(n), value_of(size + n % 3, n))

    @rule(which=st.integers(0, 1), number=st.integers(0, 400), size=SIZES, seed=st.integers(0, 250))
    def set_one(self, which, number, size, seed):
        self.put(which, name_of(number), value_of(size, seed))

    @rule(which=st.integers(0, 1), pick=st.integers(0, 1000), size=SIZES, seed=st.integers(0, 250))
    def replace(self, which, pick, size, seed):
        if (name := self.some(which, pick)) is not None:
            self.put(which, name, value_of(size, seed), xattr.REPLACE)

    @rule(which=st.integers(0, 1), pick=st.integers(0, 1000), seed=st.integers(0, 250))
    def replace_by_equal_size(self, which, pick, seed):
        if (name := self.some(which, pick)) is not None:
            self.put(which, name, value_of(len(self.models[which][name]), seed), xattr.REPLACE)

    @rule(which=st.integers(0, 1), pick=st.integers(0, 999), count=st.integers(1, 99), step=st.integers(1, 9))
    def remove(self, which, pick, count, step):
        for n in range(2 * count):
            if (name := self.some(which, pick + n * step)) is not None:
                xattr.remove(self.fs, self.inos[which], name)
                del self.models[which][name]

    @rule(which=st.integers(0, 1))
    def capability_and_chown(self, which):
        """Two changes in one transaction."""
        self.put(which, b"security.capability", b"cap")
        attr.setattr(self.fs, self.inos[which], {"uid": 7, "mode": 0o640})
        self.models[which].pop(b"security.capability", None)

    @rule(which=st.integers(0, 1))
    def errors_change_nothing(self, which):
        fs, ino = self.fs, self.inos[which]
        wrong = [lambda: xattr.get(fs, ino, b"user.none"), lambda: xattr.remove(fs, ino, b"user.none"),
                 lambda: xattr.put(fs, ino, b"user.none", b"", xattr.REPLACE)]  # fmt: skip
        if (name := self.some(which, 1)) is not None:
            wrong.append(lambda: xattr.put(fs, ino, name, b"", xattr.CREATE))
        for call in wrong:
            with pytest.raises(DaxfsError):
                call()

    @rule()
    def settle(self):
        self.fs.journal.settle()

    @rule(only_redo=st.booleans())
    def crash(self, only_redo):
        left = self.redo.mounted() if only_redo else self.maker.crash_copy(self.fs)
        assert [all_of(left, ino) for ino in self.inos] == self.models
        self.maker.drop(left)

    @rule()
    def check(self):
        assert [all_of(self.fs, ino) for ino in self.inos] == self.models
        self.maker.fsck(self.fs)
        oracle.check(self.fs)


TestModel = Model.TestCase
TestModel.settings = settings(settings.get_profile("ci-noshrink"), max_examples=40, stateful_step_count=20)


@settings(max_examples=150)
@given(st.lists(st.tuples(KEYS, st.one_of(st.none(), SIZES)), max_size=60), st.integers(0, 120))
def test_a_run_agrees_with_a_dict(changes, before):
    """Also its index, with the one of a run that is parsed anew."""
    run, model = xattr_run.EMPTY, {}
    many = [((L.XATTR_USER, b"%d" % (n * 7 % before)), 20 + n % 3) for n in range(before)]
    for key, size in many + changes:
        if size is None:
            run = run.without(key)
            model.pop(key, None)
        else:
            run, model[key] = run.with_value(key, value_of(size, size)), value_of(size, size)
        assert len(run) == len(model) and set(run.keys()) == set(model)
        assert {key: run.get(key) for key in model} == model and (key in run) == (size is not None)
    fresh = xattr_run.parse(1, b"", run.body, len(run))
    assert {key: fresh.get(key) for key in fresh.keys()} == model
    if isinstance(run, xattr_run.Many) and isinstance(fresh, xattr_run.Many):
        assert (run.hashes == fresh.hashes).all() and (run.sizes == fresh.sizes).all()
        assert (run.starts == fresh.starts).all()


@given(st.binary(max_size=700), st.binary(max_size=700), st.lists(st.integers(0, 699), max_size=5))
def test_differences_are_all_that_differs(old, tail, flips):
    new = bytearray(old + tail)
    for at in flips:
        if at < len(new):
            new[at] ^= 0x55
    for target in (bytes(new), bytes(new[: len(new) // 2])):
        patched = bytearray(old.ljust(len(target), b"?")[: len(target)])
        last = 0
        for start, end in xattr_run.differences(old, target):
            assert last <= start < end <= len(target)
            patched[start:end], last = target[start:end], end
        assert patched == target


def journalled(fs, calls) -> int:
    """The most bytes that one of *calls* journals; each is one record."""
    most = 0
    for call in calls:
        size, records, settles = fs.journal.bytes, fs.journal.records, fs.journal.settles
        call()
        assert fs.journal.records == records + 1 and fs.journal.settles - settles <= 1
        most = max(most, fs.journal.bytes - size)
    return most


def test_a_small_change_of_many_journals_little(maker):
    """All of them are 64 KiB: one that gets another size moves those behind it up, and no more."""
    fs = maker.make(64 << 20)
    ino, some = make(fs), range(0, 2000, 37)
    model = fill(fs, ino, 2000)
    redo = Redo(maker, fs)
    steps = {
        "as long": (512, lambda n: xattr.put(fs, ino, name_of(n), b"VALUE %d" % n)),
        "shorter": (70_000, lambda n: xattr.put(fs, ino, name_of(n), b"v %d" % n)),
        "longer": (70_000, lambda n: xattr.put(fs, ino, name_of(n), b"a longer value %d" % n)),
        "gone": (70_000, lambda n: xattr.remove(fs, ino, name_of(n))),
        "new": (512, lambda n: xattr.put(fs, ino, name_of(n), b"value %d" % n)),
    }
    for what, (bound, step) in steps.items():
        assert journalled(fs, [lambda n=n, step=step: step(n) for n in some]) <= bound, what
    assert all_of(fs, ino) == model == all_of(redo.mounted(), ino)
    maker.fsck(fs)


def test_growth_stays_in_place_where_it_can(small_fs):
    fs, ino = small_fs, make(small_fs)
    fill(fs, ino, 200)
    pfn, pages = fs.inodes.read(ino).xattr_pfn, fs.inodes.read(ino).xattr_pages
    most = journalled(fs, [lambda n=n: xattr.put(fs, ino, name_of(n), b"value") for n in range(200, 400)])
    assert fs.inodes.read(ino).xattr_pfn == pfn and fs.inodes.read(ino).xattr_pages > pages
    assert most < PAGE_SIZE
    ((taken, _),) = fs.alloc.alloc(1, goal=pfn + fs.inodes.read(ino).xattr_pages)
    model = all_of(fs, ino) | fill(fs, ino, 600)
    assert fs.inodes.read(ino).xattr_pfn != pfn and all_of(fs, ino) == model
    fs.alloc.free(taken, 1)
    oracle.check(fs)


@pytest.mark.parametrize("where", [4, 48, 100, 9000, -1])
def test_damage_of_many_is_found_though_they_are_known(small_fs, where):
    fs, ino = small_fs, make(small_fs)
    model = fill(fs, ino, 400)
    assert all_of(fs, ino) == model
    start = fs.inodes.read(ino).xattr_pfn << PAGE_SHIFT
    length = L.BLOCK_FIELDS.struct.unpack_from(fs.mem, start)[8]
    place = start + where % length
    good = bytes(fs.mem[place : place + 1])
    fs.region.store(place, bytes([good[0] ^ 1]))
    name = name_of(1)
    for call, *words in ((xattr.get, name), (xattr.names,), (xattr.put, name, b"x"), (xattr.remove, name)):
        records = fs.journal.records
        with pytest.raises(CorruptError):
            call(fs, ino, *words)
        assert fs.journal.records == records
    fs.region.store(place, good)
    assert all_of(fs, ino) == model


def test_a_name_of_another_entry_in_a_value(small_fs):
    """What looks like an entry inside a value is none."""
    fs, ino = small_fs, make(small_fs)
    model = fill(fs, ino, 100)
    fake = L.XATTR_CODEC.pack(L.XATTR_USER, 4, 0, 3) + b"fakebad"
    model[b"user.a"] = fake * 20
    xattr.put(fs, ino, b"user.a", fake * 20)
    with pytest.raises(DaxfsError):
        xattr.get(fs, ino, b"user.fake")
    assert all_of(fs, ino) == model


def test_entries_that_are_there_twice_or_bytes_behind_them(small_fs):
    fs, ino = small_fs, make(small_fs)
    xattr.put(fs, ino, b"user.abc", b"value")
    xattr.put(fs, ino, b"user.abd", b"value")
    start = fs.inodes.read(ino).xattr_pfn << PAGE_SHIFT
    whole = bytes(fs.mem[start : start + L.BLOCK_FIELDS.struct.unpack_from(fs.mem, start)[8]])
    for offset, data in ((L.BLOCK_FIELDS.offset["count"], b"\1"), (whole.index(b"abd"), b"abc")):
        raw = bytearray(whole)
        raw[offset : offset + len(data)] = data
        fs.region.store(start, L.sealed(raw, 4, fs.seed))
        with pytest.raises(CorruptError):
            xattr.get(fs, ino, b"user.abc")


def test_the_cache_is_bounded(maker):
    fs = maker.make(64 << 20)
    inos = [make(fs, b"f%d" % n) for n in range(2 * xattr_run.CACHED)]
    models = [fill(fs, ino, 100) for ino in inos]
    assert [all_of(fs, ino) for ino in inos] == models
    assert list(fs.xattrs._runs) == inos[-xattr_run.CACHED :]
    small = make(fs, b"small")
    fill(fs, small, 3)
    assert small not in fs.xattrs._runs
    for n in range(100):
        xattr.remove(fs, inos[-1], name_of(n))
    assert inos[-1] not in fs.xattrs._runs and fs.inodes.read(inos[-1]).blocks == 0


def test_a_change_that_fails_leaves_what_is_known_right(small_fs, monkeypatch):
    fs, ino = small_fs, make(small_fs)
    model = fill(fs, ino, 300)

    def failing(entries):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(fs.journal, "commit", failing)
    with pytest.raises(OSError):
        xattr.put(fs, ino, name_of(5), b"lost")
    monkeypatch.undo()
    assert all_of(fs, ino) == model
    xattr.put(fs, ino, name_of(5), b"kept")
    assert all_of(fs, ino) == model | {name_of(5): b"kept"}
    oracle.check(fs)
