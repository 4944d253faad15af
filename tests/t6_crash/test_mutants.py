# SPDX-License-Identifier: MIT
"""Bugs planted into daxfs (crash/mutants.py): the crash engine is silent without them and finds each of them.

``pytest -s`` prints what each took; the table of docs/crash-testing.md is made by
``PYTHONPATH=tests python -P -m crash.mutants``.
"""

import functools
import random
import re
from pathlib import Path

import pytest
from crash import mapped, mutants, plant, workloads
from crash.engine import Engine
from crash.plant import Mutant, edit

from daxfs.meta import fs, journal, mkfs

BY_NAME = {mutant.name: mutant for mutant in mutants.MUTANTS}
GENERAL = ("commit without its drain", "a record's checksum not looked at", "a write not drained",
           "an inode's checksum not renewed", "unlink: the name first, the link count later")


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def engine():
    with Engine(limit=plant.LIMIT, most=1, setups=mutants.setups()) as made:
        yield made


@pytest.fixture(scope="module")
def clean(engine):
    """The outcome of a mutant's operations without the bug: once for all that have the same."""

    @functools.cache
    def outcome(sequence, again, values):
        return plant.played(engine, next(m for m in mutants.MUTANTS if key(m) == (sequence, again, values)))

    def key(mutant):
        return mutant.sequence(), mutant.again, mutant.values

    return lambda mutant: outcome(*key(mutant))


def test_there_are_enough_and_their_names_differ():
    assert len(BY_NAME) == len(mutants.MUTANTS) >= 24


def test_the_documentation_names_each_of_them():
    text = (ROOT / "docs" / "crash-testing.md").read_text().partition("## What it finds in daxfs")[2]
    rows = re.findall(r"^\| (.+?) \| .+ \| \d+ \| .+ \|$", text, re.MULTILINE)
    assert rows == [mutant.name for mutant in mutants.MUTANTS] and f"plants {len(rows)} bugs" in text


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_found(engine, clean, mutant):
    if mutant.policy.fault and not mapped.available():
        pytest.skip("no userfaultfd, or not all of it")
    with plant.tuned(mutant):
        assert clean(mutant).violations == []
        assert plant.live(engine, mutant) == []
        with plant.planted(mutant):
            wrong = plant.live(engine, mutant)
            outcome = plant.played(engine, mutant)
    if mutant.silent:
        assert wrong == [], "shows without a power failure"
    assert not any(violation["point"] == "the return" for violation in outcome.violations)
    complaint = plant.found(outcome, mutant)
    print(f"\n{mutant.name}: image {outcome.images}: {complaint}")
    assert complaint, outcome.violations


@pytest.mark.parametrize("name", GENERAL)
def test_the_general_set_finds_it_too(name):
    """A sample of the single operations that ``make crash`` tries, none of them chosen for the bug."""
    sequences = random.Random(3).sample(list(workloads.length_one()), 60)
    with Engine(limit=6, most=1) as engine:
        for number, sequence in enumerate(sequences, 1):
            with plant.planted(BY_NAME[name]):
                outcome = engine.run(sequence, "last")
            if outcome.violations:
                assert engine.run(sequence, "last").violations == [], "without the bug, too"
                print(f"\n{name}: sequence {number}: {sequence.name}")
                return
    raise AssertionError("not found")


def test_a_mutant_whose_text_is_gone_fails():
    gone = Mutant("gone", edit("meta.journal:Journal.settle", "no such text", ""), (), "")
    with pytest.raises(ValueError, match="0 times"), plant.planted(gone):
        pass
    twice = Mutant("twice", edit("meta.journal:Journal.settle", "region.drain()", ""), (), "")
    with pytest.raises(ValueError, match="times, not once"), plant.planted(twice):
        pass


def test_functions_are_replaced_wherever_they_are_imported_and_come_back():
    method, function = journal.Journal.settle, mkfs.state_line
    edits = (edit("meta.journal:Journal.settle", "self.settles += 1", "self.settles += 2")
             + edit("meta.mkfs:state_line", "def state_line(", "def state_line("))
    mutant = Mutant("both", edits, (), "")
    with plant.planted(mutant):
        assert journal.Journal.settle is not method
        assert fs.state_line is mkfs.state_line is not function
    assert journal.Journal.settle is method and fs.state_line is mkfs.state_line is function
