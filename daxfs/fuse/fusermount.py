# SPDX-License-Identifier: MIT
"""Mounting by fusermount3, which is setuid root: a mounted /dev/fuse descriptor without mount(2).

fusermount3 opens the device as the user that calls it, mounts it, and passes the descriptor through a socket
whose number it finds in _FUSE_COMMFD. With the option auto_unmount it stays there until that socket closes,
and then takes away a mount that is left. Limits: blocks; nothing here looks at a path on the mount.
"""

import array
import contextlib
import errno
import logging
import os
import re
import shutil
import socket
import subprocess

from daxfs.errors import SourceError
from daxfs.fuse import mountinfo

log = logging.getLogger("daxfs.mount")

PROGRAM = "fusermount3"
_PATIENCE = 30.0  # seconds; it only hangs where the mount point's own file system does
# Refusals of fusermount3 that don't end in the words of an errno.
_WORDS = (
    ("only allowed if|no write access|not owned|sticky|is forbidden|not permitted", errno.EPERM),
    ("too many", errno.ENOSPC), ("device not found|modprobe", errno.ENODEV), ("unknown option", errno.EINVAL),
    ("not a directory|is not a dir", errno.ENOTDIR), ("mountpoint is not empty", errno.ENOTEMPTY),
)  # fmt: skip


class Keepalive:
    """The socket of auto_unmount: as long as it is open fusermount3 waits for our end, however that comes."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen):
        self._sock, self._process = sock, process

    def close(self) -> None:
        """Let fusermount3 go, and wait until it has ended: a mount that is left is gone then."""
        self._sock.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)


def mount(mountpoint: str, options: list[str]) -> tuple[int, Keepalive | None]:
    """Mount at *mountpoint*; the /dev/fuse descriptor, and with auto_unmount what has to stay open.

    *options*: as options.fuse_arguments gives them. SourceError in fusermount3's own words.
    """
    program = _program()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stay = "auto_unmount" in options
    errors = os.memfd_create("daxfs-fusermount")
    process = None
    try:
        with theirs:
            env = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"}
            command = [program, "-o", ",".join(options), "--", mountpoint]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=errors, env=env, pass_fds=(theirs.fileno(),))
        device = _receive(ours, mountpoint)
        if device is None:
            process.wait(_PATIENCE)
            raise _refused(mountpoint, _text(errors))
        if not stay:
            process.wait(_PATIENCE)
        for line in _text(errors).splitlines():
            log.warning("%s", line.strip())
        return device, Keepalive(ours, process) if stay else None
    except BaseException:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        stay = False
        raise
    finally:
        os.close(errors)
        if not stay:
            ours.close()


def unmount(mountpoint: str) -> None:
    """Take the uppermost mount at *mountpoint* away, lazily where it is in use. Nothing there is no error."""
    command = [_program(), "-u", "-z", "--", mountpoint]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE,
                          check=False, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0 and mountinfo.mount_at(mountpoint) is not None:
        raise _refused(mountpoint, done.stderr)


def _program() -> str:
    found = shutil.which(PROGRAM)
    if found is None:
        raise SourceError(f"{PROGRAM} is missing, without which root alone can mount: apt install fuse3",
                          errno.ENOENT)
    return found


def _receive(ours: socket.socket, mountpoint: str) -> int | None:
    """The descriptor that fusermount3 sends; None where it ends without one."""
    ours.settimeout(_PATIENCE)
    size = array.array("i").itemsize
    try:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise SourceError(f"{mountpoint}: {PROGRAM} does not answer", errno.ETIMEDOUT) from None
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= size:
            return array.array("i", data[:size])[0]
    return None


def _text(fd: int) -> str:
    return os.pread(fd, 4096, 0).decode(errors="replace")


def _refused(mountpoint: str, text: str) -> SourceError:
    """What fusermount3 wrote, with the errno that it means."""
    lines = [re.sub(r"^\S*fusermount3: ", "", line.strip()) for line in text.splitlines() if line.strip()]
    said = "; ".join(lines) or "it does not say why"
    code = next((code for pattern, code in _WORDS if re.search(pattern, said)), None)
    if code is None:
        tail = said.rpartition(": ")[2]
        code = next((code for code in errno.errorcode if os.strerror(code) == tail), errno.EIO)
    if code == errno.EACCES:
        code = errno.EPERM
    return SourceError(f"{mountpoint}: {PROGRAM}: {said}", code)
