# SPDX-License-Identifier: MIT
"""daxfs poison on regions that nobody has mounted, in this process: sizes, errors, exit status, words."""

import json
import os
import shutil

import populate
import pytest

from daxfs import layout as L
from daxfs.cli import fsck
from daxfs.cli import main as daxfs_main
from daxfs.meta import fs as meta_fs
from daxfs.meta import namespace, poison
from daxfs.region import Region

PAGE = 4096


@pytest.fixture
def source():
    path = populate.make(f"/dev/shm/daxfs-poison-command-{os.getpid()}")
    yield path
    os.unlink(path)


@pytest.fixture
def run(capfd):
    """run(arguments) -> (status, stdout, stderr) of daxfs poison."""

    def call(*args, main=daxfs_main.main, prefix=("poison",)):
        capfd.readouterr()
        status = main([*prefix, *map(str, args)])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err and "internal error" not in err, out + err
        return status, out, err

    return call


def listed(run, source) -> list:
    status, out, _ = run("list", source, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["bytes"] == sum(one["length"] for one in found["poison"])
    return [(one["offset"], one["length"]) for one in found["poison"]]


def data_of(source, path=b"sparse") -> int:
    """The byte of the region at which the file begins."""
    with Region.open([source], "cow") as region:
        fs = meta_fs.mount(region)
        ino = namespace.lookup(fs, L.ROOT_INO, path).ino
        return fs.node(ino).map.extents(0, 1)[0][2] * PAGE


def test_add_list_clear(run, source):
    at = data_of(source)
    assert run("list", source)[:2] == (0, "nothing is poisoned\n")
    status, out, _ = run("add", source, at + 10, 1)
    assert status == 0
    assert out == f"{source}: 4096 bytes poisoned (1 pages, rounded to {at}+4096)\n"
    assert listed(run, source) == [(at, PAGE)]
    assert f"{at:#014x}" in run("list", source)[1]
    status, out, _ = run("add", source, at, "4K")
    assert (status, out) == (0, f"{source}: 0 bytes poisoned (0 pages)\n")
    assert run("clear", source, f"{at // 1024}K", "1M")[0] == 0 and listed(run, source) == []


def test_sizes_with_suffixes(run, source):
    assert run("add", source, "12M", "8k")[0] == 0
    assert listed(run, source) == [(12 << 20, 8192)]
    assert run("clear", source, "0", "1T")[0] == 1, "beyond the region"
    assert run("clear", source, "12M", "0.5M")[0] == 0 and listed(run, source) == []


def test_metadata(run, source):
    status, _, err = run("add", source, 0, 1)
    assert status == 1 and "superblock" in err and "--force" in err and err.count("\n") == 1
    assert listed(run, source) == []
    assert run("add", "--force", source, 0, 1)[0] == 0
    assert run("-n", source, main=fsck.main, prefix=())[0] == fsck.LEFT
    assert run(source, prefix=("info",))[0] == 1
    assert run("clear", source, 0, 1)[0] == 0
    assert run("-n", source, main=fsck.main, prefix=())[0] == fsck.CLEAN


def test_fsck_and_info_show_it(run, source):
    at = data_of(source)
    run("add", source, at, PAGE)
    status, _, err = run("-n", source, main=fsck.main, prefix=())
    assert status == fsck.CLEAN and "1 pages of its data are poisoned" in err
    status, out, _ = run(source, prefix=("info",))
    assert status == 0 and "4.0 KiB (daxfs poison list)" in out and "poison" in out
    with Region.open([source]) as region:
        fs = meta_fs.mount(region)
        assert fs.poison.pages == 1
        fs.unmount()
    assert run("-p", source, main=fsck.main, prefix=())[0] == fsck.CLEAN


@pytest.mark.parametrize("args, status, text", [
    (("add", "{}", "x", "1"), 1, "'x' is no size"),
    (("add", "{}", "4096", "0"), 1, "'0' is no size"),
    (("add", "{}", "-1", "1"), 2, "-1"),
    (("add", "{}", "1"), 2, "LENGTH"),
    (("add", "{}", "1P", "1"), 1, "not in the region"),
    (("add", "/nowhere", "1", "1"), 1, "/nowhere"),
    (("list", "/nowhere"), 1, "/nowhere"),
    (("list", "/proc"), 1, "/proc"),
    (("list", "/dev/null"), 1, "/dev/null"),
    (("frob", "{}"), 2, "frob"),
    ((), 2, ""),
])
def test_wrong_use(run, source, args, status, text):
    before = populate.digest(source)
    have, _, err = run(*(arg.format(source) for arg in args))
    assert have == status and text in err and err.count("\n") <= 1 + (not args) * 50, err
    assert populate.digest(source) == before


def test_a_region_that_is_busy(run, source):
    with Region.open([source]):
        status, _, err = run("add", source, "12M", "1")
    assert status == 1 and "busy" in err


def test_a_full_list(run, source):
    with Region.open([source]) as region:
        fs = meta_fs.mount(region)
        start = max(fs.alloc.runs(), key=lambda one: one[1])[0]
        runs = [(poison.PACKED, start + 2 * n, start + 2 * n + 1) for n in range(220)]
        poison.add(fs, runs)
        fs.unmount()
    status, _, err = run("add", source, (start + 500) * PAGE, 1)
    assert status == 1 and "room for 220 runs" in err and len(listed(run, source)) == 220


def test_a_pool_directory(run):
    path = populate.make(f"/dev/shm/daxfs-poison-pool-{os.getpid()}/", own_ranges=True)
    try:
        at = data_of(path)
        assert run("add", path, at, 1)[0] == 0
        assert listed(run, path) == [(at, PAGE)]
        assert run("-n", path, main=fsck.main, prefix=())[0] == fsck.CLEAN
    finally:
        shutil.rmtree(path)
