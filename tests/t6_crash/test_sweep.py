# SPDX-License-Identifier: MIT
"""A tenth of the length-one set of the crash sweep, and what its engine tells of a violation."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from crash import judge, mapped, observed, owned, sweep, tracked, vfs, workloads
from crash.engine import Engine
from crash.node import Policy
from crash.vfs import open_io

from daxfs.data import _tracker as tracker

ROOT = Path(__file__).resolve().parents[2]


def test_jobs_of_all_sets():
    jobs = sweep.make_jobs(sweep.Sizes(three=30, random=6, ops=20), 3, dict.fromkeys(sweep.SETS, 9))
    count = {name: sum(job.set == name for job in jobs) for name in sweep.SETS}
    assert count["one"] > 500 and count["two"] > 5000 and count["three"] == 30 and count["random"] == 6
    assert count["granularity"] == 2 * round(count["one"] * sweep.GRANULARITY_SHARE)
    assert count["own"] > 500 and count["ownlong"] == 300
    if mapped.available():
        assert count["observed"] > 500 and count["observedlong"] == 300
        assert count["track"] == 4 * 200 and count["switch"] == 500
    assert len({job.label for job in jobs if job.set != "three"}) == len(jobs) - 30
    assert len({job.sequence.policy for job in jobs if job.set == "random"}) > 3


@pytest.mark.slow
@pytest.mark.parametrize("share", [3, pytest.param(10, marks=pytest.mark.long)])
def test_a_share_of_all_single_operations(tmp_path, share):
    """In percent; all of them: `make crash`."""
    words = ["--set", "one", "--sample", f"{share}%", "--seed", "1", "--limit", "24", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-P", str(ROOT / "tools/crash_sweep.py"), *words], text=True,
                          capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    images = re.fullmatch(r"([\d,]+) images, 0 violations", done.stdout.splitlines()[-1])[1]
    assert int(images.replace(",", "")) > 200 * share


@pytest.mark.slow
@pytest.mark.parametrize("share", range(3))
def test_operations_beside_preallocated_pages(share):
    """Each operation on a tree with a chunk, appends through native service too, and some triples."""
    single = [s for s in workloads.length_one() if s.setup == "stream"]
    triples = list(workloads.length_three(5, 24, "stream"))
    assert sum(s.policy.native for s in single) > 10
    images = 0
    with Engine(limit=4, nested=2) as engine:
        for sequence in (single + triples)[share::3]:
            outcome = engine.run(sequence)
            assert outcome.violations == [], sequence.name
            images += outcome.images
    assert images > 500


def good_images(sequences, setups: dict) -> int:
    """How many crash images there are of the last operation of each, all without a violation."""
    images = 0
    with Engine(limit=4, nested=2, setups=setups) as engine:
        for sequence in sequences:
            outcome = engine.run(sequence, "last")
            assert outcome.violations == [], sequence.name
            images += outcome.images
    return images


@pytest.mark.slow
@pytest.mark.parametrize("track", [name for name in tracker.POLICIES if name not in ("pte", "none")])
def test_each_policy_of_track(track):
    """Some operations with write=cached, on packed files and on a pool directory, open and closed before."""
    rng, images = random.Random(track), 0
    packed = [s for s in workloads.length_one() if s.policy == Policy("cached", "write")]
    own = [s for s in owned.single() if s.policy == owned.POLICIES["cached"]]
    for setups, found, count in ((None, packed, 30), (owned.SETUPS, own, 10)):
        with Engine(limit=4, nested=2, **({"setups": setups} if setups else {})) as engine:
            for sequence in rng.sample(found, count):
                outcome = engine.run(sequence._replace(policy=sequence.policy._replace(track=track)), "last")
                assert outcome.violations == [], sequence.name
                images += outcome.images
    assert images > 40


@pytest.mark.slow
def test_none_does_lose_what_fsync_promises_elsewhere(monkeypatch):
    """The same engine sees it, where the model is not told: what the others pass is no matter of course."""
    ops = (("open", "a"), ("write", "a", 4000, 96, 31), ("fsync", "a"))
    found = next(s for s in workloads.length_one() if s.policy == Policy("cached", "write"))
    with Engine(limit=24, nested=0) as engine:
        for track in ("none", "extent"):
            def tracking(fs, policy, track=track):
                return open_io(fs, policy._replace(track=track))

            monkeypatch.setattr(vfs, "open_io", tracking)
            outcome = engine.run(found._replace(setup="tree", ops=ops), "last")
            assert bool(outcome.violations) == (track == "none"), outcome.violations


@pytest.mark.slow
def test_a_switch_among_the_operations():
    """Some rows with policies that are switched, each of which is in some; what was dirty before none too."""
    rows = list(tracked.switched(5, 60))
    assert {op[1] for row in rows for op in row.ops if op[0] == "track"} == set(tracker.POLICIES)
    assert len({row.policy._replace(track="pte") for row in rows}) > 6
    with Engine(limit=4, nested=2) as engine:
        found = [engine.run(row, "last") for row in rows]
    assert [outcome.violations for outcome in found if outcome.violations] == []
    assert sum(outcome.images for outcome in found) > 300


@pytest.mark.slow
@pytest.mark.parametrize("tag", owned.POLICIES)
def test_files_in_ranges_of_their_own(tag):
    """Some operations on a pool directory, and some rows of them, under each policy."""
    rng = random.Random(f"own {tag}")
    single = rng.sample([s for s in owned.single() if s.policy == owned.POLICIES[tag]], 12)
    rows = [s for s in owned.longer(9, 20) if s.policy == owned.POLICIES[tag]]
    assert good_images(single + rows, owned.SETUPS) > 150


@pytest.mark.slow
@pytest.mark.skipif(not mapped.available(), reason="no userfaultfd, or not all of it")
@pytest.mark.parametrize("tag", observed.POLICIES)
def test_stores_through_observed_mappings(tag):
    """Some operations beside mappings that programs store through, and some rows of them, in each mode."""
    rng, policy = random.Random(f"observed {tag}"), observed.POLICIES[tag]
    single = rng.sample([s for s in observed.each() if s.policy == policy], 5)
    rows = [s for s in observed.rows(9, 16) if s.policy == policy]
    assert good_images(single + rows, observed.SETUPS) > 60


def test_violation_is_plain_values_and_has_a_minimal_sequence(monkeypatch):
    """The judge wants no name ``n``; an operation that does not make it is left out."""
    def no_n(io, before, after):
        return ["n is there"] if "n" in judge.Image(io).paths else []

    monkeypatch.setattr(judge, "judge", no_n)
    (sequence,) = [sequence for sequence in workloads.length_two("empty")
                   if sequence.ops == (("evict",), ("create", "n"))]
    with Engine(limit=4) as engine:
        outcome = engine.run(sequence, "last")
    first = json.loads(json.dumps(outcome.violations))[0]
    assert first["sequence"]["name"] == sequence.name and first["complaints"] == ["n is there"]
    assert first["minimal"]["ops"] == [["create", "n"]]
