# SPDX-License-Identifier: MIT
"""Extended attributes: values, limits, errors, and their agreement with the mode."""

import errno

import oracle
import pytest

from daxfs import layout as L
from daxfs.errors import CorruptError, DaxfsError
from daxfs.meta import acl, attr, xattr
from daxfs.meta import namespace as ns
from daxfs.pfn import PAGE_SHIFT

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
FULL = [(1, 6, 0), (2, 4, 1000), (4, 4, 0), (16, 4, 0), (32, 0, 0)]


def make(fs, name=b"f", mode=0o100644):
    return ns.create(fs, L.ROOT_INO, name, mode, ns.ROOT).ino


def code(call, *args):
    with pytest.raises(DaxfsError) as caught:
        call(*args)
    return caught.value.errno


def all_of(fs, ino):
    return {name: xattr.get(fs, ino, name) for name in xattr.names(fs, ino)}


def test_values_of_all_sizes_survive(small_fs, crash_copy):
    fs, ino, model = small_fs, make(small_fs), {}
    for n in (0, 1, 7, 8, 100, 4000, 4096, 20000):
        for prefix in (b"user.", b"trusted.", b"security."):
            name = prefix + b"n%d" % n
            model[name] = bytes(i * n % 251 for i in range(n))
            xattr.put(fs, ino, name, model[name])
    assert all_of(fs, ino) == model == all_of(crash_copy(fs), ino)
    oracle.check(fs)
    for name in list(model):
        xattr.remove(fs, ino, name)
        del model[name]
        assert all_of(fs, ino) == model
    assert fs.inodes.read(ino).xattr_pfn == 0 and fs.inodes.read(ino).blocks == 0
    oracle.check(fs)


def test_longest_names(small_fs):
    fs, ino = small_fs, make(small_fs)
    for prefix in (b"user.", b"trusted.", b"security."):
        name = prefix + b"n" * (255 - len(prefix))
        xattr.put(fs, ino, name, b"v")
        assert xattr.get(fs, ino, name) == b"v"
        assert code(xattr.put, fs, ino, name + b"n", b"v") == errno.ERANGE


def test_errors(small_fs):
    fs, ino = small_fs, make(small_fs)
    assert code(xattr.get, fs, ino, b"user.a") == errno.ENODATA
    assert code(xattr.remove, fs, ino, b"user.a") == errno.ENODATA
    assert code(xattr.put, fs, ino, b"user.a", b"", xattr.REPLACE) == errno.ENODATA
    xattr.put(fs, ino, b"user.a", b"1", xattr.CREATE)
    assert code(xattr.put, fs, ino, b"user.a", b"", xattr.CREATE) == errno.EEXIST
    xattr.put(fs, ino, b"user.a", b"2", xattr.REPLACE)
    assert xattr.get(fs, ino, b"user.a") == b"2"
    assert code(xattr.put, fs, ino, b"user.", b"") == errno.EINVAL
    assert code(xattr.put, fs, ino, b"system.other", b"") == errno.EOPNOTSUPP
    assert code(xattr.put, fs, ino, b"user.big", bytes(xattr.VALUE_MAX + 1)) == errno.E2BIG
    assert all_of(fs, ino) == {b"user.a": b"2"}


def test_total_limit_and_enospc_leave_the_old_value(small_fs):
    fs, ino = small_fs, make(small_fs)
    xattr.put(fs, ino, b"user.a", b"x" * 60000)
    xattr.put(fs, ino, b"user.b", b"y" * 60000)
    before, free = all_of(fs, ino), fs.alloc.free_pages + fs.alloc.held
    for n in range(3):
        try:
            xattr.put(fs, ino, b"user.c%d" % n, b"z" * 65536)
        except DaxfsError as error:
            assert error.errno == errno.ENOSPC
            break
        before, free = all_of(fs, ino), fs.alloc.free_pages + fs.alloc.held
    else:
        pytest.fail("no limit found")
    assert all_of(fs, ino) == before and fs.alloc.free_pages + fs.alloc.held == free
    oracle.check(fs)


