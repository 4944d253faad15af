# SPDX-License-Identifier: MIT
"""Events of faults and write-backs: names, fields and texts are those of the kernel's tracepoints."""

import json
import os
import random
import re
from pathlib import Path

import pytest
from test_trace import record

from daxfs.fuse import trace, trace_dax

FORMATS = Path("/sys/kernel/tracing/events/fs_dax")
# Those that have no counterpart here: never a zero page of 2 MiB, no MAP_SYNC on FUSE.
WITHOUT = {"dax_pmd_load_hole", "dax_insert_pfn_mkwrite_no_entry"}
GONE = {"dax_insert_mapping", "dax_pmd_insert_mapping"}  # Linux 6.18 has them no more
LEFT_OUT = {"zero_folio", "zero_page", "pfn_val", "pfn"}
DEVICE = os.makedev(8, 3)


def formats():
    try:
        return {one.parent.name: one.read_text() for one in FORMATS.glob("*/format")}
    except PermissionError:
        return {}


def body(**fields):
    names = "vm_start vm_end address pgoff max_pgoff length flags result reason entry".split()
    return trace_dax.BODY.pack(*(fields.get(name, 0) for name in names))


def shown(number, raw=b"", latency=0, pid=0):
    event = trace.Decoder(DEVICE).event(record(trace.DAX, number, raw, latency=latency, pid=pid, nodeid=5))
    return json.loads(json.dumps(event)), trace.line(event).split(" ", 1)[1]


def number_of(name):
    return [event.name for event in trace_dax.EVENTS].index(name)


FULL = body(vm_start=0x10000, vm_end=0x90000, address=0x12000, pgoff=2, max_pgoff=0x80, length=4096, flags=3,
            result=0x104, entry=17)


def test_names_fields_and_texts_are_the_running_kernels():
    found = formats()
    if not found:
        pytest.skip(f"{FORMATS} is not there (CONFIG_FS_DAX, root)")
    assert set(found) - set(trace_dax.TRACEPOINTS) == WITHOUT
    assert set(trace_dax.TRACEPOINTS) - set(found) <= GONE
    for name in set(found) & set(trace_dax.TRACEPOINTS):
        fields = re.findall(r"field:(?!\w+ (?:\w+ )?common_)[^;]*?(\w+);", found[name])
        ours = trace_dax.TRACEPOINTS[name]
        assert [one for one in fields if one not in LEFT_OUT] == list(ours.fields), name
        # The kernel's format with what is left out taken away, as a pattern for a line of ours.
        text = re.search(r'print fmt: "([^"]*)"', found[name])[1]
        text = re.sub(r" zero_(folio|page) %p", "", text)
        pattern = {"%d": r"\d+", "%#lx": r"(0x[0-9a-f]+|0)", "%s": r"[A-Za-z|]+"}
        want = "".join(pattern.get(part, re.escape(part)) for part in re.split(r"(%#lx|%d|%s)", text))
        _, line = shown(number_of(name), FULL)
        assert re.fullmatch(f"{name}: {want}", line), (line, want)


def test_results_and_flags_are_the_running_kernels():
    found = formats()
    if not found:
        pytest.skip(f"{FORMATS} is not there (CONFIG_FS_DAX, root)")
    text = found["dax_pte_fault"]
    words = re.findall(r"VM_FAULT_(\w+), \"(\w+)\"", text)
    assert all(name == word for name, word in words)
    order = [word for _, word in words]
    ours = list(trace_dax.VM_FAULT.values())
    assert ours == [word for word in order if word in ours], "they are printed in the kernel's order"


@pytest.mark.parametrize(("name", "line"), [
    ("dax_pte_fault", "dev 8:3 ino 0x5 shared WRITE|MKWRITE address 0x12000 pgoff 0x2 MAJOR|NOPAGE"),
    ("dax_pmd_fault_done", "dev 8:3 ino 0x5 shared WRITE|MKWRITE address 0x12000 vm_start 0x10000 "
                           "vm_end 0x90000 pgoff 0x2 max_pgoff 0x80 MAJOR|NOPAGE"),
    ("dax_pmd_load_hole_fallback", "dev 8:3 ino 0x5 shared address 0x12000 radix_entry 0x11"),
    ("dax_insert_mapping", "dev 8:3 ino 0x5 shared write address 0x12000 radix_entry 0x11"),
    ("dax_pmd_insert_mapping", "dev 8:3 ino 0x5 shared write address 0x12000 length 0x1000 radix_entry 0x11"),
    ("dax_writeback_range", "dev 8:3 ino 0x5 pgoff 0x2-0x80"),
    ("dax_writeback_one", "dev 8:3 ino 0x5 pgoff 0x2 pglen 0x80"),
    ("observed_look", "dev 8:3 ino 0x5 pages 128"),
])  # fmt: skip
def test_lines(name, line):
    assert shown(number_of(name), FULL)[1] == f"{name}: {line}"


def test_what_stands_behind_the_kernels_text():
    raw = body(address=0x12000, pgoff=2, flags=1, result=0x800, reason=3)
    event, line = shown(number_of("dax_pte_fault_done"), raw, latency=2100, pid=77)
    assert line == ("dax_pte_fault_done: dev 8:3 ino 0x5 shared WRITE address 0x12000 pgoff 0x2 FALLBACK "
                    "reason colour <2.1 µs> pid 77")
    assert event == {
        "kind": "dax", "time_ns": event["time_ns"], "op": "dax_pte_fault_done", "reason": "colour", "pid": 77,
        "latency_ns": 2100, "args": {"ino": 5, "vm_flags": "shared", "address": 0x12000, "pgoff": 2,
                                     "dev": "8:3", "flags": "WRITE", "result": "FALLBACK"}}  # fmt: skip


def test_a_load_has_no_flags_and_an_entry_no_result():
    """As __print_flags of the kernel prints nothing at all; but no space at the end."""
    assert shown(0, body(address=4096, pgoff=1))[1] == (
        "dax_pte_fault: dev 8:3 ino 0x5 shared  address 0x1000 pgoff 0x1")


def test_odd_records():
    for raw, number in ((b"", 0), (FULL[:-1], 0), (FULL, len(trace_dax.EVENTS)), (FULL, 2**32 - 1)):
        event, line = shown(number, raw)
        assert event["op"] == line == f"dax event {number}" and event["args"] == {}
    event, line = shown(1, body(reason=200, result=0xFFFFFFFF, flags=0xFFFFFFFF))
    assert event["reason"] == "200" and line.isprintable()
    dice = random.Random(5)
    for number in range(len(trace_dax.EVENTS)):
        for _ in range(50):
            event, line = shown(number, dice.randbytes(64))
            assert line.isprintable() and event["kind"] == "dax"


def test_every_event_has_its_number():
    """native/trace.h and trace_dax.py name the same events in the same order."""
    header = (Path(__file__).parents[2] / "daxfs" / "native" / "trace.h").read_text()
    names = re.search(r"enum trace_dax \{(.*?)\};", re.sub(r"/\*.*?\*/", "", header), re.S)[1]
    ours = [event.name.upper().replace("OBSERVED_LOOK", "DAX_LOOK") for event in trace_dax.EVENTS]
    assert names.replace(",", " ").split() == ours
    assert trace_dax.EVENTS[trace_dax.FIRST_WRITEBACK].name == "dax_writeback_range"
    classes = dict(re.findall(r"#define TRACE_(REQUESTS|FAULTS|WRITEBACK|FSYNC) (\d)", header))
    assert {name.lower(): int(value) for name, value in classes.items()} == trace.CLASSES
