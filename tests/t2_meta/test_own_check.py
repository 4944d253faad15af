# SPDX-License-Identifier: MIT
"""fsck.daxfs and own ranges beyond `own_cases`: what mending does to data, what it leaves, what it says."""

import functools
import os
import shutil

import damage as D
import own_cases as cases
import populate
import pytest

from daxfs import layout as L
from daxfs.cli import common, fsck
from daxfs.errors import SourceError
from daxfs.meta import fs as meta_fs
from daxfs.meta.check import check_region
from daxfs.region import Region

PAGE = 4096
PATIENTLY = common.patiently


@pytest.fixture(scope="module")
def images():
    """Pool and killed: (path, Facts), made once."""
    base = f"/dev/shm/fsck-own-{os.getpid()}"
    paths = {name: populate.make(f"{base}-{name}/", orphan=name == "killed", own_ranges=True).rstrip("/")
             for name in ("pool", "killed")}  # fmt: skip
    yield {name: (path, D.Facts([path], populate.lookup)) for name, path in paths.items()}
    for path in paths.values():
        shutil.rmtree(path)


@pytest.fixture
def victim(images):
    made = []

    def make(*harms, image="pool") -> str:
        path, facts = images[image]
        copy = f"{path}-victim-{len(made)}"
        made.append(populate.copy(path, copy))
        with Region.open([copy]) as region:
            for harm in harms:
                harm(D.Damage(region, facts))
        return copy

    yield make
    for path in made:
        shutil.rmtree(path)


@pytest.fixture
def run(in_process):
    """run(arguments) -> (status, stdout, stderr) of fsck.daxfs in this process."""
    return functools.partial(in_process, fsck.main)


def look(path: str, mend: bool = False):
    with Region.open([path], "rw" if mend else "cow") as region:
        return check_region(region, mend)


def names(problems) -> list[str]:
    return sorted(p.check for p in problems)


def tree(path: str) -> dict:
    with Region.open([path], "cow") as region:
        return populate.tree(meta_fs.mount(region, readonly=True))


# -- what mending does ------------------------------------------------------------------------


def test_mending_costs_only_what_is_lost(victim, images):
    """One file is empty, one is shorter; one whose range lacks part of a page is whole, as the others."""

    def shorter(d):
        os.truncate(d.range(b"/dax/twin"), PAGE + 700)

    path = victim(cases.range_lost, shorter, cases.a_byte_too_many)
    os.truncate(os.path.join(path, "ranges", _name(images, b"/dax/cut")), 12345)
    want = tree(images["pool"][0])
    report = look(path, mend=True)
    assert names(report.mended) == ["own-long", "own-missing", "own-short", "own-short"], report
    got = tree(path)
    assert got.keys() == want.keys()
    assert got[b"/dax/small"][4:7:2] == (0, b"")
    assert got[b"/dax/twin"][6] == want[b"/dax/twin"][6][: PAGE + 700]
    for name in want.keys() - {b"/dax/small", b"/dax/twin"}:
        assert got[name] == want[name], name
    assert look(path).status == 0


def _name(images, path: bytes) -> str:
    facts = images["pool"][1]
    return L.range_name(facts.ino[path], facts.generation[facts.ino[path]])


def test_messages_say_what_mending_will_cost(victim, run):
    path = victim(cases.range_lost, cases.part_of_a_page_after_a_crash)
    status, out, _ = run("-n", path)
    assert status == 4
    assert "is missing, and all 10000 bytes with it; mending makes the file empty" in out
    assert "has 5001 bytes of 12345: the rest is lost; mending ends the file there" in out
    status, out, _ = run("-y", path)
    assert status == 1 and out.count("(mended)") == 2
    status, _, err = run("-n", "-v", path)
    assert status == 0 and " ranges" in err


def test_what_a_crash_left_is_tidied_before_the_region_counts_as_clean(victim, images):
    path = victim(image="killed")
    ranges = os.path.join(path, "ranges")
    assert L.range_name(200, 1) in os.listdir(ranges)
    before = populate.digest(path)
    assert look(path).status == 0 and populate.digest(path) == before
    assert look(path, mend=True).status == 0
    assert L.range_name(200, 1) not in os.listdir(ranges)
    assert look(path).problems == []
    with Region.open([path]) as region:
        meta_fs.mount(region).unmount()
    assert look(path).problems == []


def test_leftovers_that_can_not_be_put_right_keep_the_region_unclean(victim, monkeypatch):
    path = victim(image="killed")

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        report = look(path, mend=True)
    assert any("could not be put right" in note for note in report.notes)
    assert look(path).status == 0, "still a crash's"
    assert look(path, mend=True).status == 0
    assert look(path).status == 0


@pytest.mark.parametrize("image", ["pool", "killed"])
def test_a_range_whose_inode_is_damaged_stays(victim, images, image):
    """It looks as one without an inode, but whose it is can't be read."""

    def damaged(d):
        place = d.place(d.ino(b"/dax/cut"))
        d.flip(place + 90)

    path = victim(damaged)
    if image == "killed":
        with Region.open([path]) as region:
            region.mem[D.MOUNTED : D.MOUNTED + 1] = b"\1"
    range_ = os.path.join(path, "ranges", _name(images, b"/dax/cut"))
    report = look(path, mend=True)
    assert "inode-checksum" in names(report.left) and os.path.getsize(range_) == 4 * PAGE
    assert ("own-stray" in names(report.left)) == (image == "pool")
    assert not report.mended


