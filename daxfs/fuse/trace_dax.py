# SPDX-License-Identifier: MIT
"""Faults and write-backs in words: events with the names, fields and texts of Linux's fs_dax tracepoints.

native/trace.h has their numbers and what of them our handler knows. Left out is what has no counterpart here:
the kernel's zero folio, and the frame of a PMD. `radix_entry` are the bits of native/entry.h.

Limits: facts of include/trace/events/fs_dax.h of Linux 6.18, and of older ones for the two insert_mapping
events, which it has no more; tests/t5_commands/test_trace_dax.py compares them with the running kernel.
"""

import os
import struct
from dataclasses import dataclass

from daxfs.fault._decision import REASON_NAMES

# vm_start, vm_end, address, pgoff, max_pgoff, length, flags, result, reason, entry: struct trace_dax_body.
BODY = struct.Struct("<6Q4I")
FAULT_FLAGS = {1: "WRITE", 2: "MKWRITE"}
# In the order in which the kernel prints them.
VM_FAULT = {1: "OOM", 2: "SIGBUS", 4: "MAJOR", 0x100: "NOPAGE", 0x200: "LOCKED", 0x400: "RETRY",
            0x800: "FALLBACK", 0x2000: "NEEDDSYNC"}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """*fields*: names, in the kernel's order. *text*: as its print fmt, for format_map; ``dev`` is M:m."""

    name: str
    fields: tuple[str, ...]
    text: str


def _event(name: str, fields: str, text: str) -> Event:
    return Event(name, tuple(fields.split()), "dev {dev} ino {ino:#x} " + text)


_FAULT = "ino vm_flags address pgoff dev flags result"
_FAULT_TEXT = "{vm_flags} {flags} address {address:#x} pgoff {pgoff:#x} {result}"
_PMD = "ino vm_start vm_end vm_flags address pgoff max_pgoff dev flags result"
_PMD_TEXT = ("{vm_flags} {flags} address {address:#x} vm_start {vm_start:#x} vm_end {vm_end:#x} "
             "pgoff {pgoff:#x} max_pgoff {max_pgoff:#x} {result}")
_RANGE, _RANGE_TEXT = "ino start_index end_index dev", "pgoff {start_index:#x}-{end_index:#x}"
EVENTS = (
    _event("dax_pte_fault", _FAULT, _FAULT_TEXT), _event("dax_pte_fault_done", _FAULT, _FAULT_TEXT),
    _event("dax_pmd_fault", _PMD, _PMD_TEXT), _event("dax_pmd_fault_done", _PMD, _PMD_TEXT),
    _event("dax_load_hole", _FAULT, _FAULT_TEXT),
    _event("dax_pmd_load_hole_fallback", "ino vm_flags address radix_entry dev",
           "{vm_flags} address {address:#x} radix_entry {radix_entry:#x}"),
    _event("dax_insert_mapping", "ino vm_flags address radix_entry dev write",
           "{vm_flags} {access} address {address:#x} radix_entry {radix_entry:#x}"),
    _event("dax_pmd_insert_mapping", "ino vm_flags address length radix_entry dev write",
           "{vm_flags} {access} address {address:#x} length {length:#x} radix_entry {radix_entry:#x}"),
    _event("dax_insert_pfn_mkwrite", _FAULT, _FAULT_TEXT),
    _event("dax_writeback_range", _RANGE, _RANGE_TEXT),
    _event("dax_writeback_range_done", _RANGE, _RANGE_TEXT),
    _event("dax_writeback_one", "ino pgoff pglen dev", "pgoff {pgoff:#x} pglen {pglen:#x}"),
    _event("observed_look", "ino pages dev", "pages {pages}"),  # ours
)  # fmt: skip
FIRST_WRITEBACK = 9  # from here on they are of the class "writeback"
_OWN = frozenset(("observed_look",))
TRACEPOINTS = {event.name: event for event in EVENTS if event.name not in _OWN}
_BY_NAME = {event.name: event for event in EVENTS}


def _words(value: int, names: dict[int, str]) -> str:
    return "|".join(name for bit, name in names.items() if value & bit)


def event(number: int, ino: int, device: int, body: bytes) -> dict:
    """``op``, ``args`` and, of a fault that is done, ``reason``; *device*: st_dev of the mount."""
    if number >= len(EVENTS) or len(body) < BODY.size:
        return {"op": f"dax event {number}", "args": {}}
    kind = EVENTS[number]
    vm_start, vm_end, address, pgoff, more, length, flags, result, reason, entry = BODY.unpack_from(body)
    values = {
        "ino": ino, "dev": f"{os.major(device)}:{os.minor(device)}", "vm_flags": "shared",
        "vm_start": vm_start, "vm_end": vm_end, "address": address, "pgoff": pgoff, "max_pgoff": more,
        "length": length, "flags": _words(flags, FAULT_FLAGS), "result": _words(result, VM_FAULT),
        "radix_entry": entry, "write": flags & 1, "start_index": pgoff, "end_index": more, "pglen": more,
        "pages": more,
    }  # fmt: skip
    out = {"op": kind.name, "args": {name: values[name] for name in kind.fields}}
    if reason:
        out["reason"] = REASON_NAMES[reason] if reason < len(REASON_NAMES) else str(reason)
    return out


def text(event: dict) -> str:
    """``NAME: `` and what the kernel prints for one; a reason and the process behind it."""
    kind = _BY_NAME.get(event["op"])
    if kind is None:
        return event["op"]
    args = event["args"]
    out = f"{kind.name}: " + kind.text.format_map(args | {"access": "write" if args.get("write") else "read"})
    return out.rstrip() + (f" reason {event['reason']}" if "reason" in event else "")
