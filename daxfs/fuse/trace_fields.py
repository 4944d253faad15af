# SPDX-License-Identifier: MIT
"""The FUSE messages as `daxfs trace` shows them: which fields each opcode has, and which words they are.

Limits: facts of linux/fuse.h (protocol 7.45) and fcntl.h for this machine; no code that reads messages
(trace.py has that). A layout is a text of ``name:format[:show][?]`` words: a format of struct, then how the
number is shown (a key of SHOW, ``-`` for never); ``?`` leaves the field out where it is 0.
"""

import os

from daxfs.fuse.wire import OPCODES

NUMBERS = {name: number for number, name in OPCODES.items()}
NOTIFICATIONS = {1: "POLL", 2: "INVAL_INODE", 3: "INVAL_ENTRY", 4: "STORE", 5: "RETRIEVE", 6: "DELETE",
                 7: "RESEND", 8: "INC_EPOCH", 9: "PRUNE"}  # fmt: skip


def _bits(*names: str) -> dict[int, str]:
    return {1 << bit: name for bit, name in enumerate(names) if name}


# Flags: value -> name, those of several bits first. O_LARGEFILE is 0 in os on 64-bit machines.
_OPEN = {value: name for name in ("O_TMPFILE", "O_SYNC", "O_DSYNC", "O_CREAT", "O_EXCL", "O_NOCTTY",
                                  "O_TRUNC", "O_APPEND", "O_NONBLOCK", "O_ASYNC", "O_DIRECT", "O_DIRECTORY",
                                  "O_NOFOLLOW", "O_NOATIME", "O_CLOEXEC", "O_PATH")
         if (value := getattr(os, name, 0))} | {0o100000: "O_LARGEFILE", 0x20: "EXEC"}  # fmt: skip
_FLAGS = {
    "fattr": _bits("MODE", "UID", "GID", "SIZE", "ATIME", "MTIME", "FH", "ATIME_NOW", "MTIME_NOW",
                   "LOCKOWNER", "CTIME", "KILL_SUIDGID"),
    "fopen": _bits("DIRECT_IO", "KEEP_CACHE", "NONSEEKABLE", "CACHE_DIR", "STREAM", "NOFLUSH",
                   "PARALLEL_DIRECT_WRITES", "PASSTHROUGH"),
    "getattr": _bits("FH"), "open": _bits("KILL_SUIDGID"), "read": _bits("", "LOCKOWNER"),
    "write": _bits("CACHE", "LOCKOWNER", "KILL_SUIDGID"), "release": _bits("FLUSH", "FLOCK_UNLOCK"),
    "fsync": _bits("DATASYNC"), "setxattr": _bits("XATTR_CREATE", "XATTR_REPLACE"),
    "setxattr_ext": _bits("ACL_KILL_SGID"), "lock": _bits("FLOCK"), "access": _bits("X_OK", "W_OK", "R_OK"),
    "fallocate": _bits("KEEP_SIZE", "PUNCH_HOLE", "NO_HIDE_STALE", "COLLAPSE_RANGE", "ZERO_RANGE",
                       "INSERT_RANGE", "UNSHARE_RANGE"),
    "rename": _bits("NOREPLACE", "EXCHANGE", "WHITEOUT"),
    "ioctl": _bits("COMPAT", "UNRESTRICTED", "RETRY", "32BIT", "DIR", "COMPAT_X32"),
    "poll": _bits("SCHEDULE_NOTIFY"), "attr": _bits("SUBMOUNT", "DAX"),
    "mapping": _bits("WRITE", "READ"), "expire": _bits("EXPIRE_ONLY"),
    "events": _bits("POLLIN", "POLLPRI", "POLLOUT", "POLLERR", "POLLHUP", "POLLNVAL"),
}  # fmt: skip
_VALUES = {
    "whence": {0: "SEEK_SET", 1: "SEEK_CUR", 2: "SEEK_END", 3: "SEEK_DATA", 4: "SEEK_HOLE"},
    "locktype": {0: "F_RDLCK", 1: "F_WRLCK", 2: "F_UNLCK"},
    "ioctlcmd": {
        0x80086601: "FS_IOC_GETFLAGS", 0x40086602: "FS_IOC_SETFLAGS", 0x80087601: "FS_IOC_GETVERSION",
        0x801C581F: "FS_IOC_FSGETXATTR", 0x401C5820: "FS_IOC_FSSETXATTR", 2: "FIGETBSZ", 1: "FIBMAP",
        0x81009431: "FS_IOC_GETFSLABEL", 0x41009432: "FS_IOC_SETFSLABEL", 0xC0185879: "FITRIM",
        0x8004587D: "XFS_IOC_GOINGDOWN", 0xC020660B: "FS_IOC_FIEMAP", 0x5401: "TCGETS",
        0x8FE05001: "FS_IOC_SHUTDOWN", 0x1280: "BLKDAXSET", 0x1281: "BLKDAXGET",
        0x8040DA00: "DAXFS_IOC_ABOUT", 0xC040DA01: "DAXFS_IOC_OBSERVE", 0x4020DA02: "DAXFS_IOC_FORGET",
    },
}  # fmt: skip
_TYPES = {0o010: "S_IFIFO", 0o020: "S_IFCHR", 0o040: "S_IFDIR", 0o060: "S_IFBLK", 0o100: "S_IFREG",
          0o120: "S_IFLNK", 0o140: "S_IFSOCK"}  # fmt: skip


