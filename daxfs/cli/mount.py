# SPDX-License-Identifier: MIT
"""mount.daxfs: mount a region; also the helper that mount(8) calls, under whatever name.

Limits: pyfuse3 and trio are imported in the serving process alone, after the fork. Exit statuses are
mount(8)'s: 0, 1 usage or permission, 2 system error, 32 the mount failed.
"""

import contextlib
import ctypes
import errno
import os

import click

import daxfs
from daxfs.cli import common, daemon
from daxfs.errors import DaxfsError, UsageError
from daxfs.fuse import control, mountinfo, options

PROG = "mount.daxfs"

# linux/mount.h
_MS_REMOUNT = 32
_MS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024,
       "nodiratime": 2048, "relatime": 1 << 21, "strictatime": 1 << 24}  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.argument("source", metavar="SOURCE[,SOURCE...]", type=click.Path())
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("-o", "--options", "texts", metavar="OPTIONS", multiple=True,
              help="Mount options, separated by commas; see mount.daxfs(8).")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("-r", "--read-only", "ro", is_flag=True, help="The same as -o ro.")
@click.option("-w", "--rw", "rw", is_flag=True, help="The same as -o rw.")
@click.option("-v", "--verbose", is_flag=True, help="Say what was mounted, and how.")
@click.option("-t", "--type", "fstype", metavar="TYPE", help="For mount(8): fuse.daxfs or daxfs.")
@click.option("-N", "--namespace", metavar="NS", help="For mount(8), which has entered it already; ignored.")
@click.option("-n", "--no-mtab", is_flag=True, help="For mount(8); there is no mtab any more; ignored.")
@click.option("-s", "--sloppy", is_flag=True, help="For mount(8): ignore unknown mount options.")
@click.version_option(daxfs.__version__, "-V", "--version", prog_name=PROG, message="%(prog)s %(version)s")
def command(source, directory, texts, foreground, ro, rw, verbose, fstype, namespace, no_mtab, sloppy):
    """Mount the daxfs region on SOURCE at DIR. The daemon goes to the
    background when the mount answers. umount(8) ends it.
    """
    if fstype not in (None, "daxfs", "fuse.daxfs", "fuse"):
        raise UsageError(f"type {fstype!r} is not ours; fuse.daxfs or daxfs")
    config = options.parse(",".join(texts), sloppy=sloppy)
    if ro or rw:
        config.readonly = ro
        config.given.add("ro" if ro else "rw")
    if config.remount:
        config.mountpoint = directory
        return remount(config, verbose)
    return start(config, source, directory, foreground, verbose, serve)


def start(config: options.MountConfig, source: str, directory: str, foreground: bool, verbose: bool,
          serve_it, prog: str = PROG) -> int:
    """Mount *source* at *directory* with ``serve_it(config, ready)``, here or in a daemon; exit status."""
    config.mountpoint = directory
    config.fsname = config.fsname or source
    config.sources = [absolute(path) for path in options.source_list(source)]
    check_mountpoint(config)
    if foreground:
        daemon.start_log(config, foreground=True)
        serve_it(config, lambda: say_mounted(config, verbose))
        return 0
    status = daemon.start(config, serve_it, status_of, lambda: check_answers(config), prog)
    if status == 0:
        say_mounted(config, verbose)
    return status


def absolute(path: str) -> str:
    """The daemon changes to /; a slash at the end, which says pool directory, is kept."""
    return os.path.abspath(path) + ("/" if path.endswith("/") else "")


def check_mountpoint(config: options.MountConfig) -> None:
    """A directory that answers. Also turns it into an absolute path."""
    path = config.mountpoint
    try:
        if not os.path.isdir(path):
            os.stat(path)
            raise DaxfsError(f"{path}: the mount point is not a directory", errno.ENOTDIR)
    except FileNotFoundError:
        raise DaxfsError(f"{path}: the mount point does not exist", errno.ENOENT) from None
    except OSError as exc:
        if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise DaxfsError(f"{path}: a dead FUSE mount is there; umount {path}", exc.errno) from exc
        raise
    config.mountpoint = os.path.realpath(path)
    for mount in mountinfo.mounts():
        same = mount.mountpoint == config.mountpoint and mount.fstype in mountinfo.TYPES
        if same and mount.source == config.fsname:
            raise DaxfsError(f"{config.fsname} is already mounted on {path}", errno.EBUSY)


def serve(config: options.MountConfig, ready) -> None:
    """The serving process: the one place of the commands that needs pyfuse3."""
    from daxfs.fuse import fs_session, session

    session.run(fs_session.FsSession, config, ready, common.patiently)


def check_answers(config: options.MountConfig) -> None:
    """A first stat(2) from outside the daemon: it returns when the mount serves."""
    if os.geteuid() != 0 and config.flags.get("allow_other"):
        return os.statvfs(config.mountpoint)
    os.stat(config.mountpoint)
    mount = mountinfo.mount_at(config.mountpoint)
    if mount is None or mount.fstype not in mountinfo.TYPES:
        raise DaxfsError(f"{config.mountpoint}: was unmounted at once", errno.EIO)


def say_mounted(config: options.MountConfig, verbose: bool) -> None:
    """Under -v, on stdout; and what its policies give up, on stderr."""
    if config.warning():
        common.say("mount.daxfs", config.warning())
    if verbose:
        with contextlib.suppress(OSError):  # it is mounted, whether or not somebody reads this
            click.echo(f"{config.fsname} mounted on {config.mountpoint} ({config.describe()})")
            if config.ignored:
                click.echo(f"ignored: {','.join(config.ignored)}")
        common.flush_or_drop()


