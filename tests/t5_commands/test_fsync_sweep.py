# SPDX-License-Identifier: MIT
"""tools/fsync_sweep.py as a user runs it, on real mounts: what it counts, goes on with, refuses and skips."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mounts
import pytest

from daxfs._flush import Flush

PROGRAM = Path(__file__).resolve().parents[2] / "tools/fsync_sweep.py"
TINY = ["--mapped", "2M", "--samples", "3", "--rounds", "2"]
MIB = 1 << 20


def start(*args) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, PROGRAM, *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)


def sweep(*args, status: int = 0, **kwargs) -> str:
    """Its output; the status has to be *status*, and nothing of it may be left."""
    done = subprocess.run([sys.executable, PROGRAM, *map(str, args)], stdin=subprocess.DEVNULL, timeout=120,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True, **kwargs)
    assert done.returncode == status, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def rows(directory: Path) -> list[dict]:
    """The complete lines of samples.jsonl."""
    text = (directory / "samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def visits(directory: Path) -> list[tuple]:
    return [(row["family"], tuple(sorted(row["cell"].items())), row["round"]) for row in rows(directory)]


def left_of(pid: int) -> list[str]:
    """Mount points of the run with *pid*."""
    return re.findall(rf"\S*daxfs-lab-{pid}-\S*", Path("/proc/self/mounts").read_text())


def until(what, seconds: float = 60):
    """*what*(), as soon as it is something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def samples_in(directory: Path):
    """For `until`: whether there are some."""
    return lambda: (directory / "samples.jsonl").exists() and len(rows(directory)) >= 2


@pytest.mark.mount
def test_what_is_flushed_is_what_the_policy_forces(tmp_path):
    """One unit of each policy, one fence, and one line for the times."""
    out = sweep("--dirty", "64,4K", "--track", "pte,line,pmd,extent,none", *TINY, "--output", tmp_path)
    assert "time of the call" in out and "median, quartiles" in out
    flushed = {"pte": [4096, 4096], "line": [64, 4096], "pmd": [2 * MIB, 2 * MIB],
               "extent": [2 * MIB, 2 * MIB], "none": [0, 0]}  # fmt: skip
    found = rows(tmp_path)
    assert len(found) == 2 * 5 * 2
    for row in found:
        cell, counts = row["cell"], row["counts"]
        wanted = flushed[cell["track"]][cell["dirty"] != 64]
        assert counts["flushed_bytes"] == wanted, cell
        assert counts["flush_lines"] == wanted / 64 + 1, cell
        assert counts["drain"] == 1 and counts["nt_bytes"] == 0, cell
        assert 1 <= len(row["samples"]["ns"]) == len(row["samples"]["store_ns"]) <= 3
        assert all(0 < ns < 10**9 for ns in row["samples"]["ns"])
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["ended"] and facts["seed"] == 1 and facts["options"]["samples"] == 3
    assert set(facts["host"]) >= {"commit", "kernel", "cpu", "cpus", "memory_bytes", "flush"}


@pytest.mark.mount
def test_every_instruction_of_this_cpu_is_measured(tmp_path):
    """flush=none is for granularity=byte alone, which the sweep asks for."""
    kinds = ["clflush", "none", Flush().kind]
    sweep("--dirty", "4K", "--flush", ",".join(kinds), *TINY, "--rounds", 1, "--output", tmp_path)
    assert {row["cell"]["flush"] for row in rows(tmp_path) if row["samples"]} == set(kinds)


@pytest.mark.mount
def test_what_goes_past_the_cache_is_not_flushed(tmp_path):
    sweep("--dirty", "4K", "--write", "nt,cached", "--drain", "write,fsync", *TINY, "--output", tmp_path)
    drains = {"write": 2, "fsync": 1, None: 1}  # the write's own, and fsync's
    found = rows(tmp_path)
    assert {row["cell"].get("drain") for row in found} == set(drains)
    for row in found:
        past = row["cell"]["write"] == "nt"
        assert row["counts"]["nt_bytes"] == (4096 if past else 0)
        assert row["counts"]["flushed_bytes"] == (0 if past else 4096)
        assert row["counts"]["drain"] == drains[row["cell"].get("drain")]
        sums = zip(row["samples"]["store_ns"], row["samples"]["ns"], strict=True)
        assert row["samples"]["total_ns"] == [store + call for store, call in sums]


@pytest.mark.mount
def test_extents_are_the_region_s_and_units_a_file_s(tmp_path):
    """S15: what is dirty in another file is flushed, too; extents that nobody used are not."""
    sweep("--other", "0,4M", "--track", "pte,none,extent", "--history", "fresh", *TINY, "--rounds", 3,
          "--output", tmp_path)
    flushed = {("pte", 0): 4096, ("pte", 4 * MIB): 4096, ("none", 0): 0, ("none", 4 * MIB): 0,
               ("extent", 0): MIB, ("extent", 4 * MIB): 5 * MIB}  # fmt: skip
    assert len(rows(tmp_path)) == 18
    for row in rows(tmp_path):
        # In every round: nothing that a visit left dirty, or unknown, is flushed by the next one.
        assert row["counts"]["flushed_bytes"] == flushed[row["cell"]["track"], row["cell"]["other"]], row