def test_remove_and_chmod_work_on_a_full_region(small_fs, crash_copy):
    fs, ino = small_fs, make(small_fs)
    xattr.put(fs, ino, b"user.a", b"x" * 9000)
    xattr.put(fs, ino, b"user.b", b"y")
    xattr.put(fs, ino, ACCESS, acl.pack(FULL))
    tx = fs.begin()
    tx.alloc(fs.alloc.free_pages + fs.alloc.held)
    assert code(xattr.put, fs, ino, b"user.c", b"z" * 9000) == errno.ENOSPC
    attr.setattr(fs, ino, {"mode": 0o600})
    xattr.remove(fs, ino, b"user.a")
    assert fs.alloc.held == 2 and fs.inodes.read(ino).xattr_pages == 1
    tx.abort()
    expect = {b"user.b": b"y", ACCESS: acl.pack(acl.with_mode(FULL, 0o600))}
    assert all_of(fs, ino) == expect == all_of(crash_copy(fs), ino)
    oracle.check(fs)


def test_chown_with_chmod_takes_the_capability_away_and_keeps_the_acl_in_step(small_fs):
    """Both change the attributes in one transaction: the second must see what the first did."""
    fs, ino = small_fs, make(small_fs)
    xattr.put(fs, ino, b"security.capability", b"cap")
    xattr.put(fs, ino, ACCESS, acl.pack(FULL))
    attr.setattr(fs, ino, {"uid": 5, "mode": 0o600})
    assert xattr.names(fs, ino) == [ACCESS]
    assert acl.parse(xattr.get(fs, ino, ACCESS))[3] == (acl.MASK, 0, 0)
    oracle.check(fs)


def test_chown_takes_the_last_attribute_away(small_fs):
    fs, ino = small_fs, make(small_fs, mode=0o106755)
    xattr.put(fs, ino, b"security.capability", b"cap")
    attr.setattr(fs, ino, {"gid": 5})
    assert xattr.names(fs, ino) == [] and fs.inodes.read(ino).mode == 0o100755
    oracle.check(fs)


def test_access_acl_and_mode_agree(small_fs):
    fs, ino = small_fs, make(small_fs, mode=0o104777)
    xattr.put(fs, ino, ACCESS, acl.pack(FULL))
    assert fs.inodes.read(ino).mode == 0o104640
    attr.setattr(fs, ino, {"mode": 0o751})
    assert fs.inodes.read(ino).mode == 0o100751
    assert acl.equivalent_mode(acl.parse(xattr.get(fs, ino, ACCESS)))[0] == 0o751
    xattr.put(fs, ino, ACCESS, acl.pack([(1, 7, 0), (4, 5, 0), (32, 5, 0)]))
    assert fs.inodes.read(ino).mode == 0o100755 and xattr.names(fs, ino) == []
    assert code(xattr.put, fs, ino, DEFAULT, acl.pack(FULL)) == errno.EACCES
    assert code(xattr.put, fs, ino, ACCESS, b"junk") == errno.EINVAL


def test_default_acl_is_inherited(small_fs):
    fs, ino = small_fs, make(small_fs, b"d", 0o040755)
    xattr.put(fs, ino, DEFAULT, acl.pack(FULL))
    child = ns.create(fs, ino, b"f", 0o100666, ns.ROOT)
    assert child.mode == 0o100640 and xattr.names(fs, child.ino) == [ACCESS]
    sub = ns.create(fs, ino, b"d", 0o040777, ns.ROOT)
    assert set(xattr.names(fs, sub.ino)) == {ACCESS, DEFAULT}
    link = ns.create(fs, ino, b"l", 0o120777, ns.ROOT, target=b"t")
    assert xattr.names(fs, link.ino) == []
    xattr.put(fs, ino, DEFAULT, acl.pack([]))
    assert xattr.names(fs, ino) == []
    oracle.check(fs)


