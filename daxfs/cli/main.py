# SPDX-License-Identifier: MIT
"""The ``daxfs`` command: a group of subcommands, and mount's helper where it is called as one.

Limits: only the table of commands; what they do is in modules of their own.
"""

import sys

import click

import daxfs
from daxfs.cli import common, doctor, info, links, mount, quickstart, stat

PROG = "daxfs"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(daxfs.__version__, "-V", "--version", prog_name=PROG, message="%(prog)s %(version)s")
def command():
    """A FUSE file system with direct access to persistent memory.

    Regions are made, mounted and checked with mkfs.daxfs, mount.daxfs and
    fsck.daxfs. Called as daxfs SOURCE DIR [-o OPTIONS] it mounts.
    """


for _one in (quickstart.command, info.command, stat.command, doctor.command, links.command):
    command.add_command(_one)


def is_mount(argv: list[str]) -> bool:
    """True for ``SOURCE DIR …``, which is how mount.fuse3 calls the program of a type."""
    return len(argv) >= 2 and not argv[0].startswith("-") and argv[0] not in command.commands and (
        not argv[1].startswith("-")
    )


def main(argv=None) -> int:
    """Exit status 0, or 1 for any failure; mount's own when it mounts."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if is_mount(argv):
        return mount.main(argv)
    return common.run(command, PROG, lambda exc: 1, argv or ["--help"], usage=2)
