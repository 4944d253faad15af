# SPDX-License-Identifier: MIT
"""A plain model of one directory tree, and the judge that compares a real tree with it.

Used by tests/load.py (to choose valid operations) and by the crash tests (to
replay the log). An operation is a dict with ``op`` and its arguments; ``apply``
changes the model as a POSIX file system would. The model holds all content in
memory: use it for trees of some MiB. No threads, no imports of daxfs.

What the judge demands after a crash of the daemon (DESIGN sections 5 and 6):
every operation that had returned is there; the one in flight is there wholly
or not at all; a write in flight may have replaced any of its bytes within the
old size, but where it grew the file all its bytes up to the new size are there
(data before size); ``torn_write`` says what the kernel's splitting adds.
"""

import dataclasses
import hashlib
import os
import random
import stat


class Node:
    """One inode: content is bytes for files, names for directories, target for symlinks."""

    def __init__(self, kind: str, mode: int = 0, data: bytes = b"", target: str = ""):
        self.kind = kind  # "file", "dir", "link", "fifo"
        self.mode = mode
        self.data = bytearray(data)
        self.target = target
        self.names: dict[str, Node] = {}
        self.xattrs: dict[str, bytes] = {}
        self.nlink = 2 if kind == "dir" else 1
        self.mtime: int | None = None  # promised by fsync or utime, ns; None after a change
        self.promise: tuple[int, str] | None = None  # (size, sha256) at the last fsync, None after a change

    def touched(self) -> None:
        """Content changed: what fsync promised for the old content is void."""
        self.mtime = self.promise = None


def content(seed: int, length: int) -> bytes:
    """The bytes that a write with *seed* carries."""
    return random.Random(seed).randbytes(length)


def digest(data) -> str:
    """sha256 of *data*, hex."""
    return hashlib.sha256(data).hexdigest()


