# SPDX-License-Identifier: MIT
"""L1: what is detected on this host and on a made-up sysfs, and what may be forced."""

import errno
import os
import stat

import pytest

from daxfs import granularity
from daxfs._window import file_facts
from daxfs.errors import UsageError
from daxfs.granularity import ORDER, TMPFS_MAGIC, Detected, choose, coarsest, detect

DEVICE = os.makedev(1, 2)
EXT4_MAGIC = 0xEF53


def test_memory_is_emulated(tmp_path):
    fd = os.memfd_create("daxfs-test")
    try:
        assert file_facts(fd)[0] == TMPFS_MAGIC
        found = detect(fd)
    finally:
        os.close(fd)
    assert (found.granularity, found.medium, found.emulated) == ("cache_line", "emulated", True)
    assert "not power-fail safe" in found.why


def test_a_file_on_disk_is_page(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    found = detect(path)
    if found.emulated:
        pytest.skip(f"{tmp_path} is on {found.why.split()[0]}, no disk")
    if found.medium == "fsdax":
        pytest.skip(f"{tmp_path} is on a DAX file system")
    assert found == detect(str(path))
    assert (found.granularity, found.medium) == ("page", "disk")


def test_a_device_that_is_no_devdax_is_refused():
    with pytest.raises(UsageError) as info:
        detect("/dev/null")
    assert info.value.errno == errno.EINVAL and "devdax" in str(info.value)


@pytest.fixture
def sysfs(tmp_path):
    """Makes devices/NAME with a link dev/KIND/1:2 to it, and what else is asked for."""

    def make(kind, where, subsystem=None, domain=None, dev=DEVICE):
        device = tmp_path / "devices" / where
        device.mkdir(parents=True)
        if subsystem:
            (tmp_path / "bus" / subsystem).mkdir(parents=True)
            (device / "subsystem").symlink_to(tmp_path / "bus" / subsystem)
        if domain:
            region = next(p for p in device.parents if p.name.startswith("region"))
            (region / "persistence_domain").write_text(domain + "\n")
        link = tmp_path / "dev" / kind / f"{os.major(dev)}:{os.minor(dev)}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(device)
        return device

    make.root = tmp_path
    return make


class FakeDescriptor:
    """fstat, statfs and MAP_SYNC as a device or a DAX file would answer."""

    def __init__(self, monkeypatch, mode=stat.S_IFREG, dev=DEVICE, dax=None, sync=False):
        answer = os.stat_result((mode, 1, dev, 1, 0, 0, 4096, 0, 0, 0), {"st_rdev": dev})
        monkeypatch.setattr(granularity.os, "fstat", lambda fd: answer)
        monkeypatch.setattr(granularity, "file_facts", lambda fd: (EXT4_MAGIC, 4096, dax))
        monkeypatch.setattr(granularity, "map_sync_works", lambda fd: sync)


NVDIMM = "platform/ndbus0/region0/"


@pytest.mark.parametrize("domain, expected", [
    ("cpu_cache", "byte"), ("memory_controller", "cache_line"), (None, "cache_line"),
])
def test_devdax(monkeypatch, sysfs, domain, expected):
    sysfs("char", NVDIMM + "dax0.0/dax/dax0.0", "dax", domain)
    FakeDescriptor(monkeypatch, stat.S_IFCHR)
    found = detect(3, sysfs.root)
    assert (found.granularity, found.medium, found.emulated) == (expected, "devdax", False)


def test_devdax_of_volatile_memory_is_emulated(monkeypatch, sysfs):
    sysfs("char", "platform/hmem.0/dax0.0", "dax")
    FakeDescriptor(monkeypatch, stat.S_IFCHR)
    found = detect(3, sysfs.root)
    assert found.emulated and found.granularity == "cache_line" and "volatile" in found.why


@pytest.mark.parametrize("dax, sync, domain, medium, expected", [
    (True, True, None, "fsdax", "cache_line"),
    (None, True, None, "fsdax", "cache_line"),
    (True, True, "cpu_cache", "fsdax", "byte"),
    (True, False, "cpu_cache", "fsdax", "page"),
    (False, False, "cpu_cache", "disk", "page"),
])
def test_fsdax(monkeypatch, sysfs, dax, sync, domain, medium, expected):
    sysfs("block", NVDIMM + "namespace0.0/block/pmem0", domain=domain)
    FakeDescriptor(monkeypatch, dax=dax, sync=sync)
    found = detect(3, sysfs.root)
    assert (found.granularity, found.medium, found.emulated) == (expected, medium, False)


@pytest.mark.parametrize("domains, expected", [
    (("cpu_cache", "cpu_cache"), "byte"), (("cpu_cache", "memory_controller"), "cache_line"),
])
def test_fsdax_on_device_mapper_asks_every_device_below(monkeypatch, sysfs, domains, expected):
    mapper = sysfs("block", "virtual/block/dm-0")
    (mapper / "slaves").mkdir()
    for number, domain in enumerate(domains):
        below = sysfs("block", f"platform/ndbus0/region{number}/namespace{number}.0/block/pmem{number}",
                      domain=domain, dev=os.makedev(9, number))
        (mapper / "slaves" / f"pmem{number}").symlink_to(below)
    FakeDescriptor(monkeypatch, sync=True)
    assert detect(3, sysfs.root).granularity == expected


@pytest.mark.parametrize("where, dev, medium, emulated", [
    (NVDIMM + "namespace0.0/block/pmem0", os.makedev(259, 0), "pmem block", False),
    ("virtual/block/loop0", os.makedev(7, 0), "loop", False),
    ("virtual/block/ram0", os.makedev(1, 0), "ram disk", True),
    ("pci/block/sda", os.makedev(8, 0), "block device", False),
])
def test_block_devices_are_page(monkeypatch, sysfs, where, dev, medium, emulated):
    sysfs("block", where, dev=dev)
    FakeDescriptor(monkeypatch, stat.S_IFBLK, dev)
    found = detect(3, sysfs.root)
    assert (found.granularity, found.medium, found.emulated) == ("page", medium, emulated)


REAL = {level: Detected(level, "fsdax", False, "because") for level in ORDER}
EMULATED = Detected("cache_line", "emulated", True, "tmpfs is ordinary memory")


@pytest.mark.parametrize("found", ORDER)
@pytest.mark.parametrize("forced", ORDER)
def test_coarser_may_be_forced_finer_may_not(found, forced):
    if ORDER.index(forced) >= ORDER.index(found):
        assert choose(REAL[found], forced) == forced
        return
    with pytest.raises(UsageError) as info:
        choose(REAL[found], forced)
    assert "because" in str(info.value) and "auto" in str(info.value)


def test_auto_emulated_and_unknown():
    assert choose(EMULATED) == choose(EMULATED, "auto") == "cache_line"
    assert [choose(EMULATED, level) for level in ORDER] == list(ORDER)
    ram_disk = Detected("page", "ram disk", True, "page cache")
    for forced in ("byte", "cache_line", "line", "PAGE"):
        with pytest.raises(UsageError):
            choose(ram_disk, forced)
    assert coarsest(["byte", "page", "cache_line"]) == "page" and coarsest(["byte"]) == "byte"
