# SPDX-License-Identifier: MIT
"""tools/s17.py on real mounts, shortly: its counts are right, what is missing is named."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import loops
import mounts
import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "s17.py"
SIZE = 8 << 20
COMMANDS = "xfs_io mount umount git cc mkfs.ext4 mkfs.xfs losetup"

pytestmark = [pytest.mark.mount, pytest.mark.slow,
              pytest.mark.skipif(not shutil.which("xfs_io"), reason="xfs_io is not installed")]


def s17(output, *args, without="", before=""):
    """(status, rows, stdout, stderr) of the program; *without*: commands that its PATH lacks.

    *before*: Python that runs in its process first.
    """
    folder = output.with_name("bin")
    folder.mkdir(exist_ok=True)
    for name in set(COMMANDS.split()) - set(without.split()):
        if (found := shutil.which(name)) and not (folder / name).exists():
            (folder / name).symlink_to(found)
    command = [sys.executable, PROGRAM]
    if before:
        script = output.with_name("before.py")
        script.write_text(f"import runpy\nimport sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\n"
                          f"import lab.start\n{before}\nsys.argv = sys.argv[1:]\n"
                          "runpy.run_path(sys.argv[0], run_name='__main__')\n")
        command = [sys.executable, script, PROGRAM]
    command += ["--quick", "--rounds", "1", "--size", str(SIZE), "--output", output, *args]
    proc = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PATH": str(folder)})
    out, err = proc.communicate(timeout=240)
    assert "Traceback" not in err, err
    assert f"-{proc.pid}-" not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/dev/shm").glob(f"*-{proc.pid}-*"))
    samples = output / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()] if samples.exists() else []
    return proc.returncode, rows, out, err


def test_the_row_by_every_way_and_policy(tmp_path):
    status, rows, out, err = s17(tmp_path / "run")
    assert status == 0, out + err
    skipped = {row["cell"]["target"]: row["skipped"] for row in rows if "skipped" in row}
    missing = {name: reason for name in mounts.TRANSPORTS if (reason := mounts.why_no_transport(name))}
    missing |= {kind: reason for kind in ("ext4", "xfs") if (reason := loops.why_not(kind))}
    # The program itself allows io_uring.
    missing.pop("uring", None)
    assert skipped.items() <= missing.items()
    for row in rows:
        if "skipped" in row:
            continue
        cell, counts = row["cell"], row.get("counts", {})
        assert row["samples"]["write_mib_s"][0] >= row["samples"]["mib_s"][0] > 1
        if "placement" not in cell:
            assert cell["target"] in ("ext4", "xfs", "tmpfs", "tmpfs, 2 MiB") and not counts
            continue
        flushed, by_cache = counts["flushed_bytes"], row["family"] == "over" and cell["write"] == "cached"
        # Past the caches, so that fsync has nothing to write back; new blocks always.
        assert (counts["nt_bytes"] < SIZE) if by_cache else (counts["nt_bytes"] >= SIZE), row
        if cell["placement"] == "own":
            # xfs_io may have mapped it, for all that is known: fsync takes every page.
            assert flushed == counts["coarse_bytes"] == SIZE, row
        elif not by_cache or cell["target"] == "track=none":
            assert flushed == 0, row
        else:
            # By lines and pages what was written; by extents, 256 of the region, perhaps more.
            assert flushed == SIZE or (flushed > SIZE and "extent" in cell["target"]), row
            assert counts["flush_lines"] >= SIZE // 64
    targets = {row["cell"]["target"] for row in rows}
    assert targets >= {*mounts.TRANSPORTS, "track=pte", "track=pmd", "track=line", "track=extent",
                       "track=extent+clear", "track=none", "tmpfs"}
    assert "S17, 8m, by transport" in out and "over a file that is there, 8m" in out


@pytest.mark.skipif(bool(loops.why_not("ext4")), reason="no ext4 over a loop device")
def test_the_target_decides_the_exit_status(tmp_path):
    status, _, out, err = s17(tmp_path / "run", "--family", "ways", "--target")
    ratios = {name: float(ratio) for name, ratio in re.findall(r"target: (\w+) / ext4 ([0-9.]+)", out)}
    assert ratios.keys() >= {"dev"}, out + err
    assert status == (1 if "MISSED" in out else 0)
    assert ("MISSED" in out) == any(ratio <= 1 for ratio in ratios.values())
    # The same samples, but ext4 a thousand times as fast.
    samples = tmp_path / "run" / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    for row in rows:
        if row["cell"]["target"] == "ext4":
            row["samples"]["mib_s"] = [1000 * value for value in row["samples"]["mib_s"]]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, out, err = s17(tmp_path / "run", "--family", "ways", "--target")
    assert status == 1 and "MISSED" in out and "complete already" in err


def test_what_is_missing_is_skipped_by_name(tmp_path):
    status, rows, out, err = s17(
        tmp_path / "run", "--family", "ways", without="mkfs.xfs mkfs.ext4",
        before="import functools\nimport mounts\n"
               "mounts.why_no_transport = functools.cache({'uring': 'none here'}.get)")
    assert status == 0, out + err
    skipped = {row["cell"]["target"]: row["skipped"] for row in rows if "skipped" in row}
    assert skipped == {"uring": "none here", "xfs": "no xfs over a loop device: mkfs.xfs is not installed",
                       "ext4": "no ext4 over a loop device: mkfs.ext4 is not installed"}
    assert all(reason in out for reason in skipped.values())


@pytest.mark.parametrize("args, without, said", [
    (["--size", "3x"], "", "not a size"), (["--size", "1M"], "", "at least 8 MiB"),
    (["--family", "no"], "", "not one of ways"), (["--family", ""], "", "'': not one of ways"),
    (["--options", "nonsense=1"], "", "unknown mount option 'nonsense'"),
    (["--family", "policies", "--target"], "", "needs the"),
    ([], "xfs_io", "xfs_io is not installed")])
def test_what_can_t_be_is_one_line(tmp_path, args, without, said):
    status, _, out, err = s17(tmp_path / "run", *args, without=without)
    assert status == 2 and said in err and len(err.splitlines()) == 1 and not out
