# SPDX-License-Identifier: MIT
"""Faults and write-backs of a real mount as they are seen: `daxfs trace --events`, `daxfs stat`.

A program under `daxfs run --fault user` makes one fault of each kind that a mapping of data and holes can
have; the trace has to show just those, and the counters have to be what the trace showed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import mounts
import pytest
from observekit import MIB, PAGE
from test_trace_mount import Tracing

from daxfs.client import map_file, why_no_user_faults
from daxfs.fuse import control, mountinfo, trace_dax

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11"),
              pytest.mark.skipif(bool(why_no_user_faults()), reason=why_no_user_faults() or "-")]

BY_URING = True
# 8 MiB: data in the first 2 MiB and at 3 MiB, holes else.
PROGRAM = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
area = mmap.mmap(fd, 8 << 20)
print(hex(area[5]))                 # 2 MiB of data
area[9 * 4096] = 1                  # a page of them, write-protected
area[3 << 20] = 2                   # data beside a hole
print(hex(area[(4 << 20) + 4096]))  # a hole of 2 MiB
area[6 << 20] = 3                   # another one
os.fsync(fd)
"""
WANTED = [
    ("dax_pmd_fault",), ("dax_pmd_insert_mapping",), ("dax_pmd_fault_done", "NOPAGE"),
    ("dax_pte_fault",), ("dax_insert_pfn_mkwrite", "NOPAGE"), ("dax_pte_fault_done", "NOPAGE"),
    ("dax_pmd_fault",), ("dax_pmd_fault_done", "FALLBACK", "short-extent"),
    ("dax_pte_fault",), ("dax_insert_mapping",), ("dax_pte_fault_done", "NOPAGE"),
    ("dax_pmd_fault",), ("dax_pmd_load_hole_fallback",),
    ("dax_pmd_fault_done", "FALLBACK", "no-huge-zero-page"),
    ("dax_pte_fault",), ("dax_load_hole", "NOPAGE"), ("dax_pte_fault_done", "NOPAGE"),
    ("dax_pmd_fault",), ("dax_pmd_insert_mapping",), ("dax_pmd_fault_done", "NOPAGE"),
]  # fmt: skip


@pytest.fixture
def data(mount, path):
    if mount.huge:
        pytest.skip("a page of 2 MiB has no holes in it")
    with open(path, "r+b") as file:
        file.write(os.urandom(2 * MIB))
        file.seek(3 * MIB)
        file.write(b"\1" * PAGE)
        file.truncate(8 * MIB)
        os.fsync(file.fileno())
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # once more takes all, as who had it open might have mapped it
    return path


def handled(syncs) -> Counter:
    """Faults by kind, order, result and reason, and write-backs with their pages."""
    observed = syncs.stat()
    handler = observed["handler"] or {"faults": [], "writeback": {"count": 0}, "writeback_pages": None}
    out = Counter({(row["kind"], row["order"], row["result"], row["reason"]): row["count"]
                   for row in handler["faults"]})
    out["write-backs"] = handler["writeback"]["count"]
    out["pages"] = handler["writeback_pages"]["total_pages"] if handler["writeback_pages"] else 0
    return out


def whole(watcher) -> list[dict]:
    text = watcher.text[: watcher.text.rfind("\n") + 1]
    return [json.loads(line) for line in text.splitlines()]


def traced(region, events, action, until, *more):
    """What `daxfs trace --events` has printed from *action* on, when *until* (of the text) holds."""
    with Tracing(region, "--events", f"requests,{events}", *more) as watcher:
        action()
        watcher.until(lambda: until(watcher.text))
        assert watcher.end() == (0, "")
        return watcher


def program(path):
    run = [mounts.command("daxfs"), "run", "--fault", "user", "--"]
    mounts.run([*run, sys.executable, "-S", "-c", PROGRAM, path], timeout=120)


