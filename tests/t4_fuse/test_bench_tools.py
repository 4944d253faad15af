# SPDX-License-Identifier: MIT
"""The tools that compare the transports, run shortly: they work, say what is missing, leave nothing behind.

What they measure here is no evidence; a missed target (exit status 1) is none of this test's affair.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.slow]
TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name, result, *args):
    """Run a tool of tools/ with --json; what it wrote there."""
    proc = subprocess.Popen([sys.executable, TOOLS / name, "--json", result, *args], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = proc.communicate(timeout=240)
    assert proc.returncode in (0, 1), out + err
    assert "Traceback" not in err, err
    # Everything that it mounts has its pid in the name; other programs may mount meanwhile.
    assert f"-{proc.pid}-" not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/dev/shm").glob(f"*-{proc.pid}-*"))
    return json.loads(result.read_text()), out


def here():
    """The transports of this host."""
    return [name for name in mounts.TRANSPORTS if not mounts.why_no_transport(name)]


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_transport(tmp_path):
    found, text = tool("bench/transport.py", tmp_path / "result", "--quick")
    rows = {row["what"]: row for row in found["rows"]}
    reads = rows["4 KiB read, µs, client on one CPU"]["values"]
    for name in mounts.TRANSPORTS:
        if name in here():
            assert 0.5 < reads[name] < 10_000
            assert rows[f"  4 KiB appends / overwrites, {name}"]["measured"] > 0
        else:
            assert reads[name] == "missing" and mounts.why_no_transport(name) in text
    assert rows["  uring / C"]["limit"] is None  # the last one: of the client that is not pinned
    samples = found["samples"]["4 KiB read, µs, client on one CPU"]
    assert [len(samples[name]) for name in here()] == [4] * len(here())


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_names(tmp_path):
    found, _ = tool("bench/names.py", tmp_path / "result", "--quick", "--pinned")
    rows = {row["what"]: row for row in found["rows"]}
    assert {"stat, absent", "stat, not known", "create", "unlink", "readdir of 50"} <= rows.keys()
    for name in mounts.TRANSPORTS:
        value = rows["create"]["values"][name]
        assert 0.5 < value < 100_000 if name in here() else value == "missing"


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(mounts.KERNEL < (6, 9), reason="no FUSE passthrough before kernel 6.9")
def test_mappings(tmp_path):
    found, _ = tool("bench/mappings.py", tmp_path / "result", "--quick")
    rows = {row["what"]: row for row in found["rows"]}
    values = rows["cycle"]["values"]
    for name in ("uring", "dev"):
        assert 1 < values[f"DAX {name}"] < 10_000 if name in here() else values[f"DAX {name}"] == "missing"
    assert 1 < values["tmpfs"] < 1000 and rows["cycle"]["limit"] == rows["cycle, free"]["limit"] == 60
    assert all(len(taken) == 2 for taken in found["samples"]["open, free"].values())


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_fsync(tmp_path):
    if why := mounts.why_no_transport("uring"):
        pytest.skip(why)
    found, _ = tool("bench/fsync.py", tmp_path / "result", "--quick")
    rows = {row["what"]: row for row in found["rows"]}
    for track in ("pte", "line"):
        row = rows[f"{track}, file of 64 MiB"]
        assert 0.5 < row["values"]["inside, µs"] < row["measured"] and row["limit"] == 15
        for what in ("file of", "MiB dirty", "MiB mapped"):
            assert rows[f"{track}: slowest / fastest, {what} …"]["measured"] >= 1
    assert rows["in this process: more than plain"]["limit"] == 2


@pytest.mark.skipif(not shutil.which("xfs_io"), reason="xfs_io is not installed")
def test_state(tmp_path):
    """Marks in the region take slots there and less DRAM, those in DRAM none."""
    result, _ = tool("bench/state.py", tmp_path / "result.json", "--quick")
    values = {row["what"]: row["values"] for row in result["rows"]}
    assert values["dense: slots of the region for the marks"] == {"mem": 0, "dev": 1, "dev / mem": "-"}
    memory = values["dense: bytes of DRAM for the marks"]
    assert memory["dev"] < memory["mem"]
    assert all(value > 0 for name, row in values.items() if ", ns" in name for value in row.values())


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_direct(tmp_path):
    result, _ = tool("bench/direct.py", tmp_path / "result.json", "--quick")
    rows = {row["what"]: row["values"] for row in result["rows"]}
    # Of the whole machine, so that anybody else's may be in it.
    assert rows.pop("memory of 100 files of 4 KiB, KiB")
    assert all(value > 0 for row in rows.values() for value in row.values())
    pmds = rows["of it mapped by PMDs, MiB"]
    assert pmds["DAX file"] == pmds["tmpfs file"] == 64


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no observed mappings before kernel 6.11")
def test_faults(tmp_path):
    result, _ = tool("bench/faults.py", tmp_path / "result.json", "--quick")
    rows = {row["what"]: row["values"] for row in result["rows"]}
    assert all(value > 0 for row in rows.values() for value in row.values())
    assert "touch 64 MiB, µs: kernel / plain" in rows
    assert "a fault of 4 KiB, µs: user / the smallest handler" in rows


@pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no observed mappings before kernel 6.11")
def test_observed(tmp_path):
    if why := mounts.why_no_transport("uring"):
        pytest.skip(why)
    found, _ = tool("bench/observed.py", tmp_path / "result", "--quick", "--mapped", "1",
                    "--against", sys.executable)
    rows = {row["what"]: row for row in found["rows"]}
    assert len(rows) == 16
    for fault in ("kernel", "user"):
        row, other = rows[f"{fault}, one CPU, 4 KiB"], rows[f"against: {fault}, one CPU, none"]
        assert row["values"]["look"] > 0 and row["values"]["flush"] > 0 and row["limit"] == 100
        assert other["values"]["flush"] == 0 < other["values"]["python"] and other["limit"] is None
        assert row["values"]["ratio"] > 0 and other["values"]["ratio"] == ""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_flushers(tmp_path):
    """The C client finds the file in the region and flushes as much as fsync does."""
    found, _ = tool("bench/flushers.py", tmp_path / "result", "--quick")
    rows = {row["what"]: row["values"] for row in found["rows"]}
    assert all(value > 0 for row in rows.values() for value in row.values())
    assert "fsync of 64 MiB, client free: two" in rows and "3 MiB, time of two / one" in rows
    assert [len(turn) for turn in found["samples"]["fsync, client free"]["two"]] == [3, 3]


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_tracker(tmp_path):
    found, _ = tool("bench/tracker.py", tmp_path / "result", "--quick")
    rows = {row["what"]: row["values"] for row in found["rows"]}
    assert all(value > 0 for row in rows.values() for value in row.values())
    assert {"1 MiB, dirty: pte", "64 MiB, clean: extent", "mount, free: line"} <= rows.keys()


def test_emulate(tmp_path):
    found, _ = tool("bench/emulate.py", tmp_path / "result", "--quick")
    rows = {row["what"]: row["values"] for row in found["rows"]}
    assert list(rows) == ["none", "dram", "pmem1", "pmem1-single", "pmem2", "cxl"]
    assert rows["none"]["nt asked"] == "-" and float(rows["pmem1"]["nt asked"]) == 388.4
    # Never shorter than the medium: the shortest of all samples, in ns.
    assert min(found["samples"]["write"]["pmem1-single"]) >= 472_000
    assert min(found["samples"]["fsync"]["pmem1-single"]) >= 1900


@pytest.mark.skipif(not shutil.which("stress-ng"), reason="stress-ng is not installed")
def test_stress(tmp_path):
    args = ["--seconds", "1", "--transport", "pyfuse3", "touch", "utime"]
    found, _ = tool("stress.py", tmp_path / "result", *args)
    states = {one["stressor"]: one["state"] for one in found}
    assert states == {"touch": "ok", "utime": "ok", "(fsck)": "ok", "(daemon)": "ok"}


def test_kill9_names_what_is_missing():
    done = mounts.run([sys.executable, TOOLS / "kill9.py", "--rounds", "0", "--transport", "all"])
    assert all(mounts.why_no_transport(name) in done.stdout
               for name in mounts.TRANSPORTS if name not in here())
