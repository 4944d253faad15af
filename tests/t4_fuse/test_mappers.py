# SPDX-License-Identifier: MIT
"""Who has a file mapped, in a made-up /proc: by device and inode; who ends or can not be read."""

import builtins
import os

import pytest

from daxfs.fuse.mappers import mappers

DEVICE = os.makedev(0, 0x39)
INO = (1 << 40) + 1
LINES = {
    1: "7f00-7f10 r--p 00000000 08:01 5  /bin/sh\n",
    20: f"7f00-7f10 rw-s 00000000 00:39 {INO} /mnt/0\n",
    21: f"7f00-7f10 rw-s 00000000 00:39 {INO} /mnt/a name (deleted)\n7f20-7f30 rw-p 00000000 00:00 0 \n",
    30: f"7f00-7f10 rw-s 00000000 00:40 {INO} /other/0\n",
    31: f"7f00-7f10 rw-s 00000000 00:39 {INO + 1} /mnt/1\n7f20-7f30 rw-p 00000000 00:00 0 [heap]\n",
    32: "",
}


@pytest.fixture
def proc(tmp_path):
    for pid, text in LINES.items():
        (tmp_path / str(pid) / "task" / str(pid + 1000)).mkdir(parents=True)
        (tmp_path / str(pid) / "maps").write_text(text)
    (tmp_path / "40").mkdir()  # has ended since the directory was listed
    (tmp_path / "self").mkdir()
    return tmp_path


def test_found_by_device_and_inode(proc):
    assert sorted(mappers(DEVICE, INO, set(), str(proc))) == [20, 21]
    assert mappers(DEVICE, INO + 1, set(), str(proc)) == [31]
    assert mappers(DEVICE, 1, set(), str(proc)) == []


def test_one_that_may_not_be_looked_at_counts_if_it_has_opened_the_file(proc, monkeypatch):
    plain = open

    def refusing(path, *args):
        if path == f"{proc}/1/maps":
            raise PermissionError(path)
        return plain(path, *args)

    monkeypatch.setattr(builtins, "open", refusing)
    assert sorted(mappers(DEVICE, INO, {1020, 1030}, str(proc))) == [20, 21]
    assert sorted(mappers(DEVICE, INO, {1001}, str(proc))) == [1, 20, 21]
