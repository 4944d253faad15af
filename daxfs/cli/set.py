# SPDX-License-Identifier: MIT
"""daxfs set: change a policy of a live mount.

Limits: the daemon does it, asked over its control socket, and knows which values there are.
"""

import click

from daxfs.errors import UsageError
from daxfs.fuse import control

NAMES = ("track",)


@click.command("set", short_help="Change a policy of a mount.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.argument("setting", metavar="track=POLICY")
def command(directory, setting):
    """Have the mount at DIR go by another POLICY from now on: what fsync takes for
    dirty. Files that are open keep what is dirty in them.
    """
    name, equals, value = setting.partition("=")
    if name not in NAMES or not equals:
        raise UsageError(f"{setting!r} can't be set; one of: {', '.join(f'{one}=…' for one in NAMES)}")
    mount = control.mount_of(directory)
    reply = control.ask_mount(mount, {name: value})
    count = f"{reply['files']} file{'' if reply['files'] == 1 else 's'}"
    click.echo(f"{mount.mountpoint}: {name}={reply[name]}, was {reply['was']}; {count} changed")
    if reply["warning"]:
        click.echo(f"warning: {reply['warning']}", err=True)
    return 0
