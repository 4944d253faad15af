# SPDX-License-Identifier: MIT
"""Recovery: replay repeated and interrupted, torn and damaged records, orphans, half-done truncations."""

import os

import damage as D
import populate
import pytest

from daxfs.errors import CorruptError
from daxfs.meta import file, journal, mkfs, namespace
from daxfs.meta import fs as meta_fs
from daxfs.meta.check import check_region
from daxfs.region import Region, create_file

PAGE = 4096


class Crash(BaseException):
    """The process is gone."""


class Countdown:
    """Calls through, until the process is gone after call number *stop*."""

    def __init__(self, call, stop: int):
        self.call, self.left = call, stop

    def __call__(self, *args):
        self.left -= 1
        result = self.call(*args)
        if not self.left:
            raise Crash
        return result


@pytest.fixture(scope="module")
def killed():
    """(path, Facts) of a region whose daemon was killed: records to replay and an orphan."""
    path = f"/dev/shm/fsck-recover-{os.getpid()}"
    populate.make(path, orphan=True)
    yield path, D.Facts([path], populate.lookup)
    os.unlink(path)


@pytest.fixture
def copy(killed):
    """A copy of it, to be opened and spoilt."""
    path = killed[0] + "-copy"
    yield populate.copy(killed[0], path)
    os.unlink(path)


def log_of(region):
    sb = D.superblock.read(region)
    return journal.Journal(region, sb.journal_pfn, sb.journal_pages, sb.seed)


def check_clean(path: str) -> None:
    with Region.open([path], "cow") as region:
        report = check_region(region)
        assert report.problems == [], [str(p) for p in report.problems]


# -- replay -----------------------------------------------------------------------------


def test_replay_twice_is_replay_once(copy):
    with Region.open([copy]) as region:
        log = log_of(region)
        tail = bytes(region.mem[log.base + 64 : log.base + 72])
        assert log.replay() > 3
        once = bytes(region.mem)
        assert log_of(region).replay() == 0
        assert bytes(region.mem) == once
        region.mem[log.base + 64 : log.base + 72] = tail
        assert log_of(region).replay() > 3
        assert bytes(region.mem) == once


def test_replay_that_was_interrupted_is_redone(copy, killed):
    with Region.open([copy]) as region:
        log_of(region).replay()
        want = bytes(region.mem)
        log = log_of(region)
        log.tail = log.head = 0
    steps = 0
    for stop in range(1, 2000, 7):
        populate.copy(killed[0], copy)
        with Region.open([copy]) as region:
            log = log_of(region)
            log._apply = Countdown(log._apply, stop)
            try:
                log.replay()
                break
            except Crash:
                steps += 1
            assert log_of(region).replay() > 3
            assert bytes(region.mem) == want
    assert steps > 3


def test_replay_brings_back_what_never_reached_its_place(copy, killed):
    """The inode table and a directory block as they were before the last records."""
    path = killed[0]
    with Region.open([copy]) as region:
        log = log_of(region)
        touched = [place for _, body in log.pending() for place, data in journal.decode(body)]
        log.replay()
        want = bytes(region.mem)
    populate.copy(path, copy)
    with Region.open([copy]) as region:
        for place in touched:
            region.mem[place : place + 8] = b"\xee" * 8
        log_of(region).replay()
        assert bytes(region.mem) == want


def test_torn_last_record_never_happened(copy):
    with Region.open([copy]) as region:
        mounted = populate.steady(meta_fs.mount(region))
        namespace.create(mounted, 1, b"before", 0o100644, populate.CREDS)
        lsn = mounted.journal.head
        parts = bytes(region.mem)
        namespace.create(mounted, 1, b"torn", 0o100644, populate.CREDS)
        record = mounted.journal.ring + lsn % mounted.journal.size
        size = mounted.journal.head - lsn
        body = bytes(region.mem[record : record + size])
        for cut in range(0, size, 64):
            # The crash kept some lines of the record: in place nothing of it was stored yet.
            region.mem[:] = parts
            region.mem[record : record + cut] = body[:cut]
            again = meta_fs.mount(region)
            assert namespace.lookup(again, 1, b"before") is not None
            assert namespace.lookup(again, 1, b"torn") is None


