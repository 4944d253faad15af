# SPDX-License-Identifier: MIT
"""daxfs revoke: take the direct mappings of a mount away from the programs that have them.

Limits: the daemon does it, asked over its control socket; who has what is looked for here, in /proc.
"""

import errno
import json
import os

import click

from daxfs.cli.common import show_size
from daxfs.errors import DaxfsError, UsageError
from daxfs.fuse import control, users


@click.command("revoke", short_help="Take direct mappings away.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0, 86400), default=None,
              help="Wait so long for programs to let go (default 10).")
@click.option("--undo", is_flag=True, help="Allow direct mappings again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(directory, timeout, undo, as_json):
    """Stop direct mappings on the mount at DIR: no new ones, and what programs
    still have mapped after the timeout gives them SIGBUS. Files keep their
    content. Exit status 1 if something could not be taken away.
    """
    if undo and (timeout is not None or as_json):
        raise UsageError("--undo goes with no other option")
    mount = control.mount_of(directory)
    if undo:
        control.ask_mount(mount, {"revoke": {"undo": True}})
        return 0
    wish = {"revoke": {"timeout": 10.0 if timeout is None else timeout}}
    report = None
    for part in control.follow_mount(mount, wish):
        if "error" in part:
            raise DaxfsError(f"{mount.mountpoint}: {part['error']}", part["errno"])
        if part.get("waiting") and not as_json:
            click.echo(f"files in use: {len(part['waiting'])}; "
                       f"waiting {wish['revoke']['timeout']:g} s at most")
        if "taken" in part:
            report = part
    if report is None:
        raise DaxfsError(f"{mount.mountpoint}: the daemon ended before it was done", errno.ECONNRESET)
    _name_users(mount, report)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(report)
    return 1 if report["left"] else 0


def _name_users(mount, report: dict) -> None:
    """Put into each file of *report* who has it."""
    wanted = {}
    for one in report["taken"] + report["left"]:
        wanted[mount.device, one["ino"]] = one["ino"]
        if "range_ino" in one:
            wanted[one["range_dev"], one["range_ino"]] = one["ino"]
    daemon = control.ask_mount(mount, {"get": "info"})["pid"]
    found = users.users_of(wanted, (daemon,)) if wanted else {}
    for one in report["taken"] + report["left"]:
        one["users"] = [user.describe() for user in found.get(one["ino"], ())]


def _show(report: dict) -> None:
    if not report["taken"] and not report["left"]:
        click.echo("nothing is mapped directly any more")
    for title, files in (("taken away", report["taken"]), ("left", report["left"])):
        for one in files:
            why = f": {one['why']}" if "why" in one else ""
            click.echo(f"{title}: inode {one['ino']}{why}")
            for user in one["users"]:
                size = f", {show_size(user['bytes'])}" if user["bytes"] else ""
                path = os.fsencode(user["path"]).decode(errors="backslashreplace")
                click.echo(f"  pid {user['pid']} ({user['command']}): {path}: "
                           f"{' and '.join(user['how'])}{size}")