def flags(value: int, known: dict[int, str], zero: str = "0") -> str:
    """``A|B|0x40``: names of the bits that are known, the rest as a number."""
    words = []
    for bits, name in known.items():
        if value & bits == bits:
            words.append(name)
            value &= ~bits
    if value or not words:
        words.append(hex(value) if value else zero)
    return "|".join(words)


def _open_flags(value: int) -> str:
    mode = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[value & 3]
    return mode if value < 4 else f"{mode}|{flags(value & ~3, _OPEN)}"


def _mode(value: int) -> str:
    kind = _TYPES.get(value >> 9 & 0o170)
    return f"{kind}|{value & 0o7777:04o}" if kind else f"{value:04o}"


# How a number is shown; without an entry here as it is.
SHOW = {
    "O": _open_flags, "mode": _mode, "octal": "0{:03o}".format, "hex": hex,
    **{name: lambda value, known=known: flags(value, known) for name, known in _FLAGS.items()},
    **{name: lambda value, known=known: known.get(value, hex(value)) for name, known in _VALUES.items()},
}  # fmt: skip
ANY_SIZE = 0xFFFFFFFF  # stands where it is not known how much was asked for
SHOW["size"] = lambda value: "any" if value == ANY_SIZE else value
SHOW["access"] = lambda value: flags(value, _FLAGS["access"], "F_OK")

_RW = "fh:Q offset:Q size:I:size read_flags:I:read? lock_owner:Q:hex? flags:I:O? pad:I:-"
_RELEASE = "fh:Q flags:I:O? release_flags:I:release? lock_owner:Q:hex?"
_FSYNC = "fh:Q fsync_flags:I:fsync? pad:I:-"
_OPENING = "flags:I:O open_flags:I:open?"
_CREATE = "flags:I:O mode:I:mode umask:I:octal open_flags:I:open?"
_LOCK = "start:Q end:Q type:I:locktype pid:I"
_COPY = "fh:Q offset:Q ino_out:Q fh_out:Q offset_out:Q len:Q flags:Q?"
# Layouts of requests, without names and data behind them.
REQUESTS = {
    "FORGET": "nlookup:Q", "GETATTR": "getattr_flags:I:getattr? pad:I:- fh:Q?",
    "SETATTR": "valid:I:fattr pad:I:- fh:Q size:Q lock_owner:Q:hex atime:q mtime:q ctime:q atimensec:I:- "
               "mtimensec:I:- ctimensec:I:- mode:I:mode pad:I:- uid:I gid:I pad:I:-",
    "MKNOD": "mode:I:mode rdev:I:hex? umask:I:octal pad:I:-", "MKDIR": "mode:I:mode umask:I:octal",
    "RENAME": "newdir:Q", "LINK": "oldino:Q", "OPEN": _OPENING, "READ": _RW,
    "WRITE": "fh:Q offset:Q size:I write_flags:I:write? lock_owner:Q:hex? flags:I:O? pad:I:-",
    "RELEASE": _RELEASE, "FSYNC": _FSYNC, "SETXATTR": "size:I flags:I:setxattr?",
    "GETXATTR": "size:I:size pad:I:-", "LISTXATTR": "size:I:size pad:I:-",
    "FLUSH": "fh:Q pad:I:- pad:I:- lock_owner:Q:hex?",
    "INIT": "major:I minor:I max_readahead:I flags:I:hex flags2:I:hex", "OPENDIR": _OPENING, "READDIR": _RW,
    "RELEASEDIR": _RELEASE, "FSYNCDIR": _FSYNC,
    **dict.fromkeys(("GETLK", "SETLK", "SETLKW"), f"fh:Q owner:Q:hex {_LOCK} lk_flags:I:lock? pad:I:-"),
    "ACCESS": "mask:I:access pad:I:-", "CREATE": _CREATE, "INTERRUPT": "unique:Q",
    "BMAP": "block:Q blocksize:I pad:I:-",
    "IOCTL": "fh:Q flags:I:ioctl? cmd:I:ioctlcmd arg:Q:hex in_size:I out_size:I",
    "POLL": "fh:Q kh:Q poll_flags:I:poll? events:I:events", "NOTIFY_REPLY": "pad:Q:- offset:Q size:I pad:I:-",
    "BATCH_FORGET": "count:I pad:I:-", "FALLOCATE": "fh:Q offset:Q length:Q mode:I:fallocate pad:I:-",
    "READDIRPLUS": _RW, "RENAME2": "newdir:Q flags:I:rename pad:I:-",
    "LSEEK": "fh:Q offset:q whence:I:whence pad:I:-", "COPY_FILE_RANGE": _COPY,
    "SETUPMAPPING": "fh:Q foffset:Q len:Q flags:Q:mapping moffset:Q", "REMOVEMAPPING": "count:I",
    "SYNCFS": "pad:Q:-", "TMPFILE": _CREATE,
    "STATX": "getattr_flags:I:getattr? pad:I:- fh:Q? sx_flags:I:hex sx_mask:I:hex",
    "COPY_FILE_RANGE_64": _COPY,
}  # fmt: skip
SETXATTR_EXT = "size:I flags:I:setxattr? setxattr_flags:I:setxattr_ext? pad:I:-"
# Names behind the layout, each with its zero byte.
NAMES = {
    **dict.fromkeys(("LOOKUP", "UNLINK", "RMDIR", "MKNOD", "MKDIR", "CREATE", "TMPFILE", "SETXATTR",
                     "GETXATTR", "REMOVEXATTR", "LINK"), ("name",)),
    "RENAME": ("name", "newname"), "RENAME2": ("name", "newname"), "SYMLINK": ("name", "target"),
}  # fmt: skip

