# SPDX-License-Identifier: MIT
"""daxfs raw: mount the sources of a region as files, with no file system on them (S12).

Limits: as cli/mount.py, whose parts do the work; exit statuses are mount(8)'s.
"""

import errno
import os

import click

from daxfs.cli import common, mount
from daxfs.errors import DaxfsError, UsageError
from daxfs.fuse import options

PROG = "daxfs raw"
# Options of mount.daxfs that speak of files, names and times, of which a raw region has none.
_WITHOUT_MEANING = ("track", "flushers", "uid", "gid", "record", "raw", "remount", "lazytime", "nolazytime",
                    "revoke")


@click.command("raw", short_help="Mount a region without a file system.")
@click.argument("source", metavar="SOURCE[,SOURCE...]", type=click.Path())
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("-o", "--options", "texts", metavar="OPTIONS", multiple=True,
              help="Mount options, separated by commas; see daxfs(1).")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Say what was mounted, and how.")
def command(source, directory, texts, foreground, verbose):
    """Mount SOURCE at DIR as it is: a file 0 (and 1, 2, ... for further
    sources) that is read, written and mapped directly. No file system is
    needed on it, and none is looked at. umount(8) ends it. Root alone.
    """
    config = parse(",".join(texts))
    if os.geteuid():
        raise DaxfsError("raw is for root: the files that it shows are for root alone", errno.EPERM)
    return mount.start(config, source, directory, foreground, verbose, serve, PROG)


def parse(text: str) -> options.MountConfig:
    """The options of *text*. UsageError also for those of mount.daxfs that mean nothing here."""
    config = options.parse(text)
    for name in _WITHOUT_MEANING:
        if name in config.given:
            raise UsageError(f"mount option {name!r} means nothing for a raw region; see daxfs(1)")
    return config


def serve(config: options.MountConfig, ready) -> None:
    """The serving process: the one place of this command that needs pyfuse3."""
    from daxfs.fuse import raw_session, session

    session.run(raw_session.RawSession, config, ready, common.patiently)


def main(argv) -> int:
    """``daxfs raw`` with mount's exit statuses, which those of the other commands are not."""
    return common.run(command, PROG, mount.status_of, argv)
