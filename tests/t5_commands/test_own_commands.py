# SPDX-License-Identifier: MIT
"""mkfs.daxfs and daxfs info on pool directories with own ranges: nobody loses data by a refusal."""

import functools
import json
import os
import shutil

import populate
import pytest
from click.testing import CliRunner

from daxfs import layout as L
from daxfs.cli import main as daxfs_main
from daxfs.cli import mkfs as mkfs_command
from daxfs.meta import fs as meta_fs
from daxfs.meta import mkfs
from daxfs.meta.check import check_region
from daxfs.pool import Pool
from daxfs.region import Region


@pytest.fixture
def pool():
    path = populate.make(f"/dev/shm/daxfs-own-commands-{os.getpid()}/", own_ranges=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def run(in_process):
    """run(arguments) -> (status, stdout, stderr) of mkfs.daxfs in this process."""
    return functools.partial(in_process, mkfs_command.main)


def ranges(path: str) -> list[str]:
    return os.listdir(path + "ranges")


def check(path: str):
    with Region.open([path], "cow") as region:
        return check_region(region)


# -- mkfs -------------------------------------------------------------------------------------


def test_force_removes_the_old_ranges_and_nothing_else(pool, run):
    with open(pool + "ranges/notes", "w") as file:
        file.write("mine")
    assert run(pool)[0] == 1 and len(ranges(pool)) > 5
    assert run("--force", pool)[0] == 0
    assert ranges(pool) == ["notes"]
    assert not check(pool).problems


def test_a_refusal_costs_nothing(pool, run):
    before = populate.digest(pool)
    with Region.open([pool]):
        status, _, err = run("--force", pool)
        assert status == 1 and "busy" in err
    status, _, err = run("--force", "--inodes", "4000000", pool)
    assert status == 1 and "no room" in err
    assert populate.digest(pool) == before
    os.mkdir(pool + "ranges/5-7")
    before = populate.digest(pool)
    status, _, err = run("--force", pool)
    assert status == 1 and "ranges/5-7: a directory" in err
    assert populate.digest(pool) == before


def test_a_folder_that_is_a_link_refuses_before_anything_is_lost(pool, run):
    os.rename(pool + "ranges", pool + "elsewhere")
    os.symlink("elsewhere", pool + "ranges")
    before = populate.digest(pool)
    status, _, err = run("--force", pool)
    assert status == 1 and "a symbolic link" in err
    assert populate.digest(pool) == before


def test_ranges_of_a_region_that_is_gone_need_force(pool, run):
    os.unlink(pool + "region")
    before = populate.digest(pool)
    status, _, err = run("--size", "16M", pool)
    assert status == 1 and "ranges of a region that is gone; --force" in err
    assert populate.digest(pool) == before
    assert run("--size", "16M", "--force", pool)[0] == 0
    assert ranges(pool) == []


def test_ranges_go_after_the_old_superblock(pool, monkeypatch):
    """Whoever is interrupted has the old file system with all ranges, or none."""

    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    whole = len(ranges(pool))
    with Region.open([pool]) as region:
        sb = mkfs.plan(region)
        monkeypatch.setattr(Pool, "clear", crash)
        drain = region.drain
        region.drain = crash
        with pytest.raises(Crash):
            mkfs.make(region, sb)
        assert len(ranges(pool)) == whole, "before the drain"
        region.drain = drain
        with pytest.raises(Crash):
            mkfs.make(region, sb)
    with open(pool + "region", "rb") as file:
        assert file.read(8) == bytes(8)
        file.seek(-4096, os.SEEK_END)
        assert file.read(8) == bytes(8)
    assert len(ranges(pool)) == whole


def test_a_new_pool_has_no_folder(tmp_path, run):
    path = str(tmp_path / "new") + "/"
    assert run("--size", "16M", path)[0] == 0
    assert os.listdir(path) == ["region"]
    failing = str(tmp_path / "small") + "/"
    assert run("--size", "1M", failing)[0] == 1
    assert not os.path.exists(failing)


# -- info ---------------------------------------------------------------------------------------


def info(*args):
    result = CliRunner().invoke(daxfs_main.command, ["info", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_info_shows_ranges_and_features(pool):
    found = json.loads(info("--json", pool).stdout)
    have = [os.stat(os.path.join(pool, "ranges", name)) for name in ranges(pool)]
    assert found["ranges"] == {
        "count": len(have),
        "bytes": sum(one.st_size for one in have),
        "stored_bytes": sum(one.st_blocks for one in have) * 512,
    }
    text = info(pool).stdout
    assert "own ranges" in text and f"{len(have)}, " in text
    assert "features" in text and "flags of inodes, own ranges" in " ".join(text.split())


def test_info_of_a_pool_without_ranges_and_of_a_file(pool, run):
    assert run("--force", pool)[0] == 0
    os.rmdir(pool + "ranges")
    assert json.loads(info("--json", pool).stdout)["ranges"]["count"] == 0
    assert json.loads(info("--json", pool + "region").stdout)["ranges"] is None
    assert "own ranges" not in info(pool + "region").stdout


def test_info_of_a_damaged_pool(pool):
    shutil.rmtree(pool + "ranges")
    assert json.loads(info("--json", pool).stdout)["ranges"]["count"] == 0
    assert os.listdir(pool) == ["region"]
    os.symlink("/etc", pool + "ranges")
    assert "symbolic link" in json.loads(info("--json", pool).stdout)["problems"][0]


def test_a_read_only_mount_of_it_can_be_walked(pool):
    with Region.open([pool], "cow") as region:
        mounted = meta_fs.mount(region, readonly=True)
        assert mounted.sb.incompat == L.INCOMPAT_OWN
        assert populate.tree(mounted)[b"/dax/small"][6] == populate.content(10000, 20)