def test_one_mends_while_the_other_waits(victim):
    """A range without an inode goes only once all else could be mended; then in the same run."""
    path = victim(cases.range_without_an_inode, cases.range_lost, lambda d: d.inode(b"/file", nlink=9))
    report = look(path, mend=True)
    assert names(report.mended) == ["link-count", "own-missing", "own-stray"] and not report.left
    path = victim(cases.range_without_an_inode, lambda d: d.flip(d.place(d.ino(b"/file")) + 90))
    report = look(path, mend=True)
    assert names(report.left) == ["inode-checksum", "own-stray"] and not report.mended


def test_lost_names_bring_their_ranges_along(victim):
    """A directory entry lost: the file is in lost+found, with its data."""
    path = victim(lambda d: d.drop_name(b"/dax", b"small"))
    assert look(path, mend=True).status == 1
    found = [data for name, data in tree(path).items() if name.startswith(b"/lost+found/")]
    assert [one[6] for one in found] == [populate.content(10000, 20)]


class Crash(BaseException):
    """The process is gone."""


def test_mending_survives_a_crash_at_every_step(victim, monkeypatch):
    harms = (cases.range_lost, cases.feature_bit_lost, cases.a_byte_too_many, cases.range_without_an_inode,
             lambda d: os.truncate(d.range(b"/dax/twin"), 700))  # fmt: skip
    for stop in range(1, 60):
        path = victim(*harms)
        calls = iter(range(1, 1000))

        def counted(call, calls=calls, stop=stop):
            def run(*args):
                call(*args)
                if next(calls) == stop:
                    raise Crash

            return run

        with Region.open([path]) as region:
            region.drain = counted(region.drain)
            for name in ("create", "resize", "unlink", "forget_times"):
                monkeypatch.setattr(region.pool, name, counted(getattr(region.pool, name)))
            try:
                check_region(region, mend=True)
                break
            except Crash:
                pass
        assert look(path, mend=True).left == []
        assert look(path).status == 0
        assert len(tree(path)[b"/dax/twin"][6]) == 700
    assert stop > 10


# -- what it leaves and says --------------------------------------------------------------------


def test_the_file_region_is_not_enough(victim, run):
    path = victim()
    status, out, err = run("-n", os.path.join(path, "region"))
    assert (status, out) == (8, "") and f"give that directory ({path}) as the source" in err
    assert run("-y", os.path.join(path, "region"))[0] == 8
    assert run("-n", path)[0] == 0


def test_a_pool_in_use_is_refused(victim, run, monkeypatch):
    """The first time with all of the patience for a daemon that is about to end, then with little."""
    path = victim(cases.range_without_an_inode)
    before = sorted(os.listdir(path + "/ranges"))
    with Region.open([path]):
        for source in (path, path + "/region"):
            for how in ("-n", "-y"):
                status, out, err = run(how, source)
                assert (status, out) == (8, "") and "busy" in err
                monkeypatch.setattr(common, "patiently", functools.partial(PATIENTLY, seconds=0.1))
    assert sorted(os.listdir(path + "/ranges")) == before


def test_a_folder_that_is_a_link_is_not_followed(victim, run):
    path = victim()
    os.rename(path + "/ranges", path + "/elsewhere")
    os.symlink("elsewhere", path + "/ranges")
    before = populate.digest(path)
    for how in ("-n", "-y"):
        status, _, err = run(how, path)
        assert status == 8 and "ranges: is no directory, or a symbolic link" in err
    assert populate.digest(path) == before


def test_a_folder_that_was_not_copied_keeps_all_files(victim, run):
    path = victim(cases.copied_without_the_ranges)
    status, out, _ = run("-y", path)
    assert status == 4 and "own-folder" in out and "was it copied, or mounted?" in out
    assert not os.path.exists(path + "/ranges")
    with Region.open([path], "cow") as region:
        assert populate.lookup(meta_fs.mount(region, readonly=True), b"/dax/small").size == 10000
    os.mkdir(path + "/ranges")
    status, out, _ = run("-y", path)
    assert status == 1 and "mending makes the file empty" in out
    assert run("-n", path)[0] == 0


def test_foreign_names_are_told_and_left_alone(victim, run):
    path = victim()
    for name in ("notes.txt", "5-1.bak", "0x5-1", "5-01", "-", "5-1 ", "A-1"):
        with open(os.path.join(path, "ranges", name), "w") as file:
            file.write("mine")
    before = sorted(os.listdir(path + "/ranges"))
    for how in ("-n", "-y"):
        status, out, err = run(how, path)
        assert status == 0 and not out and "7 names are no ranges and are left alone: " in err and "…" in err
    with Region.open([path]) as region:
        meta_fs.mount(region).unmount()
    assert sorted(os.listdir(path + "/ranges")) == before


def test_hard_links_and_other_owners_are_told(victim, images, run):
    path = victim()
    os.link(os.path.join(path, "ranges", _name(images, b"/dax/small")), path + "/backup")
    status, _, err = run("-n", path)
    assert status == 0 and "1 ranges have further names" in err
    if os.geteuid() == 0:
        os.chown(os.path.join(path, "ranges", _name(images, b"/dax/small")), 12345, -1)
        status, _, err = run("-n", path)
        assert status == 0 and "1 ranges belong to another user" in err


def test_looking_asks_for_no_leave_to_write(victim):
    """-n opens the region and no range, for reading alone."""
    path = victim(cases.open_to_nobody)
    flags = []
    real = os.open

    def seen(name, how, *args, **more):
        flags.append(how)
        return real(name, how, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", seen)
        assert look(path).status == 4
    assert flags and not any(how & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) for how in flags)


def test_a_source_error_changes_nothing(victim):
    path = victim()
    before = populate.digest(path)
    with Region.open([path + "/region"], "rw") as region, pytest.raises(SourceError):
        check_region(region, mend=True)
    assert populate.digest(path) == before
