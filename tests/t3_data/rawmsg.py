# SPDX-License-Identifier: MIT
"""Raw requests of the FUSE protocol, as bytes, and a check of them that shares nothing with native/message.c.

`corpus` has at least one good message of every opcode; `flaws` says what is wrong with one.
"""

import struct

HEADER = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extensions, padding
FATTR_SIZE, FATTR_ATIME, FATTR_FH = 1 << 3, 1 << 4, 1 << 6
READ_LOCKOWNER, WRITE_CACHE = 1 << 1, 1 << 0

OPCODES = {
    "lookup": 1, "forget": 2, "getattr": 3, "setattr": 4, "readlink": 5, "symlink": 6, "mknod": 8, "mkdir": 9,
    "unlink": 10, "rmdir": 11, "rename": 12, "link": 13, "open": 14, "read": 15, "write": 16, "statfs": 17,
    "release": 18, "fsync": 20, "setxattr": 21, "getxattr": 22, "listxattr": 23, "removexattr": 24,
    "flush": 25, "init": 26, "opendir": 27, "readdir": 28, "releasedir": 29, "fsyncdir": 30, "getlk": 31,
    "setlk": 32, "setlkw": 33, "access": 34, "create": 35, "interrupt": 36, "bmap": 37, "destroy": 38,
    "ioctl": 39, "poll": 40, "notify_reply": 41, "batch_forget": 42, "fallocate": 43, "readdirplus": 44,
    "rename2": 45, "lseek": 46, "copy_file_range": 47, "setupmapping": 48, "removemapping": 49, "syncfs": 50,
    "tmpfile": 51, "statx": 52, "copy_file_range_64": 53,
}  # fmt: skip


