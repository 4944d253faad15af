# SPDX-License-Identifier: MIT
"""daxfs stat: what a mounted region has done so far, as tables (stat_tables) or JSON.

Limits: asks the daemon over its control socket; the numbers are the daemon's own. Programs that ask for JSON
again and again wait for no import of rich.
"""

import contextlib
import json
import math
import sys
import time

import click

from daxfs.errors import DaxfsError
from daxfs.fuse import control, mountinfo


@click.command("stat", short_help="Counters of a mounted region.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one on each line.")
@click.option("-w", "--watch", metavar="SECONDS", type=click.FloatRange(0.1, 3600), is_flag=False,
              flag_value=1.0, help="Show it again every SECONDS (default 1), until Ctrl-C or unmounted.")
def command(directory, as_json, watch):
    """Counters of the region mounted at DIR: operations and their latencies,
    faults, dirty and flushed bytes, journal, space.
    """
    if watch is not None and math.isnan(watch):
        raise click.BadParameter("nan is no number of seconds", param_hint="'-w' / '--watch'")
    mount = control.mount_of(directory)
    if watch is None:
        return show(control.ask_mount(mount, {"get": "stat"}), as_json)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        if as_json or not sys.stdout.isatty():
            for facts, before, seconds in again(mount, watch):
                show(facts, as_json, before, seconds)
        else:
            show_in_place(again(mount, watch))


def show(facts: dict, as_json: bool, before: dict | None = None, seconds: float = 0) -> None:
    """One report, at once: who watches through a pipe shall see it when it is made."""
    if as_json:
        click.echo(json.dumps(facts))
    else:
        from daxfs.cli import stat_tables

        stat_tables.console().print(stat_tables.render(facts, before, seconds))
    sys.stdout.flush()


def show_in_place(replies) -> None:
    """Each of the replies of `again` where the one before was."""
    from rich.live import Live

    from daxfs.cli import stat_tables

    with Live(console=stat_tables.console(), auto_refresh=False) as live:
        for reply in replies:
            live.update(stat_tables.render(*reply), refresh=True)


def again(mount: mountinfo.Mount, watch: float):
    """(facts, those before, seconds since then), every *watch* seconds, until *mount* is unmounted."""
    before, then = None, time.monotonic()
    while before is None or control.is_there(mount):
        try:
            facts, now = control.ask_mount(mount, {"get": "stat"}), time.monotonic()
        except DaxfsError:
            if before is not None and not control.is_there(mount):
                return
            raise
        yield facts, before, now - then
        before, then = facts, now
        time.sleep(watch)
