# SPDX-License-Identifier: MIT
"""The decoder of `daxfs trace`: each opcode from raw bytes, odd records, and text that is safe to print."""

import errno
import json
import os
import random
import struct

import pytest

from daxfs.fuse import trace, trace_fields
from daxfs.fuse.trace_fields import NUMBERS, OPCODES

NS = 1_700_000_000_123_456_789


def record(kind, op, body=b"", unique=8, error=0, size=None, how=3, latency=0, ns=NS, nodeid=5, pid=77):
    """As native/transport.c makes them; *op* by name or number."""
    header = trace.IN_HEADER if kind == trace.REQUEST else trace.OUT_HEADER
    head = trace.HEAD.pack(ns, kind, NUMBERS.get(op, op), unique, nodeid, 1000, 100, pid, error,
                           header + (len(body) if size is None else size), how, latency,
                           min(len(body), trace.BODY))  # fmt: skip
    return head + body[: trace.BODY].ljust(trace.BODY, b"\0")


def request(op, form="", *values, names=b"", **more):
    return record(trace.REQUEST, op, struct.pack("<" + form, *values) + names, **more)


def reply(op, form="", *values, data=b"", **more):
    return record(trace.REPLY, op, struct.pack("<" + form, *values) + data, **more)


def args(raw):
    """The arguments of a request, as JSON has them."""
    event = json.loads(json.dumps(trace.Decoder().event(raw)))
    assert event["kind"] == "request" and event["uid"] == 1000 and event["pid"] == 77
    return event["args"]


def text(*records):
    """The lines of records, without clock and number."""
    decoder = trace.Decoder()
    return [trace.line(decoder.event(one)).split(" ", 2)[-1] for one in records]


ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
A_FILE = ATTR.pack(5, 4096, 8, 1, 2, 3, 5, 0, 0, 0o100644, 1, 1000, 100, 0, 4096, 0)
ENTRY = struct.pack("<QQQQII", 5, 3, 60, 70, 0, 0) + A_FILE
SHORT_ATTR = "size=4096, blocks=8, mode=S_IFREG|0644, nlink=1, uid=1000, gid=100"

