# SPDX-License-Identifier: MIT
"""fio with verification on the mount: four engines, random and sequential, and again after a fresh mount.

The helpers take a directory and run on any mount point (``pytest --target DIR``).
"""

import json
import shutil

import mounts
import pytest

pytestmark = [pytest.mark.mount, pytest.mark.transports,
              pytest.mark.skipif(not shutil.which("fio"), reason="fio is not installed")]

ENGINES = {
    "psync": ["--ioengine=psync"],
    "psync-direct": ["--ioengine=psync", "--direct=1"],
    "mmap": ["--ioengine=mmap"],
    "libaio": ["--ioengine=libaio", "--direct=1", "--iodepth=8"],
    "io_uring": ["--ioengine=io_uring", "--iodepth=8"],
    "io_uring-direct": ["--ioengine=io_uring", "--direct=1", "--iodepth=8"],
}


def fio(path, name, *args):
    """Run one fio job in *path*; its part of fio's JSON report. Fails on any fio error."""
    done = mounts.run(["fio", f"--name={name}", f"--directory={path}", "--fallocate=none", "--randseed=7",
                       "--output-format=json", "--verify_state_save=0", *args], check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
    assert job["error"] == 0, done.stdout
    return job


def written_and_verified(path, name, engine, rw, size="8m", bs="4k"):
    """Write a file by the pattern *rw*, fsync, read it back and compare checksums."""
    job = fio(path, name, *ENGINES[engine], f"--rw={rw}", f"--size={size}", f"--bs={bs}", "--end_fsync=1",
              "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
    assert job["write"]["io_bytes"] > 0 and job["read"]["io_bytes"] > 0
    return job


def verified_again(path, name, engine, bs="4k"):
    """Read the whole file that ``written_and_verified`` left and check each block's checksum."""
    job = fio(path, name, *ENGINES[engine], "--rw=read", "--size=8m", f"--bs={bs}", "--verify=crc32c",
              "--do_verify=1", "--verify_fatal=1")
    assert job["read"]["io_bytes"] == 8 << 20 and job["write"]["io_bytes"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_random_read_write(target, engine):
    written_and_verified(target, "rw", engine, "randrw")


@pytest.mark.parametrize("engine", ENGINES)
def test_odd_block_sizes(target, engine):
    bs = "4k-64k" if "direct" in engine or engine == "libaio" else "1000-60000"
    job = fio(target, "odd", *ENGINES[engine], "--rw=randwrite", "--size=8m", f"--bsrange={bs}",
              "--bs_unaligned=1" if bs.startswith("1") else "--bs_unaligned=0",
              "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
    assert job["write"]["io_bytes"] > 0


@pytest.mark.slow
def test_written_data_are_there_after_a_fresh_mount(target, reopen):
    for engine in ENGINES:
        written_and_verified(target, f"seq-{engine}", engine, "write", bs="128k")
        written_and_verified(target, f"rand-{engine}", engine, "randwrite")
    reopen()
    for engine in ENGINES:
        # Read by another way than it was written: cached and direct reads must agree.
        other = "psync-direct" if engine in ("psync", "mmap", "io_uring") else "mmap"
        verified_again(target, f"seq-{engine}", other, bs="128k")
        verified_again(target, f"rand-{engine}", other)


def test_verification_sees_a_changed_byte(target):
    """The test of the test: fio must fail when one byte of what it wrote is other."""
    written_and_verified(target, "bad", "psync", "write")
    (file,) = target.glob("bad*")
    with open(file, "r+b") as stream:
        stream.seek(4096 * 9 + 2000)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(AssertionError):
        verified_again(target, "bad", "psync")


def test_several_jobs_with_fsync(target):
    args = ["--ioengine=psync", "--rw=randwrite", "--bs=4k", "--size=2m", "--fsync=8", "--verify=crc32c",
            "--do_verify=1", "--verify_fatal=1", "--numjobs=3", "--group_reporting=1"]
    job = fio(target, "jobs", *args)
    assert job["write"]["io_bytes"] == 3 * (2 << 20)
    assert job["sync"]["total_ios"] > 0