def test_gap_is_refused_and_nothing_changes(copy):
    with Region.open([copy]) as region:
        log = log_of(region)
        records = list(log.pending())
        region.mem[log.ring + records[1][0] % log.size + 33] ^= 1
    before = populate.digest(copy)
    with Region.open([copy]) as region, pytest.raises(CorruptError, match="damaged"):
        meta_fs.mount(region)
    assert populate.digest(copy) == before


@pytest.mark.parametrize("entry", [(1 << 60, b"x" * 8), (1 << 62, 4096), ((16 << 20) - 64, b"x" * 128)])
def test_entry_outside_the_region_is_refused_and_nothing_changes(copy, entry):
    with Region.open([copy]) as region:
        log = log_of(region)
        end = max(lsn + len(body) for lsn, body in log.pending())
        record = journal.encode([entry], end, log.seed)
        place = log.ring + end % log.size
        region.mem[place : place + len(record)] = record
    before = populate.digest(copy)
    with Region.open([copy]) as region, pytest.raises(CorruptError, match="outside"):
        meta_fs.mount(region)
    assert populate.digest(copy) == before


# -- damage and read-only mounts ----------------------------------------------------------


def test_a_damaged_inode_costs_a_read_only_mount_only_itself(copy):
    """Read-write is refused, because free space can't be told; read-only the rest can be copied out."""
    with Region.open([copy]) as region:
        mounted = meta_fs.mount(region)
        victim = namespace.lookup(mounted, 1, b"file").ino
        whole = [name for name, ino, _, _ in namespace.readdir(mounted, 1, 2) if ino != victim]
        mounted.unmount()
        region.mem[mounted.inodes.place(victim) + 100] ^= 1
    before = populate.digest(copy)
    refusal = pytest.raises(CorruptError, match=f"inode {victim}: .*mount read-only")
    with Region.open([copy]) as region, refusal:
        meta_fs.mount(region)
    assert populate.digest(copy) == before
    with Region.open([copy], "cow") as region:
        mounted = meta_fs.mount(region, readonly=True)
        with pytest.raises(CorruptError):
            namespace.lookup(mounted, 1, b"file")
        assert whole and all(namespace.lookup(mounted, 1, name) for name in whole)
        inner = populate.lookup(mounted, b"/dir/inner").ino
        assert populate.read(mounted, inner)[4096:] == populate.content(5000, 1)


# -- orphans ----------------------------------------------------------------------------


def test_orphan_is_finished_at_mount(copy):
    with Region.open([copy], "cow") as region:
        assert check_region(region).stats["orphans"] == 1
    with Region.open([copy]) as region:
        mounted = meta_fs.mount(region)
        used, free = mounted.inodes.used, mounted.alloc.free_pages + mounted.alloc.held
        assert not mounted.orphans
        mounted.unmount()
    check_clean(copy)
    with Region.open([copy]) as region:
        mounted = meta_fs.mount(region)
        assert (mounted.inodes.used, mounted.alloc.free_pages) == (used, free)


def test_read_only_mount_leaves_orphans_alone(copy):
    before = populate.digest(copy)
    with Region.open([copy], "cow") as region:
        mounted = meta_fs.mount(region, readonly=True)
        assert len(mounted.orphans) == 1
        assert len(populate.tree(mounted)) > 200
    assert populate.digest(copy) == before


def test_truncation_that_was_interrupted_is_finished(copy, killed, monkeypatch):
    monkeypatch.setattr(file, "EXTENTS_PER_STEP", 100)
    stops = 0
    for stop in range(1, 60):
        populate.copy(killed[0], copy)
        with Region.open([copy]) as region:
            mounted = populate.steady(meta_fs.mount(region))
            ino = populate.lookup(mounted, b"/sparse").ino
            node = mounted.open(ino)
            region.drain = Countdown(region.drain, stop)
            try:
                file.truncate(mounted, node, 5 * 8192 + 16, mounted.clock())
                break
            except Crash:
                stops += 1
        check_clean(copy)
        with Region.open([copy]) as region:
            mounted = meta_fs.mount(region)
            inode = mounted.inodes.read(ino)
            assert inode.size == 5 * 8192 + 16 and inode.nextents == 6 and not inode.flags
            assert populate.read(mounted, ino)[-16:] == populate.content(16, 5)
            mounted.unmount()
        check_clean(copy)
    assert stops > 5


