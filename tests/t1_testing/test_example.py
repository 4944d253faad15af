# SPDX-License-Identifier: MIT
"""The example of docs/crash-testing.md: what it finds, and that the page shows what it prints."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from daxfs.region import Region, create_file
from daxfs.testing import Recorder

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/examples/ring_buffer.py"
PAGE = (ROOT / "docs/crash-testing.md").read_text()


def load():
    spec = importlib.util.spec_from_file_location("ring_buffer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind, status", [("correct", 0), ("hasty", 1), ("forgetful", 1)])
def test_the_page_shows_what_it_prints(kind, status):
    command = f"python -P docs/examples/ring_buffer.py {kind}"
    done = subprocess.run([sys.executable, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == status and done.stderr == ""
    (shown,) = re.findall(rf"^\$ {re.escape(command)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert done.stdout == shown


def test_the_ring_holds_and_its_bugs_are_found():
    ring = load()
    assert ring.run(ring.Ring, limit=500).ok
    hasty = ring.run(ring.HastyRing)
    assert hasty.failed > 50 and hasty.violations[0].order
    forgetful = ring.run(ring.ForgetfulRing)
    assert forgetful.failed > 50
    assert [row.kind for row in forgetful.costs] == ["store never flushed", "drain with nothing in flight"]


@pytest.mark.parametrize("seed", range(5))
def test_bugs_are_found_with_few_images(seed):
    ring = load()
    assert ring.run(ring.Ring, limit=8, seed=seed).ok
    assert not ring.run(ring.HastyRing, limit=8, seed=seed).ok


def test_code_on_the_page_is_the_example_s():
    """Each piece of python that the page shows from the example stands there word for word."""
    source = EXAMPLE.read_text()
    pieces = re.findall(r"^```python from the example\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(pieces) >= 2 and all(piece in source for piece in pieces)


def test_the_loop_over_a_recording_runs(tmp_path, capsys):
    """The other piece of python, on a recording of two stores, with a check that refuses the second alone."""
    (piece,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    path = create_file(str(tmp_path / "region"), 16384)
    with Region.open([path]) as region, Recorder(region, path=tmp_path / "log") as recorder:
        began = recorder.begin("both")
        region.nt_store(0, b"A" * 8)
        region.nt_store(4096, b"B" * 8)
        # Order: both before the end of the operation.
        region.drain()
        recorder.end(began)

    def acceptable(content, returned, in_flight):
        assert list((returned or in_flight).values()) == ["both"]
        return content[0] or not content[4096]

    exec(piece.replace("/tmp/log", str(tmp_path / "log")), {"acceptable": acceptable})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [lines[n][0] for n in (0, 1, 3)] == ["before", "missing", "there"] and len(lines) == 5
    assert lines[2][0].startswith("t1_testing/test_example.py:") and lines[2][0] != lines[4][0]
