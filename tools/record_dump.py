#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Show a recording (mount -o record=FILE, daxfs._record): what was stored, flushed and drained, and by what.

    tools/record_dump.py FILE             header, events by kind, stores by area, operations with their means
    tools/record_dump.py FILE --events    one line for each event
    tools/record_dump.py FILE --sites     flushes, drains and stores by call site

Reads the file alone, also one that is being written or that was cut off by a kill. The whole log is held in
memory. --json gives plain values: one object, or with --events one on each line. In an event's line stand
operation, thread, kind, area, place and length, and the innermost frame of its call site.
"""

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from datetime import datetime

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from daxfs.cli.common import sentence, show_size
from daxfs.testing import log

LINE = 64
COLUMNS = ("stores", "bytes", "flushes", "flushed_lines", "drains")
STORES = (log.STORE, log.NT_STORE, log.NT_FILL)
AREAS = ("superblock", "state", "journal", "inode", "map", "data", "backup", "label", "range",
         "region")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--events", action="store_true", help="one line for each event")
    parser.add_argument("--sites", action="store_true", help="what each call site did")
    parser.add_argument("--op", action="append", metavar="NAME", help="only this operation; can be repeated")
    parser.add_argument("--json", action="store_true", help="plain values for programs")
    return parser.parse_args()


def lines_of(event) -> int:
    """Cache lines that hold any byte of the event."""
    return (event.place + event.length - 1) // LINE - event.place // LINE + 1 if event.length else 0


class Names:
    """What the numbers of a recording mean: areas of the region, call sites, operations."""

    def __init__(self, recording: log.Recording):
        self.areas = recording.header.get("areas") or []
        self.sites = recording.sites
        self.ops: dict[int, str] = {}
        for event in recording.events:
            if event.kind == log.BEGIN:
                self.ops[event.op] = operation_name(event.data.decode("utf-8", "replace"))

    def area(self, place: int) -> str:
        if place >= log.OWN:
            return "range"
        return next((name for name, start, end in self.areas if start <= place < end), "region")

    def op(self, number: int) -> str:
        return self.ops.get(number, "(none)")


def operation_name(text: str) -> str:
    """The "op" of a BEGIN in JSON; the first word of any other text."""
    try:
        return str(json.loads(text)["op"])
    except (ValueError, KeyError, TypeError):
        return (text.split() or ["(none)"])[0]


def by_kind(events) -> dict:
    out: dict[str, dict] = {}
    for event in events:
        one = out.setdefault(log.NAMES[event.kind], {"events": 0, "bytes": 0, "lines": 0})
        one["events"] += 1
        if event.kind in (*STORES, log.FLUSH, log.SCAN):
            one["bytes"] += event.length
            one["lines"] += lines_of(event)
    return out


def by_area(events, names: Names) -> dict:
    """Bytes stored and lines flushed in each area."""
    out = defaultdict(Counter)
    for event in events:
        if event.kind in STORES:
            out[names.area(event.place)].update(stores=1, bytes=event.length)
        elif event.kind == log.FLUSH:
            out[names.area(event.place)].update(flushed_lines=lines_of(event))
    return {name: dict(out[name]) for name in AREAS if name in out}


def totals(events, key) -> dict:
    """Stores, flushes, drains by key(event), the most bytes first."""
    out = defaultdict(Counter)
    for event in events:
        one = out[key(event)]
        if event.kind in STORES:
            one.update(stores=1, bytes=event.length)
        elif event.kind == log.FLUSH:
            one.update(flushes=1, flushed_lines=lines_of(event))
        elif event.kind == log.DRAIN:
            one.update(drains=1)
    rows = {name: {column: one[column] for column in COLUMNS} for name, one in out.items()}
    return dict(sorted(rows.items(), key=lambda row: (-row[1]["bytes"], -row[1]["flushes"], str(row[0]))))


def by_operation(events, names: Names) -> dict:
    """`totals` of each kind of operation; how many there were, how many failed."""
    counts, failed = Counter(), Counter()
    for event in events:
        if event.kind == log.BEGIN:
            counts[names.op(event.op)] += 1
        elif event.kind == log.END and b'"errno"' in event.data:
            failed[names.op(event.op)] += 1
    rows = totals(events, lambda event: names.op(event.op))
    return {name: {"count": counts[name], "errors": failed[name], **row} for name, row in rows.items()}


def summary(recording: log.Recording, events, names: Names) -> dict:
    threads = {event.thread for event in events}
    ended = {event.op for event in events if event.kind == log.END}
    begun = {event.op for event in events if event.kind == log.BEGIN}
    return {
        "header": recording.header,
        "events": len(events),
        "threads": len(threads),
        "unfinished": len(begun - ended),
        "kinds": by_kind(events),
        "areas": by_area(events, names),
        "operations": by_operation(events, names),
    }


def table(title: str, *columns: str) -> Table:
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        out.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left",
                       no_wrap=name.startswith(">"), overflow="fold")
    return out


def show_head(console: Console, facts: dict) -> None:
    header = facts["header"]
    region = header["region"]
    grid = Table.grid(padding=(0, 2))
    rows = [("region", f"{show_size(region['bytes'])}, {', '.join(s['path'] for s in region['sources'])}"),
            ("granularity", f"{region['granularity']}, flush {region['flush']}, nt {region['nt']}"
                            f"{', ' + region['safety'] if region['emulated'] else ''}")]  # fmt: skip
    if "started_ns" in header:
        begun = datetime.fromtimestamp(header["started_ns"] / 1e9)
        rows += [("begun", f"{begun:%Y-%m-%d %H:%M:%S} by {header['program']}"),
                 ("mounted on", header["mountpoint"]),
                 ("options", header["options"].replace(",", ", "))]
    left = facts["unfinished"]
    rows += [("events", f"{facts['events']} of {facts['threads']} threads"),
             ("operations", f"{left} without an end: the log was cut off" if left else "all have ended")]
    for name, value in rows:
        grid.add_row(f"[bold]{name}[/]", plain(value))
    console.print(grid)


def printable(text: str) -> str:
    """*text* without what a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in str(text))


