# SPDX-License-Identifier: MIT
"""What `daxfs stat` shows people: the daemon's counters as tables that fit 80 columns.

Limits: asks nobody. Apart from the command, whose JSON shall not pay for the import of rich.
"""

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from daxfs.cli.common import show_size, show_time

WIDTH = 80


def console() -> Console:
    """Plain text into files and pipes, never wider than 80 columns."""
    found = Console(highlight=False)
    found.width = min(found.width, WIDTH) if found.is_terminal else WIDTH
    return found


def render(facts: dict, before: dict | None = None, seconds: float = 0) -> Group:
    """The whole report. With *before*, the last reply, operations show how many there were in a second."""
    parts = [head(facts), operations(facts, before, seconds)]
    if facts["transport"]["kind"] != "pyfuse3":
        parts.append(answered(facts))
    if "dax" in facts:  # not of a raw mount, which has no files of its own
        parts.append(dax(facts["dax"]))
    if facts["faults"]["faults"]:
        parts.append(faults(facts["faults"]))
    if answered_faults := (facts.get("dax", {}).get("observed", {}).get("handler") or {}).get("faults"):
        parts.append(handled(answered_faults))
    if facts.get("fsync", {}).get("count"):  # not of a daemon that is older than this command
        parts.append(fsyncs(facts["fsync"]))
    if any(one["count"] for _, one, _ in write_backs(facts)):
        parts.append(flushing(facts))
    if facts["raw"]:
        parts.append(raw(facts["raw"]))
    parts.append(layers(facts))
    return Group(*(part for one in parts for part in (one, Text(""))))