def message(op, nodeid: int, body: bytes = b"", *, unique: int = 2, extra: int = 0, length=None,
            caller=(0, 0, 0)) -> bytes:
    """One request. *op*: name or number; *extra*: bytes of extensions at the end of *body*.

    *caller*: uid, gid and pid.
    """
    number = OPCODES.get(op, op)
    size = HEADER.size + len(body) if length is None else length
    return HEADER.pack(size, number, unique, nodeid, *caller, extra // 8, 0) + body


def read(ino, fh, pos, size, flags=READ_LOCKOWNER, op="read", unique=2) -> bytes:
    return message(op, ino, struct.pack("<QQIIQII", fh, pos, size, flags, 1, 0, 0), unique=unique)


def write(ino, fh, pos, data, flags=0, size=None, how=0) -> bytes:
    """*flags*: WRITE_CACHE and others; *how*: the descriptor's, with those of RWF_ that are O_ flags, too."""
    size = len(data) if size is None else size
    return message("write", ino, struct.pack("<QQIIQII", fh, pos, size, flags, 1, how, 0) + bytes(data))


def getattr_(ino, fh=None) -> bytes:
    return message("getattr", ino, struct.pack("<IIQ", fh is not None, 0, fh or 0))


def fsync(ino, fh, flags=0, op="fsync") -> bytes:
    return message(op, ino, struct.pack("<QII", fh, flags, 0))


def flush(ino, fh) -> bytes:
    return message("flush", ino, struct.pack("<QIIQ", fh, 0, 0, 1))


def open_(ino, flags, caller=(0, 0, 0), more: int = 0) -> bytes:
    return message("open", ino, struct.pack("<II", flags, more), caller=caller)


def release(ino, fh, op="release") -> bytes:
    return message(op, ino, struct.pack("<QIIQ", fh, 0, 0, 1))


def lseek(ino, fh, offset, whence) -> bytes:
    return message("lseek", ino, struct.pack("<QQII", fh, offset & (1 << 64) - 1, whence, 0))


def fallocate(ino, fh, pos, length, mode=0) -> bytes:
    return message("fallocate", ino, struct.pack("<QQQII", fh, pos, length, mode, 0))


def setattr_(ino, valid=FATTR_SIZE, fh=0, size=5, nsec=0) -> bytes:
    body = struct.pack("<IIQQQQQQIIIIIIII", valid, 0, fh, size, 0, 7, 8, 9, nsec, nsec, 0, 0o644, 0, 0, 0, 0)
    return message("setattr", ino, body)


def copy_file_range(ino, fh, other, other_fh, op="copy_file_range", off=0, length=4096) -> bytes:
    return message(op, ino, struct.pack("<QQQQQQQ", fh, off, other, other_fh, 0, length, 0))


def setxattr(ino, name=b"user.a", value=b"value", flags=0, size=None) -> bytes:
    size = len(value) if size is None else size
    return message("setxattr", ino, struct.pack("<II", size, flags) + name + b"\0" + value)


def ioctl(ino, fh, data=b"12345678", in_size=None, out_size=8) -> bytes:
    in_size = len(data) if in_size is None else in_size
    return message("ioctl", ino, struct.pack("<QIIQII", fh, 0, 0x6601, 0, in_size, out_size) + data)


def batch_forget(inodes, count=None) -> bytes:
    body = b"".join(struct.pack("<QQ", ino, 1) for ino in inodes)
    return message("batch_forget", 0, struct.pack("<II", len(inodes) if count is None else count, 0) + body)


def extension(size: int = 16) -> bytes:
    """One extension of that many bytes in all."""
    return struct.pack("<II", size, 32) + bytes(size - 8)


def on_names(root: int, ino: int) -> list[bytes]:
    """Good messages without a file handle, that name things."""
    create, ext = struct.pack("<IIII", 0x8042, 0o100644, 0o022, 0), extension()
    return [
        message("lookup", root, b"name\0"), message("lookup", root, b"..\0"),
        message("lookup", root, b"n" * 255 + b"\0"),
        message("symlink", root, b"name\0" + b"to/there\0"),
        message("symlink", root, b"name\0" + b"t" * 4095 + b"\0"),
        message("mknod", root, struct.pack("<IIII", 0o100644, 0, 0o022, 0) + b"name\0"),
        message("mkdir", root, struct.pack("<II", 0o755, 0o022) + b"name\0"),
        message("mkdir", root, struct.pack("<II", 0o755, 0o022) + b"name\0" + ext, extra=len(ext)),
        message("unlink", root, b"name\0"), message("rmdir", root, b"name\0"),
        message("rename", root, struct.pack("<Q", root) + b"old\0new\0"),
        message("rename2", root, struct.pack("<QII", root, 1, 0) + b"old\0new\0"),
        message("link", root, struct.pack("<Q", ino) + b"name\0"),
        message("create", root, create + b"name\0"),
        message("create", root, create + b"name\0" + ext + ext, extra=2 * len(ext)),
        message("tmpfile", root, create + b"/\0"), message("tmpfile", root, create + b"\0"),
    ]  # fmt: skip


def on_inodes(root: int, ino: int) -> list[bytes]:
    """Good messages without a file handle, on inodes or on nothing."""
    return [
        message("forget", ino, struct.pack("<Q", 3)), batch_forget([ino, root]),
        getattr_(ino), setattr_(ino), setattr_(ino, FATTR_ATIME, nsec=999_999_999), message("readlink", ino),
        message("open", ino, struct.pack("<II", 2, 0)), message("opendir", root, struct.pack("<II", 0, 0)),
        message("statfs", root), message("access", ino, struct.pack("<II", 4, 0)),
        setxattr(ino), setxattr(ino, value=b""),
        message("getxattr", ino, struct.pack("<II", 64, 0) + b"user.a\0"),
        message("listxattr", ino, struct.pack("<II", 64, 0)), message("removexattr", ino, b"user.a\0"),
        message("statx", ino, struct.pack("<IIQII", 0, 0, 0, 0, 0xFFF)),
        message("syncfs", root, struct.pack("<Q", 0)),
        message("init", 0, struct.pack("<IIII", 7, 45, 1 << 17, 0)),
        message("init", 0, struct.pack("<IIII", 7, 45, 1 << 17, 0) + bytes(48)),
        message("destroy", 0), message("interrupt", 0, struct.pack("<Q", 4)),
        message("notify_reply", ino, bytes(40)),
    ]  # fmt: skip


def on_handles(root: int, dir_fh: int, ino: int, fh: int) -> list[bytes]:
    """Good messages with handles of the directory *root* and the file *ino*."""
    return [
        read(ino, fh, 0, 4096), read(ino, fh, 4000, 40000), read(ino, fh, 0, 65536, flags=0),
        read(root, dir_fh, 0, 4096, op="readdir"), read(root, dir_fh, 0, 4096, op="readdirplus"),
        write(ino, fh, 100, b"data" * 100), write(ino, fh, 0, b"d" * 5000, WRITE_CACHE),
        write(ino, fh, 60000, b"d" * 700), getattr_(ino, fh), setattr_(ino, FATTR_SIZE | FATTR_FH, fh),
        fsync(ino, fh), fsync(ino, fh, 1), fsync(root, dir_fh, op="fsyncdir"), flush(ino, fh),
        release(ino, fh), release(root, dir_fh, op="releasedir"),
        lseek(ino, fh, 0, 3), lseek(ino, fh, 100, 4), lseek(ino, fh, 5, 0), lseek(ino, fh, -5, 2),
        fallocate(ino, fh, 0, 8192), fallocate(ino, fh, 4096, 4096, 1), fallocate(ino, fh, 0, 8192, 3),
        ioctl(ino, fh), ioctl(root, dir_fh, b"", out_size=4),
        copy_file_range(ino, fh, ino, fh), copy_file_range(ino, fh, ino, fh, "copy_file_range_64"),
        message("statx", ino, struct.pack("<IIQII", 1, 0, fh, 0, 0xFFF)),
    ]  # fmt: skip


REFUSED = ("getlk", "setlk", "setlkw", "bmap", "poll", "setupmapping", "removemapping")


def corpus(root: int, dir_fh: int, ino: int, fh: int) -> list[bytes]:
    """Good messages: each opcode that there is, at least once."""
    refused = [message(op, ino, struct.pack("<Q", fh) + bytes(40)) for op in REFUSED]
    return on_names(root, ino) + on_inodes(root, ino) + on_handles(root, dir_fh, ino, fh) + refused


# -- what may be passed on ------------------------------------------------------------------

FIXED = {
    "getattr": 16, "setattr": 88, "mknod": 16, "mkdir": 8, "rename": 8, "rename2": 16, "link": 8, "open": 8,
    "read": 40, "write": 40, "release": 24, "fsync": 16, "setxattr": 8, "getxattr": 8, "listxattr": 8,
    "flush": 24, "init": 16, "opendir": 8, "readdir": 40, "releasedir": 24, "fsyncdir": 16, "access": 8,
    "create": 16, "interrupt": 8, "ioctl": 32, "batch_forget": 8, "fallocate": 32, "readdirplus": 40,
    "lseek": 24, "copy_file_range": 56, "copy_file_range_64": 56, "syncfs": 8, "tmpfile": 16, "statx": 24,
    "forget": 8,
}  # fmt: skip
STRINGS = {  # how many there are, and the most bytes of each
    "lookup": [255], "symlink": [255, 4095], "mknod": [255], "mkdir": [255], "unlink": [255], "rmdir": [255],
    "rename": [255, 255], "rename2": [255, 255], "link": [255], "create": [255], "getxattr": [255],
    "removexattr": [255],
}  # fmt: skip
BY_NUMBER = {number: name for name, number in OPCODES.items()}


def flaws(raw: bytes, limit: int, max_io: int) -> list[str]:
    """What is wrong with a message; nothing: it may go to libfuse or to Python's decoder.

    *limit*: inode numbers are below it. *max_io*: largest READ, WRITE and READDIR.
    """
    size, number, _, nodeid, _, _, _, extra, _ = HEADER.unpack_from(raw)
    name = BY_NUMBER.get(number, "unknown")
    body = raw[HEADER.size :]
    fixed, rest = body[: FIXED.get(name, 0)], body[FIXED.get(name, 0) :]
    if size != len(raw) or len(fixed) != FIXED.get(name, 0):
        return [f"{name}: {len(raw)} bytes, {size} in the header"]
    found = []
    if extra:
        if name not in ("mkdir", "mknod", "symlink", "create", "tmpfile") or 8 * extra > len(rest):
            return [f"{name}: {8 * extra} bytes of extensions"]
        found += _extension_flaws(rest[-8 * extra :])
        rest = rest[: -8 * extra]
    if name not in ("init", "destroy", "batch_forget", "interrupt") and not 0 < nodeid < limit:
        found.append(f"{name}: inode {nodeid}")
    return found + _rest_flaws(name, fixed, rest) + _number_flaws(name, fixed, rest, limit, max_io)


def _extension_flaws(raw: bytes) -> list[str]:
    """Each has its size in front, a multiple of 8 that counts the 8 bytes of its own header."""
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        if size < 8 or size % 8 or size > len(raw):
            return [f"an extension of {size} bytes where {len(raw)} are left"]
        raw = raw[size:]
    return []


def _rest_flaws(name: str, fixed: bytes, rest: bytes) -> list[str]:
    """What is wrong with names and payload."""
    want = {"write": 16, "ioctl": 24, "batch_forget": 0}
    if name in STRINGS:
        parts = rest.split(b"\0")
        if parts[-1] != b"" or len(parts) != len(STRINGS[name]) + 1:
            return [f"{name}: strings {parts}"]
        long = [p for p, most in zip(parts, STRINGS[name], strict=False) if not 0 < len(p) <= most]
        plain = parts[:1] if name == "symlink" else parts
        slash = [p for p in plain if b"/" in p and "xattr" not in name]
        return [f"{name}: {p!r}" for p in long + slash]
    if name == "setxattr":
        key, _, value = rest.partition(b"\0")
        good = 0 < len(key) <= 255 and len(value) == struct.unpack_from("<I", fixed)[0] and b"\0" in rest
        return [] if good else [f"{name}: {rest[:300]!r}"]
    if name == "tmpfile":
        return [] if rest.count(b"\0") == 1 and rest.endswith(b"\0") and len(rest) <= 256 else [f"{rest!r}"]
    if name in want:
        (length,) = struct.unpack_from("<I", fixed, want[name])
        length *= 16 if name == "batch_forget" else 1
        return [] if length == len(rest) else [f"{name}: {length} bytes announced, {len(rest)} there"]
    good = len(rest) in (0, 48) if name == "init" else not rest
    return [] if good else [f"{name}: {len(rest)} bytes too many"]


def _number_flaws(name: str, fixed: bytes, rest: bytes, limit: int, max_io: int) -> list[str]:
    """What is wrong with positions, sizes and inode numbers."""
    words = struct.unpack(f"<{len(fixed) // 8}Q", fixed)
    halves = struct.unpack(f"<{len(fixed) // 4}I", fixed)
    top = 1 << 63
    wrong = False
    if name in ("read", "write", "readdir", "readdirplus"):
        wrong = words[1] >= top or halves[4] > max_io
    elif name == "fallocate":
        wrong = words[1] >= top or words[2] >= top
    elif name.startswith("copy_file_range"):
        wrong = max(words[1], words[4], words[5]) >= top or not 0 < words[2] < limit
    elif name in ("rename", "rename2", "link"):
        wrong = not 0 < words[0] < limit
    elif name == "batch_forget":
        inodes = [struct.unpack_from("<Q", rest, at)[0] for at in range(0, len(rest) - 15, 16)]
        wrong = any(not 0 < ino < limit for ino in inodes)
    elif name == "setxattr":
        wrong = halves[1] & ~3 or halves[0] > 65536
    elif name == "ioctl":
        wrong = halves[7] > max_io
    elif name == "setattr":
        valid = halves[0]
        wrong = (valid & 8 and words[2] >= top) or (valid & 16 and halves[14] >= 10**9)
        wrong = wrong or (valid & 32 and halves[15] >= 10**9)
    return [f"{name}: numbers {words}"] if wrong else []
