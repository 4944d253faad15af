# SPDX-License-Identifier: MIT
"""daxfs install-links: the names under which mount(8), fsck(8) and mkfs(8) look for us.

Limits: makes and removes symbolic links only, and only ones that point at our own programs; what else has
such a name is left alone and named.
"""

import errno
import os
import shutil
import sys
from pathlib import Path

import click

from daxfs.errors import DaxfsError

# name in /sbin -> program; daxfs goes where users look.
SBIN = {
    "mount.daxfs": "mount.daxfs", "mount.fuse.daxfs": "mount.daxfs", "mkfs.daxfs": "mkfs.daxfs",
    "fsck.daxfs": "fsck.daxfs", "fsck.fuse.daxfs": "fsck.daxfs",
}  # fmt: skip
BIN = {"daxfs": "daxfs"}


def program(name: str) -> Path:
    """Where *name* was installed: beside the program that runs, beside the interpreter, or on PATH."""
    for folder in (Path(sys.argv[0]).resolve().parent, Path(sys.executable).parent):
        if (folder / name).exists():
            return (folder / name).absolute()
    found = shutil.which(name)
    if not found:
        raise DaxfsError(f"{name} is not installed", errno.ENOENT)
    return Path(found).resolve()


def wanted(sbin: str, bin_: str) -> list[tuple[Path, Path]]:
    """(link, its target) of all."""
    return [(Path(folder) / name, program(target))
            for folder, names in ((sbin, SBIN), (bin_, BIN)) for name, target in names.items()]


def is_ours(link: Path, name: str) -> bool:
    """A symbolic link to a program of ours, of this or another (perhaps removed) installation."""
    return link.is_symlink() and os.path.basename(os.readlink(link)) == name


@click.command("install-links", short_help="Names for mount(8), mkfs(8) and fsck(8).")
@click.option("--remove", is_flag=True, help="Remove them again.")
@click.option("--sbin", metavar="DIR", default="/sbin", show_default=True, help="For mount, mkfs and fsck.")
@click.option("--bin", "bin_", metavar="DIR", default="/usr/local/bin", show_default=True, help="For daxfs.")
def command(remove, sbin, bin_):
    """Links in /sbin and /usr/local/bin, so that mount -t fuse.daxfs, mount -t
    daxfs, fstab lines and fsck(8) find the programs of this installation.
    """
    status = 0
    for link, target in wanted(sbin, bin_):
        if link == target or (link.exists() and not link.is_symlink() and link.resolve() == target.resolve()):
            continue  # installed there already
        if link.is_symlink() or link.exists():
            if not is_ours(link, target.name):
                click.echo(f"{link}: is something else, left alone", err=True)
                status = 1
                continue
            link.unlink()
            if remove:
                click.echo(f"removed {link}")
        if not remove:
            link.symlink_to(target)
            click.echo(f"{link} -> {target}")
    return status
