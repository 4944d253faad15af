# SPDX-License-Identifier: MIT
"""mount(2) and FUSE's INIT by ourselves, so that features which libfuse does not know can be negotiated.

The kernel's /dev/fuse descriptor is mounted here; libfuse gets one end of a socket pair in its place
("/dev/fd/N"). INIT goes to libfuse through the pair, its reply is patched on the way to the kernel.

With a native transport it stays like that: the transport's threads have the kernel's descriptor and our
end of the pair (docs/transport.md). With transport=pyfuse3 the kernel's descriptor takes the place of
libfuse's end (dup2), and nothing stands between any more.

Limits: one thread, the trio loop's. What `Link.open` began must be ended with `Link.close`. The dup2 may
happen only while no task waits for that descriptor: epoll would go on watching the socket that is gone. So
it is done inside a request: `hand_over` sends one made-up FORGET, whose handler (ops.forget) calls
`takeover`. pyfuse3's task has read it and given the lock on, but no other task ran since; the next one that
waits finds a descriptor that epoll does not know yet, and trio adds it.
"""

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct

import trio

from daxfs.errors import SourceError
from daxfs.fuse import fusermount, mountinfo, passthrough
from daxfs.fuse.options import SUBTYPE, MountConfig, fuse_arguments

DEVICE = "/dev/fuse"
SWITCH = "DAXFS_HANDSHAKE"  # "libfuse" in the environment: leave mount and INIT to libfuse (for tests)

# linux/fuse.h: message sizes, opcodes, the INIT flags as one 64-bit word (flags2 is its upper half).
IN_HEADER, OUT_HEADER = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
_WORD = struct.Struct("=I")
_IN_FLAGS, _IN_FLAGS2 = IN_HEADER.size + 12, IN_HEADER.size + 16
_OUT_FLAGS, _OUT_FLAGS2 = OUT_HEADER.size + 12, OUT_HEADER.size + 32
# max_background, congestion_threshold, max_write, time_gran, max_pages
_OUT_SIZES, _SIZES = OUT_HEADER.size + 16, struct.Struct("=HHIIH")
_OUT_STACK_DEPTH = OUT_HEADER.size + 36  # behind flags2, since 7.40
FORGET, INIT = 2, 26
INIT_EXT = 1 << 30
FEATURES = {
    "async_read": 0, "posix_locks": 1, "atomic_o_trunc": 3, "export_support": 4, "big_writes": 5,
    "dont_mask": 6, "splice_write": 7, "splice_move": 8, "splice_read": 9, "flock_locks": 10,
    "ioctl_dir": 11, "auto_inval_data": 12, "readdirplus": 13, "readdirplus_auto": 14, "async_dio": 15,
    "writeback_cache": 16, "no_open_support": 17, "parallel_dirops": 18, "handle_killpriv": 19,
    "posix_acl": 20, "abort_error": 21, "max_pages": 22, "cache_symlinks": 23, "no_opendir_support": 24,
    "explicit_inval_data": 25, "handle_killpriv_v2": 28, "setxattr_ext": 29, "init_ext": 30,
    "direct_io_allow_mmap": 36, "passthrough": 37, "over_io_uring": 41,
}  # fmt: skip


def bits(*wanted: str) -> int:
    """The INIT flags of these names, as one word."""
    return sum(1 << FEATURES[name] for name in wanted)


WANTED = bits("dont_mask", "handle_killpriv_v2", "direct_io_allow_mmap", "abort_error")
# What a native transport answers by itself beside that: READDIR, IOCTL of directories.
WANTED_NATIVE = WANTED | bits("readdirplus_auto", "parallel_dirops", "ioctl_dir", "max_pages", "async_dio",
                              "big_writes")
OVER_IO_URING = bits("over_io_uring")
PASSTHROUGH = bits("passthrough")
# pyfuse3 copies what it gets, so a pipe in between is two system calls more for each request.
UNWANTED = bits("splice_write", "splice_move", "splice_read")
PAGES_LIMIT = "/proc/sys/fs/fuse/max_pages_limit"
MOST_PAGES = 4096  # 16 MiB: buffers of that size are there for each request that is under way
# The file system of a backing file stands on no other one: so a range can't be a file of overlayfs, but
# overlayfs can still be mounted on us, though not two on each other.
STACK_DEPTH = 1
BACKGROUND = 64  # requests that nobody waits for (asynchronous I/O, readahead) at a time
PAIR_BUFFER = 8 << 20  # bytes of messages in either direction
# A node that can't exist: inode numbers are below 2**32.
HANDOFF_NODE = 1 << 63 | 0x6461786673