def _grid(*columns: str) -> Table:
    """A table with a rule under its head; a column's name that starts with ``>`` is for numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left",
                         no_wrap=name.startswith(">"))
    return table


def head(facts: dict) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    safety = f" ({facts['safety']})" if facts["emulated"] else ""
    rows = [
        ("source", facts["source"]),
        ("mounted on", facts["mountpoint"]),
        ("daemon", f"pid {facts['pid']}, up {show_uptime(facts['uptime_ns'])}"),
        ("granularity", f"{facts['granularity']}{safety}"),
        *emulation(facts["emulation"]),
        ("transport", show_transport(facts["transport"])),
        ("options", facts["options"].replace(",", ", ")),
    ]
    if facts["warning"]:
        rows.append(("warning", facts["warning"]))
    if facts["shut_down"]:
        rows.append(("shut down", "all requests answer EIO until it is unmounted"))
    recording = facts["recording"]
    if recording:
        ended = f"; ended: {recording['error']}" if recording["error"] else ""
        rows.append(("recording", f"{recording['path']}: {recording['events']} events, "
                                  f"{show_size(recording['bytes'])}{ended}"))
    for name, value in rows:
        table.add_row(Text(name, "bold"), Text(value))
    return table


def emulation(medium: dict | None) -> list[tuple[str, str]]:
    """The lines on emulate=, none where nothing is emulated: the medium, and what the self-check found."""
    if not medium:
        return []
    cap = f", {medium['write_gb_s']:g} GB/s" if medium["write_gb_s"] else ""
    numbers = (f"a line {medium['flush_line_ns']:g} ns (past the cache {medium['nt_line_ns']:g}), "
               f"a drain {medium['flush_drain_ns']:g} ns ({medium['nt_drain_ns']:g}){cap}")
    words = f": {medium['words']}" if medium["words"] else ""
    seen = [f"{one['what']} {show_time(one['median_ns'])} ({show_time(one['asked_ns'])})"
            for one in medium["check"]]
    rows = [("emulating", f"{medium['profile']}{words}"), ("", numbers),
            ("", f"so far {medium['lines']} lines, {medium['drains']} drains ({medium['late']} late), "
                 f"spun {show_time(medium['spun_ns'])}"),
            ("self-check", f"taken (asked for): {'; '.join(seen)}" if seen else "nothing of it costs time")]
    return rows + [("", problem) for problem in medium["problems"]]


def show_transport(transport: dict) -> str:
    """``uring, 2 queues``; where there is a better one also why it is not used."""
    count = f"{transport['queues']} queues" if "queues" in transport else f"{transport['threads']} threads"
    parts = [transport["kind"], count.removesuffix("s") if count.startswith("1 ") else count]
    if transport.get("malformed"):
        parts.append(f"{transport['malformed']} malformed requests")
    why = transport["why_not_better"]
    return ", ".join(parts) + (f" ({why})" if why else "")


def show_uptime(ns: int) -> str:
    """1 d 2:03:04, or 0:00:07."""
    seconds = max(ns, 0) // 10**9
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{days} d {clock}" if days else clock


def operations(facts: dict, before: dict | None, seconds: float) -> Table:
    """Requests of the kernel: how many, how long inside the daemon."""
    rate = [">per s"] if before is not None else []
    table = _grid("operation", ">count", *rate, ">errors", ">mean", ">p50 ≤", ">p99 ≤", ">total")
    busiest = sorted(facts["operations"].items(), key=lambda item: -item[1]["total_ns"])
    for name, one in busiest:
        old = (before or {}).get("operations", {}).get(name, {"count": 0})
        per_second = [f"{(one['count'] - old['count']) / seconds:.0f}" if seconds else "-"] if rate else []
        table.add_row(
            name, str(one["count"]), *per_second, str(one["errors"] or "-"),
            *((show_time(one["total_ns"] / one["count"]), show_time(one["p50_ns"]), show_time(one["p99_ns"]),
               show_time(one["total_ns"])) if one["total_ns"] else "----"),
        )
    return table


def answered(facts: dict) -> Table:
    """Who answered: native threads, pyfuse3 behind the relay, or calls into Python."""
    table = _grid("answered", ">served natively", ">relayed to pyfuse3", ">called in Python")
    busiest = sorted(facts["operations"].items(), key=lambda item: -item[1]["count"])
    for name, one in busiest:
        row = [one[kind] for kind in ("served", "relayed", "called")]
        if any(row):  # a part of an IOCTL is no request by itself
            table.add_row(name, *(str(count or "-") for count in row))
    return table


def dax(found: dict) -> Table:
    """Direct mappings: the policy, whether they can be had, ranges, and data that went to or from one."""
    moves = found["moves"]
    rows = [("dax=", found["policy"]),
            ("direct mappings", f"none: {found['why_not']}" if found["why_not"] else "can be had"),
            ("DAX files open", f"{found['open']}, {found['direct']} of them direct")]
    if found["ranges"]:
        rows.append(("own ranges in use", f"{found['ranges']} of {show_size(found['range_bytes'])} together"))
    if found["coarse_fsyncs"]:
        size = show_size(found["coarse_bytes"])
        rows.append(("coarse fsyncs", f"{found['coarse_fsyncs']}, which took {size} for dirty: nobody tracks "
                                      "what is stored through direct mappings"))
    observed = found["observed"]
    if observed["mappings"] or observed["looks"]:
        rows.append(("observed", f"{observed['mappings']} mappings of {observed['clients']} programs; "
                                 f"{observed['precise_fsyncs']} fsyncs, {observed['pages_found']} pages; "
                                 f"{observed['given_up']} could not look"))
    if any(moves.values()):
        rows.append(("moves", f"{moves['to_own']} to own ranges, {moves['to_packed']} back, "
                              f"{show_size(moves['bytes'])}, the longest {show_time(moves['longest_ns'])}; "
                              f"{moves['put_off']} put off, {moves['failed']} failed"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name, "bold"), Text(value))
    return table


def faults(found: dict) -> Table:
    """Faults of cached mappings by kind, size, result and reason, the most frequent first."""
    table = _grid("fault", "size", "result", "reason", ">count")
    for row in sorted(found["faults"], key=lambda row: -row["count"]):
        table.add_row(row["kind"], row["size"], row["result"], row["reason"], str(row["count"]))
    return table


def handled(rows: list[dict]) -> Table:
    """Faults that the daemon answered (fault=user), and how long that took, the most frequent first."""
    table = _grid("fault=user", "size", "result", "reason", ">count", ">p50 ≤", ">p99 ≤")
    for row in sorted(rows, key=lambda row: -row["count"]):
        table.add_row(row["kind"], "PMD" if row["order"] else "PTE", row["result"], row["reason"],
                      str(row["count"]), show_time(row["p50_ns"]), show_time(row["p99_ns"]))
    return table


def fsyncs(found: dict) -> Table:
    """Where the time of fsync goes (docs/fsync.md): phases that took some, and the whole of it."""
    whole = found["total"]["total_ns"]
    table = _grid("fsync", ">of the time", ">mean", ">p50 ≤", ">p99 ≤", ">total")
    for name, one in [*found["phases"].items(), ("all of it", found["total"])]:
        if one["total_ns"]:
            table.add_row(name, f"{100 * one['total_ns'] / whole:.1f} %",
                          show_time(one["total_ns"] / found["count"]), show_time(one["p50_ns"]),
                          show_time(one["p99_ns"]), show_time(one["total_ns"]))
    table.caption = f"{found['count']} fsyncs, {found['served']} of them served natively"
    table.caption_justify, table.caption_style = "left", ""
    return table


def write_backs(facts: dict) -> list[tuple[str, dict, dict]]:
    """(what, its times, its pages): write-backs, and looks at what programs stored."""
    found = [("dirty pages", facts["writeback"], facts["writeback_pages"])]
    observed = facts.get("dax", {}).get("observed")
    if observed:
        found.append(("looks (kernel)", observed["look"], observed["look_pages"]))
        if handler := observed["handler"]:
            found.append(("entries (user)", handler["writeback"], handler["writeback_pages"]))
    return found


def flushing(facts: dict) -> Table:
    """Write-backs by where what is dirty was known, with times and pages of one."""
    table = _grid("write-back", ">count", ">mean", ">p50 ≤", ">p99 ≤", ">pages", ">p50 ≤", ">p99 ≤")
    for name, times, pages in write_backs(facts):
        if times["count"]:
            table.add_row(name, str(times["count"]), show_time(times["total_ns"] / times["count"]),
                          show_time(times["p50_ns"]), show_time(times["p99_ns"]), str(pages["total_pages"]),
                          str(pages["p50_pages"]), str(pages["p99_pages"]))
    return table


def raw(files: list[dict]) -> Table:
    """The raw region's files, and how they are mapped by who opens them first from now on."""
    table = _grid("raw file", "source", ">size", ">opens", "mappings")
    for one in files:
        direct = "direct" if one["direct"] or (one["dax"] and not one["opens"]) else "cached"
        why = f" ({one['why_not']})" if one["why_not"] and direct == "cached" else ""
        table.add_row(one["name"], one["path"], show_size(one["bytes"]), str(one["opens"]), direct + why)
    return table