class Model:
    """The tree below one root directory. Paths are relative, components joined by '/'."""

    def __init__(self):
        self.root = Node("dir", 0o755)

    def find(self, path: str) -> Node:
        """The node at *path* ('' is the root). KeyError where there is none."""
        node = self.root
        for name in path.split("/") if path else []:
            node = node.names[name]
        return node

    def parent(self, path: str) -> tuple[Node, str]:
        """The directory node that holds *path*, and the last component."""
        head, _, name = path.rpartition("/")
        return self.find(head), name

    def walk(self, prefix: str = "", node: Node | None = None):
        """All (path, node) below the root, directories before their content."""
        for name, child in (node or self.root).names.items():
            path = f"{prefix}/{name}" if prefix else name
            yield path, child
            if child.kind == "dir":
                yield from self.walk(path, child)

    def apply(self, op: dict, result: dict | None = None) -> None:
        """Change the model as the successful *op* does; *result* is its end record (what fsync promised)."""
        getattr(self, f"_do_{op['op']}")(op, result or {})

    def _add(self, path: str, node: Node) -> None:
        folder, name = self.parent(path)
        folder.names[name] = node
        folder.nlink += node.kind == "dir"
        folder.touched()

    def _drop(self, path: str) -> Node:
        folder, name = self.parent(path)
        node = folder.names.pop(name)
        folder.nlink -= node.kind == "dir"
        folder.touched()
        return node

    def _do_create(self, op, _result):
        self._add(op["path"], Node("file", op["mode"]))

    def _do_mkdir(self, op, _result):
        self._add(op["path"], Node("dir", op["mode"]))

    def _do_symlink(self, op, _result):
        self._add(op["path"], Node("link", 0o777, target=op["target"]))

    def _do_mkfifo(self, op, _result):
        self._add(op["path"], Node("fifo", op["mode"]))

    def effect(self, op: dict) -> tuple[int, bytes]:
        """(position, bytes) that a write, a fallocate or a copy stores into the file that it names."""
        size, pos = len(self.find(op["path"]).data), op["pos"]
        if op["op"] == "write":
            return size if op["how"] == "append" else pos, content(op["seed"], op["len"])
        if op["op"] == "copy":
            return pos, bytes(self.find(op["src"]).data[op["from"]:op["from"] + op["len"]])
        if op["mode"] == "allocate":
            return size, bytes(max(0, pos + op["len"] - size))
        if op["mode"] == "zero":
            return pos, bytes(op["len"])
        inside = 0 if op["mode"] == "keep" else max(0, min(op["len"], size - pos))
        return min(pos, size), bytes(inside)

    def _do_write(self, op, _result):
        node = self.find(op["path"])
        pos, data = self.effect(op)
        if pos > len(node.data):
            node.data.extend(bytes(pos - len(node.data)))
        node.data[pos:pos + len(data)] = data
        node.touched()

    _do_fallocate = _do_copy = _do_write

    def _do_truncate(self, op, _result):
        node = self.find(op["path"])
        size = op["size"]
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))
        node.touched()

    def _do_rename(self, op, _result):
        src, dst = op["src"], op["dst"]
        if op.get("exchange"):
            (src_dir, src_name), (dst_dir, dst_name) = self.parent(src), self.parent(dst)
            first, second = src_dir.names[src_name], dst_dir.names[dst_name]
            src_dir.names[src_name], dst_dir.names[dst_name] = second, first
            src_dir.nlink += (second.kind == "dir") - (first.kind == "dir")
            dst_dir.nlink += (first.kind == "dir") - (second.kind == "dir")
            src_dir.touched()
            dst_dir.touched()
            return
        folder, name = self.parent(dst)
        if name in folder.names:
            self._do_unlink({"path": dst}, {})
        self._add(dst, self._drop(src))

    def _do_link(self, op, _result):
        node = self.find(op["src"])
        node.nlink += 1
        folder, name = self.parent(op["dst"])
        folder.names[name] = node
        folder.touched()

    def _do_unlink(self, op, _result):
        self._drop(op["path"]).nlink -= 1

    def _do_rmdir(self, op, _result):
        self._drop(op["path"])

    # An unlinked file that stays open: gone from the tree, its blocks on the orphan list.
    _do_unlink_open = _do_unlink

    def _do_orphan_write(self, op, _result):
        pass

    def _do_orphan_close(self, op, _result):
        pass

    def _do_read(self, op, _result):
        pass

    def _do_refused(self, op, _result):
        pass

    def _do_fsync_dir(self, op, _result):
        pass

    def _do_fsync(self, op, result):
        node = self.find(op["path"])
        if "size" in result:
            node.promise = (result["size"], result["sha"])
            node.mtime = result["mtime_ns"]

    def _do_chmod(self, op, _result):
        self.find(op["path"]).mode = op["mode"]

    def _do_dax(self, op, _result):
        """Where the data lie is not seen in the tree."""

    def _do_utime(self, op, _result):
        self.find(op["path"]).mtime = op["mtime_ns"]

    def _do_setxattr(self, op, _result):
        self.find(op["path"]).xattrs[op["name"]] = content(op["seed"], op["len"])

    def _do_removexattr(self, op, _result):
        del self.find(op["path"]).xattrs[op["name"]]

    def _do_adopt(self, op, _result):
        """Not an operation: the judge found a write in flight half done; go on from what is there."""
        node = self.find(op["path"])
        node.data = bytearray.fromhex(op["hex"])
        node.touched()


@dataclasses.dataclass
class Found:
    """What the disk says about one path."""

    kind: str
    mode: int
    nlink: int
    ino: int
    size: int
    mtime_ns: int
    data: bytes = b""
    target: str = ""
    xattrs: dict[str, bytes] = dataclasses.field(default_factory=dict)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}
    return kinds.get(stat.S_IFMT(mode), oct(mode))


def scan(root) -> dict[str, Found]:
    """Read the real tree below *root*: every path with all that the model knows about it."""
    found = {}
    for folder, dirs, files in os.walk(root):
        for name in dirs + files:
            full = os.path.join(folder, name)
            found[os.path.relpath(full, root)] = look(full)
    return found


def look(full: str) -> Found:
    """Read one path of the real tree."""
    info = os.lstat(full)
    item = Found(_kind(info.st_mode), stat.S_IMODE(info.st_mode), info.st_nlink, info.st_ino,
                 info.st_size, info.st_mtime_ns)
    if item.kind == "file":
        with open(full, "rb") as file:
            item.data = file.read()
    elif item.kind == "link":
        item.target = os.readlink(full)
    if item.kind in ("file", "dir"):
        names = [name for name in os.listxattr(full) if name.startswith("user.")]
        item.xattrs = {name: os.getxattr(full, name) for name in names}
    return item


STORES = ("write", "fallocate", "copy")