# linux/mount.h: the flags of mount(2), and the value that the option must have for them.
_MS = {"suid": (2, False), "dev": (4, False), "exec": (8, False), "sync": (16, True), "dirsync": (128, True)}
_MS_RDONLY, _MS_NOATIME, _MS_NODIRATIME, _MNT_DETACH = 1, 1024, 2048, 2
_DEFAULTS = {"suid": False, "dev": False, "exec": True}  # as libfuse has them
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33  # SO_*; Python has no names for them
# What mount(8) says. EPERM and EACCES are no errors yet: fusermount3 may be let. Nor is EINVAL: libfuse knows
# options that we don't.
_REFUSED = {
    errno.ENOENT: "mount point does not exist",
    errno.ENOTDIR: "mount point is not a directory",
    errno.EBUSY: "already mounted or mount point busy",
    errno.ENODEV: "unknown filesystem type 'fuse': modprobe fuse",
    errno.ENOSPC: "too many mounts (sysctl fs.mount-max)",
}


class Unusable(Exception):
    """This mount is libfuse's to make; the text says why."""


def names(flags: int) -> list[str]:
    """Names of the INIT features in a 64-bit word of flags; ``bit N`` for one without a name here."""
    known = {bit: name for name, bit in FEATURES.items()}
    return [known.get(bit, f"bit {bit}") for bit in range(64) if flags >> bit & 1]


def offered(request: bytes) -> int:
    """The 64 flags of a kernel's INIT request. SourceError where *request* is none."""
    if len(request) < _IN_FLAGS + 4 or IN_HEADER.unpack_from(request)[1] != INIT:
        raise SourceError(f"the first request of the kernel is not INIT: {request[:48].hex()}", errno.EPROTO)
    flags = _WORD.unpack_from(request, _IN_FLAGS)[0]
    if flags & INIT_EXT and len(request) >= _IN_FLAGS2 + 4:
        flags |= _WORD.unpack_from(request, _IN_FLAGS2)[0] << 32
    return flags


def without_splice(request: bytes) -> bytes:
    """The INIT request as libfuse shall see it."""
    out = bytearray(request)
    _WORD.pack_into(out, _IN_FLAGS, _WORD.unpack_from(request, _IN_FLAGS)[0] & ~UNWANTED)
    return bytes(out)


def most_pages() -> int:
    """Pages of the largest request that this host allows (6.13 and later: a sysctl; before: 256)."""
    try:
        with open(PAGES_LIMIT) as file:
            return max(1, min(int(file.read()), MOST_PAGES))
    except (OSError, ValueError):
        return 256