@pytest.mark.parametrize("kind", [0o100000, 0o040000, 0o010000, 0o120000])
def test_umask_is_for_what_no_default_acl_decides(small_fs, kind):
    fs, who = small_fs, ns.Creds(0, 0, 0o027)
    mode = ns.create(fs, L.ROOT_INO, b"plain", kind | 0o777, who, target=b"t" * (kind == 0o120000)).mode
    assert mode == kind | (0o777 if kind == 0o120000 else 0o750)
    parent = make(fs, b"d", 0o040755)
    xattr.put(fs, parent, DEFAULT, acl.pack([(1, 7, 0), (4, 7, 0), (32, 7, 0)]))
    mode = ns.create(fs, parent, b"x", kind | 0o777, who, target=b"t" * (kind == 0o120000)).mode
    assert mode == kind | 0o777


@pytest.mark.parametrize(
    ("mode", "in_group", "capability", "left"),
    [(0o6755, None, True, (0o6755, False)), (0o6755, None, False, (0o6755, True)),
     (0o6755, True, True, (0o755, False)), (0o2745, True, False, (0o2745, True)),
     (0o2745, False, True, (0o745, False)), (0o755, True, True, (0o755, False))],
)  # fmt: skip
def test_what_a_write_takes_away(small_fs, mode, in_group, capability, left):
    fs, ino = small_fs, make(small_fs, mode=0o100000 | mode)
    node = fs.open(ino)
    for _ in range(2):  # the second time with a known answer in the node
        xattr.put(fs, ino, b"security.capability", b"cap")
        attr.setattr(fs, ino, {"mode": mode})
        attr.drop_privileges(fs, node, None if in_group is None else lambda gid: in_group, capability)
        found = fs.inodes.read(ino).mode & 0o7777, b"security.capability" in xattr.names(fs, ino)
        assert found == left
    before = fs.journal.records
    attr.drop_privileges(fs, node, None if in_group is None else lambda gid: in_group, capability)
    assert fs.journal.records == before, "a record for nothing"
    fs.release(node)


def test_truncation_takes_the_capability_away(small_fs):
    fs, ino = small_fs, make(small_fs)
    xattr.put(fs, ino, b"security.capability", b"cap")
    xattr.put(fs, ino, b"user.a", b"stays")
    attr.setattr(fs, ino, {"size": 0})
    assert xattr.names(fs, ino) == [b"user.a"]
    oracle.check(fs)


def test_unlink_frees_the_run(small_fs):
    fs = small_fs
    free = fs.alloc.free_pages + fs.alloc.held
    ino = make(fs)
    xattr.put(fs, ino, b"user.a", b"x" * 10000)
    ns.unlink(fs, L.ROOT_INO, b"f")
    oracle.check(fs, closed=True)
    assert fs.alloc.free_pages + fs.alloc.held == free


@pytest.mark.parametrize(
    "offset, data", [(0, b"\0"), (8, b"\1"), (16, b"\x63"), (48, b"\xff\xff\xff"), (70, b"?")]
)
def test_damaged_run_is_refused(small_fs, offset, data):
    fs, ino = small_fs, make(small_fs)
    xattr.put(fs, ino, b"user.abc", b"value")
    place = (fs.inodes.read(ino).xattr_pfn << PAGE_SHIFT) + offset
    fs.region.store(place, data)
    with pytest.raises(CorruptError):
        xattr.get(fs, ino, b"user.abc")


@pytest.mark.parametrize(
    "space, name_len, value_len, count", [(9, 3, 5, 1), (1, 200, 5, 1), (1, 3, 4000, 1), (1, 3, 5, 9)]
)
def test_wrong_entries_under_a_right_checksum(small_fs, space, name_len, value_len, count):
    fs, ino = small_fs, make(small_fs)
    xattr.put(fs, ino, b"user.abc", b"value")
    start = fs.inodes.read(ino).xattr_pfn << PAGE_SHIFT
    length = L.BLOCK_FIELDS.struct.unpack_from(fs.mem, start)[8]
    raw = bytearray(fs.mem[start : start + length])
    L.BLOCK_FIELDS.codec["count"].pack_into(raw, L.BLOCK_FIELDS.offset["count"], count)
    L.XATTR_CODEC.pack_into(raw, L.BLOCK_SIZE, space, name_len, 0, value_len)
    fs.region.store(start, L.sealed(raw, 4, fs.seed))
    with pytest.raises(CorruptError):
        xattr.names(fs, ino)