RW = "QQIIQII"
REQUESTS = {
    "LOOKUP": (request("LOOKUP", names=b"a b\0"), 'ino=5, name="a b"'),
    "FORGET": (request("FORGET", "Q", 3), "ino=5, nlookup=3"),
    "GETATTR": (request("GETATTR", "IIQ", 1, 0, 7), "ino=5, getattr_flags=FH, fh=7"),
    "SETATTR": (
        request("SETATTR", "IIQQQqqqIIIIIIII", 1 | 8 | 16 | 32 | 256, 0, 9, 100, 0, 11, 12, 13, 5, 0, 0,
                0o100640, 0, 55, 66, 0),
        "ino=5, valid=MODE|SIZE|ATIME|MTIME|MTIME_NOW, size=100, atime=11.000000005, mtime=now, "
        "mode=S_IFREG|0640",
    ),
    "READLINK": (request("READLINK"), "ino=5"),
    "SYMLINK": (request("SYMLINK", names=b"n\0/to\0"), 'ino=5, name="n", target="/to"'),
    "MKNOD": (request("MKNOD", "IIII", 0o20600, 0x103, 0o22, 0, names=b"dev\0"),
              'ino=5, mode=S_IFCHR|0600, rdev=0x103, umask=0022, name="dev"'),
    "MKDIR": (request("MKDIR", "II", 0o755, 0o22, names=b"d\0"), 'ino=5, mode=0755, umask=0022, name="d"'),
    "UNLINK": (request("UNLINK", names=b"x\0"), 'ino=5, name="x"'),
    "RMDIR": (request("RMDIR", names=b"x\0"), 'ino=5, name="x"'),
    "RENAME": (request("RENAME", "Q", 9, names=b"x\0y\0"), 'ino=5, newdir=9, name="x", newname="y"'),
    "LINK": (request("LINK", "Q", 9, names=b"x\0"), 'ino=5, oldino=9, name="x"'),
    "OPEN": (request("OPEN", "II", os.O_RDWR | os.O_DIRECT | os.O_SYNC, 1),
             "ino=5, flags=O_RDWR|O_SYNC|O_DIRECT, open_flags=KILL_SUIDGID"),
    "READ": (request("READ", RW, 2, 8192, 4096, 2, 0xAB, 0o100000, 0),
             "ino=5, fh=2, offset=8192, size=4096, read_flags=LOCKOWNER, lock_owner=0xab, "
             "flags=O_RDONLY|O_LARGEFILE"),
    "WRITE": (request("WRITE", RW, 2, 0, 5, 1 | 4, 0, os.O_WRONLY | os.O_APPEND, 0, names=b"hello"),
              "ino=5, fh=2, offset=0, size=5, write_flags=CACHE|KILL_SUIDGID, flags=O_WRONLY|O_APPEND, "
              'data="hello"'),
    "STATFS": (request("STATFS", nodeid=1), "ino=1"),
    "RELEASE": (request("RELEASE", "QIIQ", 2, os.O_RDWR, 3, 0),
                "ino=5, fh=2, flags=O_RDWR, release_flags=FLUSH|FLOCK_UNLOCK"),
    "FSYNC": (request("FSYNC", "QII", 2, 1, 0), "ino=5, fh=2, fsync_flags=DATASYNC"),
    "SETXATTR": (request("SETXATTR", "II", 3, 1, names=b"user.a\0val"),
                 'ino=5, size=3, flags=XATTR_CREATE, name="user.a", value="val"'),
    "GETXATTR": (request("GETXATTR", "II", 64, 0, names=b"user.a\0"), 'ino=5, size=64, name="user.a"'),
    "LISTXATTR": (request("LISTXATTR", "II", trace_fields.ANY_SIZE, 0), "ino=5, size=any"),
    "REMOVEXATTR": (request("REMOVEXATTR", names=b"user.a\0"), 'ino=5, name="user.a"'),
    "FLUSH": (request("FLUSH", "QIIQ", 2, 0, 0, 0x1F), "ino=5, fh=2, lock_owner=0x1f"),
    "INIT": (request("INIT", "IIIII", 7, 45, 131072, 1 << 30, 1 << 9, nodeid=0),
             "major=7, minor=45, max_readahead=131072, flags=0x40000000, flags2=0x200"),
    "OPENDIR": (request("OPENDIR", "II", os.O_DIRECTORY, 0), "ino=5, flags=O_RDONLY|O_DIRECTORY"),
    "READDIR": (request("READDIR", RW, 2, 0, 4096, 0, 0, 0, 0),
                "ino=5, fh=2, offset=0, size=4096"),
    "RELEASEDIR": (request("RELEASEDIR", "QIIQ", 2, 0, 0, 0), "ino=5, fh=2"),
    "FSYNCDIR": (request("FSYNCDIR", "QII", 2, 0, 0), "ino=5, fh=2"),
    "GETLK": (request("GETLK", "QQQQIIII", 2, 1, 0, 9, 0, 3, 0, 0),
              "ino=5, fh=2, owner=0x1, start=0, end=9, type=F_RDLCK, pid=3"),
    "SETLK": (request("SETLK", "QQQQIIII", 2, 1, 0, 9, 1, 3, 1, 0),
              "ino=5, fh=2, owner=0x1, start=0, end=9, type=F_WRLCK, pid=3, lk_flags=FLOCK"),
    "SETLKW": (request("SETLKW", "QQQQIIII", 2, 1, 0, 9, 2, 3, 0, 0),
               "ino=5, fh=2, owner=0x1, start=0, end=9, type=F_UNLCK, pid=3"),
    "ACCESS": (request("ACCESS", "II", 6, 0), "ino=5, mask=W_OK|R_OK"),
    "CREATE": (request("CREATE", "IIII", os.O_RDWR | os.O_EXCL, 0o100644, 0o22, 0, names=b"f\0"),
               'ino=5, flags=O_RDWR|O_EXCL, mode=S_IFREG|0644, umask=0022, name="f"'),
    "INTERRUPT": (request("INTERRUPT", "Q", 6, nodeid=0), "unique=6"),
    "BMAP": (request("BMAP", "QII", 3, 512, 0), "ino=5, block=3, blocksize=512"),
    "DESTROY": (request("DESTROY", nodeid=0), ""),
    "IOCTL": (request("IOCTL", "QIIQII", 2, 16, 0x40086602, 0xFF, 4, 0, names=b"\1\0\0\0"),
              "ino=5, fh=2, flags=DIR, cmd=FS_IOC_SETFLAGS, arg=0xff, in_size=4, out_size=0, "
              r'data="\x01\0\0\0"'),
    "POLL": (request("POLL", "QQII", 2, 1, 1, 5), "ino=5, fh=2, kh=1, poll_flags=SCHEDULE_NOTIFY, "
             "events=POLLIN|POLLOUT"),
    "NOTIFY_REPLY": (request("NOTIFY_REPLY", "QQII", 0, 8, 2, 0, names=bytes(16) + b"ab"),
                     "ino=5, offset=8, size=2, data="),
    "BATCH_FORGET": (request("BATCH_FORGET", "IIQQQQ", 2, 0, 11, 1, 12, 2, nodeid=0),
                     "count=2, list=[{ino=11, nlookup=1}, {ino=12, nlookup=2}]"),
    "FALLOCATE": (request("FALLOCATE", "QQQII", 2, 0, 4096, 3, 0),
                  "ino=5, fh=2, offset=0, length=4096, mode=KEEP_SIZE|PUNCH_HOLE"),
    "READDIRPLUS": (request("READDIRPLUS", RW, 2, 3, 4096, 0, 0, 0, 0),
                    "ino=5, fh=2, offset=3, size=4096"),
    "RENAME2": (request("RENAME2", "QII", 9, 4, 0, names=b"x\0y\0"),
                'ino=5, newdir=9, flags=WHITEOUT, name="x", newname="y"'),
    "LSEEK": (request("LSEEK", "QqII", 2, 100, 3, 0), "ino=5, fh=2, offset=100, whence=SEEK_DATA"),
    "COPY_FILE_RANGE": (request("COPY_FILE_RANGE", "QQQQQQQ", 2, 0, 6, 3, 10, 99, 0),
                        "ino=5, fh=2, offset=0, ino_out=6, fh_out=3, offset_out=10, len=99"),
    "SETUPMAPPING": (request("SETUPMAPPING", "QQQQQ", 2, 0, 4096, 3, 8192),
                     "ino=5, fh=2, foffset=0, len=4096, flags=WRITE|READ, moffset=8192"),
    "REMOVEMAPPING": (request("REMOVEMAPPING", "IQQ", 1, 8192, 4096)[: trace.HEAD.size + 44],
                      "ino=5, count=1, list=[{moffset=8192, len=4096}]"),
    "SYNCFS": (request("SYNCFS", "Q", 0, nodeid=1), "ino=1"),
    "TMPFILE": (request("TMPFILE", "IIII", os.O_RDWR, 0o100600, 0, 0, names=b"/\0"),
                'ino=5, flags=O_RDWR, mode=S_IFREG|0600, umask=0000, name="/"'),
    "STATX": (request("STATX", "IIQII", 1, 0, 2, 0, 0xFFF),
              "ino=5, getattr_flags=FH, fh=2, sx_flags=0x0, sx_mask=0xfff"),
    "COPY_FILE_RANGE_64": (request("COPY_FILE_RANGE_64", "QQQQQQQ", 2, 0, 6, 3, 10, 1 << 40, 0),
                           "ino=5, fh=2, offset=0, ino_out=6, fh_out=3, offset_out=10, len=1099511627776"),
}  # fmt: skip


