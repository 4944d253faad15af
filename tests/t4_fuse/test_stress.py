# SPDX-License-Identifier: MIT
"""stress-ng with verification, and the project's own seeded load, several processes at once.

The helpers take a directory and run on any mount point (``pytest --target DIR``).
"""

import os
import shutil
import subprocess
import sys

import load
import mounts
import pytest
from crash_round import fresh_space, wait_for_space

pytestmark = [pytest.mark.mount, pytest.mark.transports, pytest.mark.slow]

NO_RESOURCE, NOT_IMPLEMENTED = 3, 4
STRESSORS = {
    "hdd": ["--hdd", "2", "--hdd-bytes", "8m", "--hdd-write-size", "16k"],
    "hdd-direct": ["--hdd", "1", "--hdd-bytes", "8m", "--hdd-opts", "direct,fsync,wr-rnd"],
    "iomix": ["--iomix", "1", "--iomix-bytes", "8m"],
    "names": ["--dentry", "1", "--dentries", "200", "--rename", "1", "--link", "1", "--symlink", "1"],
    "dirs": ["--dir", "1", "--dir-dirs", "200", "--dirdeep", "1", "--dirdeep-inodes", "500"],
    "reading": ["--getdent", "1", "--open", "1", "--sendfile", "1", "--sendfile-size", "1m"],
    "attributes": ["--chmod", "1", "--utime", "1", "--xattr", "1", "--fstat", "1"],
    "files": ["--seek", "1", "--seek-size", "8m", "--touch", "1", "--filename", "1", "--revio", "1"],
    "sync": ["--sync-file", "1", "--sync-file-bytes", "8m", "--aiol", "1", "--aiol-requests", "4"],
    "mappings": ["--mmap", "1", "--mmap-bytes", "8m", "--mmap-file", "--msync", "1", "--msync-bytes", "4m"],
    "locks": ["--flock", "1", "--lockf", "1", "--fcntl", "1"],
}


def stress(path, *args, seconds=2):
    """Run stress-ng's *args* in *path* with its own verification on. Fails on any failure it reports."""
    done = mounts.run(["stress-ng", "--temp-path", path, "--timeout", f"{seconds}s", "--verify",
                       "--seed", "1", "--oomable", *args], check=False, timeout=90)
    text = done.stdout + done.stderr
    if done.returncode in (NO_RESOURCE, NOT_IMPLEMENTED):
        pytest.skip(f"stress-ng: status {done.returncode}: {text}")
    assert done.returncode == 0, text
    assert "fail:" not in text, text


@pytest.mark.skipif(not shutil.which("stress-ng"), reason="stress-ng is not installed")
@pytest.mark.parametrize("name", STRESSORS)
def test_stress_ng(target, name):
    stress(target, *STRESSORS[name])
    # What stress-ng made it has also unlinked.
    assert list(target.iterdir()) == []


def loads(path, logs, seed, workers=3, ops=400):
    """Run *workers* load processes at once, each in a directory of its own. Fails on any complaint."""
    procs = []
    for number in range(workers):
        (path / f"w{number}").mkdir(exist_ok=True)
        procs.append(subprocess.Popen(
            [sys.executable, load.__file__, "run", "--root", str(path / f"w{number}"), "--log",
             str(logs / f"log{number}"), "--seed", str(seed * 10 + number), "--ops", str(ops)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    complaints = [proc.communicate(timeout=120)[1] for proc in procs]
    assert [proc.returncode for proc in procs] == [0] * workers, complaints


def judged(path, logs, workers=3):
    found = [f"w{number}: {text}" for number in range(workers)
             for text in load.judge(path / f"w{number}", logs / f"log{number}")]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("seed", [1, 2])
def test_load(target, tmp_path, reopen, seed):
    """Mixed operations of three processes; the tree is right, also after a fresh mount and a second load."""
    loads(target, tmp_path, seed)
    judged(target, tmp_path)
    reopen()
    judged(target, tmp_path)
    loads(target, tmp_path, seed + 50)
    judged(target, tmp_path)


def test_space_comes_back(mount_factory, tmp_path, request):
    """After a load and the unlinking of everything, statfs says what it said when fresh; fsck is clean."""
    if request.config.getoption("--target"):
        pytest.skip("needs a file system of its own")
    region = mount_factory()
    baseline = fresh_space(region.path)
    loads(region.path, tmp_path, 7)
    for name in os.listdir(region.path):
        shutil.rmtree(region.path / name)
    assert wait_for_space(region.path, baseline) == ""
    region.umount()
    done = region.fsck("-n")
    assert done.returncode == 0, done.stdout + done.stderr


def fill(path, chunk):
    """Write one file until ENOSPC; its size."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    size = 0
    try:
        while True:
            size += os.write(fd, chunk)
    except OSError as exc:
        assert exc.errno == 28, exc
        return size
    finally:
        os.close(fd)


def test_full_file_system(mount_factory, request):
    """ENOSPC leaves it usable: what is there reads back, unlink works, the space can be used again."""
    if request.config.getoption("--target"):
        pytest.skip("needs a file system of its own")
    region = mount_factory(size=32 * mounts.MIB)
    chunk = os.urandom(1 << 16)
    (region.path / "first").write_bytes(chunk)
    baseline = fresh_space(region.path)
    size = fill(region.path / "big", chunk)
    assert size > 8 * mounts.MIB
    assert (region.path / "first").read_bytes() == chunk
    with open(region.path / "big", "rb") as file:
        assert all(file.read(1 << 16) == chunk for _ in range(size // len(chunk)))
    (region.path / "big").unlink()
    assert wait_for_space(region.path, baseline) == ""
    assert fill(region.path / "big", chunk) >= size - len(chunk)
    (region.path / "big").unlink()
    region.umount()
    assert region.fsck("-n").returncode == 0