def show_counter(name: str, value) -> str:
    """A counter as its name says: bytes, ns, or a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        if name.endswith("bytes"):
            return show_size(value)
        if name.endswith("_ns"):
            return show_time(value)
    return str(value)


def layers(facts: dict) -> Table:
    """The layers below, side by side: tracker and flush, journal and space."""
    table = Table.grid(padding=(0, 4, 1, 0), collapse_padding=False)
    cells = [_plain("tracker", facts["tracker"]), _plain("flush", facts["flush"])]
    cells += _file_system(facts) if "space" in facts else []
    for left, right in zip(cells[::2], cells[1::2] + [Text("")], strict=False):
        table.add_row(left, right)
    return table


def _file_system(facts: dict) -> list[Table]:
    page = facts["space"].get("page_size", 4096)
    space = facts["space"]
    known = {
        "size": show_size(space["blocks"] * page),
        "free": f"{show_size(space['bfree'] * page)} ({100 * space['bfree'] // max(space['blocks'], 1)} %)",
        "inodes": str(space["files"]),
        "inodes free": str(space["ffree"]),
        "quarantined": show_size(space.get("quarantined", 0) * page),
        "poisoned": show_size(space.get("poisoned", 0) * page),
    }
    return [_plain("journal", facts["journal"]), _plain("space", known),
            _plain("inodes", facts.get("inodes", {}))]


def _plain(title: str, values: dict) -> Table:
    table = _grid(title, ">")
    for name, value in values.items():
        short = name.removesuffix("_bytes")
        table.add_row((name if short in values else short).replace("_", " "), show_counter(name, value))
    return table
