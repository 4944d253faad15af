# SPDX-License-Identifier: MIT
"""daxfs quickstart: an emulated region, formatted, mounted and tried, in one go; --undo takes it away.

Limits: uses the other commands as a user would and shows them. The source is a pool directory: for root on a
tmpfs of its own, for others on /dev/shm; it says which and why (`pick`). What was made is written to a state
file, and --undo removes what stands there.
"""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click

from daxfs.cli import common
from daxfs.cli.links import program
from daxfs.errors import DaxfsError
from daxfs.fuse import mountinfo

ROOT_BASE = "/run/daxfs-quickstart"
FIO = ("--name=quickstart --size=16M --bs=4k --rw=randrw --ioengine=psync --direct=1 --runtime=2 "
       "--time_based --verify=crc32c --verify_state_save=0 --unlink=1 --output-format=json")
SHMEM = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
XFS_IO = ("pwrite -S 0xda 0 1m", "fsync", "pread -v 0 16", "mmap 0 64k", "mwrite -S 0xfe 4096 100",
          "msync -s")


def base() -> Path:
    """The folder that quickstart owns: state, source, and by default the mount point."""
    if os.environ.get("DAXFS_QUICKSTART"):
        return Path(os.environ["DAXFS_QUICKSTART"]).absolute()
    if os.geteuid() == 0:
        return Path(ROOT_BASE)
    return Path(f"/dev/shm/daxfs-quickstart-{os.getuid()}")


def read_state() -> dict | None:
    """What an earlier call made; None if nothing."""
    try:
        state = json.loads((base() / "state.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise DaxfsError(f"{base()}/state.json is damaged; umount and remove {base()} by hand") from exc
    return state


def pick(root: bool) -> tuple[str, str]:
    """(what a tmpfs of our own is mounted with, "" for none; what was picked and why)."""
    if not root:
        mount = mountinfo.mount_at("/dev/shm")
        huge = next((word for word in mount.super_options if word.startswith("huge=")), "") if mount else ""
        pages = f"with {huge}" if huge else "with pages of 4 KiB"
        return "", (f"a pool directory on /dev/shm, {pages}: only root can mount a tmpfs with larger ones; "
                    "mappings go through the page cache, for only root can have direct ones")
    try:
        enabled = Path(SHMEM).read_text()
    except FileNotFoundError:
        enabled = "[deny]"
    if "[deny]" in enabled:
        return "mode=0700", "a pool directory on a tmpfs of its own, whose pages have 4 KiB on this kernel"
    # huge=always takes 2 MiB for a file of one byte, and gives them back only when nothing else is left.
    return "mode=0700,huge=within_size", (
        "a pool directory on a tmpfs of its own: pages of 2 MiB wherever a file has so many bytes, and small "
        "files stay small (huge=within_size)")


def is_mounted(path: str) -> bool:
    mount = mountinfo.mount_at(os.path.abspath(path))
    return mount is not None and mount.fstype in mountinfo.TYPES


@click.command("quickstart", short_help="An emulated region, mounted and tried.")
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path())
@click.option("-s", "--size", metavar="SIZE", default="256M", show_default=True, help="Size of the region.")
@click.option("--undo", is_flag=True, help="Unmount it and remove all that quickstart made.")
def command(directory, size, undo):
    """Make an emulated region in memory, format it, mount it at DIR, write a
    first file, run a short xfs_io and fio job, and leave it mounted.
    """
    state = read_state()
    if undo:
        if state is None:
            click.echo("nothing to undo")
        else:
            take_away(state)
        return 0
    if state is not None:
        if is_mounted(state["directory"]):
            click.echo(f"It is there already: {state['source']} mounted on {state['directory']}.")
            what_next(state)
            return 0
        raise DaxfsError(f"an earlier quickstart is not mounted any more ({state['directory']}); "
                         "daxfs quickstart --undo clears it away", errno.EEXIST)
    begin(directory, common.parse_size(size))
    return 0


def begin(directory: str | None, size: int) -> None:
    """Everything, in order; what was made goes again if a step fails."""
    home = base()
    home.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700)
    options, picked = pick(os.geteuid() == 0)
    state = {"directory": os.path.abspath(directory or home / "mnt"), "source": str(home / "memory"),
             "tmpfs": bool(options), "made_directory": False}  # fmt: skip
    click.echo(f"Picked {picked}.")
    try:
        save(state)
        (home / "memory").mkdir(mode=0o700)
        if state["tmpfs"]:
            # As much again for the ranges of DAX files.
            options = f"size={2 * size + (4 << 20)},{options}"
            show(["mount", "-t", "tmpfs", "-o", options, "daxfs-quickstart", home / "memory"])
        if not os.path.isdir(state["directory"]):
            os.makedirs(state["directory"])
            state["made_directory"] = True
            save(state)
        show([program("mkfs.daxfs"), "--size", str(size), state["source"] + "/"])
        show([program("mount.daxfs"), state["source"], state["directory"]])
        try_it(Path(state["directory"]))
    except BaseException:
        take_away(state, quiet=True)
        raise
    click.echo(f"\nMounted on {state['directory']} (emulated: not power-fail safe).\n"
               f"New files in {state['directory']}/dax have the DAX flag, and ranges of their own.")
    what_next(state)


