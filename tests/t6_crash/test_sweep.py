# SPDX-License-Identifier: MIT
"""A tenth of the sweep's single operations; what the engine tells of a violation. All: ``make crash``."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from crash import judge, workloads
from crash.engine import Engine

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_tenth_of_all_single_operations(tmp_path):
    words = ["--set", "one", "--sample", "10%", "--seed", "1", "--limit", "24", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-P", str(ROOT / "tools/crash_sweep.py"), *words], text=True,
                          capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    images = re.fullmatch(r"([\d,]+) images, 0 violations", done.stdout.splitlines()[-1])[1]
    assert int(images.replace(",", "")) > 2000


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