def one_after_the_other(faults: list[dict]) -> list[dict]:
    """A client goes on before the end of its fault is told: each _done in front of what came meanwhile."""
    out, rest = [], list(faults)
    while rest:
        begun = rest.pop(0)
        out.append(begun)
        if begun["op"].endswith("_fault"):
            done = next(n for n, one in enumerate(rest) if one["op"] == f"{begun['op']}_done"
                        and one["args"]["address"] == begun["args"]["address"])
            starts = [n for n, one in enumerate(rest[:done]) if one["op"].endswith("_fault")]
            if starts:
                rest.insert(starts[0], rest.pop(done))
    return out


def test_each_fault_of_a_program_is_shown_and_counted(mount, data, syncs):
    before = handled(syncs)
    watcher = traced(mount, "faults,writeback", lambda: program(data),
                     lambda text: "dax_writeback_range_done" in text and "RELEASE" in text, "--json")
    events = [event for event in whole(watcher) if event["kind"] == "dax"]
    mine = [event for event in events if event["args"]["ino"] == os.stat(data).st_ino]
    device = os.stat(data).st_dev
    assert mine and {event["args"]["dev"] for event in mine} == {f"{os.major(device)}:{os.minor(device)}"}
    faults = [event for event in mine if "fault" in event["op"] or "insert" in event["op"]
              or "hole" in event["op"]]
    faults = one_after_the_other(faults)
    assert [tuple(filter(None, (event["op"], event["args"].get("result"), event.get("reason"))))
            for event in faults] == WANTED
    assert [event["args"]["pgoff"] for event in faults if event["op"].endswith("_fault")] == [
        0, 9, 768, 768, 1025, 1025, 1536]
    assert len({event["pid"] for event in faults}) == 1 and faults[0]["pid"] > 0
    for event in mine:
        assert list(event["args"]) == list(trace_dax.TRACEPOINTS[event["op"]].fields)
    # What the counters say, from what was seen.
    after = handled(syncs) - before
    assert after == Counter({
        ("read", 9, "NOPAGE", ""): 1, ("mkwrite", 0, "NOPAGE", ""): 1, ("write", 9, "NOPAGE", ""): 1,
        ("write", 0, "NOPAGE", "short-extent"): 1, ("read", 0, "NOPAGE", "no-huge-zero-page"): 1,
        "write-backs": 1, "pages": 512 + 1 + 512})  # fmt: skip
    back = [event for event in mine if "writeback" in event["op"]]
    assert [(event["op"], event["args"].get("pgoff"), event["args"].get("pglen")) for event in back][:5] == [
        ("dax_writeback_range", None, None), ("dax_writeback_one", 0, 512), ("dax_writeback_one", 768, 1),
        ("dax_writeback_one", 1536, 512), ("dax_writeback_range_done", None, None)]
    assert not [event for event in mine if event["op"] == "dax_writeback_one"][3:], "each once"


def test_lines_between_requests_and_what_is_asked_for(mount, data):
    watcher = traced(mount, "writeback", lambda: program(data),
                     lambda text: "dax_writeback_range_done" in text and " RELEASE" in text)
    lines = [line.split(" ", 1)[1] for line in watcher.text.splitlines()]
    assert not any(line.startswith(("dax_pte", "dax_pmd", "dax_insert", "dax_load")) for line in lines)
    kinds = [line.split(" ")[not line.startswith("dax")].split("(")[0] for line in lines]
    first = kinds.index("dax_writeback_range:")
    assert "FSYNC" in kinds[:first] and "FSYNC" in kinds[first:], "asked before, answered behind it"
    device = os.stat(data).st_dev
    head = f"dev {os.major(device)}:{os.minor(device)} ino {os.stat(data).st_ino:#x} pgoff 0x"
    assert lines[first].startswith(f"dax_writeback_range: {head}0-0x"), lines[first]
    assert f"dax_writeback_one: {head}300 pglen 0x1" in lines


def test_the_default_shows_requests_alone(mount, data):
    with Tracing(mount) as watcher:
        program(data)
        watcher.until(lambda: " FSYNC = " in watcher.text and " RELEASE" in watcher.text)
        assert watcher.end() == (0, "") and "dax_" not in watcher.text