def save(state: dict) -> None:
    (base() / "state.json").write_text(json.dumps(state))


def show(args: list, output: bool = True) -> str:
    """Say a command line, run it, show what it says (*output*); its stdout. DaxfsError if it fails."""
    args = [str(arg) for arg in args]
    click.echo(f"$ {shlex.join([os.path.basename(args[0]), *args[1:]])}")
    done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          check=False)
    text = (done.stdout if output or done.returncode else "") + (done.stderr if done.returncode else "")
    for line in text.splitlines():
        click.echo(f"  {line}", err=bool(done.returncode))
    if done.returncode:
        raise DaxfsError(f"{os.path.basename(args[0])} ended with status {done.returncode}")
    return done.stdout


def try_it(directory: Path) -> None:
    """A first write, and a short job of each program that is installed."""
    hello = directory / "hello"
    click.echo(f"$ echo 'hello, daxfs' > {hello} && sync {hello}")
    with open(hello, "w") as file:
        file.write("hello, daxfs\n")
        file.flush()
        os.fsync(file.fileno())
    if hello.read_text() != "hello, daxfs\n":
        raise DaxfsError(f"{hello}: reads back otherwise than it was written")
    xfs_io, fio, chattr = (common.find_tool(name) for name in ("xfs_io", "fio", "chattr"))
    dax = directory / "dax"
    click.echo(f"$ mkdir {dax}")
    dax.mkdir()
    if chattr:
        show([chattr, "+x", dax])
    if xfs_io:
        commands = [part for one in XFS_IO for part in ("-c", one)]
        show([xfs_io, "-f", *commands, dax / "xfs_io"])
    if fio:
        text = show([fio, f"--directory={directory}", *FIO.split()], output=False)
        for line in fio_summary(text):
            click.echo(f"  {line}")
    for name, path in (("xfs_io", xfs_io), ("fio", fio), ("chattr", chattr)):
        if not path:
            click.echo(f"({name} is not installed, so its job is left out)")


def fio_summary(text: str) -> list[str]:
    """A line for reads and one for writes from fio's JSON; what can't be read is left out."""
    try:
        job = json.loads(text[text.index("{") :])["jobs"][0]
        return [f"{way}: {job[way]['iops']:.0f}/s, each {common.show_time(job[way]['clat_ns']['mean'])}"
                for way in ("read", "write")]
    except (ValueError, KeyError, IndexError, TypeError):
        return []


def what_next(state: dict) -> None:
    # What sudo mounted answers root alone.
    sudo = "sudo " if state["tmpfs"] and os.environ.get("SUDO_USER", "root") != "root" else ""
    click.echo("Go on with:")
    for line in (f"daxfs stat {state['directory']}", f"daxfs info {state['directory']}",
                 f"fio --name=a --directory={state['directory']} --size=64M --rw=randwrite --bs=4k --fsync=1",
                 "daxfs quickstart --undo"):
        click.echo(f"  {sudo}{line}")


def take_away(state: dict, quiet: bool = False) -> None:
    """Unmount and remove what *state* names. DaxfsError where the mount is in use."""
    home = base()
    _unmount(state["directory"], mountinfo.TYPES, quiet)
    _unmount(str(home / "memory"), ("tmpfs",), quiet)
    if state["made_directory"]:
        os.rmdir(state["directory"])
    shutil.rmtree(home)
    if not quiet:
        click.echo(f"removed {home}")


def _unmount(path: str, types: tuple, quiet: bool) -> None:
    mount = mountinfo.mount_at(path)
    if mount is None or mount.fstype not in types:
        return
    args = ["umount", path] if os.geteuid() == 0 else ["fusermount3", "-u", path]

    def once() -> None:
        done = subprocess.run(args, capture_output=True, text=True, check=False)
        if done.returncode:
            # EBUSY: the daemon may need a moment to close its source.
            raise DaxfsError(done.stderr.strip() or f"{args[0]} {path} failed", errno.EBUSY)

    common.patiently(once)
    if not quiet:
        click.echo(f"$ {shlex.join(args)}")
    sys.stdout.flush()
