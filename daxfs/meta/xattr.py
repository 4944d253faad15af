# SPDX-License-Identifier: MIT
"""Extended attributes: all of an inode in one run of pages, written anew at each change.

The run has a block header whose checksum covers all of it. A change journals all
its bytes, and the inode's pointer, in one record: atomic, one drain, nothing to
mend. They stand where the old ones stood, so that removing one and chmod need no
space; only where they are more is there a new run and the old one is freed. The kernel checks permissions for
each name space; ACLs are kept in step with the mode here. Metadata thread.
"""

import errno

from .. import layout as L
from ..errors import CorruptError, fail
from ..pfn import PAGE_SHIFT, PAGE_SIZE
from . import acl

PREFIXES = {
    b"user.": L.XATTR_USER,
    b"trusted.": L.XATTR_TRUSTED,
    b"security.": L.XATTR_SECURITY,
}
ACL_NAMES = {
    b"system.posix_acl_access": L.XATTR_ACL_ACCESS,
    b"system.posix_acl_default": L.XATTR_ACL_DEFAULT,
}
_NAMES = {space: prefix for prefix, space in PREFIXES.items()} | {v: k for k, v in ACL_NAMES.items()}
VALUE_MAX = 65536
TOTAL_MAX = 256 * 1024
CREATE, REPLACE = 1, 2
CAPABILITY = (L.XATTR_SECURITY, b"capability")


def key_of(name: bytes) -> tuple[int, bytes]:
    """(name space, rest of the name). EOPNOTSUPP for other name spaces, ERANGE for a name over 255 bytes."""
    if len(name) > 255:
        raise fail(errno.ERANGE)
    if name in ACL_NAMES:
        return ACL_NAMES[name], b""
    for prefix, space in PREFIXES.items():
        if name.startswith(prefix):
            if len(name) == len(prefix):
                raise fail(errno.EINVAL)
            return space, name[len(prefix) :]
    raise fail(errno.EOPNOTSUPP)


def load(fs, inode) -> dict[tuple[int, bytes], bytes]:
    """All attributes of *inode*. CorruptError where the run is damaged."""
    if not inode.xattr_pfn:
        return {}
    fs.check_run(inode.xattr_pfn, inode.xattr_pages, inode.ino)
    head = fs.check_block(inode.xattr_pfn, L.BLOCK_XATTR, inode.ino)
    start = inode.xattr_pfn << PAGE_SHIFT
    if not L.BLOCK_SIZE <= head.length <= inode.xattr_pages * PAGE_SIZE:
        raise CorruptError(f"inode {inode.ino}: xattr run of {head.length} bytes")
    raw = bytes(fs.mem[start : start + head.length])
    if not L.is_sealed(raw, 4, fs.seed):
        raise CorruptError(f"inode {inode.ino}: xattr run has a wrong checksum")
    out, at = {}, L.BLOCK_SIZE
    for _ in range(head.count):
        if at + 8 > len(raw):
            raise CorruptError(f"inode {inode.ino}: xattr entries leave the run")
        space, name_len, _, value_len = L.XATTR_CODEC.unpack_from(raw, at)
        at += 8
        if space not in _NAMES or at + name_len + value_len > len(raw):
            raise CorruptError(f"inode {inode.ino}: xattr entry of name space {space}, {value_len} bytes")
        out[space, raw[at : at + name_len]] = raw[at + name_len : at + name_len + value_len]
        at += name_len + value_len
    return out


