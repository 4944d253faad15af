# SPDX-License-Identifier: MIT
"""Damaged regions and what the commands say: every class of bytes, overwritten in every way.

Each time: a message and the right exit status, no traceback, no hang, no changed byte under -n; what -y
calls mended is clean, mounts and can be walked. Plus the frozen images and seeded random damage.
"""

import json
import lzma
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import damage as D
import populate
import pytest
from click.testing import CliRunner
from images import make_images

from daxfs import layout as L
from daxfs.cli import fsck
from daxfs.cli import mkfs as mkfs_command
from daxfs.errors import DaxfsError
from daxfs.meta import fs as meta_fs
from daxfs.meta import journal
from daxfs.meta.check import check_region
from daxfs.region import Region

PAGE = D.PAGE
ROOT = Path(__file__).resolve().parents[2]
FROZEN = ("rev1", "rev1-killed", "rev1-own", "rev1-own-killed")
WAYS = ("zeros", "ones", "random", "same kind", "other kind")


@pytest.fixture(scope="module")
def images():
    """name -> (path, Facts) of the unpacked frozen images, and of another region."""
    base = f"/dev/shm/fsck-damage-{os.getpid()}"
    paths = {name: make_images.unpack(name, f"{base}-{name}") for name in FROZEN}
    other = populate.make(f"{base}-other", size=8 * populate.MIB, uuid=b"o" * 16)
    yield {name: (path, D.Facts([path], populate.lookup)) for name, path in paths.items()} | {"other": other}
    for path in (*paths.values(), other):
        populate.remove(path)


@pytest.fixture
def victim(images):
    made = set()

    def make(name: str, harm=None) -> str:
        path, facts = images[name]
        copy = path + "-victim"
        if os.path.isdir(copy):
            populate.remove(copy)
        made.add(populate.copy(path, copy))
        if harm:
            with Region.open([copy]) as region:
                harm(D.Damage(region, facts))
        return copy

    yield make
    for path in made:
        populate.remove(path)


@pytest.fixture
def run(in_process):
    return in_process


# -- classes of bytes -------------------------------------------------------------------


def record_place(d) -> tuple[int, int]:
    """(place, bytes) of the first record that is to be replayed, without its padding."""
    log = journal.Journal(d.region, d.sb.journal_pfn, d.sb.journal_pages, d.seed)
    return next((log.ring + lsn % log.size, len(body)) for lsn, body in log.pending())


def second_record(d) -> int:
    log = journal.Journal(d.region, d.sb.journal_pfn, d.sb.journal_pages, d.seed)
    return [log.ring + lsn % log.size for lsn, _ in log.pending()][1]


# name -> (image, where(d) -> (place, bytes), the same kind elsewhere(d) -> place, or None: in another region)
CLASSES = {
    "superblock": ("rev1", lambda d: (0, PAGE), None),
    "backup": ("rev1", lambda d: (d.sb.backup_pfn * PAGE, PAGE), None),
    "journal header": ("rev1", lambda d: (d.sb.journal_pfn * PAGE, PAGE), None),
    "journal record": ("rev1-killed", record_place, second_record),
    "state": ("rev1", lambda d: (D.STATE, 64), None),
    "inode": ("rev1", lambda d: (d.place(d.ino(b"/file")), 256), lambda d: d.place(d.ino(b"/dir"))),
    "root inode": ("rev1", lambda d: (d.place(1), 256), lambda d: d.place(d.ino(b"/dir"))),
    "inode page": ("rev1", lambda d: (d.place(16), PAGE), lambda d: d.place(32)),
    "extent block": ("rev1", lambda d: (d.facts.chain[0] * PAGE, PAGE), lambda d: d.facts.chain[1] * PAGE),
    "directory block": (
        "rev1",
        lambda d: (d.facts.data[b"/dir"] * PAGE, PAGE),
        lambda d: d.facts.data[b"/big"] * PAGE,
    ),
    "xattr block": (
        "rev1",
        lambda d: (d.facts.xattr * PAGE, PAGE),
        lambda d: d.field(b"/dir", "xattr_pfn") * PAGE,
    ),
}