def plain(text: str) -> str:
    """The same for rich, which obeys brackets."""
    return escape(printable(text))


def show(console: Console, facts: dict) -> None:
    show_head(console, facts)
    found = table("\nEvents", "kind", ">events", ">bytes", ">lines")
    for name, one in facts["kinds"].items():
        sizes = (str(one[key]) if one["lines"] else "" for key in ("bytes", "lines"))
        found.add_row(name, str(one["events"]), *sizes)
    console.print(found)
    found = table("\nAreas", "area", ">stores", ">bytes", ">lines flushed")
    for name, one in facts["areas"].items():
        found.add_row(name, *(str(one.get(key, 0)) for key in ("stores", "bytes", "flushed_lines")))
    console.print(found)
    found = table("\nOperations (means of one)", "operation", ">count", ">errors", ">stores", ">bytes",
                  ">flushes", ">lines flushed", ">drains")
    for name, one in facts["operations"].items():
        means = (mean(one[key] / max(one["count"], 1)) for key in COLUMNS)
        found.add_row(plain(name), str(one["count"]), str(one["errors"] or ""), *means)
    console.print(found)


def mean(value: float) -> str:
    """Whole numbers as such, others with one digit; nothing as nothing."""
    if not value or value == int(value):
        return str(int(value)) if value else ""
    return f"{value:.1f}" if value >= 0.05 else "<0.1"


def site_name(names: Names, number: int) -> str:
    return names.sites.get(number, "(not known)")


def show_sites(console: Console, sites: dict) -> None:
    found = table("Call sites", ">stores", ">bytes", ">flushes", ">lines flushed", ">drains", "site")
    for name, one in sites.items():
        found.add_row(*(str(value or "") for value in one.values()), "\n  < ".join(plain(name).split(" < ")))
    console.print(found)


def event_facts(event, names: Names) -> dict:
    """One event as plain values; the text of an operation as it is, data as their size alone."""
    out = {"kind": log.NAMES[event.kind], "op": event.op, "thread": event.thread}
    if event.kind in (log.BEGIN, log.END, log.RANGE):
        return out | {"text": event.data.decode("utf-8", "replace")}
    if event.kind != log.DRAIN:
        out |= {"place": event.place, "length": event.length, "area": names.area(event.place)}
    if event.kind == log.NT_FILL:
        out["byte"] = event.data[0]
    return out | {"site": site_name(names, event.site)}


def event_line(event, names: Names) -> str:
    """The same for people."""
    head = f"{event.op:>7} {event.thread:>3}  {log.NAMES[event.kind]:<8} "
    if event.kind in (log.BEGIN, log.END, log.RANGE):
        return head + printable(event.data.decode("utf-8", "replace"))
    where = f"{names.area(event.place):<10} {event.place:#x}+{event.length}"
    if event.kind == log.DRAIN:
        where = ""
    if event.kind == log.NT_FILL:
        where += f" of {event.data[0]:#04x}"
    return f"{head}{where:<34} {site_name(names, event.site).split(' < ')[0]}"


def main() -> int:
    args = arguments()
    try:
        recording = log.load(args.file)
    except OSError as exc:
        print(f"record_dump: {sentence(exc)}", file=sys.stderr)
        return 1
    names = Names(recording)
    events = [event for event in recording.events if not args.op or names.op(event.op) in args.op]
    try:
        dump(args, recording, events, names)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return 0


def dump(args: argparse.Namespace, recording: log.Recording, events: list, names: Names) -> None:
    """What *args* ask for, on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110
    if args.events:
        for event in events:
            print(json.dumps(event_facts(event, names)) if args.json else event_line(event, names))
    elif args.sites:
        stored = [event for event in events if event.kind not in (log.BEGIN, log.END)]
        facts = totals(stored, lambda event: site_name(names, event.site))
        print(json.dumps(facts)) if args.json else show_sites(console, facts)
    else:
        facts = summary(recording, events, names)
        print(json.dumps(facts)) if args.json else show(console, facts)


if __name__ == "__main__":
    sys.exit(main())
