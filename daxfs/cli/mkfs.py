# SPDX-License-Identifier: MIT
"""mkfs.daxfs: make a region of files, pool directories or devices, and a file system on it.

Limits: the format is meta/mkfs.py; here is what may be overwritten, what is made, and what is said.
Nothing is changed before all sources are found fit, except that missing ones are made (and removed again
when making the file system fails).
"""

import contextlib
import os
import stat
import subprocess
import uuid as uuidlib

import click

import daxfs
from daxfs import layout
from daxfs.cli import common
from daxfs.errors import SourceError, UsageError
from daxfs.meta import mkfs, superblock
from daxfs.pfn import PAGE_SIZE
from daxfs.region import Region, create_file
from daxfs.source import REGION_NAME, is_pool

PROG = "mkfs.daxfs"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path())
@click.option("-s", "--size", metavar="SIZE", help="Make or grow each file to SIZE: bytes, or 64M, 1G, 1T.")
@click.option("-L", "--label", metavar="LABEL", default="", help="Name of the region, up to 64 bytes.")
@click.option("-U", "--uuid", metavar="UUID", help="UUID of the region instead of a random one.")
@click.option("-N", "--inodes", metavar="N", type=click.IntRange(16, 2**32 - 2),
              help="Most files it can hold; otherwise one for each 16 KiB.")
@click.option("--map", "map_kind", type=click.Choice(["mem", "dev"]), default="mem", show_default=True,
              help="Keep the state of pages in memory or in the region.")