def test_fsync_without_observers_and_looks(mount, path, syncs):
    """The kernel's faults can't be seen; a look at what it knows can, and what is flushed."""
    before = syncs.stat()["look"]["count"]

    def action():
        array = map_file(path, pte=True, require=True)
        array[5 * PAGE] = array[6 * PAGE] = 1
        os.fsync(syncs.fd)

    watcher = traced(mount, "all", action, lambda text: "dax_writeback_range_done" in text, "--json")
    events = [event for event in whole(watcher) if event["kind"] == "dax"]
    (look,) = [event for event in events if event["op"] == "observed_look"]
    assert look["args"]["pages"] == 2 and look["latency_ns"] > 0
    assert look["args"]["ino"] == os.stat(path).st_ino
    assert [event["args"]["pgoff"] for event in events if event["op"] == "dax_writeback_one"] == [5]
    assert not any("fault" in event["op"] for event in events)
    facts = syncs.stat()
    assert facts["look"]["count"] == before + 1 == sum(facts["look"]["histogram"])


def test_stat_shows_them(mount, data):
    program(data)
    facts = json.loads(mounts.run([mounts.command("daxfs"), "stat", "--json", mount.path]).stdout)
    for row in facts["dax"]["observed"]["handler"]["faults"]:
        assert sum(row["histogram"]) == row["count"] > 0 and 0 < row["p50_ns"] <= row["p99_ns"]
    assert facts["writeback"]["count"] == sum(facts["writeback"]["histogram"])
    text = mounts.run([mounts.command("daxfs"), "stat", mount.path]).stdout
    lines = [line.split() for line in text.splitlines()]
    heads = [line[:4] for line in lines]
    assert ["fault=user", "size", "result", "reason"] in heads
    assert ["write-back", "count", "mean", "p50"] in heads
    assert ["mkwrite", "PTE", "NOPAGE"] in [line[:3] for line in lines]
    assert ["write", "PTE", "NOPAGE", "short-extent"] in heads
    assert ["read", "PTE", "NOPAGE", "no-huge-zero-page"] in heads
    assert ["entries", "(user)"] in [line[:2] for line in lines]
    assert max(map(len, text.splitlines())) <= 80


def test_what_a_watcher_does_not_take_is_counted(mount, path, syncs):
    """The ring is full, and so is the socket: the program does not wait."""
    array = map_file(path, pte=True, require=True, fault="user")
    before, rounds = handled(syncs), 3
    with Tracing(mount, "--json", "--events", "requests,faults") as watcher:
        watcher.process.send_signal(signal.SIGSTOP)
        for number in range(rounds):
            array[::PAGE] = number
            os.fsync(syncs.fd)
        watcher.process.send_signal(signal.SIGCONT)
        made = 3 * rounds * len(array) // PAGE

        def counted():
            events = whole(watcher)
            lost = sum(event["count"] for event in events if event["kind"] == "lost")
            return lost, lost + sum(event["kind"] == "dax" for event in events)

        watcher.until(lambda: counted()[1] >= made, lambda: time.sleep(0.3))
        assert counted()[0] > 0
        assert watcher.end() == (0, "")
    after = handled(syncs) - before
    assert sum(after[key] for key in after if isinstance(key, tuple)) == rounds * len(array) // PAGE


def test_wrong_classes_are_refused(mount):
    for words in (["--events", "faults,none"], ["-e", ""]):
        done = mounts.run([mounts.command("daxfs"), "trace", *words, mount.path], check=False)
        assert done.returncode == 2 and "none of requests, faults, writeback, fsync, all" in done.stderr
    here = mountinfo.mount_at(str(mount.path))
    with pytest.raises(OSError, match="some of requests, faults, writeback"):
        next(control.follow_mount(here, {"get": "trace", "events": "faults"}))
    assert subprocess.run([mounts.command("daxfs"), "trace", "--help"], capture_output=True, text=True,
                          check=True).stdout.count("writeback")
