# SPDX-License-Identifier: MIT
"""The mount options: one text in, one MountConfig out, and what libfuse is told of it.

Limits: pure functions of their arguments, no pyfuse3, nothing is opened; whether the machine can
do what is demanded (flush=, granularity=, emulate=) is for who opens the region to find out. A known
option whose feature belongs to a later version is refused with a sentence that says so, never ignored.
"""

import os
import re
from dataclasses import dataclass, field

from daxfs.errors import UsageError

SUBTYPE = "daxfs"

# name -> values that work.
CHOICES = {
    "dax": ("inode", "always", "never"),
    "track": ("pte", "pmd", "line", "extent", "extent+clear", "none"),
    "flush": ("auto", "clwb", "clflushopt", "clflush", "none", "msync"),
    "write": ("nt", "cached"),
    "drain": ("write", "fsync"),
    "granularity": ("auto", "byte", "cache_line", "page"),
    "transport": ("auto", "uring", "dev", "pyfuse3"),
    "log_level": ("debug", "info", "warning", "error"),
}
COUNTS = {"flushers": 16, "threads": 64}  # the most that there can be
SIZES = {"nt_threshold": 1 << 30}  # in bytes, the most
NT_THRESHOLD = 256  # PMDK's, too (PMEM_MOVNT_THRESHOLD); docs/tracking.md has what was measured
IDS = ("uid", "gid")
PATHS = ("log_file", "record")

# What libfuse hands to the kernel: name -> (flag, value). "suid" and "dev" start True for root.
FLAGS = {
    "suid": ("suid", True), "nosuid": ("suid", False), "dev": ("dev", True), "nodev": ("dev", False),
    "exec": ("exec", True), "noexec": ("exec", False), "sync": ("sync", True), "async": ("sync", False),
    "dirsync": ("dirsync", True), "allow_other": ("allow_other", True), "allow_root": ("allow_root", True),
    "auto_unmount": ("auto_unmount", True),
}  # fmt: skip
ATIME = {
    "atime": "relatime", "relatime": "relatime", "norelatime": "strictatime", "noatime": "noatime",
    "strictatime": "strictatime", "nostrictatime": "relatime",
}  # fmt: skip
# What mount(8) deals with itself and hands on all the same.
SWALLOWED = frozenset(
    "auto noauto user nouser users owner group nofail _netdev silent loud iversion noiversion mand nomand "
    "nonempty default_permissions nosymfollow symfollow".split()
)
SWALLOWED_VALUE = re.compile(r"(x-|X-)|(comment|user|owner|group|uhelper|helper)=")
# What a FUSE mount shows as its options, and mount(8) therefore hands on when it is remounted.
SHOWN_VALUE = re.compile(r"(user_id|group_id|rootmode|max_read|blksize)=[0-9]+$")


@dataclass
class MountConfig:
    """What a mount was asked for. ``given``: names of the options as typed; ``ignored``: those swallowed.

    raw: show the region itself in a directory of the root (raw.py). atime: relatime, noatime or strictatime.
    emulate: the name of a medium, or the absolute path of a file (daxfs/emulate.py).
    uid, gid: new owner of the root directory, None: as it is. threads, nt_threshold: None where it was not
    given. flags: those of FLAGS. Everything else has the name and the value that its option has.
    """

    sources: list[str] = field(default_factory=list)
    mountpoint: str = ""
    fsname: str = ""
    readonly: bool = False
    remount: bool = False
    dax: str = "inode"
    track: str = "pte"
    flush: str = "auto"
    write: str = "nt"
    drain: str = "write"
    flushers: int = 1
    nt_threshold: int | None = None
    granularity: str = "auto"
    transport: str = "auto"
    threads: int | None = None
    atime: str = "relatime"
    nodiratime: bool = False
    lazytime: bool = False
    uid: int | None = None
    gid: int | None = None
    log_file: str = ""
    log_level: str = "info"
    record: str = ""
    emulate: str = "none"
    revoke: bool = False
    raw: bool = False
    debug: bool = False
    flags: dict[str, bool] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)

    def warning(self) -> str:
        """What these policies give up, for messages and reports; "" where that is nothing."""
        if self.write == "cached" and self.track == "none" and not self.readonly:
            return ("write=cached,track=none: stores through the cache are not written back, also by fsync "
                    "and umount; that is the application's business")
        return ""

    def describe(self) -> str:
        """The options in force, as one text that `parse` takes back."""
        words = ["ro" if self.readonly else "rw", self.atime]
        plain = ("nodiratime", "lazytime", "raw", "revoke", "debug")
        words += [name for name in plain if getattr(self, name)]
        words += [f"{name}={getattr(self, name)}" for name in CHOICES
                  if name != "drain" or self.write == "nt"]
        words += [f"{name}={getattr(self, name)}" for name in (*COUNTS, *SIZES, *IDS)
                  if getattr(self, name) is not None]
        words += [name for name, (flag, value) in FLAGS.items() if self.flags.get(flag, not value) is value
                  and flag in self.flags and name != "async"]
        words += [f"{name}={getattr(self, name)}" for name in PATHS if getattr(self, name)]
        words += [f"emulate={self.emulate}"] if self.emulate != "none" else []
        return ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in words)


