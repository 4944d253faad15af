# SPDX-License-Identifier: MIT
"""Requests and replies in words: takes the records of a trace apart, and writes a line for each.

A record (struct trace_event of native/trace.h) is what native code or tracing.py made of one message, or of a
fault or write-back (trace_dax.py has those). A Decoder turns it into an event, a dict of plain values that
JSON takes; `line` turns an event into text. Limits: no trio, no pyfuse3; believes nothing: a record that is
too short or odd gives an event with what could be read. INIT comes before anybody can ask, so its flags stay
numbers.
"""

import errno
import functools
import itertools
import os
import struct
import time

from daxfs._fsync import PHASES, FsyncRun
from daxfs.fuse import trace_dax
from daxfs.fuse.trace_fields import (
    NAMES,
    NOTES,
    NOTIFICATIONS,
    REPLIES,
    REQUESTS,
    SETXATTR_EXT,
    SHOW,
)
from daxfs.fuse.wire import OPCODES

# ns since the epoch, kind, opcode, unique, nodeid, uid, gid, pid, error, len, how, latency in ns, body.
HEAD = struct.Struct("<QIIQQIIIiIIQB7x")
BODY = 144  # of a message without its header; no reply but data and listings is longer
RECORD = struct.Struct(f"{HEAD.format}{BODY}s")
REQUEST, REPLY, LOST, NOTIFICATION, DAX, FSYNC = range(6)
# What a watcher may ask for: class -> bit (native/trace.h).
CLASSES = {"requests": 1, "faults": 2, "writeback": 4, "fsync": 8}
HOW = ("served", "relayed", "called", "")
IN_HEADER, OUT_HEADER = 40, 16

PENDING = 1 << 16  # requests whose replies are waited for; those of a lost reply must not pile up
SHOWN = 24  # bytes of data, as strace shows a part of them
_NO_REPLY = ("FORGET", "BATCH_FORGET", "INTERRUPT", "NOTIFY_REPLY")
_HAS_DATA = {"WRITE": "data", "SETXATTR": "value", "IOCTL": "data", "NOTIFY_REPLY": "data"}
_BATCH = {"BATCH_FORGET": (8, "<QQ", ("ino", "nlookup")), "REMOVEMAPPING": (4, "<QQ", ("moffset", "len"))}
_PHASES = struct.Struct(f"<{len(PHASES)}Q")  # ns, of a finished fsync
_DIRENT = struct.Struct("<QQII")
_ENTRY_OUT = 128
# SETATTR says in `valid` which of its fields count: field -> bit, and the bit for "now".
_SETATTR = {"mode": 0, "uid": 1, "gid": 2, "size": 3, "atime": 4, "mtime": 5, "fh": 6, "lock_owner": 9,
            "ctime": 10}  # fmt: skip
_NOW = {"atime": 7, "mtime": 8}


def class_of(record: bytes) -> int:
    """The bit of the class that a record belongs to; all of them for what everybody has to know."""
    _, kind, opcode, *_ = HEAD.unpack_from(record)
    if kind == LOST:
        return -1
    if kind == FSYNC:
        return CLASSES["fsync"]
    if kind != DAX:
        return CLASSES["requests"]
    return CLASSES["faults" if opcode < trace_dax.FIRST_WRITEBACK else "writeback"]


def fsync_record(ino: int, error: int, times: FsyncRun) -> bytes:
    """A finished fsync, as native/transport.c makes one."""
    body = _PHASES.pack(*times.phases().values())
    return RECORD.pack(0, FSYNC, 0, 0, ino, 0, 0, 0, -error, 0, 3, times.total, len(body), body)


class Word(str):
    """A text that is one of our own words, so that it is shown without quotes."""

    __slots__ = ()


@functools.cache
def _layout(text: str) -> tuple:
    """(name, Struct, show, left out where 0) of each word of a layout."""
    fields = []
    for word in text.split():
        name, form, show = (*word.rstrip("?").split(":"), "")[:3]
        fields.append((name, struct.Struct("<" + form), show, word.endswith("?")))
    return tuple(fields)


