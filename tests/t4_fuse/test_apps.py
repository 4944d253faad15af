# SPDX-License-Identifier: MIT
"""Programs that people use, on the mount: sqlite, git, a C compiler, numpy, tar, rsync, shelve.

Each helper takes a directory, works in it and asserts what the program promises;
they run on any mount point (``pytest --target DIR``).
"""

import dbm.dumb
import os
import random
import shelve
import shutil
import sqlite3
import subprocess
import sys

import mounts
import numpy as np
import pytest
from load_model import scan

pytestmark = [pytest.mark.mount, pytest.mark.transports]


def need(program):
    return pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed")


def insert(db, rows: int) -> None:
    """A table t of so many rows, by several transactions."""
    db.execute("create table t (id integer primary key, body blob)")
    for start in range(0, rows, 500):
        db.execute("begin")
        db.executemany("insert into t values (?, ?)", ((i, bytes([i % 256]) * 700)
                                                       for i in range(start, start + 500)))
        db.execute("commit")


def sqlite_fill(path, rows=2000):
    """Write *rows* in WAL mode by several transactions, with a rollback, beside a reading process."""
    file = path / "data.db"
    db = sqlite3.connect(file, isolation_level=None)
    assert db.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    db.execute("pragma synchronous=full")
    db.execute("pragma mmap_size=1048576")
    insert(db, rows)
    db.execute("begin")
    db.execute("delete from t")
    db.execute("rollback")
    # The wal-index is shared memory in a file: another process must see the rows through its mapping.
    reader = ("import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
              "print(db.execute('select count(*) from t').fetchone()[0])")
    count = mounts.run([sys.executable, "-c", reader, file]).stdout
    assert int(count) == rows
    assert (path / "data.db-wal").exists()
    return file, db


def sqlite_check(file, rows=2000):
    """Open the database anew: sound, with every row and its bytes."""
    db = sqlite3.connect(file)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    wrong = [i for i, body in db.execute("select id, body from t") if body != bytes([i % 256]) * 700]
    assert not wrong
    assert db.execute("select count(*) from t").fetchone() == (rows,)
    db.close()


def test_sqlite_wal(target, reopen):
    file, db = sqlite_fill(target)
    db.close()
    sqlite_check(file)
    reopen()
    sqlite_check(file)


def test_sqlite_two_writers(target):
    """Two processes add rows at the same time: the locks work, no row is lost."""
    file = target / "two.db"
    db = sqlite3.connect(file)
    db.execute("pragma journal_mode=wal")
    db.execute("create table t (who integer, n integer)")
    db.commit()
    code = ("import sqlite3,sys\ndb=sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
            "for n in range(100): db.execute('insert into t values (?,?)', (int(sys.argv[2]), n))\n")
    procs = [subprocess.Popen([sys.executable, "-c", code, file, str(who)]) for who in range(2)]
    assert [proc.wait(60) for proc in procs] == [0, 0]
    assert db.execute("select count(*), count(distinct who * 1000 + n) from t").fetchone() == (200, 200)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()


