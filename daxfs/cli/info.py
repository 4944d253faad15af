# SPDX-License-Identifier: MIT
"""daxfs info: what a region is, mounted or not, whole or damaged.

Limits: changes no byte. An unmounted region is mapped privately, so that looking at its space (which
replays its journal) stays in this process; of a mounted one the daemon is asked.
"""

import contextlib
import datetime
import json
import os

import click
from rich.table import Table
from rich.text import Text

from daxfs.cli import common
from daxfs.cli.stat_tables import console, emulation
from daxfs.errors import CorruptError, DaxfsError
from daxfs.fuse import control, facts, options
from daxfs.meta import fs as metafs
from daxfs.meta import superblock
from daxfs.pfn import PAGE_SIZE
from daxfs.region import Region
from daxfs.source import is_pool, open_source, pmd_possible


@click.command("info", short_help="What a region is, mounted or not.")
@click.argument("source", metavar="SOURCE|DIR", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(source, as_json):
    """What the region on SOURCE, or the one mounted at DIR, is: sizes, space,
    clean or not, who has it mounted. Several sources are separated by commas.
    """
    found = look(source)
    if as_json:
        click.echo(json.dumps(found))
    else:
        console().print(render(found))
        for problem in found["problems"]:
            common.say("daxfs", problem)
    return 1 if found["problems"] else 0


def look(text: str) -> dict:
    """All facts. Damage is in ``problems``; DaxfsError where there is nothing to look at."""
    pool = os.path.lexists(os.path.join(text, "region"))
    if os.path.ismount(text) or (os.path.isdir(text) and not pool):
        return mounted(control.ask_path(text, {"get": "info"}))
    sources = options.source_list(text)
    mount = mount_of(sources)
    if mount is not None:
        return mounted(mount)
    return unmounted(sources)


def mounted(reply: dict) -> dict:
    """The daemon's reply in the shape of `unmounted`."""
    return {
        **(reply["superblock"] or {}),
        "sources": reply["region"]["sources"],
        "granularity": reply["granularity"], "emulated": reply["emulated"], "pmd": reply["region"]["pmd"],
        "emulation": reply["emulation"],
        "mounted": {name: reply[name] for name in ("pid", "mountpoint", "options", "readonly")},
        "space": reply["space"],
        "ranges": reply["ranges"],
        "problems": [],
    }  # fmt: skip


def mount_of(sources: list[str]) -> dict | None:
    """The info reply of the daemon that has these sources, None if they are free or it does not answer."""
    with contextlib.suppress(OSError):
        probe = open_source(sources[0], "ro", lock=True)
        probe.close()
        return None  # nobody holds the lock
    wanted = [_path(source) for source in sources]
    for mount in control.live_mounts():
        with contextlib.suppress(OSError):
            reply = control.ask_mount(mount, {"get": "info"}, timeout=3)
            if any(_same(wanted[0], _path(one["path"])) for one in reply["region"]["sources"]):
                return reply
    return None


def _path(source: str) -> str:
    return os.path.join(source, "region") if is_pool(source) else source


def _same(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return False


def unmounted(sources: list[str]) -> dict:
    """Facts from the media. What is damaged is told in ``problems``, and the rest is told all the same."""
    problems: list[str] = []
    with _open(sources) as region:
        described = region.describe()
        found: dict = {"sources": described["sources"], "granularity": described["granularity"],
                       "emulated": described["emulated"], "pmd": _pmd(region), "mounted": None,
                       "emulation": None,
                       "space": None, "pool": None, "problems": problems}  # fmt: skip
        sb = _superblock(region, problems)
        if sb is None:
            return found
        found = {**facts.of_superblock(sb), **found}
        try:
            found |= facts.of_state(region.mem, sb.seed)
            fs = metafs.mount(region, readonly=True)
            found |= {"space": facts.of_space(fs), "to_replay": fs.replayed, "orphans": len(fs.orphans)}
            found["ranges"] = facts.of_ranges(region)
            fs = None
        except (OSError, ValueError, IndexError) as exc:
            problems.append(f"{sources[0]}: {exc}; fsck.daxfs has more to say")
    return found


def _pmd(region: Region) -> str:
    """Whether a mount could use 2 MiB mappings; our own private mapping, which can't, is not meant."""
    answers = [pmd_possible(source) for source in region.sources]
    return next((answer for answer in answers if answer.startswith("no")), answers[0])


def _open(sources: list[str]) -> Region:
    """The region mapped privately; a busy one without its lock, devdax (which can't be private) read-only."""
    for mode, lock in (("cow", True), ("cow", False), ("ro", False)):
        try:
            return Region.open(sources, mode=mode, lock=lock)
        except OSError as exc:
            problem = exc
    raise problem


def _superblock(region: Region, problems: list[str]):
    """The superblock, or its backup with a problem noted, or None with a problem noted."""
    try:
        return superblock.read(region)
    except CorruptError as exc:
        problems.append(str(exc))
        return superblock.find_backup(region)
    except DaxfsError as exc:
        problems.append(str(exc))
        with contextlib.suppress(OSError):
            return superblock.parse(bytes(region.mem[:PAGE_SIZE]))
    return None


def _when(ns: int) -> str:
    if not ns:
        return "never"
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.datetime.fromtimestamp(ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")
    return f"{ns} ns"


def render(found: dict) -> Table:
    """Two columns: name and value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(found):
        table.add_row(Text(name, "bold"), Text(value))
    return table


def rows(found: dict) -> list[tuple[str, str]]:
    """The lines of the report, in order."""
    out = []
    for index, source in enumerate(found["sources"]):
        size = common.show_size(source["bytes"])
        out.append((f"source {index}", f"{source['path']} ({source['kind']}, {source['medium']}, {size})"))
    safety = " (emulated: not power-fail safe)" if found["emulated"] else ""
    out.append(("granularity", f"{found['granularity']}{safety}"))
    if found["emulation"]:
        out += emulation(found["emulation"])
    out.append(("2 MiB mappings", found["pmd"]))
    if "uuid" not in found:
        return out + ([("state", _state(found) + ", raw")] if found["mounted"] else [])
    out += [("UUID", found["uuid"]), ("label", found["label"] or "-"),
            ("format", f"revision {found['format_rev']}, state of pages in {found['map']}"),
            ("features", _features(found["features"])),
            ("created", _when(found["created_ns"])),
            ("journal", common.show_size(found["journal_bytes"]))]
    space = found["space"]
    if space:
        size, free = common.show_size(space["bytes"]), common.show_size(space["free_bytes"])
        out.append(("data", f"{size}, {free} free"))
        out.append(("inodes", f"{space['inodes']}, {space['free_inodes']} free"))
        if space["poisoned_bytes"]:
            out.append(("poisoned", f"{common.show_size(space['poisoned_bytes'])} (daxfs poison list)"))
    ranges = found.get("ranges")
    if ranges:
        size, stored = common.show_size(ranges["bytes"]), common.show_size(ranges["stored_bytes"])
        out.append(("own ranges", f"{ranges['count']}, {size}, {stored} of storage"))
    if "clean" in found:
        out.append(("mounts", f"{found['mount_count']}, last {_when(found['last_mount_ns'])}"))
        out.append(("last check", _when(found["last_check_ns"])))
        out.append(("state", _state(found)))
    return out


def _features(words: dict) -> str:
    """Feature bits by name, unknown ones by number."""
    out = []
    for word, bits in words.items():
        known = facts.FEATURES.get(word, {})
        out += [known.get(1 << i, f"{word} {i}") for i in range(64) if bits >> i & 1]
    return ", ".join(out) or "-"


def _state(found: dict) -> str:
    if found["mounted"]:
        have = found["mounted"]
        how = "read-only" if have["readonly"] else "read-write"
        return f"mounted {how} on {have['mountpoint']} by pid {have['pid']}"
    if found["clean"]:
        return "clean"
    replay, orphans = found.get("to_replay", "?"), found.get("orphans", "?")
    return f"not unmounted cleanly: {replay} records to replay, {orphans} orphans"
