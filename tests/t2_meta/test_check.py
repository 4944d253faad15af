# SPDX-License-Identifier: MIT
"""Every named check finds exactly its damage, mends it (then all is clean) or refuses (no byte changed)."""

import os

import check_cases as cases
import damage as D
import own_cases
import populate
import pytest
from check_cases import CASES

from daxfs.errors import FormatError, SourceError, UsageError
from daxfs.meta import fs as meta_fs
from daxfs.meta.check import CHECKS, check_region
from daxfs.meta.problem import MAX_KEPT, Findings
from daxfs.region import Region, create_file


@pytest.fixture(scope="module")
def images():
    """name -> (sources, Facts) of good regions, made once."""
    base = f"/dev/shm/fsck-check-{os.getpid()}"
    paths = {"clean": [base], "killed": [base + "-killed"], "two": [base + "-a", base + "-b"]}
    populate.make(paths["clean"][0])
    populate.make(paths["killed"][0], orphan=True)
    populate.make(paths["two"][0], more=paths["two"][1:])
    for name, orphan in (("pool", False), ("pool-killed", True)):
        paths[name] = [populate.make(f"{base}-{name}/", orphan=orphan, own_ranges=True).rstrip("/")]
    yield {name: (sources, D.Facts(sources, populate.lookup)) for name, sources in paths.items()}
    for sources in paths.values():
        for path in sources:
            populate.remove(path)


@pytest.fixture
def victim(images):
    """victim(image, damage) -> sources of a copy, damaged."""
    made = set()

    def make(image: str, harm=None) -> list[str]:
        sources, facts = images[image]
        for path in [path for path in made if os.path.isdir(path)]:  # names that are not in the new copy
            made.remove(path)
            populate.remove(path)
        copies = [populate.copy(path, f"{path}-victim") for path in sources]
        made.update(copies)
        if harm:
            with Region.open(copies) as region:
                harm(D.Damage(region, facts))
        return copies

    yield make
    for path in made:
        populate.remove(path)


class Crash(BaseException):
    """The process is gone."""


class Crashing:
    """A drain after which, at the given count, the process is gone."""

    def __init__(self, drain, stop: int):
        self.drain, self.left = drain, stop

    def __call__(self):
        self.drain()
        self.left -= 1
        if not self.left:
            raise Crash


def look(sources, mend=False):
    with Region.open(sources, "rw" if mend else "cow") as region:
        return check_region(region, mend)


def names(problems) -> set[str]:
    return {p.check for p in problems}


assert own_cases.__doc__  # its import puts it into CASES


@pytest.mark.parametrize(("check", "mends", "image", "harm"), CASES)
def test_check(victim, check, mends, image, harm):
    sources = victim(image, harm)
    before = [populate.digest(path) for path in sources]
    report = look(sources)
    assert names(report.problems) == {check}, [str(p) for p in report.problems]
    assert report.status == 4
    assert all(p.mendable == mends for p in report.problems)
    assert before == [populate.digest(path) for path in sources], "-n changed something"
    report = look(sources, mend=True)
    if not mends:
        assert names(report.left) == {check}
        assert report.status == 4 and not report.mended
        assert before == [populate.digest(path) for path in sources], "refused, but changed something"
        return
    assert report.left == [], [str(p) for p in report.left]
    assert report.status == 1 and check in names(report.mended)
    again = look(sources)
    assert again.problems == [] and again.status == 0
    with Region.open(sources) as region:
        mounted = meta_fs.mount(region)
        assert len(populate.tree(mounted)) > 200
        mounted.unmount()
    assert look(sources).status == 0


def test_every_check_has_a_case():
    assert {param.values[0] for param in CASES} == set(CHECKS)


def test_a_good_region_is_clean(victim):
    for image in ("clean", "killed", "two", "pool"):
        sources = victim(image)
        before = [populate.digest(path) for path in sources]
        report = look(sources)
        assert report.problems == [] and report.status == 0
        assert bool(report.replayed) == (image == "killed")
        assert report.stats["orphans"] == (image == "killed")
        assert before == [populate.digest(path) for path in sources]
        report = look(sources, mend=True)
        assert report.problems == [] and report.status == 0


def test_lost_inodes_come_back_in_lost_and_found(victim):
    sources = victim("clean", cases.name_of_a_directory_lost)
    assert look(sources, mend=True).status == 1
    with Region.open(sources, "cow") as region:
        mounted = meta_fs.mount(region)
        tree = populate.tree(mounted)
        ino = next(
            int(name[13:]) for name in tree if name.startswith(b"/lost+found/#") and name.count(b"/") == 2
        )
        assert tree[b"/lost+found/#%d/inner" % ino][6] == bytes(4096) + populate.content(5000, 1)
        assert tree[b"/lost+found"][0] == 0o040700