def spoil(d, name: str, way: str, other: str) -> None:
    """Overwrite the bytes of class *name* in one of `WAYS`."""
    _, where, twin = CLASSES[name]
    place, length = where(d)
    if way == "zeros":
        d.put(place, bytes(length))
    elif way == "ones":
        d.put(place, b"\xff" * length)
    elif way == "random":
        d.put(place, random.Random(f"{name} 7").randbytes(length))
    elif way == "same kind" and twin is None:
        with open(other, "rb") as source:
            source.seek(place)
            d.put(place, source.read(length))
    else:
        other_kind = d.facts.chain[0] if name == "directory block" else d.facts.data[b"/"]
        at = twin(d) if way == "same kind" else other_kind * PAGE
        mine, theirs = d.get(place, length), d.get(at, length)
        d.put(place, theirs)
        d.put(at, mine)


def walk(path: str) -> bool:
    """Mount privately and read everything: only daxfs's own errors may come. True where all could be read."""
    try:
        with Region.open([path], "cow") as region:
            populate.tree(meta_fs.mount(region))
    except DaxfsError as error:
        assert str(error)
        return False
    return True


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CLASSES)
def test_class_of_bytes(victim, images, run, name, way):
    path = victim(CLASSES[name][0], lambda d: spoil(d, name, way, images["other"]))
    before = populate.digest(path)
    status, out, err = run(fsck.main, "-n", path)
    assert status == 4, (out, err)
    assert out.strip() and err.startswith("fsck.daxfs: ")
    walk(path)
    info(path)
    status, _, err = run(mkfs_command.main, path)
    assert status == 1 and "--force" in err
    assert populate.digest(path) == before, "looking changed something"
    status, out, err = run(fsck.main, "-y", path)
    assert status in (1, 4)
    if status == 4:
        assert "left" in err
        assert run(fsck.main, "-n", path)[0] == 4
        return
    assert run(fsck.main, "-n", path)[0] == 0
    assert walk(path)


def info(path: str) -> None:
    from daxfs.cli import main as daxfs_main

    result = CliRunner().invoke(daxfs_main.command, ["info", path])
    crashed = result.exception is not None and not isinstance(result.exception, (SystemExit, OSError))
    assert not crashed, result.exception


# -- the commands as programs -----------------------------------------------------------


def program(*args, **kwargs) -> subprocess.CompletedProcess:
    code = "import sys; from daxfs.cli.fsck import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **kwargs)


def test_program_exit_statuses(victim, tmp_path):
    clean = victim("rev1")
    done = program("-n", clean)
    assert (done.returncode, done.stdout) == (0, "") and "clean" in done.stderr
    assert program(clean, "--no-such-option").returncode == 16
    assert program().returncode == 16
    assert program("-n", "-y", clean).returncode == 16
    missing = program("-n", str(tmp_path / "missing"))
    assert missing.returncode == 8 and "No such file" in missing.stderr
    (tmp_path / "other").write_bytes(b"text" * 4 * populate.MIB)
    foreign = program("-y", str(tmp_path / "other"))
    assert foreign.returncode == 8 and "not a daxfs region" in foreign.stderr
    with Region.open([clean]):
        busy = program("-n", clean)
    assert busy.returncode == 8 and "busy" in busy.stderr
    for done in (missing, foreign, busy):
        assert done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_program_without_leave_and_without_terminal_mends_nothing(victim):
    path = victim("rev1", lambda d: d.inode(b"/file", nlink=5))
    before = populate.digest(path)
    done = program(path, stdin=subprocess.DEVNULL)
    assert done.returncode == 4
    assert done.stdout.startswith("link-count: inode ") and "run fsck.daxfs -y" in done.stderr
    assert populate.digest(path) == before
    done = program("-y", path)
    assert done.returncode == 1 and "(mended)" in done.stdout
    assert program("-n", path).returncode == 0


