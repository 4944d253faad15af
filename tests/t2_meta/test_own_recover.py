# SPDX-License-Identifier: MIT
"""Own ranges at mount: what a crash left goes, damage refuses and stays, read-only shows the rest."""

import itertools
import os
import shutil

import populate
import pytest
import regions
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs import layout as L
from daxfs.errors import CorruptError, SourceError
from daxfs.meta import fs as meta_fs
from daxfs.meta import namespace, own
from daxfs.meta.check import check_region
from daxfs.region import Region

PAGE = 4096
SIZES = {b"empty": 0, b"one": 100, b"two": 8192, b"three": 9000}


@pytest.fixture
def pool():
    """A `Pool` of a killed daemon's region: SIZES, each with its content."""
    with Killed() as made:
        yield made


class Killed:
    """A pool directory with files of SIZES whose daemon was killed; a context manager that removes it."""

    def __enter__(self):
        self.path = f"/dev/shm/daxfs-own-{os.getpid()}-{next(regions._numbers)}/"
        populate.create_file(self.path, 16 * populate.MIB)
        self.owner = {}
        with Region.open([self.path]) as region:
            populate.mkfs.make(region, populate.mkfs.plan(region))
            mounted = populate.steady(meta_fs.mount(region))
            mounted.dax = "always"
            for salt, (name, size) in enumerate(SIZES.items()):
                inode = namespace.create(mounted, 1, name, 0o100644, populate.CREDS)
                self.owner[name] = inode.ino, inode.generation
                if size:
                    populate.write(mounted, inode.ino, 0, populate.content(size, salt))
            namespace.create(mounted, 1, b"dir", 0o040755, populate.CREDS)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path)

    def range(self, name) -> str:
        owner = self.owner[name] if isinstance(name, bytes) else name
        return os.path.join(self.path, L.RANGES_NAME, L.range_name(*owner))

    def names(self) -> list[str]:
        return sorted(os.listdir(os.path.join(self.path, L.RANGES_NAME)))

    def clean(self) -> None:
        """As after umount."""
        with Region.open([self.path]) as region:
            meta_fs.mount(region).unmount()

    def crash(self) -> None:
        """Mounted, and killed."""
        with Region.open([self.path]) as region:
            meta_fs.mount(region)

    def look(self) -> None:
        """All files are whole, all ranges as long as they have to be, and fsck.daxfs is content."""
        with Region.open([self.path], "cow") as region:
            mounted = meta_fs.mount(region, readonly=True)
            for salt, (name, size) in enumerate(SIZES.items()):
                ino = populate.lookup(mounted, b"/" + name).ino
                assert populate.read(mounted, ino) == populate.content(size, salt)
        assert self.names() == sorted(L.range_name(*owner) for owner in self.owner.values())
        for name, size in SIZES.items():
            assert os.stat(self.range(name)).st_size == own.pages_of(size) * PAGE
        with Region.open([self.path], "cow") as region:
            assert check_region(region).problems == []


# -- what a crash left ----------------------------------------------------------------------


def stray(pool):
    with open(pool.range((77, 3)), "wb") as file:
        file.truncate(5 * PAGE)


def stray_of_another_generation(pool):
    ino, generation = pool.owner[b"one"]
    shutil.copyfile(pool.range(b"one"), pool.range((ino, generation + 1)))


def stray_behind_the_table(pool):
    open(pool.range((1 << 50, 1)), "wb").close()


def stray_symlink(pool):
    os.symlink("/etc/passwd", pool.range((78, 1)))


def stray_fifo(pool):
    os.mkfifo(pool.range((79, 1)))


def longer(pool):
    os.truncate(pool.range(b"one"), 9 * PAGE)


def longer_than_nothing(pool):
    os.truncate(pool.range(b"empty"), 2 * PAGE)


def odd_and_longer(pool):
    os.truncate(pool.range(b"two"), 8193)


def empty_and_missing(pool):
    os.unlink(pool.range(b"empty"))


LEFT = [stray, stray_of_another_generation, stray_behind_the_table, stray_symlink, stray_fifo, longer,
        longer_than_nothing, odd_and_longer, empty_and_missing]  # fmt: skip


@settings(max_examples=40)
@given(st.sets(st.sampled_from(LEFT)), st.lists(st.sampled_from(["crash", "clean", "fsck"]), max_size=3))
def test_what_a_crash_left_goes(left, ends):
    with Killed() as pool:
        for harm in filter(left.__contains__, LEFT):
            harm(pool)
        before = populate.digest(pool.path)
        with Region.open([pool.path], "cow") as region:
            assert check_region(region).problems == []
        with Region.open([pool.path], "cow") as region:
            meta_fs.mount(region, readonly=True)
        assert populate.digest(pool.path) == before, "looking changed something"
        for end in [*ends, "clean"]:
            if end == "fsck":
                with Region.open([pool.path]) as region:
                    report = check_region(region, mend=True)
                    assert not report.problems and not report.status
            else:
                getattr(pool, end)()
            pool.look()