def test_every_opcode_has_a_case():
    assert set(REQUESTS) == set(OPCODES.values())
    assert set(trace_fields.REQUESTS) | set(trace_fields.NAMES) <= set(OPCODES.values())
    assert set(trace_fields.REPLIES) <= set(OPCODES.values())


@pytest.mark.parametrize("op", REQUESTS)
def test_requests(op):
    raw, expected = REQUESTS[op]
    got = text(raw)[0]
    if op == "NOTIFY_REPLY":
        assert got.startswith(f"{op}({expected}")
    else:
        assert got == f"{op}({expected}) pid 77 uid 1000"


DIRENT = struct.pack("<QQII", 5, 1, 1, 8) + b"a".ljust(8, b"\0")
STATX = struct.pack("<QIIQQ", 60, 0, 0, 0, 0) + struct.pack("<IIQIIIHHQQQQ", 0xFFF, 4096, 0x200000, 1, 1000,
                                                            100, 0o100644, 0, 5, 9, 8, 0x200000)
REPLIES = {
    "LOOKUP": (ENTRY, f"nodeid=5, generation=3, entry_valid=60, attr_valid=70, {SHORT_ATTR}"),
    "MKDIR": (ENTRY, f"nodeid=5, generation=3, entry_valid=60, attr_valid=70, {SHORT_ATTR}"),
    "GETATTR": (struct.pack("<QII", 60, 0, 0) + A_FILE,
                "attr_valid=60, ino=5, size=4096, blocks=8, atime=1.000000005, mtime=2, ctime=3, "
                "mode=S_IFREG|0644, nlink=1, uid=1000, gid=100"),
    "READLINK": (b"/to", 'target="/to"'),
    "OPEN": (struct.pack("<QIi", 2, 1 | 128, 4), "fh=2, open_flags=DIRECT_IO|PASSTHROUGH, backing_id=4"),
    "CREATE": (ENTRY + struct.pack("<QII", 2, 3, 0),
               f"nodeid=5, generation=3, entry_valid=60, attr_valid=70, {SHORT_ATTR}, fh=2, "
               "open_flags=DIRECT_IO|KEEP_CACHE"),
    "READ": (b"hello\n", r'6 bytes "hello\n"'),
    "WRITE": (struct.pack("<II", 4096, 0), "size=4096"),
    "STATFS": (struct.pack("<QQQQQIIII", 1, 2, 3, 4, 5, 4096, 255, 4096, 0),
               "blocks=1, bfree=2, bavail=3, files=4, ffree=5, bsize=4096, namelen=255, frsize=4096"),
    "GETXATTR": (b"value", '5 bytes "value"'),
    "INIT": (struct.pack("<IIIIHHIIHHII", 7, 40, 0, 1 << 30, 12, 9, 1 << 20, 1, 256, 0, 1 << 9, 1),
             "major=7, minor=40, max_readahead=0, flags=0x40000000, max_background=12, "
             "congestion_threshold=9, max_write=1048576, time_gran=1, max_pages=256, map_alignment=0, "
             "flags2=0x200, max_stack_depth=1"),
    "READDIR": (DIRENT + DIRENT, 'size=64, entries=["a", "a"]'),
    "READDIRPLUS": (bytes(128) + DIRENT, 'size=160, entries=[…]'),
    "GETLK": (struct.pack("<QQII", 0, 9, 2, 0), "start=0, end=9, type=F_UNLCK, pid=0"),
    "BMAP": (struct.pack("<Q", 3), "block=3"),
    "IOCTL": (struct.pack("<iIII", 0, 0, 0, 0) + b"\x10", r'result=0, data="\x10"'),
    "POLL": (struct.pack("<II", 1, 0), "revents=POLLIN"),
    "LSEEK": (struct.pack("<q", 8192), "offset=8192"),
    "STATX": (STATX, "attr_valid=60, mask=0xfff, blksize=4096, attributes=0x200000, nlink=1, uid=1000, "
                     "gid=100, mode=S_IFREG|0644, ino=5, size=9, blocks=8, attributes_mask=0x200000"),
    "COPY_FILE_RANGE_64": (struct.pack("<Q", 1 << 40), "size=1099511627776"),
    "RMDIR": (b"", "ok"),
}  # fmt: skip