def test_at_boot(victim, run):
    clean = victim("rev1")
    before = populate.digest(clean)
    assert run(fsck.main, "-a", clean) == (0, "", "")
    assert populate.digest(clean) == before
    killed = victim("rev1-killed")
    status, out, err = run(fsck.main, "-p", killed)
    assert (status, out, err) == (0, "", "")
    assert run(fsck.main, "-p", killed) == (0, "", "")
    # What was unmounted is not looked at, unless -f says so.
    path = victim("rev1", lambda d: d.inode(b"/file", nlink=5))
    assert run(fsck.main, "-a", path)[0] == 0
    assert run(fsck.main, "-a", "-f", path)[0] == 1


def test_json_and_list(victim, run):
    path = victim("rev1", lambda d: d.inode(b"/file", nlink=5))
    status, out, _ = run(fsck.main, "-n", "--json", path)
    report = json.loads(out)
    assert status == report["status"] == 4
    (problem,) = report["problems"]
    assert problem["check"] == "link-count" and problem["mendable"] and problem["left"]
    status, out, _ = run(fsck.main, "--list")
    assert status == 0 and "link-count" in out


def test_internal_errors_are_one_line(victim, monkeypatch, capfd):
    def broken(*_):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(fsck, "check_region", broken)
    monkeypatch.delenv("DAXFS_DEBUG", raising=False)
    assert fsck.main(["-n", victim("rev1")]) == 8
    err = capfd.readouterr().err
    assert "boom" in err and "Traceback" not in err and len(err.splitlines()) == 1


# -- frozen images ----------------------------------------------------------------------

# name -> (image, damage, status of -n, status of -y)
BROKEN = {
    "good": ("rev1", lambda d: None, 0, 0),
    "killed": ("rev1-killed", lambda d: None, 0, 0),
    "no superblock": ("rev1", lambda d: d.put(0, bytes(PAGE)), 4, 1),
    "no superblocks": (
        "rev1",
        lambda d: (d.put(0, bytes(PAGE)), d.put(d.sb.backup_pfn * PAGE, bytes(PAGE))),
        8,
        8,
    ),
    "newer revision": ("rev1", lambda d: d.put(0, d.superblock(format_rev=2)), 8, 8),
    "unknown feature": ("rev1", lambda d: d.put(0, d.superblock(incompat=1 << 63)), 8, 8),
    "links": ("rev1", lambda d: d.inode(b"/file", nlink=9), 4, 1),
    "lost": ("rev1", lambda d: d.drop_name(b"/dir", b"inner"), 4, 1),
    "flipped inode": ("rev1", lambda d: d.flip(d.place(d.ino(b"/file")) + 90), 4, 4),
    "shared page": ("rev1", lambda d: d.slot(b"/file", 0, pfn=d.facts.data[b"/dir/inner"]), 4, 4),
    "journal gap": ("rev1-killed", lambda d: d.flip(record_place(d)[0] + 40), 4, 4),
    "shrunken": ("rev1", None, 8, 8),
    "own": ("rev1-own", lambda d: None, 0, 0),
    "own, killed": ("rev1-own-killed", lambda d: None, 0, 0),
    "range lost": ("rev1-own", lambda d: os.unlink(d.range(b"/dax/small")), 4, 1),
    "range lost, killed": ("rev1-own-killed", lambda d: os.unlink(d.range(b"/dax/small")), 4, 1),
    "range short": ("rev1-own", lambda d: os.truncate(d.range(b"/dax/small"), PAGE), 4, 1),
    "range long": ("rev1-own", lambda d: os.truncate(d.range(b"/dax/small"), 9 * PAGE), 4, 1),
    "range too many": ("rev1-own", lambda d: os.mkfifo(d.range((7, 7))), 4, 1),
    "range linked": ("rev1-own", lambda d: (os.unlink(d.range(b"/dax/small")),
                                            os.symlink("/etc/passwd", d.range(b"/dax/small"))), 4, 4),
    "ranges lost": ("rev1-own", lambda d: shutil.rmtree(d.range()), 4, 4),
    "flag of a packed file": ("rev1-own", lambda d: d.inode(b"/file", flags=L.FLAG_OWN), 4, 1),
    "flag without a pool": ("rev1", lambda d: d.inode(b"/file", flags=L.FLAG_OWN), 4, 1),
    "ranges are a link": ("rev1-own", lambda d: (shutil.rmtree(d.range()),
                                                 os.symlink("/", d.range()[:-1])), 8, 8),
}