@pytest.mark.parametrize("stop", range(1, 12))
def test_recovery_that_was_interrupted_is_done_again(pool, monkeypatch, stop):
    class Crash(BaseException):
        pass

    for harm in LEFT:
        harm(pool)
    calls = itertools.count(1)

    def counted(call):
        def run(*args):
            call(*args)
            if next(calls) == stop:
                raise Crash

        return run

    with monkeypatch.context() as patch, Region.open([pool.path]) as region:
        for name in ("create", "resize", "unlink", "forget_times"):
            patch.setattr(region.pool, name, counted(getattr(region.pool, name)))
        try:
            meta_fs.mount(region)
        except Crash:
            pass
    pool.crash()
    pool.look()


def test_after_umount_a_range_without_an_inode_stays(pool, caplog):
    """It is none that a crash left: perhaps the region is an older copy. fsck.daxfs says so."""
    pool.clean()
    stray(pool)
    pool.clean()
    assert os.path.exists(pool.range((77, 3))) and "1 ranges have no inode" in caplog.text
    with Region.open([pool.path]) as region:
        report = check_region(region, mend=True)
        assert [p.check for p in report.mended] == ["own-stray"] and report.status == 1
    pool.look()


def test_times_of_stores_do_not_come_from_recovery(pool):
    longer(pool)
    pool.crash()
    assert os.stat(pool.range(b"one")).st_mtime_ns == 0


# -- damage -----------------------------------------------------------------------------------


def missing(pool):
    os.unlink(pool.range(b"two"))


def short(pool):
    os.truncate(pool.range(b"three"), PAGE)


def short_by_a_byte(pool):
    os.truncate(pool.range(b"two"), 8191)


def symlink(pool):
    os.rename(pool.range(b"two"), pool.range((99, 1)))
    os.symlink(os.path.basename(pool.range((99, 1))), pool.range(b"two"))


def fifo(pool):
    os.unlink(pool.range(b"two"))
    os.mkfifo(pool.range(b"two"))


def socket(pool):
    import socket as sockets

    os.unlink(pool.range(b"two"))
    with sockets.socket(sockets.AF_UNIX) as one:
        one.bind(pool.range(b"two"))


def directory(pool):
    os.unlink(pool.range(b"two"))
    os.mkdir(pool.range(b"two"))


def no_folder(pool):
    shutil.rmtree(os.path.join(pool.path, L.RANGES_NAME))


def wiped(pool):
    with Region.open([pool.path]) as region:
        mounted = meta_fs.mount(region)
        mounted.journal.settle()
        place = mounted.inodes.place(pool.owner[b"two"][0])
        region.mem[place : place + 64] = bytes(64)


DAMAGE = [missing, short, short_by_a_byte, symlink, fifo, socket, directory, no_folder, wiped]


@pytest.mark.timeout(20)  # an open of a FIFO may never end
@pytest.mark.parametrize("harm", DAMAGE)
def test_damage_refuses_the_mount_and_nothing_changes(pool, harm):
    pool.crash()
    for left in (stray, longer_than_nothing):
        left(pool)
    harm(pool)
    before = populate.digest(pool.path)
    for _ in range(2):
        with Region.open([pool.path]) as region, pytest.raises(CorruptError, match=r"run fsck\.daxfs, or"):
            meta_fs.mount(region)
        assert populate.digest(pool.path) == before


@pytest.mark.timeout(20)
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("harm", DAMAGE[:-1])
def test_a_read_only_mount_gives_what_is_whole(pool, harm, clean):
    if clean:
        pool.clean()
    harm(pool)
    before = populate.digest(pool.path)
    bad = {b"/two", b"/three", b"/one"} if harm is no_folder else {b"/three" if harm is short else b"/two"}
    with Region.open([pool.path], "cow") as region:
        mounted = meta_fs.mount(region, readonly=True)
        for salt, (name, size) in enumerate(SIZES.items()):
            inode = populate.lookup(mounted, b"/" + name)
            if b"/" + name in bad:
                with pytest.raises(CorruptError, match=r"run fsck|no regular file"):
                    mounted.open(inode.ino)
            else:
                assert populate.read(mounted, inode.ino) == populate.content(size, salt)
                own.shown(mounted, inode)
        assert mounted.statfs()["blocks"] > 0
    assert populate.digest(pool.path) == before


