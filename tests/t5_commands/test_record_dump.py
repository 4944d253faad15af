# SPDX-License-Identifier: MIT
"""tools/record_dump.py: what it says of a recording whose events are known, and of files that are none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from daxfs._iomap import FileMap
from daxfs._record import Recorder
from daxfs.region import Region, create_file

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "record_dump.py"
MIB = 1 << 20


def dump(*args, status=0):
    command = [sys.executable, "-P", TOOL, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump")
    source, path = str(folder / "region"), folder / "log"
    create_file(source, 4 * MIB)
    info = {"areas": [["journal", 0, 4096], ["data", 4096, 4 * MIB]]}
    with Region.open([source]) as region, Recorder(region, str(path), info=info) as log:
        for number in range(4):
            op = log.begin(json.dumps({"op": "write", "name": "[red]\x1b\udcff"}, ensure_ascii=False))
            region.nt_store(4096 * (number + 1) + 60, b"12345678")  # two lines
            region.store(0, b"12345678")
            region.flush_range(0, 8)
            # Order is not under test: a drain in half of the operations.
            region.drain() if number % 2 else None
            log.end(op, json.dumps({"result": 8} if number else {"errno": 28}))
        op = log.begin("fill the page")
        region.nt_fill(8192, 0xAB, 4096)
    return path


def test_the_numbers(recording):
    found = json.loads(dump(recording, "--json"))
    assert found["events"] == 24 and found["unfinished"] == 1 and found["threads"] == 1
    assert found["kinds"]["nt_store"] == {"events": 4, "bytes": 32, "lines": 8}
    assert found["kinds"]["nt_fill"] == {"events": 1, "bytes": 4096, "lines": 64}
    assert found["areas"] == {"journal": {"stores": 4, "bytes": 32, "flushed_lines": 4},
                              "data": {"stores": 5, "bytes": 4128}}
    assert found["operations"]["write"] == {"count": 4, "errors": 1, "stores": 8, "bytes": 64, "flushes": 4,
                                            "flushed_lines": 4, "drains": 2}
    assert found["operations"]["fill"]["bytes"] == 4096


def test_the_tables(recording):
    text = dump(recording)
    assert max(map(len, text.splitlines())) <= 110 and "…" not in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("write")]
    assert row == ["write", "4", "1", "2", "16", "1", "1", "0.5"]
    assert "1 without an end" in text and "journal" in text


def test_one_line_for_each_event(recording):
    lines = dump(recording, "--events").splitlines()
    assert len(lines) == 24
    assert lines[1].split()[:5] == ["1", "1", "nt_store", "data", "0x103c+8"]
    assert "test_record_dump.py:" in lines[1] and lines[1].endswith(" recording")
    assert "\x1b" not in "".join(lines)
    assert len(dump(recording, "--events", "--op", "fill").splitlines()) == 2
    rows = [json.loads(line) for line in dump(recording, "--events", "--json").splitlines()]
    assert rows[-1]["byte"] == 0xAB and rows[-1]["area"] == "data" and rows[-1]["op"] == 5
    assert json.loads(rows[4]["text"]) == {"errno": 28}


def test_own_ranges(tmp_path):
    """What happened to their files is shown as it stands in the log; their bytes are an area."""
    source = f"{tmp_path}/pool/"
    create_file(source, 4 * MIB)
    with Region.open([source]) as region, Recorder(region, str(tmp_path / "log")) as log:
        region.pool.create(2, 1)
        range_, fmap = region.pool.open(2, 1), FileMap()
        range_.attach(fmap)
        range_.cover(fmap, 0, 1)
        region.store(range_.pfn << 12, b"12345678")
        log.close()
        range_.detach(fmap)
        range_.close()
    lines = dump(tmp_path / "log", "--events").splitlines()
    told = [line.split()[3:5] for line in lines if line.split()[2] == "range"]
    told = [one for one in told if one[0] != "sync"]  # if the folder lies on a file system that needs it
    assert told == [["create", "2-1"], ["place", "2-1"], ["size", "2-1"]]
    assert lines[-1].split()[2:5] == ["store", "range", "0x10000000000000+8"]
    found = json.loads(dump(tmp_path / "log", "--json"))
    assert found["areas"] == {"range": {"stores": 1, "bytes": 8}} and found["kinds"]["range"]["events"] >= 3


def test_call_sites(recording):
    found = json.loads(dump(recording, "--sites", "--json"))
    assert sum(one["bytes"] for one in found.values()) == 4096 + 64
    assert all("recording" in name for name in found) and len(found) == 5
    assert dump(recording, "--sites").count("t5_commands/test_record_dump.py:") == 5


def test_a_log_that_was_cut_off(recording, tmp_path):
    (tmp_path / "cut").write_bytes(recording.read_bytes()[:-100])
    assert json.loads(dump(tmp_path / "cut", "--json"))["events"] < 24


def test_what_is_no_recording(tmp_path):
    (tmp_path / "other").write_bytes(b"x" * 100)
    assert dump(tmp_path / "other", status=1) == f"record_dump: {tmp_path}/other: not a recording of daxfs\n"
    assert "No such file" in dump(tmp_path / "none", status=1)