_ATTR = ("ino:Q size:Q blocks:Q atime:q mtime:q ctime:q atimensec:I:- mtimensec:I:- ctimensec:I:- "
         "mode:I:mode nlink:I uid:I gid:I rdev:I:hex? blksize:I:- attr_flags:I:attr?")
# Behind a name: the inode's number is said once, its times are GETATTR's to tell.
_BRIEF = _ATTR.replace("ino:Q", "ino:Q:-").replace("time:q", "time:q:-")
_ENTRY = f"nodeid:Q generation:Q? entry_valid:Q attr_valid:Q pad:I:- pad:I:- {_BRIEF}"
_OPENED = "fh:Q open_flags:I:fopen? backing_id:i?"
# Layouts of replies, as far as they are no data.
REPLIES = {
    **dict.fromkeys(("LOOKUP", "SYMLINK", "MKNOD", "MKDIR", "LINK"), _ENTRY),
    **dict.fromkeys(("GETATTR", "SETATTR"), f"attr_valid:Q pad:I:- pad:I:- {_ATTR}"),
    **dict.fromkeys(("OPEN", "OPENDIR"), _OPENED),
    **dict.fromkeys(("CREATE", "TMPFILE"), f"{_ENTRY} {_OPENED}"),
    **dict.fromkeys(("WRITE", "COPY_FILE_RANGE"), "size:I pad:I:-"), "COPY_FILE_RANGE_64": "size:Q",
    "STATFS": "blocks:Q bfree:Q bavail:Q files:Q ffree:Q bsize:I namelen:I frsize:I",
    "INIT": "major:I minor:I max_readahead:I flags:I:hex max_background:H congestion_threshold:H max_write:I "
            "time_gran:I max_pages:H map_alignment:H flags2:I:hex max_stack_depth:I",
    "GETLK": _LOCK, "BMAP": "block:Q", "LSEEK": "offset:q", "POLL": "revents:I:events pad:I:-",
    "IOCTL": "result:i flags:I:ioctl? in_iovs:I? out_iovs:I?",
    "STATX": "attr_valid:Q pad:I:- statx_flags:I:hex? pad:Q:- pad:Q:- mask:I:hex blksize:I attributes:Q:hex "
             "nlink:I uid:I gid:I mode:H:mode pad:H:- ino:Q size:Q blocks:Q attributes_mask:Q:hex",
}  # fmt: skip
# Layouts of notifications, and whether a name stands behind them.
NOTES = {
    "INVAL_INODE": ("ino:Q offset:q len:q", False), "STORE": ("ino:Q offset:Q size:I pad:I:-", False),
    "INVAL_ENTRY": ("parent:Q namelen:I flags:I:expire?", True),
    "DELETE": ("parent:Q child:Q namelen:I pad:I:-", True), "POLL": ("kh:Q", False),
    "RETRIEVE": ("unique:Q ino:Q offset:Q size:I pad:I:-", False),
}  # fmt: skip