@click.option("-f", "--force", is_flag=True, help="Overwrite a region or another file system.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(daxfs.__version__, "-V", "--version", prog_name=PROG, message="%(prog)s %(version)s")
def command(sources, size, label, uuid, inodes, map_kind, force, quiet):
    """Make a daxfs file system on SOURCE: a file, a pool directory (it is a
    directory, or ends in /), a block device or a devdax device. Several
    sources make one region, in this order.
    """
    sources = list(sources)
    wanted = common.parse_size(size) if size else None
    label, uuid = check_label(label), common.parse_uuid(uuid) if uuid else None
    foreign = []
    for source in sources:
        found = look_at(source, wanted)
        if found and not force:
            raise SourceError(f"{source}: holds {found}; --force overwrites it")
        if found:
            foreign.append(region_path(source))
    with new_files(sources, wanted):
        make(sources, foreign, dict(label=label, uuid=uuid, inodes=inodes, map_kind=map_kind), quiet)


def make(sources: list[str], foreign: list[str], wish: dict, quiet: bool) -> None:
    """Open, lock and format; *foreign*: paths with signatures that must go."""
    with common.patiently(lambda: Region.open(sources)) as region:
        sb = mkfs.plan(region, **wish)
        for path in foreign:
            wipe(path)
        with common.progress("formatting", quiet) as show:
            # Whoever makes the region is to be able to use it: the root directory is theirs.
            mkfs.make(region, sb, show, owner=(os.geteuid(), os.getegid()))
        if not quiet:
            for line in summary(region, sb):
                click.echo(line)


def check_label(text: str) -> bytes:
    """The label's bytes. UsageError where it is too long."""
    label = os.fsencode(text)
    if len(label) > layout.LABEL_MAX or b"\0" in label:
        raise UsageError(f"the label has {len(label)} bytes; at most {layout.LABEL_MAX}")
    return label


def region_path(source: str) -> str:
    """The file or device that holds the bytes of *source*."""
    return os.path.join(source, REGION_NAME) if is_pool(source) else source


def look_at(source: str, wanted: int | None) -> str:
    """What *source* holds already, for the refusal; "" where nothing of value was found.

    SourceError: missing and no size given, a device or larger file with a size given, or in use by others.
    """
    path = region_path(source)
    try:
        st = os.stat(path)
    except FileNotFoundError:
        if wanted is None:
            raise SourceError(f"{path}: missing; --size makes it") from None
        return ranges_at(source)
    if not stat.S_ISREG(st.st_mode) and wanted is not None:
        raise SourceError(f"{source}: has its own size; --size is for files")
    if wanted is not None and st.st_size > wanted:
        raise SourceError(f"{path}: has {st.st_size} bytes already; --size never shrinks a file")
    loop = loop_device(st) if stat.S_ISREG(st.st_mode) else ""
    if loop:
        raise SourceError(f"{path}: busy: it stands behind {loop}")
    return own_magic(path, st) or signature(path, st) or ranges_at(source)


def ranges_at(source: str) -> str:
    """Says whether a pool directory has ranges of an older region, which making a new one removes."""
    names: list[str] = []
    if is_pool(source):
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(os.path.join(source, layout.RANGES_NAME))
    count = sum(layout.range_owner(name) is not None for name in names)
    return f"{count} ranges of a region that is gone" if count else ""


def loop_device(st: os.stat_result) -> str:
    """The loop device that uses this file, "" if none does."""
    names = sorted(name for name in os.listdir("/sys/block") if name.startswith("loop"))
    for name in names:
        with contextlib.suppress(OSError), open(f"/sys/block/{name}/loop/backing_file") as file:
            if os.path.samestat(os.stat(file.read().strip()), st):
                return f"/dev/{name}"
    return ""


def own_magic(path: str, st: os.stat_result) -> str:
    """Says whether *path* is a source of a region, damaged or not. Devdax can't be read: its mapping is."""
    if stat.S_ISREG(st.st_mode) or stat.S_ISBLK(st.st_mode):
        with open(path, "rb", buffering=0) as file:
            page = file.read(PAGE_SIZE)
            with contextlib.suppress(OSError):  # too small for a backup superblock at its end
                file.seek(-PAGE_SIZE, os.SEEK_END)
                page = page if page[:8] == layout.SB_MAGIC else page + file.read(PAGE_SIZE)
    else:
        with Region.open([path], mode="ro", lock=False) as region:
            page = bytes(region.mem[:PAGE_SIZE])
    if page[:8] == layout.SOURCE_MAGIC:
        return "a part of a daxfs region"
    if layout.SB_MAGIC not in (page[:8], page[PAGE_SIZE : PAGE_SIZE + 8]):
        return ""
    with contextlib.suppress(OSError):
        sb = superblock.parse(page[:PAGE_SIZE])
        return f"a daxfs region (UUID {uuidlib.UUID(bytes=sb.uuid)})"
    return "a damaged daxfs region"


def signature(path: str, st: os.stat_result) -> str:
    """What blkid(8) finds on *path*, "" for nothing."""
    if stat.S_ISCHR(st.st_mode) or (not st.st_size and stat.S_ISREG(st.st_mode)):
        return ""
    blkid = common.find_tool("blkid")
    if not blkid:
        return "something unknown (blkid is missing, so other file systems can't be told)"
    done = subprocess.run([blkid, "-p", "-o", "export", path], capture_output=True, check=False)
    if done.returncode == 2:
        return ""
    if done.returncode == 8:
        return "signatures of several file systems"
    if done.returncode:
        return f"something that blkid can't read (it ended with {done.returncode})"
    lines = done.stdout.decode(errors="replace").splitlines()
    tags = dict(line.split("=", 1) for line in lines if "=" in line)
    if "TYPE" in tags:
        return f"{tags['TYPE']}" + (f" (UUID {tags['UUID']})" if "UUID" in tags else "")
    return f"a {tags['PTTYPE']} partition table" if "PTTYPE" in tags else ""


def wipe(path: str) -> None:
    """Remove the other file systems' signatures, which may lie where the new format stores nothing."""
    wipefs = common.find_tool("wipefs")
    if not wipefs or stat.S_ISCHR(os.stat(path).st_mode):
        return
    done = subprocess.run([wipefs, "-a", "-f", "-q", path], capture_output=True, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        raise SourceError(f"{path}: old signatures can't be removed: {text}")


@contextlib.contextmanager
def new_files(sources: list[str], wanted: int | None):
    """Make what is missing, grow what is small; what was made goes again if the body fails."""
    made: list[str] = []
    try:
        for source in sources if wanted is not None else []:
            path = region_path(source)
            if is_pool(source) and not os.path.isdir(source):
                made.insert(0, source)
            if not os.path.lexists(path):
                made.insert(0, path)
            create_file(source, wanted)
        yield
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
        raise


def summary(region: Region, sb: superblock.Superblock) -> list[str]:
    """What was made, and the next command."""
    facts = region.describe()
    data = sum(end - start for start, end in sb.data_ranges()) * PAGE_SIZE
    paths = [source["path"] for source in facts["sources"]]
    unsafe = ", emulated: not power-fail safe" if region.emulated else ""
    lines = [f"daxfs region {uuidlib.UUID(bytes=sb.uuid)}"]
    if sb.label:
        lines[0] += f" ({os.fsdecode(sb.label)!r})"
    lines += [
        f"  {source['path']}: {common.show_size(source['bytes'])} ({source['kind']}, {source['medium']})"
        for source in facts["sources"]
    ]
    lines += [
        f"  data         {common.show_size(data)}",
        f"  inodes       {sb.capacity}",
        f"  journal      {common.show_size(sb.journal_pages * PAGE_SIZE)}",
        f"  granularity  {region.granularity}{unsafe}",
        f"Next: mount.daxfs {','.join(paths)} DIRECTORY",
    ]
    return lines


def main(argv=None) -> int:
    """Exit status 0, or 1 for any failure, as other mkfs programs."""
    return common.run(command, PROG, lambda exc: 1, argv)
