# SPDX-License-Identifier: MIT
"""The client on real mounts: map_file, and programs as they are under `daxfs run`.

What decides are counters of `daxfs stat`: pages that an fsync flushed, mappings that the daemon knows, fsyncs
that had to take all. A program that says it ended (exit) leaves nothing for the daemon to guess about.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import loops
import mounts
import numpy as np
import pytest
from observekit import HUGE, MIB, PAGE, SIZE
from test_xfs_io import NO_FSXATTR, NOISE, SCRIPTS

from daxfs.client import PRELOAD, map_file, why_no_user_faults
from daxfs.fuse import observing

pytestmark = [pytest.mark.mount,
              pytest.mark.skipif(mounts.KERNEL < (6, 11), reason="no PROCMAP_QUERY before kernel 6.11")]
BY_URING = True
HERE = Path(__file__).parent


def run(*words, **kwargs):
    done = mounts.run([mounts.command("daxfs"), "run", "--", *words], timeout=120, check=False, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def settled(syncs) -> None:
    """Nothing is left of clients: they said so themselves, and nobody had to guess."""
    syncs.becomes(mappings=0, clients=0)
    facts = syncs.stat()
    assert all(facts[name] == syncs.before[name] for name in ("given_up", "gone", "ended")), facts


# -- Python -----------------------------------------------------------------------------------


def test_exactly_what_was_stored(mount, path, syncs):
    array = map_file(path, pte=True, require=True)
    assert array.observed and array.why_not == "" and array.flush_kind != "msync"
    assert array.dirty() == []
    array[5 * PAGE + 7] = 1
    array[9 * PAGE : 11 * PAGE] = 2
    assert array.dirty() == [(5 * PAGE, 6 * PAGE), (9 * PAGE, 11 * PAGE)]
    assert array[9 * PAGE + 100 :].dirty() == [(0, 2 * PAGE - 100)]
    array[9 * PAGE + 1 : 9 * PAGE + 2].msync()
    assert array.dirty() == [(5 * PAGE, 6 * PAGE), (10 * PAGE, 11 * PAGE)]
    array.persist(slice(10 * PAGE, 11 * PAGE))
    assert len(array.dirty()) == 2  # persist takes no mark
    assert syncs() == 2 and array.dirty() == []  # nor does it take a page from fsync
    array[0] = 1
    array.msync()
    assert array.dirty() == [] and syncs() == 0 and not syncs.coarse()
    del array
    settled(syncs)


def test_huge_pages(mount, path, syncs):
    array = map_file(path, require=True)
    assert array.ctypes.data % HUGE == 0
    array[::HUGE] = 1
    array.msync()
    array[3 * HUGE + 5] = 1
    wanted = [(3 * HUGE, 4 * HUGE)] if mount.huge else [(3 * HUGE, 3 * HUGE + PAGE)]
    assert array.dirty() == wanted
    array[3 * HUGE + 2 * PAGE] = 1
    array.msync(slice(3 * HUGE, 3 * HUGE + 1))  # a huge page is one
    assert array.dirty() == ([] if mount.huge else [(3 * HUGE + 2 * PAGE, 3 * HUGE + 3 * PAGE)])
    array.msync()
    assert syncs() == 0
    del array
    settled(syncs)


@pytest.mark.parametrize("fault", ["kernel", "user"])
@pytest.mark.parametrize("how", [["fallocate", "-p", "-o", HUGE + 10 * PAGE, "-l", PAGE],
                                 ["truncate", "-s", HUGE + 100 * PAGE]],
                         ids=["hole", "truncate"])  # fmt: skip
def test_a_huge_page_that_another_process_cuts(mount, path, fault, how):
    """What was stored to the rest of it no msync can find any more: it is durable before one can return."""
    if not mount.huge:
        pytest.skip("pages of 4 KiB keep their marks")
    if fault == "user" and why_no_user_faults():
        pytest.skip(why_no_user_faults())
    array = map_file(path, "r+", fault=fault, require=True)
    array[HUGE] = 1
    array.msync()
    array[HUGE + PAGE] = 7
    before = mount.stat()["flush"]
    mounts.run([*how, path])
    after = mount.stat()["flush"]
    assert array[HUGE + PAGE] == 7
    assert after["flush_lines"] - before["flush_lines"] >= 99 * PAGE // 64
    assert after["drain"] > before["drain"]
    array.msync()
    array.close()


def test_two_mappings_and_both_ways(mount, path):
    one, two = map_file(path, dtype="<u4"), map_file(path, "r", PAGE, 10, "<u4")
    one[PAGE // 4] = 77
    assert two[0] == 77 and one.observed and not two.observed and "loads alone" in two.why_not
    with open(path, "r+b", buffering=0) as file:
        file.write(b"\1\0\0\0")
    assert one[0] == 1 and np.fromfile(path, "<u4", 1)[0] == 1


def test_a_child_by_fork(mount, path, syncs):
    array = map_file(path, pte=True)
    array[PAGE] = 1
    pid = os.fork()
    if not pid:
        status = 1
        try:
            array[3 * PAGE] = 3
            if array.dirty() == [(3 * PAGE, 4 * PAGE)]:
                array.msync()
                status = len(array.dirty())
                array[7 * PAGE] = 7
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert array.dirty() == [(PAGE, 2 * PAGE)] and array[7 * PAGE] == 7
    # The child ended without a word, so that all it had mapped counts: three pages have data.
    assert syncs() == 3
    assert syncs() == 0


def test_threads(path):
    array = map_file(path, pte=True)

    def store(number):
        mine = array[number * PAGE : (number + 1) * PAGE]
        for i in range(300):
            mine[i] = i % 251
            mine.msync()
            assert mine.dirty() == []

    threads = [threading.Thread(target=store, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes()[2 * PAGE : 2 * PAGE + 250] == bytes(range(250)) and array.dirty() == []


def test_files_without_the_flag(mount):
    path = mount.path / "plain"
    path.write_bytes(bytes(PAGE))
    mounts.set_dax(path, False)
    array = map_file(path)
    assert not array.observed and "not mapped directly" in array.why_not
    array[:5] = list(b"hello")
    array.persist()
    del array
    assert path.read_bytes()[:5] == b"hello"
    path.unlink()


def test_what_is_not_observed_is_taken_whole(mount, path, syncs):
    """A handle that never promised anything keeps fsync coarse, beside one that did."""
    array = map_file(path, pte=True)
    array[0] = 1
    assert not syncs.coarse()
    with open(path, "r+b"):
        assert syncs.coarse()


@pytest.mark.parametrize("fault", ["kernel", "user"])
def test_a_file_system_that_tracks_stores_needs_no_observing(fault):
    with loops.LoopMount("ext4", 256 * MIB) as below, mounts.MountedRegion(
            64 * MIB, kind="pool", source=below.path / "pool", transport="dev") as one:
        file = one.mount().path / "file"
        file.touch()
        mounts.set_dax(file)
        os.truncate(file, SIZE)
        with pytest.raises(OSError) as caught:
            map_file(file, require=True, fault=fault)
        assert caught.value.errno == errno.EOPNOTSUPP
        array = map_file(file, fault=fault)
        assert not array.observed and "tracks stores by itself" in array.why_not
        assert array.flush_kind == "msync"
        array[5 * PAGE] = 1
        array.persist(slice(5 * PAGE, 5 * PAGE + 1))
        with open(file, "r+b") as handle:
            os.fsync(handle.fileno())
            facts = one.stat()["dax"]
            assert facts["direct"] == 1 and facts["coarse_fsyncs"] == facts["observed"]["mappings"] == 0
            for mode in (observing.MODE_KERNEL, observing.MODE_USER):  # also who asks by hand
                request = observing.OBSERVE_IO.pack(observing.VERSION, mode, 0, 3, array.ctypes.data, PAGE,
                                                    *[0] * 5)
                with pytest.raises(OSError) as caught:
                    fcntl.ioctl(handle, observing.OBSERVE, request)
                assert caught.value.errno == errno.EOPNOTSUPP
        del array


# -- programs as they are ---------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("fio"), reason="fio is not installed")
@pytest.mark.parametrize("fsync", ["--fsync=8", "--end_fsync=1"])
def test_fio(mount, path, syncs, fsync):
    words = ["fio", "--name=x", f"--filename={path}", "--ioengine=mmap", "--size=8m", "--bs=4k",
             "--randseed=3", "--verify=crc32c", "--verify_state_save=0", "--output-format=json"]  # fmt: skip
    out = run(*words, "--rw=randwrite", fsync, "--do_verify=1", "--verify_fatal=1")
    (job,) = json.loads(out[out.index("{") :])["jobs"]
    assert job["error"] == 0 and job["write"]["io_bytes"] == SIZE == job["read"]["io_bytes"]
    settled(syncs)
    assert not syncs.coarse(), "each of its handles has promised that its mappings are observed"
    # What is there is there by read(2), too.
    mounts.run([*words, "--ioengine=psync", "--rw=read", "--do_verify=1", "--verify_fatal=1"])


@pytest.mark.skipif(not shutil.which("xfs_io"), reason="xfs_io is not installed")
@pytest.mark.parametrize("script", [
    SCRIPTS["mmap"], SCRIPTS["two_mappings"],
    ["truncate 64k", "mmap -rw 0 64k", "mwrite -S 0x41 5000 12", "msync -s 4096 4096", "mremap -m 128k",
     "truncate 128k", "mwrite -S 0x42 70000 12", "msync -s", "mremap 4096", "mwrite -S 0x43 0 5", "msync -a",
     "msync -i", "madvise -d", "mread -v 0 16", "munmap", "fsync", "pread -v 70000 16"]])  # fmt: skip
def test_xfs_io(mount, path, syncs, script):
    outputs, bodies = [], []
    oracle = Path(f"/dev/shm/{mounts.PREFIX}client-oracle")
    oracle.write_bytes(bytes(SIZE))
    try:
        for file, words in ((oracle, []), (path, [mounts.command("daxfs"), "run", "--"])):
            done = mounts.run([*words, "xfs_io", *(w for text in script for w in ("-c", text)), file])
            lines = (done.stdout + done.stderr).splitlines()
            outputs.append([line for line in lines if not NOISE.search(line) and not NO_FSXATTR.match(line)])
            bodies.append(file.read_bytes())
    finally:
        oracle.unlink()
    assert outputs[0] == outputs[1] and bodies[0] == bodies[1]
    settled(syncs)
    assert not syncs.coarse()


MEMMAP = """
import os, sys, numpy as np
a = np.memmap(sys.argv[1], "u1", "r+")
a[:: 4096 * 512] = 1
a.flush()
fd = os.open(sys.argv[1], os.O_RDONLY)
if os.fork() == 0:
    a[4096] = 2
    a.flush()
    sys.exit()
