# SPDX-License-Identifier: MIT
"""Every kind of source formatted, mounted, filled, killed, mounted again; the wrong ones refused by name."""

import fcntl
import os
import shutil
import subprocess

import mounts
import pytest

pytestmark = pytest.mark.mount
DATA = bytes(range(256)) * 1000


@pytest.fixture
def loop(tmp_path):
    """Call it for a loop device of *size* bytes."""
    if not shutil.which("losetup"):
        pytest.skip("no losetup")
    made = []

    def make(size: int) -> str:
        image = tmp_path / f"image{len(made)}"
        image.touch()
        os.truncate(image, size)
        done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return made[-1]

    yield make
    for device in made:
        subprocess.run(["losetup", "-d", device], check=True)


def works(region) -> None:
    """Data and names survive fsync and kill -9, then an ordinary umount; fsck agrees each time."""
    region.mount()
    (region.path / "dir").mkdir()
    for n in range(20):
        (region.path / "dir" / f"f{n}").write_bytes(DATA[n:])
    with open(region.path / "dir" / "f0", "r+b") as file:
        file.seek(5000)
        file.write(b"over")
        os.fsync(file.fileno())
    region.kill()
    assert region.fsck("-n").returncode == 0
    region.mount()
    expected = DATA[:5000] + b"over" + DATA[5004:]
    assert (region.path / "dir" / "f0").read_bytes() == expected
    assert all((region.path / "dir" / f"f{n}").read_bytes() == DATA[n:] for n in range(1, 20))
    region.umount()
    assert region.fsck("-n").returncode == 0


def test_block_device(loop):
    """Through the page cache of a loop device: granularity page, flush by msync."""
    with mounts.MountedRegion(kind="path", source=loop(32 * mounts.MIB)) as region:
        works(region)
        region.mount()
        stat = region.stat()
        assert (stat["granularity"], stat["flush"]["kind"], stat["emulated"]) == ("page", "msync", False)


def test_file_on_a_disk(tmp_path):
    source = tmp_path / "region"
    source.touch()
    os.truncate(source, 32 * mounts.MIB)
    with mounts.MountedRegion(kind="path", source=source) as region:
        works(region)


@pytest.mark.parametrize("kind", ["file", "pool"])
@pytest.mark.parametrize("options", ["", "write=cached", "flush=clflush,drain=fsync", "granularity=page"])
def test_memory(kind, options):
    with mounts.MountedRegion(32 * mounts.MIB, kind=kind, options=options) as region:
        works(region)


def test_odd_size_and_last_page(tmp_path):
    """A size that is no multiple of a page is trimmed; every page up to the last can be written (S10)."""
    source = f"/dev/shm/{mounts.PREFIX}odd"
    try:
        with open(source, "xb") as file:
            file.truncate(16 * mounts.MIB + 5000)
        with mounts.MountedRegion(kind="path", source=source) as region:
            region.mount()
            space = os.statvfs(region.path)
            size = (space.f_bavail - 8) * 4096
            with open(region.path / "all", "wb") as file:
                for _ in range(size // 65536):
                    file.write(DATA[:65536])
            region.umount()
            assert region.fsck("-n").returncode == 0
    finally:
        os.unlink(source)


@pytest.fixture
def pair(tmp_path):
    """Two sources of one region."""
    paths = [tmp_path / "a", tmp_path / "b"]
    mounts.run([mounts.command("mkfs.daxfs"), "-q", "-s", "16M", *paths])
    return paths


def refused(sources, where) -> str:
    """What mount.daxfs says when it refuses, with status 32."""
    text = ",".join(map(str, sources))
    done = mounts.run([mounts.command("mount.daxfs"), text, where], check=False)
    assert done.returncode == 32 and "Traceback" not in done.stderr, done
    assert mounts.mounts_of(where) == []
    return done.stderr


def test_wrong_sources_are_refused_by_name(pair, tmp_path):
    a, b = pair
    where = tmp_path / "mnt"
    where.mkdir()
    other = tmp_path / "other"
    mounts.run([mounts.command("mkfs.daxfs"), "-q", "-s", "16M", other, tmp_path / "other2"])
    before = [path.read_bytes() for path in pair]
    assert f"{b}: swapped" in refused([b, a], where)
    assert "2 sources" in refused([a], where)
    assert f"{tmp_path / 'other2'}: foreign" in refused([a, tmp_path / "other2"], where)
    assert f"{other}: foreign" in refused([a, other], where)
    assert f"{tmp_path / 'missing'}" in refused([a, tmp_path / "missing"], where)
    assert "twice" in refused([a, a], where)
    with open(b, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert f"{b}" in (text := refused([a, b], where)) and "busy" in text
    assert [path.read_bytes() for path in pair] == before
    os.truncate(b, 8 * mounts.MIB)
    assert f"{b}: shrunken" in refused([a, b], where)