@pytest.mark.parametrize("op", REPLIES)
def test_replies(op):
    body, expected = REPLIES[op]
    assert text(reply(op, data=body, how=1, latency=12345))[0] == f"{op} = {expected} <12.3 µs, relayed>"


def test_a_reply_is_matched_with_its_request():
    decoder = trace.Decoder()
    decoder.event(request("GETXATTR", "II", 0, 0, names=b"user.a\0", unique=20))
    event = decoder.event(reply(0, "II", 33, 0, unique=20, ns=NS + 5000, nodeid=0, how=0))
    assert event["op"] == "GETXATTR" and event["ino"] == 5 and event["latency_ns"] == 5000
    assert event["result"] == {"size": 33} and event["how"] == "served"
    assert decoder.event(reply("READ", unique=20, latency=7))["latency_ns"] == 7  # it was taken


def test_errors_and_how():
    got = text(request("OPEN", "II", 0, 0, how=0), reply("OPEN", error=-errno.ENOENT, how=0, latency=900),
               reply("OPEN", error=-9999, how=2), reply("READ", error=-errno.EINTR, how=77))  # fmt: skip
    assert got[1:] == ["OPEN = -ENOENT (No such file or directory) <900 ns, served>",
                       "OPEN = -9999 <called>", "READ = -EINTR (Interrupted system call)"]  # fmt: skip


def test_a_name_that_is_not_there():
    body = struct.pack("<QQQQII", 0, 0, 60, 0, 0, 0) + bytes(88)
    assert text(reply("LOOKUP", data=body)) == ["LOOKUP = nodeid=none, entry_valid=60"]