@pytest.mark.parametrize("harm", [missing, no_folder])
def test_attributes_of_a_file_whose_range_is_missing(pool, harm):
    """EUCLEAN, not a traceback; an empty file has nothing to miss."""
    harm(pool)
    with Region.open([pool.path], "cow") as region:
        mounted = meta_fs.mount(region, readonly=True)
        with pytest.raises(CorruptError, match="its range"):
            own.shown(mounted, populate.lookup(mounted, b"/two"))
        assert own.shown(mounted, populate.lookup(mounted, b"/empty"))[1] == 0


def test_the_region_without_its_pool_directory(pool):
    """POOL/region is a file that is not enough."""
    path = os.path.join(pool.path, "region")
    with Region.open([path]) as region, pytest.raises(CorruptError, match="give that directory as"):
        meta_fs.mount(region)
    with Region.open([path], "cow") as region:
        mounted = meta_fs.mount(region, readonly=True)
        inode = populate.lookup(mounted, b"/two")
        with pytest.raises(CorruptError, match="give that directory"):
            mounted.open(inode.ino)
        with pytest.raises(CorruptError, match="give that directory"):
            own.shown(mounted, inode)
        assert populate.lookup(mounted, b"/dir").mode == 0o040755


def test_the_folder_is_not_followed(pool):
    folder = os.path.join(pool.path, L.RANGES_NAME)
    os.rename(folder, folder + "-elsewhere")
    os.symlink(folder + "-elsewhere", folder)
    before = populate.digest(pool.path)
    for mode in ("rw", "cow"):
        with Region.open([pool.path], mode) as region, pytest.raises(SourceError, match="a symbolic link"):
            meta_fs.mount(region, readonly=mode == "cow")
    assert populate.digest(pool.path) == before


def test_a_folder_without_leave(pool, monkeypatch):
    """Tests may be run by root, who has every leave: the system call says what others get."""
    real = os.open

    def refuse(path, *args, **more):
        if path == L.RANGES_NAME:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    with Region.open([pool.path]) as region, pytest.raises(SourceError, match="ranges: Permission denied"):
        meta_fs.mount(region)


def test_no_folder_is_made_before_there_is_a_range():
    path = f"/dev/shm/daxfs-own-{os.getpid()}-bare/"
    populate.create_file(path, 16 * populate.MIB)
    try:
        with Region.open([path]) as region:
            populate.mkfs.make(region, populate.mkfs.plan(region))
            mounted = meta_fs.mount(region)
            namespace.create(mounted, 1, b"packed", 0o100644, populate.CREDS)
            assert mounted.statfs()["bfree"] and os.listdir(path) == ["region"]
            mounted.dax = "always"
            namespace.create(mounted, 1, b"own", 0o100644, populate.CREDS)
            assert sorted(os.listdir(path)) == ["ranges", "region"]
            assert os.stat(path + "ranges").st_mode == 0o040700
    finally:
        shutil.rmtree(path)


def test_a_private_copy_of_the_region_leaves_the_ranges_alone(pool):
    """Mounted "cow" and not read-only, as tests and tools do."""
    longer(pool)
    stray(pool)
    before = populate.digest(pool.path)
    with Region.open([pool.path], "cow") as region:
        mounted = meta_fs.mount(region)
        namespace.unlink(mounted, 1, b"one")
        mounted.dax = "always"
        with pytest.raises(OSError, match="not open rw"):
            namespace.create(mounted, 1, b"new", 0o100644, populate.CREDS)
    assert populate.digest(pool.path) == before


def test_a_directory_where_a_new_range_has_to_be(pool):
    """EIO with a name, not EISDIR for whoever makes a file."""
    pool.clean()
    with Region.open([pool.path]) as region:
        mounted = meta_fs.mount(region)
        mounted.dax = "always"
        ino = int(mounted.inodes.free[-1])
        generation = namespace.create(mounted, 1, b"x", 0o100644, populate.CREDS).generation
        namespace.unlink(mounted, 1, b"x")
        os.mkdir(pool.range((ino, generation + 1)))
        with pytest.raises(SourceError, match="a directory is in the way"):
            namespace.create(mounted, 1, b"y", 0o100644, populate.CREDS)
        os.rmdir(pool.range((ino, generation + 1)))
        assert namespace.create(mounted, 1, b"y", 0o100644, populate.CREDS).ino == ino
        mounted.unmount()
    with Region.open([pool.path], "cow") as region:
        assert check_region(region).problems == []
