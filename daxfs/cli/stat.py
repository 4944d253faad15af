# SPDX-License-Identifier: MIT
"""daxfs stat: what a mounted region has done so far, as tables (stat_tables) or JSON.

Limits: asks the daemon over its control socket; the numbers are the daemon's own. Programs that ask for JSON
again and again wait for no import of rich.
"""

import json
import time

import click

from daxfs.fuse import control


@click.command("stat", short_help="Counters of a mounted region.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one on each line.")
@click.option("-w", "--watch", metavar="SECONDS", type=click.FloatRange(0.1, 3600), is_flag=False,
              flag_value=1.0, help="Show it again every SECONDS (default 1), until Ctrl-C or unmounted.")
def command(directory, as_json, watch):
    """Counters of the region mounted at DIR: operations and their latencies,
    faults, dirty and flushed bytes, journal, space.
    """
    if as_json:
        while True:
            click.echo(json.dumps(control.ask_path(directory, {"get": "stat"})))
            if watch is None:
                return
            time.sleep(watch)
    from daxfs.cli import stat_tables

    if watch is None:
        stat_tables.console().print(stat_tables.render(control.ask_path(directory, {"get": "stat"})))
    else:
        show_again(directory, watch, stat_tables)


def show_again(directory: str, seconds: float, tables) -> None:
    """The tables every so many seconds, in place, with what was done in between; until something ends it."""
    from rich.live import Live

    with Live(console=tables.console(), auto_refresh=False) as live:
        before, then = None, time.monotonic()
        while True:
            facts, now = control.ask_path(directory, {"get": "stat"}), time.monotonic()
            live.update(tables.render(facts, before, now - then), refresh=True)
            before, then = facts, now
            time.sleep(seconds)