def _numbers(text: str, body: bytes, at: int = 0) -> tuple[dict, int]:
    """The raw fields of a layout that are whole in *body*, and where they end; a short body has fewer."""
    found = {}
    for name, form, _, _ in _layout(text):
        if at + form.size > len(body):
            return found, len(body)
        found[name] = form.unpack_from(body, at)[0]
        at += form.size
    return found, at


def _shown(text: str, found: dict) -> dict:
    """Those of *found* that are shown, each as its layout says."""
    out = {}
    for name, _, show, optional in _layout(text):
        if name not in found or show == "-" or (optional and not found[name]):
            continue
        value = SHOW[show](found[name]) if show else found[name]
        out[name] = Word(value) if isinstance(value, str) else value
    return out


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _names(wanted: tuple, body: bytes, at: int, whole: bool) -> tuple[dict, int]:
    """Names that end with a zero byte; the last one may be cut off where *body* is not *whole*."""
    found = {}
    for name in wanted:
        end = body.find(b"\0", at)
        if end < 0:
            if at < len(body) or not whole:
                found[name] = _text(body[at:]) + ("" if whole else "…")
            return found, len(body)
        found[name] = _text(body[at:end])
        at = end + 1
    return found, at


def _data(raw: bytes, size: int) -> str:
    """The beginning of *size* bytes, of which *raw* is at hand."""
    return _text(raw[:SHOWN]) + ("…" if size > min(len(raw), SHOWN) else "")


def _setattr(found: dict) -> dict:
    """Only what SETATTR is to change."""
    valid = found.get("valid", 0)
    return {name: value for name, value in found.items()
            if name not in _SETATTR or valid >> _SETATTR[name] & 1}


def _times(shown: dict, found: dict) -> dict:
    """*shown* with the fractions of its times, or "now" where SETATTR says so."""
    out = dict(shown)
    for name in ("atime", "mtime", "ctime"):
        if name in out and f"{name}nsec" in found:
            now = found.get("valid", 0) >> _NOW[name] & 1 if name in _NOW else False
            out[name] = Word("now") if now else _seconds(found[name], found[f"{name}nsec"])
    return out


def _seconds(seconds: int, ns: int) -> Word:
    return Word(f"{seconds}.{ns:09d}" if ns else str(seconds))


def request_fields(op: str, body: bytes, size: int) -> dict:
    """The arguments of a request. *body*: what follows the header, or its beginning; *size*: all of it."""
    layout = REQUESTS.get(op, "")
    # With SETXATTR_EXT there are 8 bytes more, of which the last 4 are 0; no name begins like that.
    if op == "SETXATTR" and body[9:16] == bytes(7):
        layout = SETXATTR_EXT
    found, at = _numbers(layout, body)
    out = _times(_shown(layout, _setattr(found) if op == "SETATTR" else found), found)
    whole = len(body) >= size
    names, at = _names(NAMES.get(op, ()), body, at, whole)
    out |= names
    if op in _BATCH:
        out["list"] = [dict(zip(_BATCH[op][2], pair, strict=True)) for pair in _pairs(op, found, body)]
    if op in _HAS_DATA and size > at:
        out[_HAS_DATA[op]] = _data(body[at:], size - at)
    return out


def _pairs(op: str, found: dict, body: bytes) -> list[tuple]:
    """The pairs of numbers in a BATCH_FORGET or REMOVEMAPPING, as far as they are there."""
    start, form, _ = _BATCH[op]
    size = struct.calcsize(form)
    places = range(start, len(body) - size + 1, size)
    return [struct.unpack_from(form, body, at) for at in itertools.islice(places, found.get("count", 0))]