def patched(reply: bytes, offer: int, wanted: int = WANTED, pages: int = 0) -> tuple[bytes, int]:
    """libfuse's INIT reply with the features *wanted* that the kernel offers; and all 64 flags in it.

    *pages*: of the largest request, where max_pages is among them; 0: as libfuse has it.
    SourceError where libfuse answered with an error. A reply too short for flags is left as it is.
    """
    error = OUT_HEADER.unpack_from(reply)[1] if len(reply) >= OUT_HEADER.size else -errno.EPROTO
    if error:
        raise SourceError(f"libfuse refuses the kernel's INIT: {os.strerror(-error)}", -error)
    if len(reply) < _OUT_FLAGS + 4:
        return reply, 0
    flags = _WORD.unpack_from(reply, _OUT_FLAGS)[0]
    extended = len(reply) >= _OUT_FLAGS2 + 4
    if flags & INIT_EXT and extended:
        flags |= _WORD.unpack_from(reply, _OUT_FLAGS2)[0] << 32
    add = wanted & offer
    if add >> 32:
        add = add | INIT_EXT if extended and offer & INIT_EXT else add & 0xFFFFFFFF
    if add & PASSTHROUGH and len(reply) < _OUT_STACK_DEPTH + 4:
        add &= ~PASSTHROUGH  # without a depth the kernel would not let us back anything
    flags |= add
    out = bytearray(reply)
    _WORD.pack_into(out, _OUT_FLAGS, flags & 0xFFFFFFFF)
    if flags & INIT_EXT and extended:
        _WORD.pack_into(out, _OUT_FLAGS2, flags >> 32)
    if add & PASSTHROUGH:
        _WORD.pack_into(out, _OUT_STACK_DEPTH, STACK_DEPTH)
    if pages and add & bits("max_pages") and extended:
        gran = _SIZES.unpack_from(out, _OUT_SIZES)[3]
        _SIZES.pack_into(out, _OUT_SIZES, BACKGROUND, BACKGROUND * 3 // 4, pages * 4096, gran, pages)
    return bytes(out), flags


def mount_arguments(config: MountConfig, fd: int) -> tuple[bytes, int, bytes]:
    """(source, flags, data) for mount(2)."""
    flags = _DEFAULTS | config.flags
    bits = sum(bit for name, (bit, value) in _MS.items() if flags.get(name, not value) is value)
    bits |= _MS_RDONLY if config.readonly else 0
    bits |= _MS_NOATIME if config.atime == "noatime" else 0
    bits |= _MS_NODIRATIME if config.nodiratime else 0
    data = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    data += ",allow_other" if flags.get("allow_other") else ""
    return os.fsencode(config.fsname or ",".join(config.sources)), bits, data.encode()


def _mount(config: MountConfig, mountpoint: str) -> tuple[int, tuple]:
    """A mounted /dev/fuse descriptor: by mount(2), or by fusermount3 where that is needed or alone allowed.

    With it (whether it was fusermount3, its Keepalive or None).

    Unusable, or SourceError in the words of mount(8) or of fusermount3.
    """
    if config.flags.get("allow_root") and not config.flags.get("allow_other"):
        raise Unusable("allow_root is done by libfuse")
    device = None
    if not config.flags.get("auto_unmount"):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    if device is not None:
        try:
            _mount_2(config, mountpoint, device)
            return device, (False, None)
        except PermissionError:
            os.close(device)
        except BaseException:
            os.close(device)
            raise
    device, keepalive = fusermount.mount(mountpoint, fuse_arguments(config))
    return device, (True, keepalive)


def _mount_2(config: MountConfig, mountpoint: str, fd: int) -> None:
    """mount(2). PermissionError, Unusable, or SourceError in the words of mount(8)."""
    source, bits, data = mount_arguments(config, fd)
    libc = ctypes.CDLL(None, use_errno=True)
    fstype = f"fuse.{SUBTYPE}".encode()
    if libc.mount(source, os.fsencode(mountpoint), fstype, ctypes.c_ulong(bits), data) == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionError(code, os.strerror(code))
    if code == errno.EINVAL:
        raise Unusable(f"mount(2): {os.strerror(code)}")
    raise SourceError(f"{mountpoint}: {_REFUSED.get(code) or os.strerror(code)}", code)


def _widen(*ends: socket.socket) -> None:
    """Room for the largest message; without CAP_NET_ADMIN up to what net.core.wmem_max allows."""
    for end in ends:
        for forced, plain in ((_SNDBUFFORCE, socket.SO_SNDBUF), (_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                end.setsockopt(socket.SOL_SOCKET, forced, PAIR_BUFFER)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, plain, PAIR_BUFFER)


class Link:
    """One mount that we made, and the way from its /dev/fuse descriptor to libfuse.

    ``path``: for pyfuse3.init. ``fuse``, ``ours``: the kernel's descriptor and our end of the pair.
    From the reply to INIT on: ``flags``, the features that were agreed on, ``transport``, ``pages``.
    """

    def __init__(self, mountpoint: str, device: int, by: tuple):
        self.mountpoint = mountpoint
        self.flags = 0
        self.fuse: int | None = device
        self.by_fusermount, self.keepalive = by  # keepalive: of auto_unmount
        self._taken = trio.Event()
        self._theirs, self.ours = (None, None)
        self.transport = "pyfuse3"
        self.pages = 32  # of the largest request
        self._mounted = True
        self._number: int | None = None  # st_dev of the mount, once it was seen

    @classmethod
    def open(cls, config: MountConfig, mountpoint: str) -> "Link":
        """Mount. Unusable where libfuse has to do it, SourceError where it can't be done."""
        if os.environ.get(SWITCH) == "libfuse":
            raise Unusable(f"{SWITCH}=libfuse in the environment")
        link = cls(mountpoint, *_mount(config, mountpoint))
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            _widen(ours, theirs)
            link.ours, link._theirs = ours, theirs.detach()
            mount = mountinfo.mount_at(mountpoint)
            if mount is None or mount.fstype not in mountinfo.TYPES:
                link._mounted = False
                raise SourceError(f"{mountpoint}: was unmounted at once", errno.EIO)
            link._number = mount.device
        except BaseException:
            link.close(None)
            raise
        return link

    @property
    def path(self) -> str:
        return f"/dev/fd/{self._theirs}"

    async def negotiate(self, agree) -> bool:
        """INIT, while pyfuse3.main runs; False where the mount is gone before that.

        *agree(offer)*: from the 64 flags that the kernel offers to the transport's name. With a native one
        the caller starts it then, with `fuse` and `ours`; with "pyfuse3" everything is handed over.
        """
        try:
            # Does not wait: mount(2) has queued INIT. No other request can come before its reply.
            request = os.read(self.fuse, 1 << 16)
            offer = offered(request)
            self.transport = agree(offer)
            native = self.transport != "pyfuse3"
            wanted = WANTED_NATIVE if native else WANTED
            wanted |= OVER_IO_URING if self.transport == "uring" else 0
            wanted |= PASSTHROUGH if native and passthrough.privileged() else 0
            self.ours.send(without_splice(request))
            await trio.lowlevel.wait_readable(self.ours)
            self.pages = most_pages() if offer & bits("max_pages") else 32
            reply, self.flags = patched(self.ours.recv(1 << 16), offer, wanted, self.pages if native else 0)
            os.write(self.fuse, reply)
        except OSError as exc:
            # From the two calls on /dev/fuse alone: the connection was ended.
            if exc.errno in (errno.ENODEV, errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED):
                return False
            raise
        if not native:
            await self.hand_over()
        return True

    async def hand_over(self) -> None:
        """Give libfuse the kernel's descriptor, after the reply to INIT: real requests wait on it by now."""
        size = IN_HEADER.size + 8
        self.ours.send(IN_HEADER.pack(size, FORGET, 0, HANDOFF_NODE, 0, 0, 0, 0) + bytes(8))
        await self._taken.wait()

    def takeover(self) -> None:
        """Put /dev/fuse where libfuse's end of the pair is. Only from the handler of the made-up FORGET."""
        os.dup2(self.fuse, self._theirs, inheritable=False)
        self._drop()
        self._taken.set()

    def _drop(self) -> None:
        """Close what only the hand-over needs; libfuse has a descriptor of its own."""
        if self.fuse is not None:
            os.close(self.fuse)
            self.fuse = None
        if self.ours is not None:
            self.ours.close()
            self.ours = None

    def close(self, end_session, aborted: bool = False) -> None:
        """Take the mount away, lazily where it is in use, and close everything.

        *end_session()* ends libfuse's session, which closes libfuse's descriptor; None: there is no session.
        *aborted*: the connection was, so that the mount is still there though nobody can answer it.
        """
        there = self._is_mounted(aborted)
        # Descriptors first: that ends all requests, and umount2 must not wait for one that nobody answers.
        self._drop()
        if end_session is not None:
            end_session()
        elif self._theirs is not None:
            os.close(self._theirs)
        self._theirs = None
        if there:
            self._unmount()
        if self.keepalive is not None:
            self.keepalive.close()

    def _unmount(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(self.mountpoint), _MNT_DETACH) and ctypes.get_errno() == errno.EPERM:
            fusermount.unmount(self.mountpoint)

    def _is_mounted(self, aborted: bool) -> bool:
        """True while the uppermost mount at the mount point is ours.

        Our device number can't be another mount's as long as the connection lives, and POLLERR says that
        it does not; but an abort leaves the mount, and with it the number, where they are.
        """
        if not self._mounted:
            return False
        poll = select.poll()
        poll.register(self._theirs if self.fuse is None else self.fuse, 0)
        if not aborted and any(event & select.POLLERR for _, event in poll.poll(0)):
            return False
        try:
            found = mountinfo.mount_at(self.mountpoint)
        except OSError:
            return True  # no /proc to ask
        return found is not None and self._number in (None, found.device)
