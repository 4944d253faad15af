# SPDX-License-Identifier: MIT
"""A seeded load of mixed file system operations that logs each one before and after, and its judge.

    python tests/load.py run --root DIR --log FILE --seed N [--ops N] [--dax]
    python tests/load.py check --root DIR --log FILE

The log must lie outside the mount under test (tmpfs): one JSON line before an
operation, one after it with its result. When the file system dies (ENOTCONN)
the load ends with the operation in flight; ``judge`` then says whether DIR is
what the log promises. A load started on an existing log goes on from there.
One process for each DIR; several may run beside each other. The working
directory is DIR, so that a detached dead mount still answers ENOTCONN.
"""

import argparse
import contextlib
import copy
import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import struct
import sys
import time

from load_model import Model, content, diff, digest, scan

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
DYING = (errno.ECANCELED, errno.EINTR)  # while the kernel takes the queues of a killed daemon down
MAX_SIZE = 192 * 1024
MAX_FILES = 60
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


class Mismatch(Exception):
    """A read gave other bytes than the model holds."""


def rename2(src: str, dst: str, flags: int) -> None:
    """renameat2(2). OSError as the kernel says."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(src), AT_FDCWD, os.fsencode(dst), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), src)


# linux/falloc.h: KEEP_SIZE 1, PUNCH_HOLE 2, ZERO_RANGE 16
FALLOC = {"allocate": 0, "keep": 1, "punch": 3, "zero": 16, "zero_keep": 17}


def fallocate(fd: int, mode: int, pos: int, length: int) -> None:
    """fallocate(2). OSError as the kernel says."""
    if _libc.fallocate(fd, mode, ctypes.c_int64(pos), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# linux/fs.h
FSGETXATTR, FSSETXATTR, XFLAG_DAX = 0x801C581F, 0x401C5820, 0x8000


def set_dax(path, on: bool) -> None:
    """chattr +x or -x. OSError as the kernel says."""
    fd = os.open(path, os.O_RDONLY)
    try:
        words = bytearray(28)
        fcntl.ioctl(fd, FSGETXATTR, words)
        flags = struct.unpack_from("<I", words)[0] & ~XFLAG_DAX
        struct.pack_into("<I", words, 0, flags | XFLAG_DAX * on)
        fcntl.ioctl(fd, FSSETXATTR, words)
    finally:
        os.close(fd)


class Doer:
    """Carries operations out on the real tree below the working directory."""

    def __init__(self):
        self.orphans: dict[int, int] = {}

    def perform(self, op: dict, model: Model) -> dict:
        """Do *op*; what it promised. OSError as the kernel says, Mismatch for a wrong read."""
        return getattr(self, f"_do_{op['op']}")(op, model) or {}

    def _do_refused(self, op, model):
        self.perform(op["inner"], model)

    def _do_create(self, op, _model):
        os.close(os.open(op["path"], os.O_CREAT | os.O_EXCL | os.O_WRONLY, op["mode"]))

    def _do_mkdir(self, op, _model):
        os.mkdir(op["path"], op["mode"])

    def _do_symlink(self, op, _model):
        os.symlink(op["target"], op["path"])

    def _do_mkfifo(self, op, _model):
        os.mkfifo(op["path"], op["mode"])

    def _do_write(self, op, _model):
        data = content(op["seed"], op["len"])
        flags = {"append": os.O_APPEND, "direct": os.O_DIRECT, "dsync": os.O_DSYNC}.get(op["how"], 0)
        fd = os.open(op["path"], os.O_RDWR | flags)
        try:
            if op["how"] == "mmap":
                self._store(fd, op["pos"], data)
            elif op["how"] == "append":
                self._all(os.write(fd, data), data)
            elif op["how"] == "direct":
                with mmap.mmap(-1, len(data)) as aligned:
                    aligned[:] = data
                    self._all(os.pwrite(fd, aligned, op["pos"]), data)
            else:
                self._all(os.pwrite(fd, data, op["pos"]), data)
        finally:
            os.close(fd)

    @staticmethod
    def _all(done: int, data: bytes) -> None:
        if done != len(data):
            raise Mismatch(f"short write: {done} of {len(data)} bytes")

    @staticmethod
    def _store(fd: int, pos: int, data: bytes) -> None:
        with mmap.mmap(fd, pos + len(data)) as mapping:
            mapping[pos:] = data
            mapping.flush()

    def _do_fallocate(self, op, model):
        fd = os.open(op["path"], os.O_RDWR)
        try:
            fallocate(fd, FALLOC[op["mode"]], op["pos"], op["len"])
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            # Without fallocate: the same bytes by a write. It is the tree that counts here.
            pos, zeros = model.effect(op)
            if zeros:
                self._all(os.pwrite(fd, zeros, pos), zeros)
        finally:
            os.close(fd)

    def _do_copy(self, op, _model):
        source, fd = os.open(op["src"], os.O_RDONLY), os.open(op["path"], os.O_RDWR)
        try:
            done = 0
            while done < op["len"]:
                count = os.copy_file_range(source, fd, op["len"] - done, op["from"] + done, op["pos"] + done)
                if count == 0:
                    raise Mismatch(f"copy_file_range ended after {done} of {op['len']} bytes")
                done += count
        finally:
            os.close(source)
            os.close(fd)

    def _do_read(self, op, model):
        want = bytes(model.find(op["path"]).data[op["pos"]:op["pos"] + op["len"]])
        fd = os.open(op["path"], os.O_RDONLY)
        try:
            if op["how"] == "mmap" and want:
                with mmap.mmap(fd, op["pos"] + len(want), access=mmap.ACCESS_READ) as mapping:
                    got = mapping[op["pos"]:]
            else:
                got = os.pread(fd, op["len"], op["pos"])
        finally:
            os.close(fd)
        if got != want:
            raise Mismatch(f"read {op['path']} at {op['pos']}: {len(got)} bytes {digest(got)[:8]}, "
                           f"should be {len(want)} bytes {digest(want)[:8]}")

    def _do_truncate(self, op, _model):
        if op["how"] == "open":
            os.close(os.open(op["path"], os.O_WRONLY | os.O_TRUNC))
        else:
            os.truncate(op["path"], op["size"])

    def _do_rename(self, op, _model):
        flags = RENAME_EXCHANGE if op.get("exchange") else RENAME_NOREPLACE if op.get("noreplace") else 0
        rename2(op["src"], op["dst"], flags)

    def _do_link(self, op, _model):
        os.link(op["src"], op["dst"])

    def _do_unlink(self, op, _model):
        os.unlink(op["path"])

    def _do_rmdir(self, op, _model):
        os.rmdir(op["path"])

    def _do_unlink_open(self, op, _model):
        fd = os.open(op["path"], os.O_RDWR)
        self.orphans[op["id"]] = fd
        os.unlink(op["path"])

    def _do_orphan_write(self, op, _model):
        data = content(op["seed"], op["len"])
        fd = self.orphans[op["id"]]
        os.pwrite(fd, data, op["pos"])
        if os.pread(fd, len(data), op["pos"]) != data:
            raise Mismatch("an unlinked open file does not read back what was written")

    def _do_orphan_close(self, op, _model):
        os.close(self.orphans.pop(op["id"]))

    def _do_fsync(self, op, model):
        fd = os.open(op["path"], os.O_RDWR)
        try:
            (os.fdatasync if op["how"] == "fdatasync" else os.fsync)(fd)
            info = os.fstat(fd)
        finally:
            os.close(fd)
        # fdatasync owes the times nothing; the size it does.
        mtime = info.st_mtime_ns if op["how"] == "fsync" else None
        return {"size": info.st_size, "mtime_ns": mtime, "sha": digest(model.find(op["path"]).data)}

    def _do_fsync_dir(self, op, _model):
        fd = os.open(op["path"] or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _do_chmod(self, op, _model):
        os.chmod(op["path"], op["mode"])

    def _do_dax(self, op, _model):
        set_dax(op["path"], op["on"])

    def _do_utime(self, op, _model):
        os.utime(op["path"], ns=(op["mtime_ns"], op["mtime_ns"]))

    def _do_setxattr(self, op, _model):
        os.setxattr(op["path"], op["name"], content(op["seed"], op["len"]))

    def _do_removexattr(self, op, _model):
        os.removexattr(op["path"], op["name"])


class Chooser:
    """Draws the next operation, valid in the model, from a seeded generator."""

    WEIGHTS = {
        "create": 9, "write": 26, "fallocate": 6, "copy": 3,
        "truncate": 6, "read": 8, "rename": 7, "rename_over": 4, "exchange": 2,
        "link": 4, "unlink": 6, "unlink_open": 2, "orphan": 3, "mkdir": 3, "rmdir": 2, "symlink": 2,
        "mkfifo": 1, "chmod": 2, "utime": 2, "setxattr": 4, "removexattr": 2, "fsync": 9, "fsync_dir": 2,
        "replace": 3, "refused": 2,
    }

    def __init__(self, seed: int, model: Model, dax: bool = False):
        self.rng = random.Random(seed)
        self.weights = self.WEIGHTS | ({"dax": 6} if dax else {})
        self.model = model
        self.queue: list[dict] = []
        self.orphans: list[int] = []
        self.serial = 0

    def next(self) -> dict:
        """The next operation. The draw depends on the seed and on what was applied to the model."""
        while not self.queue:
            (kind,) = self.rng.choices(list(self.weights), list(self.weights.values()))
            self.entries = list(self.model.walk())
            chosen = getattr(self, f"_pick_{kind}")()
            self.queue = chosen if isinstance(chosen, list) else [chosen] if chosen else []
        return self.queue.pop(0)

    def _some(self, *kinds) -> str | None:
        paths = [path for path, node in self.entries if node.kind in kinds]
        return self.rng.choice(paths) if paths else None

    def _new_path(self) -> str | None:
        folders = [""] + [path for path, node in self.entries if node.kind == "dir" and path.count("/") < 3]
        folder = self.rng.choice(folders)
        stem = f"n{self.rng.randrange(80)}"
        name = self.rng.choice((stem, stem, stem, stem + "-ü", stem.ljust(255, "x")))[:255]
        name = name.encode()[:255].decode(errors="ignore")
        taken = self.model.find(folder).names
        return None if name in taken else f"{folder}/{name}" if folder else name

    def _seed(self) -> int:
        return self.rng.randrange(1 << 30)

    def _pick_create(self, **more):
        if sum(node.kind == "file" for _, node in self.entries) >= MAX_FILES:
            return self._pick_unlink()
        path = self._new_path()
        return path and {"op": "create", "path": path, "mode": self.rng.choice((0o644, 0o600, 0o755, 0o666))}

    def _pick_write(self):
        path = self._some("file")
        return path and self._write_to(path, len(self.model.find(path).data))

    def _write_to(self, path: str, size: int) -> dict:
        how = self.rng.choice(("pwrite", "pwrite", "pwrite", "append", "append", "direct", "mmap", "dsync"))
        length = self.rng.choice((1, 7, 64, 100, 512, 4096, 4097, 10000, 16384, 65536))
        pos = self.rng.randrange(0, max(1, min(size + 20000, MAX_SIZE - length)))
        if how == "direct":
            length, pos = max(4096, length // 4096 * 4096), pos // 4096 * 4096
        elif how == "append" and size + length > MAX_SIZE:
            how, pos = "pwrite", min(pos, size)
        elif how == "mmap":
            pos = self.rng.randrange(size) if size else 0
            length = min(length, size - pos)
            how = "mmap" if length else "pwrite"
        return {"op": "write", "path": path, "how": how, "pos": pos, "len": max(1, length),
                "seed": self._seed()}

    def _pick_fallocate(self):
        path = self._some("file")
        if not path:
            return None
        length = self.rng.choice((1, 100, 4096, 10000, 65536))
        pos = self.rng.randrange(0, max(1, min(len(self.model.find(path).data) + 8192, MAX_SIZE - length)))
        mode = self.rng.choice(list(FALLOC))
        return {"op": "fallocate", "path": path, "mode": mode, "pos": pos, "len": length}

    def _pick_copy(self):
        src, path = self._some("file"), self._some("file")
        if not src or self.model.find(src) is self.model.find(path):
            return None
        begin = self.rng.randrange(len(self.model.find(src).data) + 1)
        length = min(self.rng.choice((1, 4096, 30000)), len(self.model.find(src).data) - begin)
        pos = self.rng.randrange(0, max(1, min(len(self.model.find(path).data) + 5000, MAX_SIZE - length)))
        return length and {"op": "copy", "src": src, "path": path, "from": begin, "pos": pos, "len": length}

    def _pick_read(self):
        path = self._some("file")
        if not path:
            return None
        size = len(self.model.find(path).data)
        pos = self.rng.randrange(size + 1)
        return {"op": "read", "path": path, "how": self.rng.choice(("pread", "mmap")), "pos": pos,
                "len": self.rng.choice((100, 4096, MAX_SIZE))}

    def _pick_truncate(self):
        path = self._some("file")
        size = self.rng.choice((0, 0, 1, 4095, 4096, self.rng.randrange(MAX_SIZE)))
        how = "open" if size == 0 and self.rng.random() < 0.5 else "path"
        return path and {"op": "truncate", "path": path, "size": size, "how": how}

    def _pick_rename(self):
        src, dst = self._some("file", "dir", "link", "fifo"), self._new_path()
        if not src or not dst or f"{dst}/".startswith(f"{src}/"):
            return None
        return {"op": "rename", "src": src, "dst": dst, "noreplace": self.rng.random() < 0.2}

    def _pick_rename_over(self):
        src, dst = self._some("file", "link"), self._some("file", "link", "fifo")
        if self.rng.random() < 0.2:
            src, dst = self._some("dir"), self._empty_dir()
            if src and dst and f"{dst}/".startswith(f"{src}/"):
                return None
        if not src or not dst or self.model.find(src) is self.model.find(dst):
            return None
        return {"op": "rename", "src": src, "dst": dst}

    def _empty_dir(self) -> str | None:
        empty = [path for path, node in self.entries if node.kind == "dir" and not node.names]
        return self.rng.choice(empty) if empty else None

    def _pick_exchange(self):
        src, dst = self._some("file", "link"), self._some("file", "link")
        if not src or self.model.find(src) is self.model.find(dst):
            return None
        return {"op": "rename", "src": src, "dst": dst, "exchange": True}

    def _pick_link(self):
        src, dst = self._some("file"), self._new_path()
        return src and dst and {"op": "link", "src": src, "dst": dst}

    def _pick_unlink(self):
        path = self._some("file", "link", "fifo")
        return path and {"op": "unlink", "path": path}

    def _pick_unlink_open(self):
        path = self._some("file")
        if not path or self.model.find(path).nlink > 1 or len(self.orphans) >= 4:
            return None
        self.serial += 1
        self.orphans.append(self.serial)
        return {"op": "unlink_open", "path": path, "id": self.serial}

    def _pick_orphan(self):
        if not self.orphans:
            return None
        which = self.rng.choice(self.orphans)
        if self.rng.random() < 0.4:
            self.orphans.remove(which)
            return {"op": "orphan_close", "id": which}
        return {"op": "orphan_write", "id": which, "pos": self.rng.randrange(100000), "len": 5000,
                "seed": self._seed()}

    def _pick_mkdir(self):
        path = self._new_path()
        return path and {"op": "mkdir", "path": path, "mode": self.rng.choice((0o755, 0o700))}

    def _pick_rmdir(self):
        path = self._empty_dir()
        return path and {"op": "rmdir", "path": path}

    def _pick_symlink(self):
        path = self._new_path()
        target = "t" * self.rng.choice((1, 20, 59, 60, 61, 300, 4000))
        return path and {"op": "symlink", "path": path, "target": target}

    def _pick_mkfifo(self):
        path = self._new_path()
        return path and {"op": "mkfifo", "path": path, "mode": 0o600}

    def _pick_chmod(self):
        path = self._some("file", "dir")
        return path and {"op": "chmod", "path": path, "mode": self.rng.choice((0o700, 0o750, 0o755))}

    def _pick_dax(self):
        path = self._some("file", "file", "dir")
        return path and {"op": "dax", "path": path, "on": self.rng.random() < 0.6}

    def _pick_utime(self):
        path = self._some("file")
        return path and {"op": "utime", "path": path, "mtime_ns": self.rng.randrange(1, 2 * 10**18)}

    def _pick_setxattr(self):
        path = self._some("file", "dir")
        length = self.rng.choice((0, 1, 30, 200, 1000, 3000))
        # ext4 keeps all xattrs of an inode in one block: stay below what every file system takes.
        if not path or length + sum(map(len, self.model.find(path).xattrs.values())) > 3300:
            return None
        return {"op": "setxattr", "path": path, "name": f"user.a{self.rng.randrange(6)}", "len": length,
                "seed": self._seed()}

    def _pick_removexattr(self):
        path = self._some("file", "dir")
        names = sorted(self.model.find(path).xattrs) if path else []
        return {"op": "removexattr", "path": path, "name": self.rng.choice(names)} if names else None

    def _pick_fsync(self):
        path = self._some("file")
        return path and {"op": "fsync", "path": path, "how": self.rng.choice(("fsync", "fsync", "fdatasync"))}

    def _pick_fsync_dir(self):
        return {"op": "fsync_dir", "path": self._some("dir") or ""}

    def _pick_replace(self):
        """Write beside, fsync, rename over: how careful programs replace a file."""
        path, new = self._some("file"), self._new_path()
        if not path or not new:
            return None
        return [{"op": "create", "path": new, "mode": 0o644},
                {"op": "write", "path": new, "how": "pwrite", "pos": 0, "len": self.rng.randrange(1, 30000),
                 "seed": self._seed()},
                {"op": "fsync", "path": new, "how": "fsync"},
                {"op": "rename", "src": new, "dst": path}]

    def _pick_refused(self):
        path, full = self._some("file", "link", "fifo"), [
            name for name, node in self.entries if node.kind == "dir" and node.names]
        cases = [({"op": "unlink", "path": "not-there"}, errno.ENOENT)]
        if path:
            cases += [({"op": "mkdir", "path": path, "mode": 0o755}, errno.EEXIST),
                      ({"op": "rename", "src": path, "dst": path, "noreplace": True}, errno.EEXIST)]
        if full:
            cases += [({"op": "rmdir", "path": self.rng.choice(full)}, errno.ENOTEMPTY)]
        inner, want = self.rng.choice(cases)
        return {"op": "refused", "inner": inner, "want": want}


class History:
    """A log replayed: ``model`` after all that returned, ``inflight`` the operation that did not."""

    def __init__(self, path):
        self.model = Model()
        self.inflight: dict | None = None
        self.complaints: list[str] = []
        self.count = 0
        with contextlib.suppress(FileNotFoundError):
            with open(path) as file:
                for line in file:
                    if line.endswith("\n"):
                        self._take(json.loads(line))

    def _take(self, record: dict) -> None:
        if "op" in record:
            self.inflight, self.count = record["op"], record["n"]
            return
        op, self.inflight = self.inflight, None
        if record.get("dead"):
            self.inflight = op
            return
        if "settled" in record:
            if record["settled"]:
                self.model.apply(op)
            if "hex" in record:
                self.model.apply({"op": "adopt", "path": op["path"], "hex": record["hex"]})
            return
        if record["r"] != op.get("want", 0):
            self.complaints.append(f"operation {self.count} {_brief(op)}: errno {record['r']}, "
                                   f"should be {op.get('want', 0)}")
        elif record["r"] == 0:
            self.model.apply(op, record)
        if "bad" in record:
            self.complaints.append(f"operation {self.count}: {record['bad']}")


def _brief(op: dict) -> str:
    return json.dumps({key: value if len(str(value)) < 60 else str(value)[:60] for key, value in op.items()})


def judge(root, log) -> list[str]:
    """What is wrong with the tree at *root* after the load that wrote *log*; empty if nothing is.

    Where an operation was in flight, a line is added to the log that says how
    it turned out, so that the load can go on from there.
    """
    history = History(log)
    found = scan(root)
    before = diff(history.model, found)
    if not before or history.inflight is None:
        if not before and history.inflight:
            _settle(log, {"settled": False})
        return history.complaints + before
    op = history.inflight
    after_model = copy.deepcopy(history.model)
    after_model.apply(op)
    after = diff(after_model, found)
    if not after:
        _settle(log, {"settled": True})
        return history.complaints
    if not diff(history.model, found, op):
        _settle(log, {"settled": False, "hex": found[op["path"]].data.hex()})
        return history.complaints
    best = min(before, after, key=len)
    return history.complaints + [f"with {_brief(op)} in flight: {text}" for text in best]


def _settle(log, record: dict) -> None:
    with open(log, "a") as file:
        file.write(json.dumps(record) + "\n")


def run(root: str, log: str, seed: int, ops: int | None, dax: bool = False) -> int:
    """Load *root* for *ops* operations or until the file system dies. Exit status: 0, 1 for a complaint."""
    history = History(log)
    if history.inflight:
        raise SystemExit(f"{log}: an operation is in flight; check first")
    os.umask(0)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.chdir(root)
    # Who starts several loads waits for this line of each before it kills the daemon.
    print("ready", flush=True)
    model, doer, number = history.model, Doer(), history.count
    chooser = Chooser(seed, model, dax)
    last = None if ops is None else number + ops
    while last is None or number < last:
        number += 1
        op = chooser.next()
        os.write(log_fd, (json.dumps({"n": number, "op": op}) + "\n").encode())
        result = attempt(doer, op, model)
        os.write(log_fd, (json.dumps({"n": number, **result}) + "\n").encode())
        if result.get("dead"):
            return 0
        if result["r"] != op.get("want", 0) or "bad" in result:
            print(f"operation {number} {_brief(op)}: {result}", file=sys.stderr)
            return 1
        if result["r"] == 0:
            model.apply(op, result)
    return 0


def attempt(doer: Doer, op: dict, model: Model) -> dict:
    """The end record of *op*: ``r`` its errno, ``dead`` if the file system has gone."""
    try:
        return {"r": 0, **doer.perform(op, model)}
    except Mismatch as exc:
        return {"r": 0, "bad": str(exc)}
    except OSError as exc:
        return {"r": exc.errno} | ({"dead": True} if exc.errno in DEAD or _dead() else {})


def _dead() -> bool:
    """True if the working directory's file system is gone: an errno such as EIO may stand for that."""
    for _ in range(200):
        try:
            os.statvfs(".")
        except OSError as exc:
            if exc.errno not in DYING:
                return exc.errno in DEAD
            time.sleep(0.01)
        else:
            return False
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "check"):
        sub = commands.add_parser(name)
        sub.add_argument("--root", required=True)
        sub.add_argument("--log", required=True)
        if name == "run":
            sub.add_argument("--seed", type=int, default=0)
            sub.add_argument("--ops", type=int)
            sub.add_argument("--dax", action="store_true", help="change DAX flags, too")
    args = parser.parse_args()
    if args.command == "run":
        return run(args.root, args.log, args.seed, args.ops, args.dax)
    complaints = judge(args.root, args.log)
    print("\n".join(complaints) or "the tree is what the log promises")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