def split(text: str) -> list[str]:
    r"""The options of *text*; a comma inside one is written ``\,``."""
    return [re.sub(r"\\([,\\])", r"\1", word) for word in re.findall(r"(?:\\.|[^,\\]|\\$)+", text)]


def parse(text: str, sloppy: bool = False) -> MountConfig:
    """The options of *text*; later ones win. *sloppy*: unknown ones are ignored, as mount -s says.

    UsageError names an unknown option, a wrong value, or a feature that this version does not have.
    """
    config = MountConfig(flags=default_flags(os.geteuid()))
    words = split(text)
    for word in words:
        name, equals, value = word.partition("=")
        if "remount" in words and SHOWN_VALUE.match(word):
            continue
        if not (_plain(config, name) if not equals else _valued(config, name, value)):
            if SWALLOWED_VALUE.match(word) or word in SWALLOWED or (sloppy and not _known(name)):
                config.ignored.append(word)
                continue
            _refuse(name, bool(equals))
        config.given.add(name)
    _check_threads(config)
    if config.nt_threshold and config.write == "cached":
        raise UsageError(f"nt_threshold={config.nt_threshold} can't be had with write=cached, where all "
                         "writes go through the cache")
    if "drain" in config.given and config.write == "cached" and "remount" not in words:
        raise UsageError("drain= can't be had with write=cached, where all writes go through the cache and "
                         "fsync waits for them")
    return config


def threshold(config, kind: str) -> int:
    """Bytes below which a write goes through the cache in spite of write=nt. *kind*: how lines are flushed.

    0: none does. With msync nothing goes past a cache, so that there is nothing to choose.
    """
    if config.nt_threshold is not None:
        return config.nt_threshold
    return NT_THRESHOLD if config.write == "nt" and kind != "msync" else 0


def _check_threads(config: MountConfig) -> None:
    """threads= is a demand: refused where a transport was named that can't meet it."""
    if config.threads is None or config.transport in ("auto", "dev"):
        return
    why = {"uring": "it has one for each CPU", "pyfuse3": "it has one"}[config.transport]
    raise UsageError(f"threads={config.threads} can't be had with transport={config.transport}: {why}; "
                     "threads= is for transport=dev")


def default_flags(euid: int) -> dict[str, bool]:
    """Set-id bits and device nodes count on a mount that root makes, as on any file system."""
    return {"suid": True, "dev": True} if euid == 0 else {}


def _plain(config: MountConfig, name: str) -> bool:
    """Put in an option without a value; False where there is none of that name."""
    if name in FLAGS:
        flag, value = FLAGS[name]
        config.flags[flag] = value
        if name == "sync":
            config.drain = "write"  # a write that has returned is durable
    elif name in ATIME:
        config.atime = ATIME[name]
    elif name in ("ro", "rw"):
        config.readonly = name == "ro"
    elif name in ("nodiratime", "diratime"):
        config.nodiratime = name == "nodiratime"
    elif name in ("lazytime", "nolazytime"):
        config.lazytime = name == "lazytime"
    elif name == "dax":
        config.dax = "always"  # as ext4 and XFS take it
    elif name == "raw":
        config.raw = True
    elif name == "revoke":
        config.revoke = True
    elif name == "debug":
        config.debug, config.log_level = True, "debug"
    elif name == "remount":
        config.remount = True
    elif name == "defaults":
        config.readonly, config.flags["sync"], config.flags["exec"] = False, False, True
        config.flags.update(default_flags(os.geteuid()))
    else:
        return False
    return True


