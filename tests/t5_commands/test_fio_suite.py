# SPDX-License-Identifier: MIT
"""tools/fio_suite.py and its job files on real mounts: what it counts, keeps, refuses, skips and reports."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mounts
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

from lab import fio, suites, targets  # noqa: E402
from lab.plan import CellError  # noqa: E402

PROGRAM = ROOT / "tools/fio_suite.py"
TINY = ["--size", "4M", "--runtime", "0.05", "--rounds", "2"]
PAGE, MIB = 4096, 1 << 20
FIO = shutil.which("fio")
HERE = [pytest.mark.mount, pytest.mark.skipif(not FIO, reason="fio is not installed")]


def test_libpmem_is_kept_off_page_caches():
    """It is forced to take any mapping for memory that is storage."""
    one = fio.jobs()["libpmem-randwrite-4k-nt"]
    refused = {kind for kind in targets.KINDS if fio.why_not_on(one, targets.parse(kind))}
    assert refused == {"packed", "ext4", "xfs"}
    assert not fio.why_not_on(fio.jobs()["psync-read-4k"], targets.parse("packed"))


def start(*args, **kwargs) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, PROGRAM, *map(str, args)], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def until(what, seconds: float = 60) -> None:
    """Wait until *what*() is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fios(directory: Path) -> list[bytes]:
    """Command lines of the fios, parents and jobs, that report to *directory*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended
            words = path.read_bytes().split(b"\0")
            if words[0] == b"fio" and any(os.fsencode(directory) in word for word in words):
                found.append(words)
    return found


def suite(*args, status: int = 0, **kwargs) -> str:
    """Its output; the status has to be *status*, and nothing of it may be left."""
    process = start(*args, **kwargs)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == status, out
    assert "Traceback" not in out
    assert f"-{process.pid}-" not in Path("/proc/self/mounts").read_text()
    return out


def rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dax():
    """A folder on a mount, whose files have the DAX flag."""
    with mounts.MountedRegion(64 * MIB, pool="always") as region:
        region.mount("transport=dev")
        yield region.path


@pytest.mark.parametrize("path", sorted(fio.FOLDER.glob("*.fio")), ids=lambda path: path.stem)
class TestJobFiles:
    pytestmark = HERE

    def test_by_hand(self, path, dax, tmp_path):
        """As its own comment says: DIRECTORY, SIZE and RUNTIME from the environment, all sections."""
        assert f"fio {path.name}" in path.read_text()
        sections = [job for job in fio.jobs().values() if job.file == path]
        if missing := [job for job in sections if fio.why_not(job)]:
            pytest.skip(fio.why_not(missing[0]))
        given = {"DIRECTORY": str(dax), "SIZE": "2m", "RUNTIME": "20ms", "PMEM_IS_PMEM_FORCE": "1"}
        done = mounts.run(["fio", "--output-format=json", path], cwd=tmp_path, env={**os.environ, **given})
        found = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
        assert [job["jobname"] for job in found] == [job.name for job in sections]
        for job in found:
            assert job["error"] == 0
            assert job["read"]["io_bytes"] + job["write"]["io_bytes"] >= 2 * MIB or job["job_runtime"] >= 20
        for file in dax.iterdir():
            file.unlink()

    def test_refuses_to_guess(self, path, dax, tmp_path):
        """Without the variables fio says so and touches nothing."""
        given = ("DIRECTORY", "SIZE", "RUNTIME")
        bare = {name: value for name, value in os.environ.items() if name not in given}
        assert mounts.run(["fio", path], check=False, cwd=tmp_path, env=bare).returncode != 0
        assert not list(tmp_path.iterdir()) and not list(dax.iterdir())


class TestRun:
    pytestmark = HERE

    def test_counts_are_those_of_the_jobs(self, tmp_path):
        """What the daemon counted for each request is what this job must have cost, by write= and track=."""
        wanted = {
            # lines flushed (one is the inode's times), bytes past the cache, drains, bytes by fsync
            ("psync-randwrite-4k", "packed"): (1, PAGE, 1, 0),
            ("psync-randread-4k", "packed"): (0, 0, 0, 0),
            ("sync-fsync-1", "packed"): (1, PAGE, 2, 0),
            ("sync-fsync-1", "packed:write=cached"): (65, 0, 1, PAGE),
            ("sync-fsync-1", "packed:write=cached,track=none"): (1, 0, 1, 0),
            ("sync-fsync-1", "packed:write=cached,track=pmd"): (2 * MIB / 64 + 1, 0, 1, 2 * MIB),
        }
        on = [word for name in dict.fromkeys(name for _, name in wanted) for word in ("--target", name)]
        suite("--job", ",".join(dict.fromkeys(job for job, _ in wanted)), *on, *TINY, "--rounds", "1",
              "--output", tmp_path)
        found = {(row["cell"]["job"], row["cell"]["target"]): row["counts"] for row in rows(tmp_path)}
        assert len(found) == 3 * 4
        for cell, numbers in wanted.items():
            counts = [found[cell][name] for name in ("flush_lines", "nt_bytes", "drain", "flushed_bytes")]
            # The file's close, and what is at the edges of the measured time, is not a request's.
            assert counts == pytest.approx(numbers, rel=0.1, abs=0.05), cell

    def test_an_emulated_medium_is_said(self, tmp_path):
        """Of --options as of a target's: in run.json, in what is printed, and in the report."""
        on = ("--target", "packed", "--target", "packed:emulate=pmem2")
        out = suite("--job", "sync-fsync-1", *on, "--options", "emulate=cxl", *TINY, "--rounds", "1",
                    "--output", tmp_path)
        assert "all: emulate=cxl, times of a model" in out
        assert "durable, some cells: emulate=pmem2, times of a model" in out
        assert "regions were files on tmpfs: emulated, not power-fail safe" in out
        assert json.loads((tmp_path / "run.json").read_text())["emulate"] == "cxl"
        mounts.run([sys.executable, PROGRAM.with_name("plot_sweep.py"), tmp_path])
        page = (tmp_path / "report.html").read_text()
        assert "emulate=cxl: the times of stores" in page and "has emulate=pmem2: times of a model" in page

    def test_samples_are_what_fio_reported(self, tmp_path):
        out = suite("--job", "sync-fsync-1,mmap-msync-32", "--target", "packed", "--target", "tmpfs",
                    *TINY, "--output", tmp_path)
        assert "bandwidth" in out and "fsync p99" in out and "drains" in out
        found = rows(tmp_path)
        assert len(found) == 2 * 2 * 2 == len(list((tmp_path / "fio").iterdir()))
        facts = json.loads((tmp_path / "run.json").read_text())
        assert facts["options"]["size"] == 4 * MIB and facts["options"]["runtime"] == 0.05
        assert facts["ended"] and facts["seed"] == 1 and facts["host"]["commit"]
        assert facts["axes"]["target"]["values"] == ["packed", "tmpfs"]
        for row in found:
            cell = row["cell"]
            kept = (tmp_path / "fio").glob(f"{row['family']}.{cell['job']}.{cell['target']}.*.json")
            found_there = {_bandwidth(path): path for path in kept}
            assert len(found_there) == 2
            report = json.loads(found_there[row["samples"]["mib_s"][0]].read_text())["jobs"][0]
            rate = report["write"]["total_ios"] / (report["write"]["runtime"] / 1000)
            assert row["samples"]["iops"] == [pytest.approx(rate)]
            latencies = row["samples"]["lat_ns"]
            assert len(latencies) == min(200, report["write"]["total_ios"])
            assert len(row["samples"]["sync_ns"]) == min(200, report["sync"]["total_ios"])
            half = report["write"]["clat_ns"]["percentile"]["50.000000"]
            assert latencies == sorted(latencies)
            assert latencies[len(latencies) // 2] == pytest.approx(half, rel=0.1)
            assert row["samples"]["max_ns"] == [report["write"]["clat_ns"]["max"]]

    def test_own_files_and_observed_programs(self, tmp_path):
        """msync of a plain mapping does nothing; fsync of such a file flushes all of it; daxfs run works."""
        suite("--job", "mmap-msync-32,sync-fsync-2m", "--target", "own", "--target", "run-kernel", *TINY,
              "--rounds", "1", "--output", tmp_path)
        found = {(row["cell"]["job"], row["cell"]["target"]): row for row in rows(tmp_path)}
        assert found["mmap-msync-32", "own"]["counts"]["flushed_bytes"] == 0
        assert found["sync-fsync-2m", "own"]["counts"]["flushed_bytes"] > 0
        # The program flushes what is dirty: that takes longer than a call that does nothing.
        slow, fast = (found["mmap-msync-32", name]["samples"]["sync_ns"] for name in ("run-kernel", "own"))
        assert slow[len(slow) // 2] > 5 * fast[len(fast) // 2]

    def test_verify_and_the_others(self, tmp_path):
        arguments = ["--job", "verify,append-4k", "--target", "packed:transport=dev", *TINY,
                     "--output", tmp_path]
        assert "VERIFY" not in suite(*arguments)
        found = [row for row in rows(tmp_path) if row["cell"]["job"] == "append-4k"]
        # Everything was written once, past the cache: 4 MiB by 1024 requests.
        assert [row["counts"]["nt_bytes"] for row in found] == pytest.approx([PAGE] * 2, rel=0.05)
        assert "complete already" in suite(*arguments)

    def test_a_stopped_run_goes_on(self, tmp_path):
        """SIGTERM in the second visit: the same command makes what is missing and nothing else."""
        arguments = ["--job", "psync-randread-4k,psync-randwrite-4k", "--target", "tmpfs",
                     "--size", "2M", "--runtime", "2", "--rounds", "1", "--output", str(tmp_path)]
        process = start(*arguments)
        until(lambda: (tmp_path / "samples.jsonl").exists() and rows(tmp_path))
        process.terminate()
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 130 and "goes on" in out, out
        before = rows(tmp_path)
        assert len(before) == 1
        assert "goes on in" in suite(*arguments)
        assert rows(tmp_path)[:1] == before
        assert sorted(row["cell"]["job"] for row in rows(tmp_path)) == sorted(arguments[1].split(","))

    def test_fio_ends_with_the_suite(self, tmp_path):
        """Its jobs are in sessions of their own: one that goes on would keep the mount for its runtime."""
        process = start("--job", "psync-randread-4k", "--target", "packed", "--size", "2M", "--runtime", "60",
                        "--rounds", "1", "--output", tmp_path)
        until(lambda: len(fios(tmp_path)) >= 2)
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 130 and not fios(tmp_path)
        assert f"daxfs-lab-{process.pid}-" not in Path("/proc/self/mounts").read_text()

    def test_a_daemon_that_dies_is_named(self, tmp_path):
        process = start("--job", "psync-randread-4k", "--target", "packed", "--size", "2M", "--runtime", "60",
                        "--rounds", "1", "--output", tmp_path)
        until(lambda: len(fios(tmp_path)) >= 2)
        found = re.findall(rf"\S*/daxfs-lab-{process.pid}-\S*\.mnt", Path("/proc/self/mounts").read_text())
        facts = mounts.run([mounts.command("daxfs"), "stat", "--json", found[0]]).stdout
        os.kill(json.loads(facts)["pid"], signal.SIGKILL)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 1, out
        assert "the daemon of the mount with transport=uring" in out
        assert "fio failed: psync-randread-4k" in out
        assert f"daxfs-lab-{process.pid}-" not in Path("/proc/self/mounts").read_text()

    def test_an_engine_that_is_missing_is_skipped(self, tmp_path):
        fake = tmp_path / "bin/fio"
        fake.parent.mkdir()
        fake.write_text('#!/bin/sh\n[ "$1" = --enghelp ] && exec printf "Engines:\\n\\tpsync\\n"\n'
                        f'exec {FIO} "$@"\n')
        fake.chmod(0o755)
        out = suite("--job", "psync-read-4k,libpmem-randread-4k", "--target", "packed", *TINY, "--output",
                    tmp_path / "out", env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"})
        assert "this fio has no engine libpmem" in out
        found = {row["cell"]["job"]: row for row in rows(tmp_path / "out")}
        assert "samples" in found["psync-read-4k"] and "skipped" in found["libpmem-randread-4k"]

    def test_a_job_that_fails_ends_the_suite(self, tmp_path):
        """Exit status 1, with fio's words and the command to see them again."""
        fake = tmp_path / "bin/fio"
        fake.parent.mkdir()
        fake.write_text(f'#!/bin/sh\ncase "$*" in *--enghelp*) exec {FIO} "$@";; esac\n'
                        'echo "fio: something is wrong" >&2\nexit 7\n')
        fake.chmod(0o755)
        out = suite("--job", "psync-read-4k", "--target", "packed:track=pmd", *TINY,
                    "--output", tmp_path / "out", status=1,
                    env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"})
        assert "fio: something is wrong" in out and "status 7" in out
        assert "again: tools/fio_suite.py --job psync-read-4k --target packed:track=pmd" in out
        assert "fio --randseed=" in out and "VERIFY" not in out

    def test_data_that_differ_are_said_loudly(self, tmp_path):
        """The test of verification: a file that fio has not written can't pass."""
        path = tmp_path / "planted.fio"
        path.write_text("[global]\ndirectory=${DIRECTORY}\nsize=${SIZE}\nioengine=psync\nbs=4k\n"
                        "[planted]\nrw=read\nverify=crc32c\nverify_fatal=1\n")
        job = fio.jobs(tmp_path)["planted"]
        place = targets.Place(targets.parse("tmpfs"), tmp_path, None)
        with pytest.raises(mounts.CommandError, match=r"VERIFY FAILED.*planted on tmpfs"):
            fio.run(job, place, 1 * MIB, 0.1, 1, tmp_path / "kept.json")
        # Another failure of a job that verifies is not called so.
        other = subprocess.CompletedProcess([], 1, "verify-psync: no space left on verify.fio", "")
        given = fio.environment(place, MIB, 1)
        assert str(fio.failure(fio.jobs()["verify-psync"], place, given, 1, other)).startswith("fio failed: ")


def _bandwidth(path: Path) -> float:
    way = json.loads(path.read_text())["jobs"][0]["write"]
    return way["io_bytes"] / MIB / way["runtime"] * 1000


@pytest.mark.parametrize(("args", "word"), [
    (["--job", "nothing-like-it"], "no such job or family"),
    (["--target", "nosuch"], "no such target"),
    (["--target", "packed:track=all"], "track"),
    (["--target", "packed:colour=red"], "colour"),
    (["--target", "ext4:track=pte"], "takes no options"),
    (["--options", "write=later"], "write"),
    (["--size", "5"], "whole MiB"),
    (["--runtime", "0"], "runtime"),
    (["--rounds", "-1"], "rounds"),
])  # fmt: skip
def test_bad_values_are_one_line(args, word, tmp_path):
    out = suite(*args, "--output", tmp_path / "out", status=2)
    assert len(out.splitlines()) == 1 and word in out
    assert not (tmp_path / "out").exists()


@pytest.mark.mount
def test_without_fio(tmp_path):
    out = suite("--quick", "--output", tmp_path / "out", status=2, env={**os.environ, "PATH": str(tmp_path)})
    assert out == "fio_suite.py: fio is not installed, so all is skipped: apt-get install fio\n"


def test_a_target_that_is_given_twice_is_one():
    class Args:
        job, target, quick = ["verify-*"], ["packed", "packed", "own"], False
    shapes = {"verify": suites.Shape("", "", ("verify-*",), ("ext4",)),
              "again": suites.Shape("", "", ("*",), ("ext4",))}
    assert suites.chosen(shapes, ["verify-a", "other"], Args) == {
        "verify": [("verify-a", "packed"), ("verify-a", "own")]}
    Args.target = None
    assert suites.chosen(shapes, ["verify-a", "other"], Args) == {
        "verify": [("verify-a", "ext4")], "again": [("verify-a", "ext4")]}


def test_list(tmp_path):
    out = suite("--list")
    assert all(name in out for name in fio.jobs()) and all(name in out for name in targets.KINDS)


def test_job_files_are_read_as_fio_reads_them(tmp_path):
    (tmp_path / "a.fio").write_text("; about the file\n[global]\nioengine=psync\nrw=read\nthread\n\n"
                                    "; about one\n[one]\nnumjobs=2\n\n[two]\nrw = randwrite\n"
                                    "[three]\nrw=randrw\noverwrite=1\n"
                                    "filename=x\n")
    found = fio.jobs(tmp_path)
    assert list(found) == ["one", "two", "three"]
    assert found["one"].words == "about one" and found["two"].words == ""
    assert found["one"].options == {"ioengine": "psync", "rw": "read", "thread": "1", "numjobs": "2"}
    assert found["one"].files == ["one.0.0", "one.1.0"] and found["three"].files == ["x"]
    assert found["two"].files == [] and found["two"].options["rw"] == "randwrite"


def test_latencies_are_taken_evenly():
    assert fio.evenly({10: 100, 20: 99, 1000: 1}, 4) == [10, 10, 20, 20]
    assert fio.evenly({10: 1, 20: 1}, 200) == [10, 20]
    assert fio.evenly({1: 10, 2: 980, 3: 10}, 100) == [1] + [2] * 98 + [3]
    assert fio.evenly({}, 5) == []
    assert fio.merged([{"5": 1, "1": 2}, {"5": 3}]) == {1: 2, 5: 4}


def test_bandwidth_of_a_report():
    way = {"io_bytes": 10 * MIB, "total_ios": 2560, "runtime": 500,
           "clat_ns": {"max": 9, "bins": {"7": 2560}}}
    none = {"io_bytes": 0, "total_ios": 0, "runtime": 0, "clat_ns": {"max": 0}}
    report = {"read": way, "write": {**way, "runtime": 400, "io_bytes": 5 * MIB}, "sync": {"total_ios": 0}}
    mixed = fio.samples(fio.Job("a", Path("a.fio"), "", {}), report).samples
    assert mixed["mib_s"] == [30.0] and mixed["iops"] == [10240.0] and mixed["lat_ns"] == [7] * 200
    # What a verifying job reads is the proof, and no measurement.
    verified = fio.samples(fio.Job("a", Path("a.fio"), "", {"verify": "crc32c"}), report).samples
    assert verified["mib_s"] == [12.5] and "sync_ns" not in verified
    alone = fio.samples(fio.Job("a", Path("a.fio"), "", {}), {**report, "write": none}).samples
    assert alone["mib_s"] == [20.0]


def test_targets_say_what_they_mean():
    target = targets.parse("packed:transport=dev,track=pmd", "flush=clflush")
    assert (target.kind, target.track, target.transport) == ("packed", "pmd", "dev")
    assert target.options == "transport=dev,write=nt,flush=clflush"
    assert targets.parse("own").daxfs and not targets.parse("xfs").daxfs
    observed = targets.Place(targets.parse("run-user"), Path(), None)
    assert observed.command[1:] == ["run", "--fault", "user", "--"]


def test_no_memory_is_a_reason(monkeypatch):
    monkeypatch.setattr("lab.rigs.memory_left", lambda: 2 << 30)
    all_of_them = targets.Targets(2 << 30)
    with pytest.raises(CellError, match="memory"), all_of_them.place(targets.parse("tmpfs")):
        pass
