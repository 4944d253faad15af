# SPDX-License-Identifier: MIT
"""daxfs set: change a policy of a live mount.

Limits: the daemon does it, asked over its control socket, and knows what this mount can have. One setting
after the other; where one fails, those before it stay.
"""

import click

from daxfs.cli import common
from daxfs.errors import UsageError
from daxfs.fuse import control, mountinfo, options

CHECKS = {"track": options.choice, "flushers": options.count}  # what the daemon does, too


@click.command("set", short_help="Change a policy of a mount.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("settings", metavar="NAME=VALUE...", nargs=-1, required=True)
def command(directory, settings):
    """Change policies of the mount at DIR from now on: track=POLICY, what fsync takes
    for dirty (files that are open keep what is dirty in them); flushers=N, how many
    threads share a large write-back.
    """
    pairs = [_pair(setting) for setting in settings]
    mount = control.mount_of(directory)
    for name, value in pairs:
        _set(mount, name, value)
    return 0


def _pair(setting: str) -> tuple[str, str]:
    """Name and value of *setting*. UsageError, before anything has changed."""
    name, equals, value = setting.partition("=")
    if name not in CHECKS or not equals:
        raise UsageError(f"{setting!r} can't be set; one of: {', '.join(f'{one}=…' for one in CHECKS)}")
    CHECKS[name](name, value)
    return name, value


def _set(mount: mountinfo.Mount, name: str, value: str) -> None:
    reply = control.ask_mount(mount, {name: value})
    said = f"{mount.mountpoint}: {name}={reply[name]}, was {reply['was']}"
    if "files" in reply:
        said += f"; {reply['files']} file{'' if reply['files'] == 1 else 's'} changed"
    click.echo(said)
    if reply["warning"]:
        common.say("daxfs", f"warning: {reply['warning']}")