def store(tx, fs, edit, attrs: dict) -> None:
    """Give *edit* exactly these attributes. ENOSPC where they are too many or space is short."""
    parts = [bytes(L.BLOCK_SIZE)]
    for (space, name), value in attrs.items():
        parts += (L.XATTR_CODEC.pack(space, len(name), 0, len(value)), name, value)
    raw = bytearray(b"".join(parts))
    if len(raw) > TOTAL_MAX:
        raise fail(errno.ENOSPC)
    edit.attrs = attrs
    node = fs.nodes.get(edit.number)
    if node is not None:
        has = CAPABILITY in attrs
        tx.after(lambda: setattr(node, "capability", has))
    pfn = _place(tx, fs, edit, -(-len(raw) // PAGE_SIZE) if attrs else 0)
    if not pfn:
        return
    head = (L.BLOCK_MAGIC, 0, L.BLOCK_XATTR, edit.generation, edit.number, 0, pfn, 0, len(raw), len(attrs), 0)
    L.BLOCK_FIELDS.struct.pack_into(raw, 0, *head)
    tx.raw(pfn << PAGE_SHIFT, L.sealed(raw, 4, fs.seed))


def _place(tx, fs, edit, pages: int) -> int:
    """Give *edit* a run of *pages* and free what it had and needs no more; the run's pfn, 0 for none."""
    pfn, had = edit.xattr_pfn, edit.xattr_pages
    keep = pages if pages <= had else 0
    if had > keep:
        tx.free([(pfn + keep, had - keep)], metadata=True)
    if not keep:
        pfn = 0
    if pages > had:
        runs = tx.alloc(pages)
        if len(runs) != 1:
            raise fail(errno.ENOSPC, "no run of free pages for the extended attributes")
        pfn = runs[0][0]
    edit.xattr_pfn, edit.xattr_pages = pfn, pages
    edit.blocks += pages - had
    return pfn


def _current(fs, edit) -> dict:
    """The attributes of *edit*, with what its transaction changed already."""
    return load(fs, fs.inodes.read(edit.number)) if edit.attrs is None else dict(edit.attrs)


def get(fs, ino: int, name: bytes) -> bytes:
    """The value. ENODATA where there is none."""
    inode = fs.inodes.read(ino)
    key = key_of(name)
    try:
        return load(fs, inode)[key]
    except KeyError:
        raise fail(errno.ENODATA) from None


def names(fs, ino: int) -> list[bytes]:
    """Full names of all attributes."""
    return [_NAMES[space] + rest for space, rest in load(fs, fs.inodes.read(ino))]


def put(fs, ino: int, name: bytes, value: bytes, flags: int = 0, keeps_sgid=lambda gid: True) -> None:
    """setxattr(2). EEXIST, ENODATA by *flags*; E2BIG over 64 KiB; an ACL changes the mode with it.

    *keeps_sgid(gid)*: whether the caller may leave setgid set for that group (as chmod(2) asks).
    """
    if len(value) > VALUE_MAX:
        raise fail(errno.E2BIG)
    key = key_of(name)
    inode = fs.inodes.read(ino)
    attrs = load(fs, inode)
    if flags & CREATE and key in attrs:
        raise fail(errno.EEXIST)
    if flags & REPLACE and key not in attrs:
        raise fail(errno.ENODATA)
    with fs.begin() as tx:
        edit = tx.inode(ino)
        if key[0] in (L.XATTR_ACL_ACCESS, L.XATTR_ACL_DEFAULT):
            _put_acl(edit, attrs, key, acl.parse(value))
            if key[0] == L.XATTR_ACL_ACCESS and edit.mode & 0o2000 and not keeps_sgid(edit.gid):
                edit.mode &= ~0o2000
        else:
            attrs[key] = value
        edit.ctime = fs.clock()
        store(tx, fs, edit, attrs)


def _put_acl(edit, attrs: dict, key, entries) -> None:
    """Set an ACL; an access ACL that the mode can say stands in the mode alone."""
    if key[0] == L.XATTR_ACL_DEFAULT:
        if edit.mode & 0o170000 != 0o040000:
            raise fail(errno.EACCES)
        if not entries:
            attrs.pop(key, None)
            return
    else:
        bits, plain = acl.equivalent_mode(entries)
        if entries:
            edit.mode = edit.mode & ~0o777 | bits
        if plain:
            attrs.pop(key, None)
            return
    attrs[key] = acl.pack(entries)


def remove(fs, ino: int, name: bytes) -> None:
    """removexattr(2). ENODATA where there is none."""
    key = key_of(name)
    attrs = load(fs, fs.inodes.read(ino))
    if key not in attrs:
        raise fail(errno.ENODATA)
    del attrs[key]
    with fs.begin() as tx:
        edit = tx.inode(ino)
        edit.ctime = fs.clock()
        store(tx, fs, edit, attrs)


def after_chmod(tx, fs, edit) -> None:
    """Bring the access ACL in step with the mode that *edit* has now."""
    if not edit.xattr_pfn:
        return
    attrs = _current(fs, edit)
    key = (L.XATTR_ACL_ACCESS, b"")
    if key in attrs:
        attrs[key] = acl.pack(acl.with_mode(acl.parse(attrs[key]), edit.mode))
        store(tx, fs, edit, attrs)


def inherited(fs, parent, mode: int, umask: int) -> tuple[dict, int]:
    """(attributes, mode) that a new inode with *mode* gets: by its directory's default ACL, or *umask*."""
    key = (L.XATTR_ACL_DEFAULT, b"")
    attrs = load(fs, parent) if parent.xattr_pfn else {}
    if mode & 0o170000 == 0o120000:
        return {}, mode
    if key not in attrs:
        return {}, mode & ~(umask & 0o777)
    access, bits = acl.inherit(acl.parse(attrs[key]), mode)
    out = {}
    if access is not None:
        out[L.XATTR_ACL_ACCESS, b""] = acl.pack(access)
    if mode & 0o170000 == 0o040000:
        out[key] = attrs[key]
    return out, bits


def has_capability(fs, node) -> bool:
    """Whether an inode in use has file capabilities; looked up once, then `store` keeps the answer."""
    if node.capability is None:
        node.capability = CAPABILITY in load(fs, fs.inodes.read(node.ino))
    return node.capability


def without_capability(tx, fs, edit) -> None:
    """A write, truncation or chown takes file capabilities away."""
    if not edit.xattr_pfn:
        return
    attrs = _current(fs, edit)
    if attrs.pop(CAPABILITY, None) is not None:
        store(tx, fs, edit, attrs)