def torn_write(op: dict | None, old: Node, actual: bytes, effect: tuple[int, bytes] | None = None) -> bool:
    """True if *actual* can be what the unfinished store *op* (one of STORES) left of *old*.

    Within the old size each byte of the written range is old or new: a copy in
    place was cut. Beyond it: the kernel's FUSE client sends a buffered write in
    several requests, cut after a page that it holds only in part, so the file
    may have grown to a page boundary within the write; then all bytes up to
    there are new, because each request stores data before size. A copy may end
    anywhere: copy_file_range goes piece by piece. *effect*: what Model.effect says
    (needed for all but writes).
    """
    if not op or op["op"] not in STORES:
        return False
    size = len(old.data)
    if effect is None:
        effect = size if op["how"] == "append" else op["pos"], content(op["seed"], op["len"])
    pos, new = effect
    end = min(pos + len(new), len(actual))
    if len(actual) == size:
        middle = zip(actual[pos:end], old.data[pos:end], new, strict=False)
        return (actual[:pos] == old.data[:pos] and actual[max(pos, end):] == old.data[max(pos, end):]
                and all(byte in (before, after) for byte, before, after in middle))
    split = op["op"] == "copy" or (op.get("how") not in ("direct", "mmap") and len(actual) % 4096 == 0)
    if not split or not max(size, pos) < len(actual) < pos + len(new):
        return False
    head = bytes(old.data[:pos]).ljust(pos, b"\0")
    return actual == head + new[:len(actual) - pos]


def diff(model: Model, found: dict[str, Found], inflight: dict | None = None) -> list[str]:
    """How the real tree differs from the model, one sentence each; empty where it agrees.

    *inflight*: an unfinished store, whose file may be torn as ``torn_write`` allows.
    """
    wanted = dict(model.walk())
    complaints = [f"{path}: missing ({wanted[path].kind})" for path in wanted if path not in found]
    complaints += [f"{path}: there, but should not be ({found[path].kind})"
                   for path in found if path not in wanted]
    stores = inflight and inflight["op"] in STORES
    torn = model.find(inflight["path"]) if stores else None
    effect = model.effect(inflight) if stores else None
    inode_of: dict[int, tuple[int, str]] = {}
    owner_of: dict[int, tuple[int, str]] = {}
    for path, node in wanted.items():
        if path not in found:
            continue
        item = found[path]
        loose = inflight if node is torn else None
        complaints += [f"{path}: {text}" for text in _diff_node(node, item, loose, effect)]
        ino, other = inode_of.setdefault(id(node), (item.ino, path))
        if ino != item.ino:
            complaints.append(f"{path}: not the same inode as its hard link {other}")
        owner, other = owner_of.setdefault(item.ino, (id(node), path))
        if owner != id(node):
            complaints.append(f"{path}: shares its inode number with {other}")
    return complaints


def _diff_node(node: Node, item: Found, inflight: dict | None, effect: tuple[int, bytes] | None):
    if item.kind != node.kind:
        yield f"is a {item.kind}, should be a {node.kind}"
        return
    if item.nlink != node.nlink:
        yield f"link count {item.nlink}, should be {node.nlink}"
    if node.kind != "link" and item.mode != node.mode:
        yield f"mode {item.mode:o}, should be {node.mode:o}"
    if item.target != node.target:
        yield f"target {item.target!r}, should be {node.target!r}"
    if item.xattrs != node.xattrs:
        yield f"xattrs {_short(item.xattrs)}, should be {_short(node.xattrs)}"
    if node.kind != "file" or (inflight and torn_write(inflight, node, item.data, effect)):
        return
    if item.size != len(item.data):
        yield f"st_size {item.size}, but {len(item.data)} bytes can be read"
    if item.data != node.data:
        yield _first_difference(item.data, bytes(node.data))
    if node.promise and node.promise != (len(item.data), digest(item.data)):
        yield f"not the content that fsync promised: {node.promise}"
    if node.mtime is not None and item.mtime_ns != node.mtime:
        yield f"mtime {item.mtime_ns}, fsync or utime promised {node.mtime}"


def _short(xattrs: dict[str, bytes]) -> dict[str, str]:
    return {name: f"{len(value)} bytes {digest(value)[:8]}" for name, value in sorted(xattrs.items())}


def _first_difference(actual: bytes, wanted: bytes) -> str:
    if len(actual) != len(wanted):
        return f"size {len(actual)}, should be {len(wanted)}"
    where = next(i for i, (a, b) in enumerate(zip(actual, wanted, strict=True)) if a != b)
    run = sum(a != b for a, b in zip(actual, wanted, strict=True))
    zeros = " (reads as zeros)" if not any(actual[where:where + 64]) else ""
    return f"content differs first at byte {where}, {run} bytes in all{zeros}"
