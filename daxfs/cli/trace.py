# SPDX-License-Identifier: MIT
"""daxfs trace: requests of the kernel and replies, faults and write-backs, in words, as they happen.

Limits: asks the daemon over its control socket and takes the records apart here, so that the daemon is held
up as little as can be.
"""

import base64
import errno
import json
import os
import sys

import click

from daxfs.errors import DaxfsError, UsageError
from daxfs.fuse import control, mountinfo, trace


class _Classes(click.ParamType):
    """Names of classes of events, between commas."""

    name = "classes"

    def convert(self, value, param, ctx):
        names = value if isinstance(value, list) else value.split(",")
        for name in names:
            if name not in (*trace.CLASSES, "all"):
                self.fail(f"{name!r} is none of {', '.join(trace.CLASSES)}, all", param, ctx)
        return list(trace.CLASSES) if "all" in names else names


@click.command("trace", short_help="Requests, replies and faults of a mount, in words.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("-e", "--events", metavar="CLASS[,CLASS...]", type=_Classes(), default=["requests"],
              help="What to show: requests (the default), faults, writeback, fsync, or all.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object on each line.")
def command(directory, events, as_json):
    """Print every request to the daemon of the mount at DIR, and every reply,
    until Ctrl-C or unmounted; or page faults that it answers (daxfs run
    --fault user), and write-backs.
    """
    mount = control.mount_of(directory)
    _check_output(mount)
    show = json.dumps if as_json else trace.line
    try:
        followed = control.follow_mount(mount, {"get": "trace", "events": events})
        for batch in decoded(followed, mount.device):
            sys.stdout.write("".join(f"{show(event)}\n" for event in batch))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 0  # the way to end it
    if control.is_there(mount):
        raise DaxfsError(f"{mount.mountpoint}: the daemon is gone; umount {mount.mountpoint}", errno.ENOTCONN)
    return 0


def _check_output(mount: mountinfo.Mount) -> None:
    """UsageError where each line that is printed would make two more."""
    if os.fstat(sys.stdout.fileno()).st_dev == mount.device:
        raise UsageError("the output lies on the mount that is traced")


def decoded(parts, device: int = 0):
    """Lists of events from what the daemon of the mount on *device* sends."""
    decoder = trace.Decoder(device)
    for part in parts:
        if "records" in part:
            raw, size = base64.b64decode(part["records"]), part["size"]
            yield [decoder.event(raw[at : at + size]) for at in range(0, len(raw), size)]
        elif "lost" in part:
            yield [{"kind": "lost", "time_ns": part["time_ns"], "count": part["lost"]}]
