# SPDX-License-Identifier: MIT
"""Programs that live on mappings, on DAX files: numpy, sqlite, LMDB, fio with mmap and libpmem, git.

Each ends with a fresh mount that has all of it, and fsck.daxfs that finds nothing.
"""

import functools
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys

import lmdb
import mounts
import numpy as np
import pytest
from test_apps import git, git_history, insert, sqlite_check
from test_fio import fio

pytestmark = pytest.mark.mount
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["uring", pytest.param("dev", marks=pytest.mark.slow),
                                        pytest.param("pyfuse3", marks=pytest.mark.slow)])
def region(request):
    """A mount whose files have the DAX flag. With pyfuse3 they are mapped by way of the page cache."""
    only = request.config.getoption("--transport")
    reason = mounts.why_no_transport(request.param) or (only not in (None, request.param) and f"not {only}")
    if reason:
        pytest.skip(reason)
    with mounts.MountedRegion(128 * mounts.MIB, pool="always", transport=request.param) as region:
        yield region.mount()


@pytest.fixture
def target(region):
    """A directory of its own; when the test is over, fsck.daxfs finds nothing on what it left."""
    path = region.path / f"app{next(_numbers)}"
    path.mkdir()
    yield path
    shutil.rmtree(path)
    region.umount()
    checked = region.fsck("-n")
    region.mount()
    assert checked.returncode == 0, checked.stdout
    assert not list((region.source / "ranges").iterdir()), "ranges of files that are gone"


@pytest.fixture
def fresh(region):
    """Call it for a fresh mount, with fsck.daxfs in between."""
    def reopen():
        region.umount()
        checked = region.fsck("-n")
        assert checked.returncode == 0, checked.stdout
        region.mount()
    return reopen


def test_numpy(target, fresh):
    """An array of 12 MiB, changed by two processes; read(2) and the next mount see every element."""
    array = np.memmap(target / "array", dtype="<u8", mode="w+", shape=(1500, 1024))
    array[:] = np.arange(1500 * 1024, dtype="<u8").reshape(1500, 1024)
    code = ("import sys, numpy as np\n"
            "array = np.memmap(sys.argv[1], dtype='<u8', mode='r+', shape=(1500, 1024))\n"
            "assert array[1499, 1023] == 1500 * 1024 - 1\narray[::3] += 5\n")
    mounts.run([sys.executable, "-c", code, target / "array"])
    want = np.arange(1500 * 1024, dtype="<u8").reshape(1500, 1024)
    want[::3] += 5
    assert np.array_equal(array, want)
    array.flush()
    del array
    assert np.array_equal(np.fromfile(target / "array", "<u8"), want.ravel())
    fresh()
    assert np.array_equal(np.memmap(target / "array", dtype="<u8", mode="r", shape=(1500, 1024)), want)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_mapped(target, fresh, journal):
    """PRAGMA mmap_size above the size of the file: pages are read through the mapping while it grows."""
    file = target / "data.db"
    db = sqlite3.connect(file, isolation_level=None)
    assert db.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
    assert db.execute("pragma mmap_size=268435456").fetchone() == (268435456,)
    insert(db, 2000)
    db.execute("create table scratch as select * from t")
    db.execute("drop table scratch")
    db.execute("vacuum")  # the file gets shorter under the mapping
    reader = ("import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
              "db.execute('pragma mmap_size=268435456'); "
              "print(db.execute('select count(*), sum(length(body)) from t').fetchone())")
    assert mounts.run([sys.executable, "-c", reader, file]).stdout == "(2000, 1400000)\n"
    db.close()
    sqlite_check(file)
    fresh()
    sqlite_check(file)