def git(where, *args):
    env = {**os.environ, "HOME": str(where), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": "1",
           "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "Test", f"GIT_{role}_EMAIL": "test@example.org"}
    return mounts.run(["git", "-C", where, *args], env=env).stdout


def git_history(path, commits=5):
    """A repository with some commits, packed by gc. Its directory."""
    repo = path / "repo"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    rng = random.Random(3)
    for number in range(commits):
        for name in range(12):
            folder = repo / f"d{name % 4}"
            folder.mkdir(exist_ok=True)
            (folder / f"f{name}").write_bytes(rng.randbytes(rng.randrange(20000)))
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", f"commit {number}")
    return repo


@need("git")
def test_git(target, reopen):
    repo = git_history(target)
    git(repo, "gc", "-q", "--aggressive", "--prune=now")
    reopen()
    git(repo, "fsck", "--full", "--strict")
    assert git(repo, "status", "--porcelain") == ""
    assert len(git(repo, "log", "--format=%H").split()) == 5
    git(target, "clone", "-q", "--no-local", "repo", "clone")
    assert git(target / "clone", "rev-parse", "HEAD") == git(repo, "rev-parse", "HEAD")
    git(target / "clone", "fsck", "--full", "--strict")
    git(repo, "checkout", "-q", "HEAD~3")
    assert git(repo, "status", "--porcelain") == ""


C_FILES = {
    "sum.h": "long sum(const long *values, int count);\n",
    "sum.c": '#include "sum.h"\n'
             'long sum(const long *v, int n) { long s = 0; while (n--) s += v[n]; return s; }\n',
    "main.c": '#include <stdio.h>\n#include "sum.h"\nint main(void) { long v[1000]; '
              'for (int i = 0; i < 1000; i++) v[i] = i; printf("%ld\\n", sum(v, 1000)); return 0; }\n',
}


@need("gcc")
def test_c_compile(target, reopen):
    """Compile, archive, link (static and shared) and run from the mount, also after a fresh mount."""
    for name, text in C_FILES.items():
        (target / name).write_text(text)
    run = mounts.run
    run(["gcc", "-O1", "-g", "-c", "-o", target / "main.o", target / "main.c"])
    run(["gcc", "-O1", "-g", "-fPIC", "-c", "-o", target / "sum.o", target / "sum.c"])
    run(["ar", "rcs", target / "libsum.a", target / "sum.o"])
    run(["gcc", "-shared", "-o", target / "libsum.so", target / "sum.o"])
    run(["gcc", "-o", target / "static", target / "main.o", target / "libsum.a"])
    run(["gcc", "-o", target / "shared", target / "main.o", f"-L{target}", "-lsum", f"-Wl,-rpath,{target}"])
    for _ in range(2):
        assert run([target / "static"]).stdout == "499500\n"
        assert run([target / "shared"]).stdout == "499500\n"
        reopen()


def test_numpy_memmap(target, reopen):
    """Stores through a shared mapping are seen by read(2) after flush, and by the next mount."""
    file = target / "array"
    array = np.memmap(file, dtype="<u4", mode="w+", shape=(300, 1000))
    array[:] = np.arange(300_000, dtype="<u4").reshape(300, 1000)
    array.flush()
    assert np.array_equal(np.fromfile(file, "<u4"), np.arange(300_000))
    array[150, ::7] = 0xFFFFFFFF
    array.flush()
    want = np.array(array)
    del array
    with open(file, "r+b") as stream:
        stream.seek(4)
        stream.write(b"\1\2\3\4")
    want[0, 1] = 0x04030201
    again = np.memmap(file, dtype="<u4", mode="r", shape=(300, 1000))
    assert np.array_equal(again, want)
    del again
    reopen()
    assert np.array_equal(np.memmap(file, dtype="<u4", mode="c", shape=(300, 1000)), want)


def test_private_mapping_changes_nothing(target):
    file = target / "array"
    np.arange(10_000, dtype="<u4").tofile(file)
    array = np.memmap(file, dtype="<u4", mode="c")
    array[:] = 0
    array.flush()
    assert np.array_equal(np.fromfile(file, "<u4"), np.arange(10_000))


def make_tree(path):
    """A tree with hard links, symlinks, sparse files, xattrs, odd modes and names."""
    path.mkdir()
    rng = random.Random(4)
    for number in range(20):
        folder = path / f"dir{number % 3}" / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(rng.randbytes(rng.randrange(30000)))
        (folder / f"file{number}").chmod(rng.choice((0o644, 0o600, 0o755, 0o440)))
        os.setxattr(folder / f"file{number}", "user.note", rng.randbytes(rng.randrange(1, 300)))
    with open(path / "sparse", "wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    os.link(path / "sparse", path / "dir0" / "other name of sparse")
    os.symlink("../dir1/deeper", path / "dir2" / "link")
    os.mkfifo(path / "fifo")
    (path / b"\xff\xfe not utf-8".decode(errors="surrogateescape")).write_bytes(b"x")


def same_trees(left, right):
    """Both trees hold the same, the inode numbers and the times of directories apart."""
    trees = []
    for root in (left, right):
        tree = scan(root)
        for item in tree.values():
            item.ino = 0
            item.mtime_ns = item.mtime_ns if item.kind == "file" else 0
            item.size = item.size if item.kind == "file" else 0
        trees.append(tree)
    assert trees[0] == trees[1]
    assert trees[0]


@need("tar")
@need("setfattr")
def test_tar_round_trip(target, tmp_path, reopen):
    """Packed on another file system, unpacked here; packed here, unpacked there."""
    make_tree(tmp_path / "tree")
    flags = ["--xattrs", "--xattrs-include=user.*", "--sparse"]
    mounts.run(["tar", *flags, "-cf", target / "in.tar", "-C", tmp_path, "tree"])
    mounts.run(["tar", *flags, "-xpf", target / "in.tar", "-C", target])
    reopen()
    same_trees(tmp_path / "tree", target / "tree")
    assert os.stat(target / "tree" / "sparse").st_blocks * 512 < 4 << 20
    mounts.run(["tar", *flags, "-cf", tmp_path / "out.tar", "-C", target, "tree"])
    (tmp_path / "back").mkdir()
    mounts.run(["tar", *flags, "-xpf", tmp_path / "out.tar", "-C", tmp_path / "back"])
    same_trees(tmp_path / "tree", tmp_path / "back" / "tree")


def test_cp_archive(target, tmp_path):
    make_tree(tmp_path / "tree")
    mounts.run(["cp", "-a", "--sparse=always", tmp_path / "tree", target / "copy"])
    same_trees(tmp_path / "tree", target / "copy")
    mounts.run(["cp", "-a", target / "copy", target / "second"])
    same_trees(tmp_path / "tree", target / "second")
    mounts.run(["diff", "-r", "--exclude=fifo", target / "copy", target / "second"])


@need("rsync")
def test_rsync(target, tmp_path):
    make_tree(tmp_path / "tree")
    mounts.run(["rsync", "-aHXS", f"{tmp_path}/tree/", f"{target}/copy/"])
    same_trees(tmp_path / "tree", target / "copy")
    (tmp_path / "tree" / "dir0" / "deeper" / "file0").write_bytes(b"changed")
    (tmp_path / "tree" / "dir1" / "deeper" / "file1").unlink()
    mounts.run(["rsync", "-aHXS", "--delete", "--checksum", f"{tmp_path}/tree/", f"{target}/copy/"])
    same_trees(tmp_path / "tree", target / "copy")


def test_shelve_and_dbm(target, reopen):
    want = {f"key{i}": list(range(i)) for i in range(200)}
    with shelve.open(str(target / "shelf")) as shelf:
        shelf.update(want)
    with dbm.dumb.open(str(target / "dumb"), "n") as table:
        for key in want:
            table[key] = key * 3
    reopen()
    with shelve.open(str(target / "shelf")) as shelf:
        assert dict(shelf) == want
    with dbm.dumb.open(str(target / "dumb"), "r") as table:
        assert {key.decode() for key in table.keys()} == set(want)
        assert table["key7"] == b"key7" * 3