assert os.wait()[1] == 0 and a[4096] == 2
a[3 * 4096] = 3
"""


def test_numpy_memmap(mount, path, syncs):
    run(sys.executable, "-c", MEMMAP, path)
    settled(syncs)
    assert path.read_bytes()[3 * PAGE] == 3
    assert syncs() == 0  # exit has written back what was left, and said so


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_msync_asks_the_daemon_nothing(mount, path, tmp_path):
    code = ("import mmap, sys\nf = open(sys.argv[1], 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n"
            "for i in range(200):\n    m[i * 4096] = 1\n    m.flush()\n")
    out = tmp_path / "strace"
    mounts.run(["strace", "-f", "-e", "trace=ioctl,msync", "-o", out, "-E", f"LD_PRELOAD={PRELOAD}",
                sys.executable, "-S", "-c", code, path])
    text = out.read_text()
    asked = re.findall(r"0xda, (?:0x)?(\d)", text)
    assert sorted(asked) == ["0", "1", "2"], text[:2000]  # about, observe, forget
    assert text.count("msync(") == 0 and len(re.findall(r"_IOC.*0x66, 0x10|PAGEMAP_SCAN", text)) >= 200


@pytest.fixture(scope="module")
def threads_program(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("client") / "threads"
    mounts.run(["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-I", HERE.parents[1],
                "-o", target, HERE / "client_threads.c"])
    return target


@pytest.mark.parametrize("seed", [1, 2])
def test_threads_that_map_and_fork(mount, path, syncs, threads_program, seed):
    run(threads_program, path, 3000, seed)
    settled(syncs)
    syncs()
    assert syncs() == 0


def test_exec_writes_back(mount, path, syncs):
    code = ("import mmap, os, sys\nf = open(sys.argv[1], 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n"
            "m[0] = 1\nm.flush()\nm[8192] = 5\nos.execv('/bin/true', ['true'])\n")
    run(sys.executable, "-c", code, path)
    settled(syncs)
    assert path.read_bytes()[8192] == 5 and syncs() == 0


def test_a_killed_program_loses_nothing(mount, path, syncs):
    code = ("import mmap, os, sys\nf = open(sys.argv[1], 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n"
            "m[0] = 1\nm.flush()\nm[5] = 6\nos.kill(os.getpid(), 9)\n")
    words = [mounts.command("daxfs"), "run", "--", sys.executable, "-c", code, path]
    assert subprocess.run(words, check=False).returncode == -9
    syncs.becomes(mappings=0)
    assert syncs() == (512 if mount.huge else 1) and path.read_bytes()[5] == 6