def remount(config: options.MountConfig, verbose: bool) -> int:
    """``-o remount,…``: ro, rw and the times change; the other options stay as they were mounted.

    Going read-only the kernel is first (it refuses while files are open for writing), otherwise the daemon.
    """
    where = os.path.realpath(config.mountpoint)
    mount = mountinfo.mount_at(where)
    if mount is None or mount.fstype not in mountinfo.TYPES:
        raise DaxfsError(f"{config.mountpoint}: no daxfs is mounted here", errno.EINVAL)
    _check_fixed(config, mount)
    wish = _wish(config)
    flags = _remount_flags(config, mount)
    if wish.get("readonly"):
        _kernel_remount(where, flags)
        control.ask_mount(mount, {"set": wish})
    else:
        control.ask_mount(mount, {"set": wish})
        _kernel_remount(where, flags)
    if kept := _kept(config, mount):
        hint = "; daxfs set changes track and flushers" if {"track", "flushers"} & set(kept) else ""
        common.say(PROG, f"a remount leaves these as they are: {', '.join(kept)}{hint}")
    if verbose:
        click.echo(f"{where} remounted")
    return 0


def _kept(config: options.MountConfig, mount: mountinfo.Mount) -> list[str]:
    """Names of options that *config* has another value of than the mount, and a remount does not change.

    mount(8) hands all of fstab's options to a remount: those that say what is so are nothing to tell of.
    """
    flags = {"allow_other", "allow_root", "auto_unmount"}
    lasting = {*options.CHOICES, *options.COUNTS, *options.SIZES, *options.IDS, "log_file", "raw", "revoke",
               "debug", "fsname", *flags} - {"dax"}  # fmt: skip
    asked = config.given & lasting
    if not asked:
        return []
    have = options.parse(control.ask_mount(mount, {"get": "info"})["options"])
    have.fsname = mount.source

    def differs(name: str) -> bool:
        if name in flags:
            return config.flags.get(name) != have.flags.get(name, False)
        if name == "nt_threshold":  # one that was not given has a value, too
            return options.threshold(config, have.flush) != options.threshold(have, have.flush)
        return getattr(config, name) != getattr(have, name)

    return sorted(name for name in asked if differs(name))


def _check_fixed(config: options.MountConfig, mount: mountinfo.Mount) -> None:
    """UsageError where a remount is to change dax= or emulate=, or to begin or move a recording.

    What fstab says again may be there.
    """
    if not config.given & {"dax", "emulate", "record"}:
        return
    have = control.ask_mount(mount, {"get": "info"})
    for name in sorted({"dax", "emulate"} & config.given):
        if (now := getattr(options.parse(have["options"]), name)) != getattr(config, name):
            raise UsageError(f"{name}= can't be changed by a remount, it is {now}; umount and mount")
    if "record" in config.given and (have["recording"] or {}).get("path") != config.record:
        raise UsageError("record= can't be changed by a remount; umount and mount")


def _wish(config: options.MountConfig) -> dict:
    """What the daemon is to change: only what was named."""
    wish: dict = {}
    if config.given & {"ro", "rw"}:
        wish["readonly"] = config.readonly
    if config.given & set(options.ATIME):
        wish["atime"] = config.atime
    for name in ("nodiratime", "lazytime"):
        if {name, f"no{name}", name.removeprefix("no")} & config.given:
            wish[name] = getattr(config, name)
    return wish


def _remount_flags(config: options.MountConfig, mount: mountinfo.Mount) -> int:
    """The MS_ bits: those that the mount has, changed by what was named."""
    have = {word for word in mount.options + mount.super_options if word in _MS}
    if config.given & {"ro", "rw"}:
        have.discard("ro")
        have |= {"ro"} if config.readonly else set()
    for name in config.given & set(options.FLAGS):
        flag, value = options.FLAGS[name]
        word = flag if flag in ("sync", "dirsync") else f"no{flag}"
        have.discard(word)
        if word in _MS and value is (flag in ("sync", "dirsync")):
            have.add(word)
    if config.given & set(options.ATIME):
        have -= {"noatime", "relatime", "strictatime"}
        have.add(config.atime)
    if "nodiratime" in config.given or "diratime" in config.given:
        have.discard("nodiratime")
        have |= {"nodiratime"} if config.nodiratime else set()
    return sum(_MS[word] for word in have)


def _kernel_remount(where: str, flags: int) -> None:
    """mount(2) itself: mount(8) of newer util-linux hands FUSE's own options back to it, which it refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(where), None, ctypes.c_ulong(_MS_REMOUNT | flags), None) != 0:
        code = ctypes.get_errno()
        hint = " (files are open for writing)" if code == errno.EBUSY else ""
        raise DaxfsError(f"{where}: can't be remounted: {os.strerror(code)}{hint}", code)


def status_of(exc: OSError) -> int:
    """The exit status of mount(8) for *exc*."""
    if isinstance(exc, UsageError) or exc.errno in (errno.EPERM, errno.EACCES):
        return 1
    if exc.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN):
        return 2
    return 32


def main(argv=None) -> int:
    """Entry point of mount.daxfs and of its other names."""
    return common.run(command, PROG, status_of, argv)
