# SPDX-License-Identifier: MIT
"""tools/xfs_io_suite.py and its scripts on real mounts: what it counts, refuses, skips and reports."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mounts
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

from lab import targets, xfs_io  # noqa: E402
from lab.plan import CellError  # noqa: E402

PROGRAM = ROOT / "tools/xfs_io_suite.py"
TINY = ["--size", "16M", "--runtime", "0.001", "--rounds", "1"]
MIB = 1 << 20
LINES = 16 * MIB // 64
REAL = pytest.mark.skipif(not shutil.which("xfs_io"), reason="xfs_io is not installed")
REPORTS = re.compile(r"^\d+,\d+,[\d:.]+,[\d.]+,[\d.]+$")


def suite(*args, status: int = 0, **kwargs) -> str:
    """Its output; the status has to be *status*, and nothing of it may be left."""
    process = subprocess.Popen([sys.executable, PROGRAM, *map(str, args)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == status, out
    assert "Traceback" not in out
    assert f"-{process.pid}-" not in Path("/proc/self/mounts").read_text()
    return out


def cells(directory: Path) -> dict[tuple, dict]:
    """Rows by job and target, of runs with one round."""
    text = (directory / "samples.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    made = {(row["cell"]["job"], row["cell"]["target"]): row for row in found}
    assert len(made) == len(found)
    return made


def on(*names: str) -> list[str]:
    return [word for name in names for word in ("--target", name)]


@pytest.fixture(scope="module")
def dax():
    """A folder on a mount, whose files have the DAX flag."""
    with mounts.MountedRegion(256 * MIB, pool="always") as region:
        region.mount("transport=dev")
        yield region.path


@pytest.fixture
def place():
    """Where scripts run without a mount of their own."""
    folder = Path("/dev/shm") / f"{mounts.PREFIX}scripts"
    folder.mkdir()
    yield targets.Place(targets.parse("tmpfs"), folder, None)
    shutil.rmtree(folder)


@REAL
@pytest.mark.mount
def test_scripts_by_hand(dax, tmp_path):
    """As their own comments say: sed and xfs_io. Nothing is said but reports; the bytes are there."""
    for job in xfs_io.jobs().values():
        path, file = xfs_io.FOLDER / f"{job.name}.xfs_io", dax / job.name
        (said,) = re.findall(r"^# By hand: (.*)$", path.read_text(), re.MULTILINE)
        command = said.replace("64m", "16m").replace("FILE", str(path)).replace("/mnt/dax/file", str(file))
        assert command.count(str(path)) == 1 and command.endswith(str(file))
        done = mounts.run(["sh", "-c", command], check=False, cwd=tmp_path)
        assert done.returncode == 0 and not done.stderr, (job.name, done.stderr)
        reports = done.stdout.splitlines()
        assert all(map(REPORTS.match, reports)), (job.name, done.stdout)
        assert len(reports) == (job.settings["sample"] == "report"), job.name
        xfs_io.check(job, targets.Place(targets.parse("own"), dax, None), file, 16 * MIB)
        file.unlink()


@REAL
@pytest.mark.mount
@pytest.mark.parametrize("target", ["packed", "own", "run-kernel", "tmpfs"])
def test_all_scripts(target, tmp_path):
    """Each of them, at least three times, by the suite; under daxfs run those that map."""
    out = suite("--job", "map" if target == "run-kernel" else "*", *on(target), *TINY, "--output", tmp_path)
    found = cells(tmp_path)
    assert {job for job, _ in found} == set(xfs_io.jobs()) or (target == "run-kernel" and len(found) > 10)
    # Of tmpfs's own: it has neither.
    missing = [job for job in xfs_io.jobs() if target == "tmpfs" and job.startswith(("fzero", "chattr"))]
    assert {job for (job, _), row in found.items() if "skipped" in row} == set(missing), out
    assert ("Operation not supported" in out) == bool(missing)
    for row in (row for row in found.values() if "skipped" not in row):
        assert len(row["samples"]["ns"]) >= 3 and min(row["samples"]["ns"]) > 0
        assert len(row["samples"].get("mib_s", [])) in (0, len(row["samples"]["ns"]))
        assert (row.get("counts", {}) != {}) == (target != "tmpfs")


@REAL
@pytest.mark.mount
class TestRun:
    def test_counts_are_those_of_the_scripts(self, tmp_path):
        """Lines flushed, bytes past the cache, drains and bytes by fsync, for each repetition."""
        policies = {"pte": 4096, "line": 4096, "pmd": 2 * MIB, "none": 0}
        cached = [f"packed:write=cached,track={track}" for track in policies]
        suite("--job", "fsync-4k,fsync-clean,write-2m", *on("packed", *cached), *TINY, "--output", tmp_path)
        names = ("flush_lines", "nt_bytes", "drain", "flushed_bytes")
        found = {cell: [row["counts"][name] for name in names] for cell, row in cells(tmp_path).items()}
        assert found["fsync-4k", "packed"] == [1, 4096, 2, 0]
        assert found["fsync-clean", "packed"] == [0, 0, 1, 0]
        assert found["write-2m", "packed"][1] == 16 * MIB
        for target, flushed in zip(cached, policies.values(), strict=True):
            assert found["fsync-4k", target] == [flushed / 64 + 1, 0, 1, flushed], target
            assert found["write-2m", target][1] == 0, target

    def test_mappings_cost_what_is_known_of_them(self, tmp_path):
        """A plain mapping makes fsync flush the whole file; an observed one the huge page of the store."""
        suite("--job", "fsync-mapped-4k", *on("own", "run-kernel"), *TINY, "--output", tmp_path)
        found = cells(tmp_path)
        assert found["fsync-mapped-4k", "own"]["counts"]["flush_lines"] == LINES
        observed = found["fsync-mapped-4k", "run-kernel"]["counts"]["flushed_bytes"]
        assert observed in (2 * MIB, 4096)  # as the tmpfs below had a huge page to give, or not

    def test_bandwidth_is_bytes_by_time(self, tmp_path):
        out = suite("--job", "write-4k,anew-1m,write-4k-fdatasync", *on("packed", "tmpfs"), *TINY,
                    "--output", tmp_path)
        assert "pwrite, by xfs_io's own report" in out and "drains" in out
        moved = {"write-4k": 16 * MIB, "anew-1m": MIB, "write-4k-fdatasync": 64 << 10}
        for (job, _), row in cells(tmp_path).items():
            for ns, mib_s in zip(row["samples"]["ns"], row["samples"]["mib_s"], strict=True):
                assert mib_s == pytest.approx(moved[job] / MIB / (ns / 1e9), rel=0.01)

    def test_what_a_transport_has_not_is_skipped(self, tmp_path):
        out = suite("--job", "falloc-4k,write-4k-direct", *on("packed:transport=pyfuse3"), *TINY,
                    "--output", tmp_path)
        found = cells(tmp_path)
        assert "Operation not supported" in found["falloc-4k", "packed:transport=pyfuse3"]["skipped"]
        assert "skipped, space, 1 cell" in out
        assert found["write-4k-direct", "packed:transport=pyfuse3"]["samples"]["ns"]

    def test_a_finished_run_is_not_made_again(self, tmp_path):
        arguments = ["--job", "fsync-4k", *on("tmpfs"), *TINY, "--output", tmp_path]
        suite(*arguments)
        before = (tmp_path / "samples.jsonl").read_bytes()
        assert "complete already" in suite(*arguments)
        assert (tmp_path / "samples.jsonl").read_bytes() == before

    def test_a_command_that_fails_ends_the_suite(self, tmp_path):
        """Exit status 1, with xfs_io's words and the command to see them again."""
        fake = tmp_path / "bin/xfs_io"
        fake.parent.mkdir()
        fake.write_text('#!/bin/sh\necho "pwrite: Input/output error"\nexit 3\n')
        fake.chmod(0o755)
        out = suite("--job", "fsync-4k", *on("packed:track=pmd"), *TINY, "--output", tmp_path / "out",
                    status=1, env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"})
        assert "Input/output error, ended with status 3" in out
        assert "again: tools/xfs_io_suite.py --job fsync-4k --target packed:track=pmd" in out
        assert "sed '/^#/d;" in out


def script(tmp_path: Path, text: str) -> xfs_io.Job:
    path = tmp_path / "planted.xfs_io"
    path.write_text(f"# planted: for a test\n{text}")
    return xfs_io.read(path)


@REAL
def test_wrong_data_are_found(tmp_path, place):
    """The test of the check: bytes of another value, and a file that is too short."""
    good = script(tmp_path, "# sample: report\n# timed\npwrite -C -S 0x61 0 64k\n# expect: 0x61 0 ${SIZE}\n")
    xfs_io.run(good, place, 64 << 10, 0.001)
    with pytest.raises(mounts.CommandError, match="WRONG DATA: byte 65536 is not 0x61"):
        xfs_io.run(good, place, 65 << 10, 0.001)
    other = script(tmp_path, "# sample: clock\n# timed\npwrite -q -S 0x61 0 64k\npwrite -q -S 0x62 5000 1\n"
                             "# expect: 0x61 0 64k\n")
    with pytest.raises(mounts.CommandError, match="WRONG DATA: byte 5000 is not 0x61"):
        xfs_io.run(other, place, 64 << 10, 0.001)


@REAL
@pytest.mark.parametrize(("text", "said"), [
    ("# sample: clock\n# timed\nfpunch x 4k\n", "non-numeric offset"),
    ("# sample: clock\n# timed\nno_such_thing 1\n", "not found"),
    ("# sample: clock\n# timed\npread 0 4k\n", "ops"),          # a report that nobody asked for
    ("# sample: report\n# timed\nfsync\n", "no report"),
    ("# sample: clock\n# timed\ntruncate 4k\nmmap -rw 0 64k\nmread 32k 4k\n", "SIGBUS"),
    ("# sample: clock\n# timed\nquit\n", "ended with status 0"),
])  # fmt: skip
def test_whatever_xfs_io_says_is_an_error(text, said, tmp_path, place):
    with pytest.raises((mounts.CommandError, CellError), match=said):
        xfs_io.run(script(tmp_path, text), place, MIB, 0.001)


@REAL
def test_report_is_xfs_ios_own_time(tmp_path, place):
    """Bytes and time of a report are those of the call, not of its way through the pipes."""
    job = script(tmp_path, "# sample: report\n# timed\npwrite -C -b 64k 0 8m\n")
    began = time.perf_counter_ns()
    visit = xfs_io.run(job, place, MIB, 0.05)
    assert 0 < sum(visit.samples["ns"]) < time.perf_counter_ns() - began
    for ns, mib_s in zip(visit.samples["ns"], visit.samples["mib_s"], strict=True):
        assert mib_s == pytest.approx(8 / (ns / 1e9), rel=0.01)


@REAL
def test_only_the_timed_part_is_timed(tmp_path, place):
    """A call that does nothing is quick, although a slow part comes before and behind it."""
    slow = script(tmp_path, "# sample: clock\n# timed\npwrite -q -b 512 0 4m\n")
    quick = script(tmp_path, "# sample: clock\n# before\npwrite -q -b 512 0 4m\n# timed\nfdatasync\n"
                             "# after\npwrite -q -b 512 0 4m\n")
    slow, quick = (sorted(xfs_io.run(job, place, MIB, 0.05).samples["ns"])[1] for job in (slow, quick))
    assert quick < slow / 10


@REAL
def test_xfs_io_is_on_the_cpu_of_who_feeds_it(tmp_path, place, monkeypatch):
    """To be woken on another one takes twice what a short script takes."""
    seen, quiet, before = set(), xfs_io.Session.quiet, os.sched_getaffinity(0)

    def watched(session, lines):
        seen.update((frozenset(os.sched_getaffinity(0)),
                     frozenset(os.sched_getaffinity(session._process.pid))))
        return quiet(session, lines)
    monkeypatch.setattr(xfs_io.Session, "quiet", watched)
    xfs_io.run(script(tmp_path, "# sample: clock\n# timed\nfsync\n"), place, MIB, 0.01)
    assert seen == {frozenset({min(before)})} and os.sched_getaffinity(0) == before


@REAL
def test_repetitions_in_one_go_are_shared_out(tmp_path, place):
    """400 times the same take as long as they take, and a sample is a 400th of that."""
    one = script(tmp_path, "# sample: clock\n# timed\npwrite -q -b 4k 0 256k\n")
    many = script(tmp_path, "# sample: clock\n# times: 400\n# timed\npwrite -q -b 4k 0 256k\n")
    alone, shared = (sorted(xfs_io.run(job, place, MIB, 0.05).samples["ns"])[0] for job in (one, many))
    assert alone / 4 < shared < alone * 2


@pytest.mark.parametrize(("text", "said"), [
    ("fsync\n", "none of the parts"),
    ("# sample: clock\n", "# timed"),
    ("# sample: guess\n# timed\nfsync\n", "sample: clock"),
    ("# timed\nfsync\n", "sample: clock"),
])  # fmt: skip
def test_scripts_that_make_no_sense(text, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        script(tmp_path, text)


def test_parts_and_settings(tmp_path):
    job = script(tmp_path, "# sample: clock\n# times: 3\n# bytes: ${SIZE}\n# once\ntruncate ${SIZE}\n\n"
                           "# timed\nfsync\n")
    assert job.words == "for a test" and job.times == 3 and job.bytes(5 << 20) == 5 << 20
    assert job.lines("once", 4096) == ["truncate 4096"] and job.lines("before", 1) == []


@pytest.mark.parametrize(("args", "word"), [
    (["--job", "nothing-like-it"], "no such job or family"),
    (["--target", "nosuch"], "no such target"),
    (["--target", "packed:track=all"], "track"),
    (["--size", "4M"], "not less than 16M"),
    (["--runtime", "soon"], "runtime"),
])  # fmt: skip
def test_bad_values_are_one_line(args, word, tmp_path):
    out = suite(*args, "--output", tmp_path / "out", status=2)
    assert len(out.splitlines()) == 1 and word in out
    assert not (tmp_path / "out").exists()


@pytest.mark.mount
def test_without_xfs_io(tmp_path):
    out = suite("--quick", "--output", tmp_path / "out", status=2, env={**os.environ, "PATH": str(tmp_path)})
    assert out.startswith("xfs_io_suite.py: xfs_io is not installed, so all is skipped")
    assert out.count("\n") == 1


def test_list():
    out = suite("--list")
    assert all(name in out for name in xfs_io.jobs()) and all(name in out for name in targets.KINDS)