def test_lost_and_notifications():
    decoder = trace.Decoder()
    assert decoder.event(record(trace.LOST, 0, unique=7))["count"] == 7
    lost = decoder.event(record(trace.LOST, 0, unique=12))
    assert lost == {"kind": "lost", "time_ns": NS, "count": 12}
    assert "12 events were lost" in trace.line(lost)
    body = struct.pack("<QII", 1, 4, 1) + b"gone\0"
    line = trace.line(decoder.event(record(trace.NOTIFICATION, 0, body, unique=0, error=3)))
    assert line.endswith('notify INVAL_ENTRY(parent=1, namelen=4, flags=EXPIRE_ONLY, name="gone")')
    line = trace.line(decoder.event(record(trace.NOTIFICATION, 0, struct.pack("<Qqq", 5, -1, 0), error=2)))
    assert line.endswith("notify INVAL_INODE(ino=5, offset=-1, len=0)")
    assert "code 99" in trace.line(decoder.event(record(trace.NOTIFICATION, 0, b"", error=99)))


def test_what_was_cut_off_is_marked():
    long = b"n" * 200
    assert args(request("LOOKUP", names=long + b"\0"))["name"] == "n" * trace.BODY + "…"
    assert args(request("RENAME", "Q", 9, names=long + b"\0y\0"))["name"].endswith("n…")
    assert args(request("WRITE", RW, 2, 0, 4096, 0, 0, 1, 0, names=bytes(4096)))["data"] == "\0" * 24 + "…"
    event = trace.Decoder().event(reply("READ", data=b"x" * 5000))
    assert event["result"] == {"size": 5000, "data": "x" * 24 + "…"}
    event = trace.Decoder().event(reply("READDIR", data=DIRENT * 40))
    assert event["result"]["entries"] == ["a"] * (trace.BODY // 32) + ["…"]


def test_setxattr_with_the_longer_struct():
    found = args(request("SETXATTR", "IIII", 3, 2, 1, 0, names=b"user.a\0val"))
    assert found == {"size": 3, "flags": "XATTR_REPLACE", "setxattr_flags": "ACL_KILL_SGID",
                     "name": "user.a", "value": "val"}  # fmt: skip


def test_names_are_safe_to_print():
    assert trace.quoted('a"b\\c') == r'"a\"b\\c"'
    assert trace.quoted("\x1b[31m\n\t\0") == r'"\x1b[31m\n\t\0"'
    assert trace.quoted(b"\xff\xc3\xa4".decode("utf-8", "surrogateescape")) == '"\\xffä"'
    assert trace.quoted("\u202e\u2028") == r'"\xe2\x80\xae\xe2\x80\xa8"'
    line = text(request("LOOKUP", names=b"\x1b]0;title\x07\xff\0"))[0]
    assert line.isprintable() and r"\x1b]0;title\x07\xff" in line


def test_kernel_requests_have_no_caller():
    event = trace.Decoder().event(request("FORGET", "Q", 1, pid=0))
    assert "uid" not in event and trace.line(event).endswith("FORGET(ino=5, nlookup=1)")


def test_odd_records_never_fail():
    """Every length of every case, and a million bits of noise: an event, a line and JSON, no exception."""
    decoder = trace.Decoder()
    for raw, _ in REQUESTS.values():
        for length in range(0, len(raw), 3):
            event = decoder.event(raw[:length])
            assert trace.line(event).isprintable() and json.dumps(event)
    noise = random.Random(4)
    for _ in range(4000):
        kind, opcode = noise.randrange(5), noise.choice([*OPCODES, 7, 63, 4096, 1 << 31])
        head = trace.HEAD.pack(noise.getrandbits(60), kind, opcode, noise.getrandbits(3),
                               noise.getrandbits(64), 0, 0, noise.getrandbits(2),
                               noise.randrange(-200, 200), noise.getrandbits(32), noise.randrange(6),
                               noise.getrandbits(64), noise.randrange(256))  # fmt: skip
        event = decoder.event(head + noise.randbytes(noise.randrange(160)))
        assert trace.line(event).isprintable() and json.dumps(event)


def test_requests_without_replies_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(trace, "PENDING", 10)
    decoder = trace.Decoder()
    for unique in range(100):
        decoder.event(request("READ", RW, 1, 0, 1, 0, 0, 0, 0, unique=unique))
        decoder.event(request("FORGET", "Q", 1, unique=1000 + unique))
    assert sorted(decoder._pending) == list(range(90, 100))


def test_other_body_sizes_are_read_too():
    raw = request("LOOKUP", names=b"name\0")
    assert text(raw[: trace.HEAD.size + 112]) == text(raw)