def reply_fields(op: str, body: bytes, size: int, request: dict) -> dict:
    """What a reply without an error says. *request*: the arguments of what it answers, as far as known."""
    layout = REPLIES.get(op, "")
    if op in ("GETXATTR", "LISTXATTR") and request.get("size") == 0 and size == 8:
        layout = "size:I pad:I:-"  # it asked for the size alone
    if layout:
        found, at = _numbers(layout, body)
        out = _times(_shown(layout, found), found)
        if op == "LOOKUP" and found.get("nodeid") == 0:
            out = {"nodeid": Word("none"), "entry_valid": found.get("entry_valid", 0)}
        if op == "IOCTL" and size > at:
            out["data"] = _data(body[at:], size - at)
        return out
    if not size:
        return {}
    if op == "READLINK":
        return {"target": _text(body) + ("" if len(body) >= size else "…")}
    if op in ("READDIR", "READDIRPLUS"):
        return {"size": size, "entries": _entries(op, body) + ([Word("…")] if len(body) < size else [])}
    return {"size": size, "data": _data(body, size)}


def _entries(op: str, body: bytes) -> list[str]:
    """The names in the beginning of a directory's listing that are whole."""
    before, at, out = _ENTRY_OUT if op == "READDIRPLUS" else 0, 0, []
    while at + before + _DIRENT.size <= len(body):
        *_, length, _ = _DIRENT.unpack_from(body, at + before)
        start = at + before + _DIRENT.size
        if not length or start + length > len(body):
            break
        out.append(_text(body[start : start + length]))
        at = start + (length + 7 & ~7)
    return out


class Decoder:
    """Records to events. Remembers requests until their replies, which don't say what they answer.

    *device*: st_dev of the mount.
    """

    def __init__(self, device: int = 0):
        self.device = device
        self._pending: dict[int, tuple] = {}  # unique -> (op, ns, ino, arguments)

    def event(self, record: bytes) -> dict:
        """One record. *kind*, *time_ns*, and what the kind has; see `line` and docs/transport.md."""
        if len(record) < HEAD.size:
            return {"kind": "unreadable", "bytes": len(record)}
        ns, kind, opcode, unique, *rest = HEAD.unpack_from(record)
        nodeid, uid, gid, pid, error, size, how, latency, length = rest
        body = record[HEAD.size : HEAD.size + length]
        if kind == LOST:
            return {"kind": "lost", "time_ns": ns, "count": unique}
        if kind == DAX:
            more = ({"pid": pid} if pid else {}) | ({"latency_ns": latency} if latency else {})
            found = trace_dax.event(opcode, nodeid, self.device, body)
            return {"kind": "dax", "time_ns": ns, **found, **more}
        if kind == FSYNC:
            phases = _PHASES.unpack_from(body) if len(body) >= _PHASES.size else ()
            return {"kind": "fsync", "time_ns": ns, "unique": unique, "op": "fsync_done", "ino": nodeid,
                    **({"pid": pid} if pid else {}), "how": HOW[how] if how < len(HOW) else "",
                    "error": _code(error), "latency_ns": latency,
                    "args": dict(zip(PHASES, phases, strict=False))}
        op = OPCODES.get(opcode, f"opcode {opcode}" if opcode else "")
        base = {"kind": "", "time_ns": ns, "unique": unique, "op": op, "bytes": size,
                "how": HOW[how] if how < len(HOW) else ""}
        if kind == REQUEST:
            caller = {"uid": uid, "gid": gid, "pid": pid} if pid else {}
            return self._request(base | {"kind": "request", "ino": nodeid, **caller}, body)
        if kind == NOTIFICATION:
            return base | {"kind": "notification"} | _note(error, body, size - OUT_HEADER)
        return self._reply(base | {"kind": "reply"}, error, latency, body)

    def _request(self, event: dict, body: bytes) -> dict:
        op = event["op"]
        event["args"] = request_fields(op, body, max(event["bytes"] - IN_HEADER, len(body)))
        if op not in _NO_REPLY:
            if len(self._pending) >= PENDING:
                del self._pending[next(iter(self._pending))]
            self._pending[event["unique"]] = (op, event["time_ns"], event["ino"], event["args"])
        return event

    def _reply(self, event: dict, error: int, latency: int, body: bytes) -> dict:
        op, start, ino, args = self._pending.pop(event["unique"], (event["op"], 0, 0, {}))
        event["op"] = op or event["op"]
        if ino:
            event["ino"] = ino
        event["latency_ns"] = latency or (max(event["time_ns"] - start, 0) if start else 0)
        event["error"] = _code(error)
        if not error:
            size = max(event["bytes"] - OUT_HEADER, len(body))
            event["result"] = reply_fields(event["op"], body, size, args)
        return event


