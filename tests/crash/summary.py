# SPDX-License-Identifier: MIT
"""What a crash sweep found: one dict of plain values, and the tables on the terminal made of it.

Nothing here runs anything but git, for the commit. The HTML page of the same dict is page.py.
"""

import collections
import datetime
import os
import platform
import shlex
import subprocess
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .sweep import Sweep

TOP_SITES, TOP_VIOLATIONS = 15, 10
SHOWN_LINES = 16                # about the stores of a violation, on the terminal
KEPT_VIOLATIONS = 200           # of them with all details in summary.json and in the page
REPLAY = "build/crash-replay"
PLAIN = {"markup": False, "highlight": False, "soft_wrap": True}


# -- gathering -------------------------------------------------------------------------------


def build(sweep: Sweep, command: list[str]) -> dict:
    """The summary of *sweep*, for summary.json. *command*: the words that replays begin with."""
    records = sweep.records
    outcomes = [record["outcome"] for record in records]
    ops = collections.Counter()
    for outcome in outcomes:
        ops.update(outcome["ops"])
    seconds = sum(outcome["seconds"] / record["workers"]
                  for record, outcome in zip(records, outcomes, strict=True))
    images = sum(outcome["images"] for outcome in outcomes)
    return {
        "images": images, "points": sum(outcome["points"] for outcome in outcomes),
        "nested": sum(outcome["nested"] for outcome in outcomes), "violations": sweep.violations,
        "sequences": len(records), "resumed": sweep.resumed, "left": sweep.left(), "stopped": sweep.stopped,
        "fresh": sweep.fresh,
        "seconds": round(seconds, 1), "images_per_minute": _rate(images, seconds),
        "parameters": {**vars(sweep.parameters), "workers": sweep.workers,
                       "limit": {job.set: job.limit for job in sweep.jobs}},
        "digest": sweep.results.digest, "commit": commit(), "host": host(),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "sets": _sets(sweep), "ops": dict(ops.most_common()), "pairs": _pairs(records),
        "costs": _costs(outcomes),
        "found": [{**violation, "granularity": record["granularity"], "replay": replay(record, command)}
                  for record in records for violation in record["outcome"]["violations"]][:KEPT_VIOLATIONS],
        "failures": [{"name": record["name"], "text": record["text"], "replay": replay(record, command)}
                     for record in sweep.failures],
    }


def _rate(images: int, seconds: float) -> int:
    return round(images * 60 / seconds) if seconds else 0


def _sets(sweep: Sweep) -> list[dict]:
    rows = []
    for name in dict.fromkeys(job.set for job in sweep.jobs):
        records = [record for record in sweep.records if record["set"] == name]
        row = {"set": name, "sequences": len(records), "of": sum(job.set == name for job in sweep.jobs)}
        row["failed"] = sum(record["set"] == name for record in sweep.failures)
        row["left"] = row["of"] - row["sequences"] - row["failed"]
        for field in ("points", "images", "nested"):
            row[field] = sum(record["outcome"][field] for record in records)
        row["violations"] = sum(len(record["outcome"]["violations"]) for record in records)
        seconds = sum(record["outcome"]["seconds"] / record["workers"] for record in records)
        rows.append({**row, "seconds": round(seconds, 1), "images_per_minute": _rate(row["images"], seconds)})
    return rows


def _pairs(records) -> list[dict]:
    """For each (first, second) operation of the length-two set: images and violations."""
    sums: dict[tuple, list] = {}
    for record in records:
        if record["set"] == "two":
            # Files may have been opened before the two.
            both = sums.setdefault(tuple(record["kinds"][-2:]), [0, 0])
            both[0] += record["outcome"]["images"]
            both[1] += len(record["outcome"]["violations"])
    return [{"first": kinds[0], "second": kinds[-1], "images": both[0], "violations": both[1]}
            for kinds, both in sorted(sums.items())]


def _costs(outcomes) -> list[dict]:
    total = collections.Counter()
    for outcome in outcomes:
        for cost in outcome["costs"]:
            # The callers in daxfs, without those in the tests.
            total[cost["kind"], cost["site"].split(" < crash/")[0]] += cost["count"]
    return [{"kind": kind, "site": site, "count": count} for (kind, site), count in total.most_common()]


def replay(record: dict, command: list[str]) -> str:
    """The command that runs the sequence of *record* alone, again, with its own results."""
    words = [*command, "--limit", str(record["limit"]), "--fresh", "--out", REPLAY]
    if record["set"] == "log":
        path, share = record["name"].rsplit(" ", 1)
        return shlex.join([*words, "--jobs", share.split("/")[1], "--log", path])
    return shlex.join([*words, "--set", record["set"], "--match", record["name"]])


def commit() -> str:
    """The commit of the checkout, with "+" where files differ from it."""
    git = ["git", "-c", "safe.directory=*", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True,
                              check=True, timeout=10).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True,
                                 check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name + ("+" if changed else "")