@pytest.mark.mount
def test_a_last_close_clears_what_extent_clear_has(tmp_path):
    """While the file is open all that was ever stored to is flushed; later what was stored since."""
    sweep("--track", "extent,extent+clear", "--history", "used,closed", *TINY, "--output", tmp_path)
    flushed = {(row["cell"]["track"], row["cell"]["history"], row["counts"]["flushed_bytes"])
               for row in rows(tmp_path)}
    assert flushed == {("extent", "used", 2 * MIB), ("extent", "closed", 2 * MIB),
                       ("extent+clear", "used", 2 * MIB), ("extent+clear", "closed", MIB)}


@pytest.mark.mount
def test_mappings_by_who_observes_them(tmp_path):
    """Plain: all of the file. Observed: the page that was stored to. msync: in the process, no request."""
    if reason := mounts.why_no_direct("dev"):
        pytest.skip(reason)
    out = sweep("--via", "mmap,kernel,kernel-pte,user", "--call", "fsync,msync", *TINY, "--mapped", "4M",
                "--rounds", 1, "--output", tmp_path)
    assert "skipped, cross, 1 cell: msync of a plain direct mapping" in out
    got = {(row["cell"]["via"], row["cell"]["call"]): row["counts"]
           for row in rows(tmp_path) if "counts" in row}
    flushed = {via: counts["flushed_bytes"] for (via, call), counts in got.items() if call == "fsync"}
    assert flushed == {"mmap": 4 * MIB, "kernel": 2 * MIB, "kernel-pte": 4096, "user": 2 * MIB}
    lines = {via: counts["client_lines"] for (via, call), counts in got.items() if call == "msync"}
    # fault=user: entries of 2 MiB in the daemon, but pages of 4 KiB in the page table (docs/fault.md).
    assert lines == {"kernel": 2 * MIB / 64, "kernel-pte": 64, "user": 64}
    assert all(counts["flushed_bytes"] == 0 for (_, call), counts in got.items() if call == "msync")


@pytest.mark.mount
def test_a_killed_run_goes_on(tmp_path):
    """Its mounts are taken away; a torn line is cut off; no visit is made twice."""
    work = ["--dirty", "64,4K", "--track", "pte,none", "--mapped", "1M", "--rounds", 20, "--output", tmp_path]
    run = start(*work)
    until(samples_in(tmp_path))
    run.kill()
    run.communicate()
    there = visits(tmp_path)
    assert 0 < len(there) < 80 and left_of(run.pid)
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write('{"family": "cross", "cell": {"dirty": 64, "tr')
    out = sweep(*work)
    assert not left_of(run.pid) and "a run was killed" in out
    assert f"goes on in {tmp_path}: {len(there)} visits are there" in out
    found = visits(tmp_path)
    assert found[: len(there)] == there and len(found) == len(set(found)) == 80
    assert [row["seq"] for row in rows(tmp_path)] == list(range(80))
    facts = json.loads((tmp_path / "run.json").read_text())
    assert len(facts["sittings"]) == 2 and facts["ended"]
    # And a third time there is nothing to do.
    assert "is complete already: 80 visits" in sweep(*work)
    assert visits(tmp_path) == found


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_cleans_up(tmp_path, number):
    run = start("--track", "pte,none", *TINY, "--rounds", 5000, "--output", tmp_path)
    until(samples_in(tmp_path))
    run.send_signal(number)
    out = run.communicate(timeout=60)[0]
    assert run.returncode == 130 and "the same command goes on" in out and "Traceback" not in out
    assert not left_of(run.pid)
    assert json.loads((tmp_path / "run.json").read_text())["ended"] is None


