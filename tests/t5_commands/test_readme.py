# SPDX-License-Identifier: MIT
"""README.md says what is so: its commands are run, and what it shows has the shape of what they print.

Numbers, UUIDs and column widths may differ, words may not. Limits: `make` targets are only looked up, as they
would set up the machine; the region and the mount point of the tour are replaced by ones of the test.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import mounts
import pytest

from daxfs.cli import fsck, main, mkfs, mount
from daxfs.fault._decision import KIND_NAMES, REASON_NAMES, RESULT_NAMES
from daxfs.fuse import options

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])
REGION, MOUNTPOINT = "/dev/shm/region", "/mnt/dax"
PROGRAMS = {"mkfs.daxfs": mkfs.command, "fsck.daxfs": fsck.command, "mount.daxfs": mount.command}


def block(start: str) -> str:
    """The one code block that starts with *start*."""
    (found,) = [text for text in BLOCKS if text.startswith(start)]
    return found


def tour(start: str) -> list[tuple[str, list[str]]]:
    """(command, the lines shown below it) of the part of the tour that starts with *start*."""
    steps = []
    for line in block(start).replace("\\\n", "").splitlines():
        if line.startswith("# "):
            steps.append((line[2:].removesuffix("(shortened)").strip(), []))
        elif line.strip():
            steps[-1][1].append(line)
    return steps


def shape(line: str) -> str:
    """*line* with what differs from run to run, and from width to width, taken out."""
    line = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", line)
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?", "N", line)).strip()


def check_tables(shown: list[str], printed: list[str]) -> None:
    """The tables of `daxfs stat`: headings as shown, and their rows for operations; faults' words exist."""
    shapes = {shape(line) for line in printed}
    operations = {line.split()[0] for line in printed if line.strip()}
    heading = ""
    for line in shown:
        words = line.split()
        if words[0] in ("operation", "answered", "fault"):
            heading = words[0]
            assert shape(line) in shapes
        elif words[0] in ("coarse", "observed"):
            assert shape(line) in shapes
        elif heading == "fault" and "─" not in line:
            kind, order, result, reason = words[:4]
            assert kind in KIND_NAMES and order in ("PTE", "PMD")
            assert result in RESULT_NAMES and (reason in REASON_NAMES or reason.isdigit())
        elif heading in ("operation", "answered") and "─" not in line:
            assert words[0] in operations


def run_tour(start: str, places: dict[str, Path], tmp_path) -> list[str]:
    """Run each command of the part that starts with *start*, *places* for what it names; the commands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = []
    for command, shown in tour(start):
        words = command
        for name, place in places.items():
            words = words.replace(name, str(place))
        with open(tmp_path / "output", "w+") as output:  # a file: the daemon keeps a pipe open
            done = subprocess.run(["sh", "-c", words], cwd=tmp_path, stdin=subprocess.DEVNULL,
                                  stdout=output, stderr=subprocess.STDOUT, timeout=120, check=False,
                                  env={**os.environ, "PATH": path, "COLUMNS": "100"})  # fmt: skip
            output.seek(0)
            printed = output.read()
        for name, place in places.items():
            printed = printed.replace(str(place), name)
        assert done.returncode == 0, f"{words}\n{printed}"
        if command.startswith("daxfs stat"):
            check_tables(shown, printed.splitlines())
        elif shown:
            assert [shape(line) for line in shown] == [shape(line) for line in printed.splitlines()]
            if "PmdMapped" in shown[-1]:  # all of it, here too
                size, mapped = (int(line.split()[1]) for line in printed.splitlines())
                assert size == mapped > 0
        ran.append(command.split()[0])
    return ran


@pytest.mark.mount
@pytest.mark.skipif(not (shutil.which("fio") and shutil.which("xfs_io")), reason="no fio or no xfs_io")
def test_tour(tmp_path):
    region, mountpoint = Path(f"/dev/shm/{mounts.PREFIX}readme"), tmp_path / "dax"
    try:
        ran = run_tour("# mkfs.daxfs", {REGION: region, MOUNTPOINT: mountpoint}, tmp_path)
    finally:
        if mounts.mounts_of(mountpoint):
            mounts.run(["umount", "-l", mountpoint], check=False)
        region.unlink(missing_ok=True)
    assert ran == ["mkfs.daxfs", "mkdir", "echo", "xfs_io", "fio", "daxfs", "umount"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dax", "output"]  # nothing left behind


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0 or KERNEL < (6, 9), reason="no FUSE passthrough: root, kernel 6.9")
def test_tour_of_a_direct_mapping(tmp_path):
    below, mountpoint = tmp_path / mounts.PREFIX, tmp_path / "dax"
    mountpoint.mkdir()
    try:
        ran = run_tour("# mkdir -p /mnt/pmem", {"/mnt/pmem": below, MOUNTPOINT: mountpoint}, tmp_path)
    finally:
        for path in (mountpoint, below):
            if mounts.mounts_of(path):
                mounts.run(["umount", "-l", path], check=False)
    assert " ".join(ran) == "mkdir mkfs.daxfs mount.daxfs truncate python3 truncate daxfs xfs_io daxfs daxfs"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    spoken = "\n".join([*BLOCKS, *re.findall(r"`([^`\n]+)`", TEXT)])
    named = set(re.findall(r"^make ([a-z-]+)", spoken, re.MULTILINE))
    assert {"quickstart", "unquickstart", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_commands_and_switches_exist():
    for words in re.findall(r"`((?:daxfs|mkfs\.daxfs|fsck\.daxfs|mount\.daxfs)[^`]*)`", TEXT):
        program, *rest = words.split()
        command = PROGRAMS.get(program, main.command)
        with click.Context(command) as ctx:
            if program == "daxfs":
                command = main.command.get_command(ctx, rest[0])
            assert command, words
            known = {switch for param in command.get_params(ctx) for switch in param.opts}
        assert {word for word in rest if word.startswith("-")} <= known, words


def test_policies_are_those_of_the_mount():
    found = re.findall(r"`([a-z]+)=([a-z0-9_+]+(?:\|[a-z0-9_+]+)+)`", TEXT)
    assert {name for name, _ in found} == {"transport", "write", "drain", "flush", "granularity", "track"}
    for name, values in found:
        assert set(values.split("|")) - {"auto"} == set(options.CHOICES[name]) - {"auto"}, name


def test_fstab_line_is_understood():
    source, _, kind, text, *_ = block(f"{REGION} ").split()
    assert (source, kind) == (REGION, "fuse.daxfs")
    config = options.parse(",".join(option for option in text.split(",") if option != "noauto"))
    assert config.write == "nt"


def test_files_it_names_are_there():
    for name in re.findall(r"\bdocs/[\w./-]*\w", TEXT):
        assert (ROOT / name).exists(), name