def test_nothing_is_freed_where_the_first_line_of_a_file_is_gone(victim):
    """Size and times stand side by side without a checksum: with both zero, the size is no reason to free."""
    sources = victim("clean", cases.first_line_of_a_file_wiped)
    assert "extent-beyond-size" not in names(look(sources, mend=True).problems)


def test_names_missing_from_a_damaged_directory_are_not_held_against_their_inodes(victim):
    sources = victim("clean", cases.directory_block_flipped)
    report = look(sources, mend=True)
    assert names(report.problems) == {"dir-block"}
    assert any("names may be missing" in note for note in report.notes)


def test_several_problems_are_mended_in_one_go(victim):
    def harm(d):
        cases.zeroed(d)
        cases.header_flipped(d)
        cases.state_flipped(d)
        cases.slash_in_a_name(d)
        cases.size_of_a_fragmented_file_shrank(d)
        cases.pages_wrong(d)
        cases.too_many_links(d)
        cases.name_of_a_free_inode(d)
        cases.name_of_the_root(d)

    sources = victim("clean", harm)
    report = look(sources, mend=True)
    assert report.left == [], [str(p) for p in report.left]
    assert {"sb-magic", "dir-name", "unreachable", "blocks-count", "link-count"} <= names(report.mended)
    assert look(sources).status == 0


def test_what_can_not_be_mended_does_not_stop_the_rest(victim):
    def harm(d):
        cases.owner_flipped(d)
        cases.fifo_with_a_size(d)
        cases.name_of_a_free_inode(d)

    sources = victim("clean", harm)
    report = look(sources, mend=True)
    assert names(report.left) == {"inode-checksum"}
    assert names(report.mended) == {"inode-size", "dirent-target"}
    assert report.status == 4


def test_mending_survives_a_crash_at_every_drain(victim):
    """A crash between two drains of the mending leaves a region that is mended by the next run."""

    def harm(d):
        cases.slash_in_a_name(d)
        cases.size_of_a_fragmented_file_shrank(d)
        cases.too_many_links(d)

    for stop in range(1, 40):
        sources = victim("clean", harm)
        with Region.open(sources) as region:
            region.drain = Crashing(region.drain, stop)
            try:
                check_region(region, mend=True)
                break
            except Crash:
                pass
        assert look(sources, mend=True).left == []
        assert look(sources).status == 0
    assert stop > 5


def test_wrong_sources_are_refused(victim, images):
    two = victim("two")
    with Region.open(two[:1], "cow") as region, pytest.raises(SourceError, match="2 sources"):
        check_region(region)
    with Region.open(two[1:], "cow") as region, pytest.raises(SourceError, match="not the first source"):
        check_region(region)
    clean = images["clean"][0]
    with Region.open([two[0], *clean], "cow") as region, pytest.raises(SourceError, match="foreign"):
        check_region(region)
    os.truncate(two[0], 12 * populate.MIB)
    with Region.open(two, "cow") as region, pytest.raises(SourceError, match="shrunken"):
        check_region(region)


def test_no_region_is_refused(tmp_path):
    path = str(tmp_path / "empty")
    create_file(path, 8 * populate.MIB)
    with Region.open([path], "cow") as region, pytest.raises(FormatError, match="not a daxfs region"):
        check_region(region)


def test_newer_formats_are_refused(victim):
    sources = victim("clean", lambda d: d.put(0, d.superblock(format_rev=99)))
    with Region.open(sources, "cow") as region, pytest.raises(FormatError, match="revision 99"):
        check_region(region)


def test_mode_and_mending_must_agree(victim):
    sources = victim("clean")
    with Region.open(sources) as region, pytest.raises(UsageError):
        check_region(region)
    with Region.open(sources, "cow") as region, pytest.raises(UsageError):
        check_region(region, mend=True)


def test_read_only_mapping_is_checked_as_far_as_it_goes(victim):
    with Region.open(victim("clean"), "ro") as region:
        assert check_region(region).status == 0
    with Region.open(victim("clean", cases.state_flipped), "ro") as region:
        report = check_region(region)
        assert names(report.left) == {"state-line"}
        assert any("read-only" in note for note in report.notes)
    with Region.open(victim("killed"), "ro") as region, pytest.raises(UsageError, match="replay"):
        check_region(region)


def test_a_flood_of_problems_is_counted_not_kept():
    found = Findings()
    for i in range(MAX_KEPT + 50):
        found.add("dir-name", f"directory {i}", "no name")
    assert len(found.problems) == MAX_KEPT and found.counts["dir-name"] == MAX_KEPT + 50
    assert len(found.notes) == 1
    with pytest.raises(KeyError):
        found.add("no-such-check", "", "")


def test_progress_is_reported(victim):
    seen = set()
    with Region.open(victim("clean"), "cow") as region:
        check_region(region, progress=lambda phase, done, total: seen.add(phase) if done <= total else None)
    assert {"inodes", "extents", "xattrs"} <= seen