@pytest.mark.mount
def test_another_run_s_directory_is_refused(tmp_path):
    sweep(*TINY, "--rounds", 1, "--output", tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes(), (tmp_path / "run.json").read_bytes()
    out = sweep(*TINY, "--rounds", 1, "--seed", 2, "--output", tmp_path, status=2)
    assert re.search(r"holds another run \(options, seed differ\): take another --output, or --anew", out)
    assert before == ((tmp_path / "samples.jsonl").read_bytes(), (tmp_path / "run.json").read_bytes())
    sweep(*TINY, "--rounds", 1, "--seed", 2, "--output", tmp_path, "--anew")
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 2 and len(rows(tmp_path)) == 1


@pytest.mark.mount
def test_two_runs_don_t_share_a_directory(tmp_path):
    run = start("--track", "pte,none", *TINY, "--rounds", 5000, "--output", tmp_path)
    until(samples_in(tmp_path))
    assert "another run uses it" in sweep(*TINY, "--output", tmp_path, status=2)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130


@pytest.mark.mount
def test_a_daemon_that_dies_ends_the_run(tmp_path):
    run = start("--track", "pte,none", *TINY, "--rounds", 5000, "--output", tmp_path)
    until(samples_in(tmp_path))
    (point,) = [path for path in left_of(run.pid) if mounts.mounts_of(path) == [mounts.FS_TYPE]]
    stat = mounts.run([mounts.command("daxfs"), "stat", "--json", point]).stdout
    os.kill(json.loads(stat)["pid"], signal.SIGKILL)
    out = run.communicate(timeout=60)[0]
    assert run.returncode == 1 and "Traceback" not in out
    assert re.search(r"^fsync_sweep\.py: the daemon of the mount with \S+ died", out, re.MULTILINE)
    assert "what was measured before is in" in out and len(rows(tmp_path)) >= 2
    assert not left_of(run.pid)
    assert not any("skipped" in row for row in rows(tmp_path))


@pytest.mark.mount
def test_what_can_t_be_had_is_skipped(tmp_path):
    out = sweep("--transport", "pyfuse3,dev", "--via", "kernel", *TINY, "--output", tmp_path)
    assert re.search(r"skipped, cross, 1 cell: no direct mappings: \S+", out)
    assert [row["cell"]["transport"] for row in rows(tmp_path) if "samples" in row] == ["dev", "dev"]
    out = sweep("--mapped", "7G", "--via", "mmap", "--rounds", 1, "--output", tmp_path / "large", status=2)
    assert re.search(r"no room for a file of 7 GiB: \d+ MiB are free|a file of 7 GiB needs 7168 MiB", out)
    assert "nothing could be measured" in out


@pytest.mark.mount
def test_without_a_compiler_it_says_so(tmp_path):
    out = sweep(*TINY, "--output", tmp_path, status=2, env={"PATH": "/nonexistent"})
    assert out == ("fsync_sweep.py: no C compiler (cc), which makes the program that is timed: "
                   "apt install gcc\n")


@pytest.fixture(scope="module")
def module():
    """The program as a module, to ask it quickly."""
    spec = importlib.util.spec_from_file_location("fsync_sweep", PROGRAM)
    made = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        spec.loader.exec_module(made)
        yield made
    finally:
        sys.path.remove(str(PROGRAM.parent))


@pytest.mark.parametrize(("args", "said"), [
    ("--dirty 4X", "'4X': numbers with commas"), ("--dirty 0", "not less than 64"),
    ("--track pte,huge", "'huge': one of pte, pmd"), ("--family dirt", "'dirt': one of dirty, mapped"),
    ("--cpu 4096", "'4096': any, or one of"), ("--rounds 0", "--rounds: invalid positive int value"),
    ("--seconds nan", "--seconds: invalid positive float value"), ("--seed x", "--seed: invalid int value"),
    ("--dirty 1M --mapped 64K", "more dirty bytes than the file has"),
    ("--call msync", "msync needs a mapping"), ("--flushers 0", "not less than 1"),
    ("--family dirty --track pte", "--family and values of axes: one or the other"),
    ("--flushers 17", "flushers=17: at most 16"),
    ("--options nonsense=1", "unknown mount option 'nonsense'"),
    ("--options transport=dev", "--options: transport is an axis: --transport"),
    ("--emulate /nowhere.toml", "/nowhere.toml: No such file"),
    ("--frobnicate", "unrecognized arguments: --frobnicate"),
])
def test_wrong_values_are_one_line(module, monkeypatch, capsys, args, said):
    monkeypatch.setattr(sys, "argv", ["fsync_sweep.py", *args.split()])
    with pytest.raises(SystemExit) as ended:
        module.parsed()
    out = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in out and out.startswith("fsync_sweep.py: ") and out.count("\n") == 1


def test_help_names_every_axis_and_family(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fsync_sweep.py", "--help"])
    with pytest.raises(SystemExit):
        module.parsed()
    out = capsys.readouterr().out
    assert all(f"--{axis}" in out for axis in module.AXES)
    assert all(name in out for name in module.SHAPES)


@pytest.mark.parametrize("quick", [True, False])
def test_families_are_whole(module, quick):
    """Each cell can be, none is there twice, and what a figure is drawn by is in it."""
    for name, shape in module.SHAPES.items():
        made = module.family(module.Bench(module.Worker(), "", 1), name, shape, quick)
        keys = [cell.key for cell in made.cells]
        assert len(keys) == len(set(keys)) > 1
        axes = set(made.line) | set(made.panel) | {made.x}
        assert axes <= set(module.AXES) and made.measure in module.MEASURES
        assert any(axes <= set(cell.axes) for cell in made.cells)
        assert set(made.draw) <= {"lines", "cdf", "bars", "phases"} and len(made.words.split()) > 20


def test_wrong_values_end_the_program(tmp_path):
    out = sweep("--track", "huge", "--output", tmp_path / "new", status=2)
    assert out.startswith("fsync_sweep.py: argument --track: 'huge': one of pte, pmd, ")
    assert not (tmp_path / "new").exists()