@pytest.mark.parametrize("name", BROKEN)
def test_frozen_broken_image(victim, run, name):
    image, harm, looked, mended = BROKEN[name]
    path = victim(image, harm)
    if harm is None:
        os.truncate(path, 6 * populate.MIB)
    before = populate.digest(path)
    assert run(fsck.main, "-n", path)[0] == looked
    assert populate.digest(path) == before
    assert run(fsck.main, "-y", path)[0] == mended
    if mended != 1 and looked == mended != 0:
        assert populate.digest(path) == before


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_image_still_says_the_same(victim, name):
    path = victim(name)
    want = json.loads(lzma.decompress((make_images.HERE / f"{name}.json.xz").read_bytes()))
    assert make_images.contents(path) == want
    with Region.open([path]) as region:
        mounted = meta_fs.mount(region)
        assert make_images.describe(populate.tree(mounted)) == want
        mounted.unmount()
    with Region.open([path], "cow") as region:
        report = check_region(region)
        assert report.problems == [] and report.stats["orphans"] == 0
        assert report.stats.get("ranges", 0) == (7 if "own" in name else 0)


def test_frozen_images_are_of_every_revision():
    have = {path.name for path in make_images.HERE.glob("*.xz")}
    assert {f"rev1-own{one}" for one in (".tar.xz", ".json.xz", "-killed.tar.xz", "-killed.json.xz")} <= have
    for rev in range(1, L.FORMAT_REV + 1):
        assert {f"rev{rev}{one}" for one in (".xz", ".json.xz", "-killed.xz", "-killed.json.xz")} <= have


# -- random damage ----------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(160))
def test_random_damage(victim, seed):
    path = victim("rev1" if seed < 80 else "rev1-own", lambda d: D.chaos(d, random.Random(seed)))
    before = populate.digest(path)
    walk(path)
    try:
        with Region.open([path], "cow") as region:
            first = check_region(region)
        with Region.open([path]) as region:
            report = check_region(region, mend=True)
    except DaxfsError as error:
        assert str(error)
        return
    assert {p.key for p in report.left} <= {p.key for p in report.problems}
    if not first.problems:
        assert report.status == 0
    with Region.open([path], "cow") as region:
        again = check_region(region)
    assert {p.key for p in again.problems} == {p.key for p in report.left}
    if report.status == 4 and not report.mended:
        assert populate.digest(path) == before
    if report.status < 4:
        assert walk(path)


@pytest.mark.parametrize("size", [4096, 8192, 12288, 1 << 20])
def test_almost_nothing_is_left(victim, run, size):
    """Each program says that it is shrunken; none trips over an area that is not there."""
    path = victim("rev1")
    os.truncate(path, size)
    with Region.open([path]) as region, pytest.raises(DaxfsError, match="shrunken"):
        meta_fs.mount(region)
    for how in ("-n", "-y"):
        status, out, err = run(fsck.main, how, path)
        assert (status == 8 and "shrunken" in err) or (status == 4 and "areas leave the region" in out)
    code = "import sys; from daxfs.cli.main import main; sys.exit(main(['info', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-P", "-c", code, path], check=False, text=True,
                          capture_output=True)
    assert "shrunken" in done.stderr and "internal error" not in done.stderr, done
