# SPDX-License-Identifier: MIT
"""daxfs set: change a policy of a live mount.

Limits: the daemon does it, asked over its control socket, and knows which values there are.
"""

import click

from daxfs.errors import UsageError
from daxfs.fuse import control

NAMES = ("track", "flushers")


@click.command("set", short_help="Change a policy of a mount.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("setting", metavar="NAME=VALUE")
def command(directory, setting):
    """Change a policy of the mount at DIR from now on: track=POLICY, what fsync takes
    for dirty (files that are open keep what is dirty in them); flushers=N, how many
    threads share a large write-back.
    """
    name, equals, value = setting.partition("=")
    if name not in NAMES or not equals:
        raise UsageError(f"{setting!r} can't be set; one of: {', '.join(f'{one}=…' for one in NAMES)}")
    mount = control.mount_of(directory)
    reply = control.ask_mount(mount, {name: value})
    said = f"{mount.mountpoint}: {name}={reply[name]}, was {reply['was']}"
    if "files" in reply:
        said += f"; {reply['files']} file{'' if reply['files'] == 1 else 's'} changed"
    click.echo(said)
    if reply["warning"]:
        click.echo(f"warning: {reply['warning']}", err=True)
    return 0
