# SPDX-License-Identifier: MIT
"""tools/fault_sweep.py on real mounts, shortly: what it counts is what docs/fault.md says; it resumes."""

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mounts
import pytest

from daxfs import client

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "fault_sweep.py"
PAGE, HUGE = 4096, 2 << 20

pytestmark = [
    pytest.mark.mount, pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
    pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no observed mappings before kernel 6.11"),
    pytest.mark.skipif(bool(client.why_no_user_faults()), reason=client.why_no_user_faults() or ""),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="fault=user is measured with two CPUs"),
]


def sweep(output, *args):
    """Run the program; it leaves no mount and no file in /dev/shm."""
    command = [sys.executable, PROGRAM, "--quick", "--rounds", "1", "--output", output, *args]
    proc = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = proc.communicate(timeout=240)
    assert "Traceback" not in err, err
    assert f"-{proc.pid}-" not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/dev/shm").glob(f"*-{proc.pid}-*"))
    return proc.returncode, out, err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory, and its rows by family."""
    output = tmp_path_factory.mktemp("fault_sweep") / "run"
    status, out, err = sweep(output, "--family", "touch,refused", "--modes", "direct,user,cached,tmpfs")
    assert status == 0, out + err
    rows = collections.defaultdict(list)
    for line in (output / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["family"]].append(row)
    assert not [row for family in rows.values() for row in family if "skipped" in row]
    return output, rows


def touched(run, **cell):
    """(samples, counts) of the only visit to this cell of the family touch."""
    found = [row for row in run[1]["touch"] if row["cell"] == cell]
    assert len(found) == 1, (cell, len(found))
    return found[0]["samples"]["ns"], found[0]["counts"]


@pytest.mark.parametrize("page, reason, size", [(PAGE, " pmd-off", "PTE"), (HUGE, "", "PMD")])
@pytest.mark.parametrize("access, kind", [("load", "read"), ("store", "write")])
def test_each_touch_of_what_is_written_is_one_fault_of_its_size(run, page, reason, size, access, kind):
    ns, counts = touched(run, mode="user", page=page, state="written", access=access)
    assert counts == {"minor": 1, "major": 0, f"{kind} {size} NOPAGE{reason}": 1, "pmd_mapped_bytes": 0}
    # A visit ends after its time, so there may be fewer.
    assert 3 <= len(ns) <= (256 if page == PAGE else 16) and min(ns) > 1000


def test_a_store_to_a_hole_is_major_for_a_pte_and_not_for_a_pmd(run):
    _, counts = touched(run, mode="user", page=PAGE, state="hole", access="store")
    assert counts["write PTE MAJOR pmd-off"] == 1
    _, counts = touched(run, mode="user", page=HUGE, state="hole", access="store")
    assert counts["write PMD NOPAGE"] == 1
    # A packed file: one page has 2 MiB that a PMD could have, its neighbours have not any more.
    # A visit ends after its time: on a slow machine few were touched. 16 MiB lie in at most nine units.
    ns, counts = touched(run, mode="cached", page=PAGE, state="hole", access="store")
    huge = counts["fill write PMD NOPAGE"]
    assert 0.99 < huge * len(ns) < 9.01
    assert huge + counts.get("fill write PTE MAJOR short-extent", 0) == pytest.approx(1, abs=1e-4)


def test_a_load_of_a_hole_has_no_huge_zero_page(run):
    _, counts = touched(run, mode="user", page=HUGE, state="hole", access="load")
    assert counts["read PTE NOPAGE no-huge-zero-page"] == 1 and counts["minor"] == 1


@pytest.mark.parametrize("page", [PAGE, HUGE])
def test_a_store_after_a_write_back_is_mkwrite_where_somebody_tracks(run, page):
    for access in ("mkwrite", "upgrade"):
        _, counts = touched(run, mode="user", page=page, state="written", access=access)
        assert counts["mkwrite PTE NOPAGE"] == 1 == counts["minor"]
        # Of what the kernel maps by itself nobody knows what was stored.
        assert touched(run, mode="direct", page=page, state="written", access=access)[1]["minor"] == 0
    assert touched(run, mode="cached", page=PAGE, state="written", access="mkwrite")[1]["minor"] == 1


def test_what_is_mapped_has_no_fault(run):
    for row in run[1]["touch"]:
        if row["cell"]["access"] == "again":
            assert row["counts"]["minor"] == row["counts"]["major"] == 0, row["cell"]


def test_plain_mappings_are_huge_where_the_source_is(run):
    for state in ("hole", "written"):
        ns, counts = touched(run, mode="direct", page=HUGE, state=state, access="store")
        # A visit ends after its time: on a slow machine it has not touched all 16.
        assert 3 <= len(ns) <= 16
        assert counts["pmd_mapped_bytes"] == len(ns) * HUGE and counts["minor"] == 1
        _, counts = touched(run, mode="direct", page=PAGE, state=state, access="store")
        assert counts["pmd_mapped_bytes"] == 0 and counts["minor"] == 1


def test_each_reason_is_the_one_that_the_daemon_names(run):
    seen = set()
    for row in run[1]["refused"]:
        reason, counts = row["cell"]["reason"], row["counts"]
        if row["cell"]["mode"] != "user":
            continue
        seen.add(reason)
        if reason == "none":
            assert counts["write PMD NOPAGE"] == 1
            continue
        assert "write PMD NOPAGE" not in counts
        named = sum(count for name, count in counts.items() if name.endswith(f" {reason}"))
        every = sum(count for name, count in counts.items() if " PTE " in name)
        outside = 1 if reason in ("before-mapping", "after-mapping", "end-of-file") else 0
        if reason in ("short-extent", "no-huge-zero-page"):
            # The first page has this reason; behind it there is a PTE entry.
            assert named >= 1 and every == 512, counts
        else:
            assert named == 512 - outside, counts
            assert every == named + (1 if reason == "pte-entry" else 0), counts  # its other mapping's own
    assert len(seen) == 9


def test_a_run_that_is_there_is_not_measured_again(run):
    output, _ = run
    before = (output / "samples.jsonl").read_bytes()
    status, out, err = sweep(output, "--family", "touch,refused", "--modes", "direct,user,cached,tmpfs")
    assert status == 0 and "complete already" in err
    assert (output / "samples.jsonl").read_bytes() == before
    assert "A first touch" in out and "2 MiB, with and without a PMD" in out


def test_a_run_goes_on_where_it_was_stopped(run, tmp_path):
    lines = (run[0] / "samples.jsonl").read_bytes().splitlines(keepends=True)
    facts = json.loads((run[0] / "run.json").read_text())
    again = tmp_path / "again"
    again.mkdir()
    (again / "run.json").write_text(json.dumps(facts | {"ended": None}))
    (again / "samples.jsonl").write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    status, out, err = sweep(again, "--family", "touch,refused", "--modes", "direct,user,cached,tmpfs")
    assert status == 0, out + err
    assert "goes on" in err
    after = (again / "samples.jsonl").read_bytes().splitlines(keepends=True)
    assert after[:-3] == lines[:-3] and len(after) == len(lines)
    assert {json.dumps(json.loads(line)["cell"]) for line in after[-3:]} == {
        json.dumps(json.loads(line)["cell"]) for line in lines[-3:]}


def test_whole_files_and_resident_loads(tmp_path):
    output = tmp_path / "run"
    status, out, err = sweep(output, "--family", "sweep,resident", "--modes", "direct,user",
                             "--size", "16M")
    assert status == 0, out + err
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        cell, counts = row["cell"], row["counts"]
        if row["family"] == "resident":
            assert row["samples"]["load_ns"][0] > 0 and counts["minor"] == 0
            continue
        assert row["samples"]["mib_s"][0] > 0
        by_daemon = {name: count for name, count in counts.items() if name.startswith(("read", "write"))}
        if cell["mode"] == "user":  # a fault for each page, or for each 2 MiB; of a touch of 4 KiB
            assert sum(by_daemon.values()) == pytest.approx(1 if cell["page"] == PAGE else 1 / 512, 1e-3)
        else:
            assert not by_daemon
    accesses = {row["cell"]["access"] for row in rows if row["family"] == "sweep"}
    assert accesses == {"store", "load", "populate-read"}


@pytest.mark.parametrize("args, said", [
    (["--size", "3x"], "not a size"), (["--size", "9M"], "at least 16 MiB"),
    (["--family", "no"], "not one of touch"), (["--modes", "no"], "not one of direct"),
    (["--modes", "ext4", "--family", "refused"], "none of refused")])
def test_bad_values_are_one_line(tmp_path, args, said):
    status, out, err = sweep(tmp_path / "run", *args)
    assert status == 2 and said in err and len(err.splitlines()) == 1 and not out
    assert not (tmp_path / "run").exists()


def test_other_file_systems_that_can_t_be_had_are_skipped(tmp_path):
    """Without mkfs.ext4 in the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cc", "gcc", "as", "ld", "collect2", "mount", "umount", "git", "python3"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    output = tmp_path / "run"
    command = [sys.executable, PROGRAM, "--quick", "--rounds", "1", "--family", "touch",
               "--modes", "ext4,tmpfs", "--output", output]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PATH": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert {row["skipped"] for row in rows if row["cell"]["mode"] == "ext4"} == {
        "no ext4 over a loop device: mkfs.ext4 is not installed"}
    assert all("samples" in row for row in rows if row["cell"]["mode"] == "tmpfs")
    assert "skipped, touch" in done.stdout
