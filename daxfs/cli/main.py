# SPDX-License-Identifier: MIT
"""The ``daxfs`` command: a group of subcommands, and mount's helper where it is called as one.

Limits: only the table of commands; what they do is in modules of their own.
"""

import importlib
import sys

import click

import daxfs
from daxfs.cli import common

PROG = "daxfs"
# Loaded when called: `daxfs stat` shall not pay for what the others import.
SUBCOMMANDS = {"quickstart": "quickstart", "info": "info", "raw": "raw", "stat": "stat", "trace": "trace",
               "set": "set", "revoke": "revoke", "run": "run", "poison": "poison", "doctor": "doctor",
               "install-links": "links"}  # fmt: skip


class Subcommands(click.Group):
    """The group, with each command in a module of its own."""

    def list_commands(self, ctx):
        return list(SUBCOMMANDS)

    def get_command(self, ctx, name):
        if name not in SUBCOMMANDS:
            return None
        return importlib.import_module(f"daxfs.cli.{SUBCOMMANDS[name]}").command


@click.group(cls=Subcommands,
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(daxfs.__version__, "-V", "--version", prog_name=PROG, message="%(prog)s %(version)s")
def command():
    """A FUSE file system with direct access to persistent memory.

    Regions are made, mounted and checked with mkfs.daxfs, mount.daxfs and
    fsck.daxfs. Called as daxfs SOURCE DIR [-o OPTIONS] it mounts.
    """


def is_mount(argv: list[str]) -> bool:
    """True for ``SOURCE DIR …``, which is how mount.fuse3 calls the program of a type."""
    if len(argv) < 2 or argv[0].startswith("-") or argv[0] in SUBCOMMANDS:
        return False
    return not argv[1].startswith("-")


def main(argv=None) -> int:
    """Exit status 0, or 1 for any failure; mount's own when it mounts, raw or not."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if is_mount(argv):
        from daxfs.cli import mount

        return mount.main(argv)
    if argv[:1] == ["raw"]:
        from daxfs.cli import raw

        return raw.main(argv[1:])
    return common.run(command, PROG, lambda exc: 1, argv or ["--help"], usage=2)