# -- what makes an allocation unsafe stops the mount ------------------------------------


def shared(d):
    d.slot(b"/file", 0, pfn=d.facts.data[b"/dir/inner"] - 2)


def stray(d):
    d.slot(b"/file", 0, pfn=d.sb.backup_pfn - 1)


def over_the_journal(d):
    d.slot(b"/file", 0, pfn=d.sb.journal_pfn)


def other_number(d):
    d.inode(b"/file", ino=9)


def flipped(d):
    d.flip(d.place(d.ino(b"/file")) + 90)


def no_root(d):
    d.inode(1, mode=0o100644)


def circle(d):
    d.block(d.facts.chain[-1], 40, D.L.WORD.pack(d.facts.chain[0]))


def limit(d):
    d.state(1 << 50)


@pytest.mark.parametrize(
    "harm", [shared, stray, over_the_journal, other_number, flipped, no_root, circle, limit]
)
def test_unsafe_damage_stops_the_mount(copy, killed, harm):
    with Region.open([copy]) as region:
        log_of(region).replay()
        harm(D.Damage(region, killed[1]))
    before = populate.digest(copy)
    with Region.open([copy]) as region, pytest.raises(CorruptError):
        meta_fs.mount(region)
    assert populate.digest(copy) == before


# -- bugs that were ---------------------------------------------------------------------


def test_page_of_a_long_symlink_is_not_reused_before_the_journal_has_settled(copy):
    """Its bytes stand in a record: replay would write them over the data of the next owner."""
    with Region.open([copy]) as region:
        mounted = populate.steady(meta_fs.mount(region))
        mounted.sync_all()
        link = namespace.create(mounted, 1, b"link", 0o120777, populate.CREDS, target=b"x" * 2000)
        page = mounted.node(link.ino).map.extents(0, 1)[0][2]
        mounted.nodes.pop(link.ino)
        namespace.unlink(mounted, 1, b"link")
        taken = [run for run in mounted.alloc.runs() if run[0] <= page < run[0] + run[1]]
        assert taken == [], "free at once"
        assert mounted.alloc.held == 1
        mounted.journal.settle()
        assert any(start <= page < start + pages for start, pages in mounted.alloc.runs())


def test_replay_does_not_write_an_old_symlink_over_new_data(copy):
    with Region.open([copy]) as region:
        mounted = populate.steady(meta_fs.mount(region))
        link = namespace.create(mounted, 1, b"link", 0o120777, populate.CREDS, target=b"x" * 2000)
        page = mounted.node(link.ino).map.extents(0, 1)[0][2]
        mounted.nodes.pop(link.ino)
        namespace.unlink(mounted, 1, b"link")
        files = {}
        for i in range(40):
            ino = namespace.create(mounted, 1, b"new%d" % i, 0o100644, populate.CREDS).ino
            populate.write(mounted, ino, 0, populate.content(PAGE, i))
            files[ino] = mounted.node(ino).map.extents(0, 1)[0][2]
            if files[ino] == page:
                break
        again = meta_fs.mount(region)  # as after kill -9: the records since the tail are redone
        for i, ino in enumerate(files):
            assert populate.read(again, ino) == populate.content(PAGE, i)


@pytest.mark.parametrize("inodes", [1, 16, 63, 64, 65, 100])
def test_few_inodes(inodes, tmp_path):
    """The inode table has room for whole chunks: the first one is written by mkfs, and mount expects it."""
    path = str(tmp_path / "few")
    create_file(path, 8 * populate.MIB)
    with Region.open([path]) as region:
        mkfs.make(region, mkfs.plan(region, inodes=inodes))
        mounted = meta_fs.mount(region)
        made = 0
        with pytest.raises(OSError, match="no free inode"):
            while True:
                namespace.create(mounted, 1, b"%d" % made, 0o100644, populate.CREDS)
                made += 1
        assert made + 1 >= inodes
        mounted.unmount()
    check_clean(path)