def _valued(config: MountConfig, name: str, value: str) -> bool:
    """Put in an option with a value; False where there is none of that name."""
    if name in CHOICES:
        setattr(config, name, choice(name, value))
    elif name in COUNTS:
        setattr(config, name, count(name, value))
    elif name in SIZES:
        setattr(config, name, size(name, value))
    elif name in IDS:
        if not re.fullmatch(r"[0-9]{1,10}", value) or int(value) >= 2**32 - 1:
            raise UsageError(f"{name}={value}: not a number of a {'user' if name == 'uid' else 'group'}")
        setattr(config, name, int(value))
    elif name == "fsname":
        config.fsname = value
    elif name == "emulate":
        if not value:
            raise UsageError("emulate= needs the name of a medium, the path of a file, or none")
        config.emulate = os.path.abspath(value) if "/" in value else value
    elif name == "subtype":
        if value != SUBTYPE:
            raise UsageError(f"subtype={value}: the type of this file system is fuse.{SUBTYPE}")
    elif name in PATHS:
        if not value:
            raise UsageError(f"{name}= needs a path")
        setattr(config, name, os.path.abspath(value))
    else:
        return False
    return True


def choice(name: str, value: str) -> str:
    """*value*, where option *name* has it; UsageError, with the values that there are."""
    if value in CHOICES[name]:
        return value
    raise UsageError(f"{name}={value} is unknown; one of: {', '.join(CHOICES[name])}")


def count(name: str, value: str) -> int:
    """*value* as a number of what option *name* counts; UsageError."""
    if not re.fullmatch(r"[0-9]{1,6}", value) or int(value) < 1:
        raise UsageError(f"{name}={value}: not a number of {name} from 1 on")
    if int(value) > COUNTS[name]:
        raise UsageError(f"{name}={value}: at most {COUNTS[name]}")
    return int(value)


def size(name: str, value: str) -> int:
    """*value*, bytes or with K, M or G (powers of 1024), of option *name*; UsageError."""
    found = re.fullmatch(r"([0-9]{1,15})([kKmMgG]?)", value, re.ASCII)
    number = int(found[1]) << " kmg".index(found[2].lower() or " ") * 10 if found else -1
    if not 0 <= number <= SIZES[name]:
        raise UsageError(f"{name}={value}: not a number of bytes (or with K, M, G) up to {SIZES[name]}")
    return number


def _known(name: str) -> bool:
    """True for a name of an option, with or without a value."""
    valued = {*CHOICES, *COUNTS, *SIZES, *IDS, *PATHS, "emulate", "fsname", "subtype"}
    plain = {"ro", "rw", "nodiratime", "diratime", "lazytime", "nolazytime", "dax", "debug", "remount", "raw",
             "revoke", "defaults"}
    return name in valued or name in plain or name in FLAGS or name in ATIME


def _refuse(name: str, equals: bool) -> None:
    if not equals and _known(name):
        raise UsageError(f"mount option {name!r} needs a value: {name}=…")
    if name == "max_read":
        raise UsageError("mount option 'max_read' can't be had: pyfuse3 does not mount with it")
    if equals and _known(name):
        raise UsageError(f"mount option {name!r} takes no value")
    raise UsageError(f"unknown mount option {name!r}; see mount.daxfs(8)")


def source_list(text: str) -> list[str]:
    """The sources in *text*: one path if there is such a path, otherwise split at commas."""
    if os.path.lexists(text):
        return [text]
    found = [part for part in text.split(",") if part]
    if not found:
        raise UsageError("an empty source")
    return found


class FuseArgument(str):
    """One ``-o`` argument for pyfuse3.init, which encodes as us-ascii: a path may hold any bytes."""

    def encode(self, *_args) -> bytes:
        return os.fsencode(str(self))


def fuse_arguments(config: MountConfig) -> list[str]:
    """What libfuse gets, in order: name and type, default_permissions, then the flags of mount(8)."""
    name = (config.fsname or ",".join(config.sources)).replace("\\", "\\\\").replace(",", "\\,")
    out = [f"fsname={name}", f"subtype={SUBTYPE}", "default_permissions", "ro" if config.readonly else "rw"]
    for flag, value in config.flags.items():
        word = next((n for n, known in FLAGS.items() if known == (flag, value)), None)
        if word and not (word == "allow_root" and config.flags.get("allow_other")):
            out.append(word)
    if config.atime == "noatime":
        out.append("noatime")
    if config.nodiratime:
        out.append("nodiratime")
    return [FuseArgument(word) for word in out]
