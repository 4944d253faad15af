# SPDX-License-Identifier: MIT
"""FUSE passthrough: files of the host that the kernel maps in place of files of the mount.

The kernel knows such a file by a number (backing id) that belongs to the mount's connection. All opens of
one inode must name the same one. Limits: says why a mount can't have it, registers and gives back, nothing
else; who may have which file is decided by those who ask (direct.py). Metadata thread.
"""

import errno
import fcntl
import os
import struct

_BACKING_OPEN, _BACKING_CLOSE = 0x4010E501, 0x4004E502  # FUSE_DEV_IOC_*, linux/fuse.h
_MAP = struct.Struct("=iIQ")
_ID = struct.Struct("=I")
_CAP_SYS_ADMIN = 21
_STATUS = "/proc/self/status"
SINCE = (6, 9)
_REFUSED = "the kernel refuses to back a file: "
_REFUSALS = {
    errno.EPERM: _REFUSED + "it wants CAP_SYS_ADMIN outside of any user namespace: mount as root of the host",
    errno.ELOOP: _REFUSED + "the source lies on a stacked file system such as overlayfs, or on hugetlbfs: "
                 "use a directory of tmpfs, ext4 or XFS",
    errno.EOPNOTSUPP: _REFUSED + "the file system of the source can't do it",
    errno.ENOTTY: _REFUSED + "it was built without CONFIG_FUSE_PASSTHROUGH",
    errno.EINVAL: _REFUSED + os.strerror(errno.EINVAL),
}


def privileged() -> bool:
    """True where we have CAP_SYS_ADMIN. In a user namespace it is not the one that the kernel asks for."""
    with open(_STATUS) as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def why_not(transport: str, offered: bool, kernel: tuple[int, ...]) -> str:
    """What stands against it on this mount, and what to change; "": nothing that is known.

    *offered*: the kernel's INIT request has the bit. *transport*: of the mount; "" where libfuse made it.
    """
    if not transport:
        return "libfuse has made the mount, and does not know passthrough: mount as root"
    if transport == "pyfuse3":
        return "transport=pyfuse3 can't carry it: mount with transport=uring or transport=dev"
    if not offered and kernel < SINCE:
        return f"kernel {'.'.join(map(str, kernel))} has no FUSE passthrough, it came with 6.9"
    if not offered:
        return "this kernel was built without CONFIG_FUSE_PASSTHROUGH"
    if not privileged():
        return "the kernel wants CAP_SYS_ADMIN for it: mount as root"
    return ""


class Passthrough:
    """What a mount can do of it. ``why``: why it can do nothing; "" where it can."""

    def __init__(self, fuse_fd: int, why: str = ""):
        """*fuse_fd*: the mount's /dev/fuse descriptor; *why*: what is known to stand against it."""
        self.fuse_fd, self.why = fuse_fd, why

    def open(self, fd: int) -> int:
        """The backing id, above 0, of the regular file *fd*; 0 where it can't be had, and `why` says so.

        The kernel holds the file until `close`, and as long as it is open or mapped through the mount.
        """
        if self.why:
            return 0
        try:
            # Of a buffer that can't be changed ioctl() would give us a copy, in place of its result.
            number = fcntl.ioctl(self.fuse_fd, _BACKING_OPEN, bytearray(_MAP.pack(fd, 0, 0)))
        except OSError as error:
            # For good, where the kernel, our rights or the file system below are not made for it.
            self.why = _REFUSALS.get(error.errno, "")
            return 0
        return number

    def close(self, number: int) -> None:
        """Nothing that is opened from now on names *number*."""
        try:
            fcntl.ioctl(self.fuse_fd, _BACKING_CLOSE, _ID.pack(number))
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENOTCONN):  # unmounted: it is gone with the connection
                raise