def _code(error: int) -> str | None:
    return errno.errorcode.get(-error, str(-error)) if error else None


def _note(code: int, body: bytes, size: int) -> dict:
    """A message of the daemon's own accord."""
    op = NOTIFICATIONS.get(code, f"code {code}")
    layout, named = NOTES.get(op, ("", False))
    found, at = _numbers(layout, body)
    names = _names(("name",), body, at, len(body) >= size)[0] if named else {}
    return {"op": op, "args": _shown(layout, found) | names}


def quoted(text: str) -> str:
    """*text* between quotes, safe for a terminal: what can't be printed is written as in C."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        elif "\udc80" <= char <= "\udcff":
            out.append(f"\\x{ord(char) - 0xDC00:02x}")
        else:
            out.append({"\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}.get(char)
                       or "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass")))
    return '"' + "".join(out) + '"'


def _value(value) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + _listed(value) + "}"
    return quoted(value) if type(value) is str else str(value)


def _listed(fields: dict) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in fields.items())


def show_time(ns: int) -> str:
    """850 ns, 12.3 µs, 4.5 ms."""
    for unit, scale in (("ns", 1), ("µs", 1e3), ("ms", 1e6)):
        if ns < 1000 * scale:
            return f"{ns / scale:.0f} ns" if scale == 1 else f"{ns / scale:.1f} {unit}"
    return f"{ns / 1e9:.1f} s"


def line(event: dict) -> str:
    """One event as text, without a newline."""
    kind = event["kind"]
    if kind == "unreadable":
        return f"-- a record of {event['bytes']} bytes that is none"
    second, fraction = divmod(event["time_ns"], 10**9)
    clock = f"{time.strftime('%H:%M:%S', time.localtime(second))}.{fraction // 1000:06d}"
    if kind == "lost":
        return f"{clock} -- {event['count']} events were lost: they came faster than they were read"
    if kind == "notification":
        return f"{clock} notify {event['op']}({_listed(event['args'])})"
    if kind == "dax":
        took = f" <{show_time(event['latency_ns'])}>" if "latency_ns" in event else ""
        caller = f" pid {event['pid']}" if "pid" in event else ""
        return f"{clock} {trace_dax.text(event)}{took}{caller}"
    if kind == "fsync":
        return f"{clock} {_fsync(event)}"
    head = f"{clock} #{event['unique']} {event['op'] or '?'}"
    if kind == "request":
        caller = f" pid {event['pid']} uid {event['uid']}" if event.get("pid") else ""
        fields = {"ino": event["ino"], **event["args"]} if event["ino"] else event["args"]
        return f"{head}({_listed(fields)}){caller}"
    latency = show_time(event["latency_ns"]) if event["latency_ns"] else ""
    tail = ", ".join(filter(None, (latency, event["how"])))
    tail = f" <{tail}>" if tail else ""
    if event["error"]:
        number = getattr(errno, event["error"], None)
        return f"{head} = -{event['error']}{f' ({os.strerror(number)})' if number else ''}{tail}"
    return f"{head} = {_result(event['result'])}{tail}"


def _fsync(event: dict) -> str:
    """A finished fsync: the phases that took time."""
    number = f"#{event['unique']} " if event["unique"] else ""
    caller = f" pid {event['pid']}" if "pid" in event else ""
    phases = ", ".join(f"{name} {show_time(ns)}" for name, ns in event["args"].items() if ns)
    tail = ", ".join(filter(None, (show_time(event["latency_ns"]), event["how"], event["error"])))
    return f"{number}fsync_done: ino {event['ino']:#x} {phases} <{tail}>{caller}"


def _result(fields: dict) -> str:
    """What a reply brought: ok, a number of bytes with their beginning, or fields."""
    if not fields:
        return "ok"
    if "data" in fields and set(fields) == {"size", "data"}:
        return f"{fields['size']} bytes {_value(fields['data'])}"
    return _listed(fields)