def host() -> str:
    """Name, kernel, processor and number of CPUs."""
    model = platform.machine()
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{platform.node()}, Linux {platform.release()}, {model}, {len(os.sched_getaffinity(0))} CPUs"


def last_line(summary: dict) -> str:
    def many(count, noun):
        return f"{count:,} {noun}" + ("" if count == 1 else "s")

    line = f"{many(summary['images'], 'image')}, {many(summary['violations'], 'violation')}"
    failures = len(summary["failures"])
    return line + (f", {many(failures, 'sequence')} failed" if failures else "")


def unfinished(summary: dict) -> str:
    """Why some of the sequences were not run; "" where all were."""
    if not summary["left"]:
        return ""
    why = {"interrupted": "interrupted", "failures": "too many failures"}.get(summary["stopped"], "time over")
    more = "" if summary["fresh"] else ", the same command goes on with them"
    return f"{why}: {summary['left']:,} sequences are left{more}"


# -- the terminal ----------------------------------------------------------------------------


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show(summary: dict, console: Console) -> None:
    """All of it but the last line."""
    console.print(_set_table(summary))
    if summary["costs"]:
        console.print(_cost_table(summary))
    # The others of the same sequence are mostly the same bug.
    firsts: dict[tuple, dict] = {}
    for found in summary["found"]:
        firsts.setdefault((found["replay"], found["granularity"]), found)
    for found in list(firsts.values())[:TOP_VIOLATIONS]:
        name = escape(found["sequence"]["name"])
        console.print(f"[red]violation[/]: {name}", highlight=False, soft_wrap=True)
        console.print("\n".join(violation_lines(found, SHOWN_LINES)), **PLAIN)
    if summary["violations"] > TOP_VIOLATIONS or len(firsts) < summary["violations"]:
        console.print("one violation of a sequence is shown here, all of them are in the HTML summary")
    for failure in summary["failures"][:TOP_VIOLATIONS]:
        console.print(f"[red]failed[/]: {escape(failure['name'])}", highlight=False, soft_wrap=True)
        console.print(f"{failure['text']}\n  again:   {failure['replay']}", **PLAIN)
    if summary["left"]:
        console.print(f"[yellow]{unfinished(summary)}[/]", highlight=False)


def _table(title: str, caption: str | None) -> Table:
    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 0),
                 title_justify="left", caption_justify="left")


def _set_table(summary: dict) -> Table:
    table = _table("power failures, judged", "nested: a second failure, in or after recovery")
    table.add_column("set", no_wrap=True)
    left = ("left",) if summary["left"] else ()
    counts = ("points", "images", "nested", "violations", "time", "images per min")
    for heading in ("sequences", *left, *counts):
        table.add_column(heading, justify="right")
    rows = summary["sets"] + ([{**summary, "set": "all"}] if len(summary["sets"]) > 1 else [])
    for row in rows:
        table.add_row(row["set"], f"{row['sequences']:,}", *[f"{row[name]:,}" for name in left], *cells(row),
                      style="red" if row["violations"] else None)
    return table


def cells(row: dict) -> list[str]:
    counts = [f"{row[field]:,}" for field in ("points", "images", "nested", "violations")]
    return [*counts, clock(row["seconds"]), f"{row['images_per_minute']:,}"]


def _cost_table(summary: dict) -> Table:
    rows = summary["costs"]
    more = f"{len(rows) - TOP_SITES} more are in the HTML summary" if len(rows) > TOP_SITES else None
    table = _table("flushes and drains for nothing", more)
    table.add_column("count", justify="right")
    table.add_column("kind")
    table.add_column("call site", overflow="fold")
    for row in rows[:TOP_SITES]:
        table.add_row(f"{row['count']:,}", row["kind"], escape(row["site"]))
    return table


def sequence_text(ops) -> str:
    return "; ".join(" ".join(str(word) for word in op) for op in ops)


def violation_lines(found: dict, most: int = 1000) -> list[str]:
    """What is to be known about one violation, line by line; *most* lines about the stores in flight."""
    sequence = found["sequence"]
    lines = [f"  seed:    {found['seed']}, granularity {found['granularity']}",
             f"  at:      {found['point']}, image {found['image']}"]
    lines += [f"  wrong:   {complaint}" for complaint in found["complaints"]]
    # Of a recording, the operation in flight.
    one = [f"{name}={value}" for name, value in sequence.get("operation", {}).items()]
    ops = sequence.get("ops") or [one]
    lines.append(f"  ops:     {sequence_text(ops)}")
    if found.get("minimal"):
        lines.append(f"  minimal: {sequence_text(found['minimal']['ops'])}")
    stores = str(found["lines"]).splitlines()
    lines += [f"  stores:  {line}" for line in stores[:most]]
    lines += [f"  stores:  {len(stores) - most} lines more"] if len(stores) > most else []
    return [*lines, f"  again:   {found['replay']}"]
