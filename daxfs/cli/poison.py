# SPDX-License-Identifier: MIT
"""daxfs poison: the list of pages that answer EIO, of a region, mounted or not, or of a file on a mount.

Limits: what is on the list is meta/poison.py's; here is who is asked (the daemon, or the region itself,
opened alone) and what is said.
"""

import contextlib
import errno
import json
import os
import stat

import click

from daxfs.cli import common
from daxfs.cli.info import mount_of
from daxfs.errors import DaxfsError, FormatError
from daxfs.fuse import control, mountinfo, options
from daxfs.layout import RO_COMPAT_KNOWN
from daxfs.meta import fs as metafs
from daxfs.meta import poison, superblock
from daxfs.pfn import PAGE_SIZE
from daxfs.region import Region


@click.group("poison", short_help="Pages that answer EIO, as bad blocks do.")
def command():
    """A list of poisoned pages, kept on the media: reading one gives EIO, a
    mapping of it SIGBUS. Writing a whole page of 4 KiB, or punching it, ends it.

    SOURCE is a region (file, device, pool directory, or where it is mounted;
    several separated by commas) or a file on a mount. OFFSET and LENGTH are in
    bytes, with K, M or G, and are rounded outwards to pages.
    """


@command.command("list")
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_(source, as_json):
    """Show the poisoned bytes of the region."""
    mount, _, close = _find(source)
    with close:
        runs = _live(mount, {"do": "list"})["poison"] if mount else _offline(source, "cow", poison.describe)
    if as_json:
        click.echo(json.dumps({"poison": runs, "bytes": sum(run["length"] for run in runs)}))
        return
    for run in runs:
        whose = f"  inode {run['ino']}" if run["ino"] else ""
        click.echo(f"{run['offset']:#014x} {run['length']:>12}{whose}")
    if not runs:
        click.echo("nothing is poisoned")


@command.command("add")
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.argument("offset", metavar="OFFSET")
@click.argument("length", metavar="LENGTH")
@click.option("--force", is_flag=True, help="Also where metadata are: requests that need them fail then.")
def add(source, offset, length, force):
    """Poison LENGTH bytes from OFFSET on."""
    _change(source, offset, length, {"do": "add", "force": force})


@command.command("clear")
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.argument("offset", metavar="OFFSET")
@click.argument("length", metavar="LENGTH")
def clear(source, offset, length):
    """End the poison of LENGTH bytes from OFFSET on; they are as before."""
    _change(source, offset, length, {"do": "clear"})


def _change(source: str, offset: str, length: str, wish: dict) -> None:
    start = 0 if offset.strip() == "0" else common.parse_size(offset)
    wish |= {"offset": start, "length": common.parse_size(length)}
    mount, ino, close = _find(source)
    with close:
        if mount:
            done = _live(mount, wish | {"ino": ino})
        else:
            done = _offline(source, "rw", lambda fs: _do(fs, wish))
    end = start + wish["length"]
    first, last = start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE
    rounded = "" if (first, last) == (start, end) else f", rounded to {first}+{last - first}"
    what = "poisoned" if wish["do"] == "add" else "cleared"
    click.echo(f"{source}: {done['pages'] * PAGE_SIZE} bytes {what} ({done['pages']} pages{rounded})")


def _find(source: str):
    """(mount or None, inode of a file on it or 0, what to close afterwards)."""
    if os.path.lexists(os.path.join(source, "region")) or "," in source:
        return _mounted(source)
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return _mounted(source)
    close = contextlib.ExitStack()
    close.callback(os.close, fd)  # until then the inode is no other file's
    st = os.fstat(fd)
    mount = mountinfo.mount_of_device(st.st_dev)
    if mount is None or mount.fstype not in mountinfo.TYPES:
        close.close()
        return _mounted(source)
    if stat.S_ISREG(st.st_mode):
        return mount, st.st_ino, close
    close.close()
    if stat.S_ISDIR(st.st_mode) and os.path.ismount(source):
        return mount, 0, contextlib.nullcontext()
    raise DaxfsError(f"{source}: neither a regular file nor a region", errno.EINVAL)


def _mounted(source: str):
    reply = mount_of(options.source_list(source))
    mount = None if reply is None else mountinfo.mount_at(reply["mountpoint"])
    return mount, 0, contextlib.nullcontext()


def _live(mount, wish: dict) -> dict:
    return control.ask_mount(mount, {"poison": wish}, timeout=60)


def _do(fs, wish: dict) -> dict:
    runs = poison.places(fs, wish["offset"], wish["length"])
    pages = poison.add(fs, runs, wish["force"]) if wish["do"] == "add" else poison.clear(fs, runs)
    fs.journal.settle()
    return {"pages": pages}


def _offline(source: str, mode: str, call):
    """*call* with the file system of an unmounted region, which is not mounted for it."""
    with common.patiently(lambda: Region.open(options.source_list(source), mode)) as region:
        superblock.settle(region)
        sb = superblock.read(region)
        if sb.ro_compat & ~RO_COMPAT_KNOWN and mode == "rw":
            raise FormatError(f"unknown features {sb.ro_compat:#x}: use a newer daxfs")
        fs = metafs.FileSystem(region, sb)
        fs.journal.replay()
        fs.inodes.limit = metafs.state_of(fs.mem, fs.seed)["inode_limit"]
        fs.poison.read()
        return call(fs)