@pytest.mark.parametrize("writemap", [False, True], ids=["write", "writemap"])
def test_lmdb(target, fresh, writemap):
    """Transactions of two processes, one aborted, one killed within: what was committed is there."""
    open_it = functools.partial(lmdb.open, str(target / "db"), map_size=32 << 20, writemap=writemap)
    code = ("import lmdb, os, sys\n"
            f"env = lmdb.open(sys.argv[1], map_size=32 << 20, writemap={writemap})\n"
            "with env.begin(write=True) as txn:\n"
            "    for n in range(500): txn.put(b'child%d' % n, b'c' * 300)\n"
            "txn = env.begin(write=True)\n"
            "for n in range(300): txn.put(b'never%d' % n, b'x' * 3000)\n"
            "os.kill(os.getpid(), 9)\n")
    with open_it() as env:
        for start in range(0, 2000, 500):
            with env.begin(write=True) as txn:
                for number in range(start, start + 500):
                    txn.put(b"key%06d" % number, bytes([number % 256]) * (number % 900))
        txn = env.begin(write=True)
        txn.put(b"aborted", b"x")
        txn.abort()
        child = subprocess.run([sys.executable, "-c", code, target / "db"], check=False, timeout=60)
        assert child.returncode == -9
        with env.begin() as txn:
            assert txn.stat()["entries"] == 2500
        with env.begin(write=True) as txn:
            txn.delete(b"child0")
    fresh()
    with open_it(readonly=True, lock=True) as env, env.begin() as txn:
        assert txn.stat()["entries"] == 2499
        assert all(txn.get(b"key%06d" % n) == bytes([n % 256]) * (n % 900) for n in range(2000))
        assert txn.get(b"aborted") is None and txn.get(b"never1") is None and len(txn.get(b"child9")) == 300


FIO_VERIFY = ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1"]


def engines():
    """The engines of this host's fio."""
    return mounts.run(["fio", "--enghelp"]).stdout.split() if shutil.which("fio") else []


@pytest.mark.parametrize("engine", ["mmap", "libpmem"])
def test_fio(target, fresh, engine, monkeypatch):
    """Random writes through the mapping, verified, and verified again after a fresh mount by read(2)."""
    if engine not in engines():
        pytest.skip(f"no fio with ioengine={engine}")
    # MAP_SYNC can't be had on FUSE (EOPNOTSUPP), without which libpmem wants to be told.
    monkeypatch.setenv("PMEM_IS_PMEM_FORCE", "1")
    args = ["--size=8m", "--bs=4k", "--iodepth=1", *FIO_VERIFY]
    if engine == "libpmem":
        args += ["--direct=1", "--thread", "--sync=1"]
    job = fio(target, "map", f"--ioengine={engine}", "--rw=randwrite", *args)
    assert job["write"]["io_bytes"] == 8 << 20 and job["read"]["io_bytes"] == 8 << 20
    fresh()
    for other in ("psync", "mmap"):
        job = fio(target, "map", f"--ioengine={other}", "--rw=read", "--size=8m", "--bs=4k", *FIO_VERIFY)
        assert job["read"]["io_bytes"] == 8 << 20 and job["write"]["io_bytes"] == 0


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git(target, fresh):
    """History, gc (packs are mapped), a clone, a checkout."""
    repo = git_history(target, commits=3)
    git(repo, "gc", "-q", "--aggressive", "--prune=now")
    git(target, "clone", "-q", "--no-local", "repo", "clone")
    fresh()
    for tree in (repo, target / "clone"):
        git(tree, "fsck", "--full", "--strict")
        assert git(tree, "status", "--porcelain") == ""
    assert git(target / "clone", "rev-parse", "HEAD") == git(repo, "rev-parse", "HEAD")


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_programs(target, fresh):
    """A program and its library, linked on the mount by stores to a mapping (ld does so) and run."""
    (target / "l.c").write_text("int answer(void) { return 42; }\n")
    (target / "m.c").write_text("int answer(void);\nint main(void) { return answer(); }\n")
    mounts.run(["gcc", "-shared", "-fPIC", "-o", target / "liba.so", target / "l.c"])
    mounts.run(["gcc", "-o", target / "prog", target / "m.c", f"-L{target}", "-la", f"-Wl,-rpath,{target}"])
    for _ in range(2):
        assert subprocess.run([target / "prog"], check=False).returncode == 42
        fresh()
    assert os.access(target / "prog", os.X_OK)
