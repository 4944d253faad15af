# SPDX-License-Identifier: MIT
"""`daxfs raw`: a source without a file system as one file, read, written and mapped directly (S12)."""

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import mounts
import pytest
import rawkit
from rawkit import code

pytestmark = [pytest.mark.mount, pytest.mark.transports]
MIB = mounts.MIB


@pytest.fixture
def make(transport):
    """Call it for a mounted raw region; all are closed after the test."""
    made = []

    def raw(size=16 * MIB, **kwargs) -> rawkit.RawRegion:
        made.append(rawkit.RawRegion(size, transport=transport, **kwargs))
        return made[-1].mount()

    yield raw
    for one in made:
        one.close()


@pytest.fixture
def raw(make):
    return make()


@pytest.fixture
def fd(raw):
    fd = os.open(raw.file, os.O_RDWR)
    yield fd
    os.close(fd)


def test_what_is_there(raw):
    """One file, of the source's size, for root alone."""
    assert os.listdir(raw.path) == ["0"]
    st = os.stat(raw.file)
    assert (st.st_mode, st.st_size, st.st_uid, st.st_nlink) == (0o100600, 16 * MIB, 0, 1)
    assert os.stat(raw.path).st_mode == 0o40755
    facts = raw.stat()
    assert [one["name"] for one in facts["raw"]] == ["0"]
    assert os.statvfs(raw.path).f_blocks == 4096


def test_an_odd_tail_is_not_shown(make):
    raw = make(MIB + 1000)
    assert os.stat(raw.file).st_size == MIB


def test_read_and_write_reach_the_source(raw, fd):
    data = os.urandom(3 * MIB + 123)
    assert os.pwrite(fd, data, 4567) == len(data)
    assert raw.source.read_bytes()[4567 : 4567 + len(data)] == data
    assert os.pread(fd, len(data), 4567) == data
    os.fsync(fd)
    with open(raw.source, "r+b") as source:
        source.seek(12 * MIB)
        source.write(b"from below")
    assert os.pread(fd, 10, 12 * MIB) == b"from below"


def test_the_end(fd):
    """As on a block device: nothing is behind it."""
    assert os.pread(fd, 100, 16 * MIB) == b"" == os.pread(fd, 100, 1 << 40)
    assert os.pread(fd, 8192, 16 * MIB - 10) == bytes(10)
    assert code(os.pwrite, fd, b"x", 16 * MIB) == errno.ENOSPC
    assert code(os.pwrite, fd, b"x", 1 << 40) == errno.ENOSPC
    assert os.pwrite(fd, b"y" * 8192, 16 * MIB - 4096) == 4096
    assert os.fstat(fd).st_size == 16 * MIB
    assert os.lseek(fd, 5, os.SEEK_DATA) == 5 and os.lseek(fd, 0, os.SEEK_END) == 16 * MIB


@pytest.mark.parametrize("at", [0, 16 * MIB - 4096], ids=["inside", "at the end"])
@pytest.mark.parametrize("flags, how", [(os.O_DSYNC, 0), (0, os.RWF_DSYNC)], ids=["O_DSYNC", "RWF_DSYNC"])
def test_a_durable_write(make, transport, at, flags, how):
    """Also where less than asked for fits: that write is Python's."""
    if how and transport == "pyfuse3":
        pytest.skip("pyfuse3 does not tell of it (docs/status.md)")
    raw, found = make(options="write=cached"), []
    for opened, each in ((0, 0), (flags, how)):
        fd = os.open(raw.file, os.O_RDWR | opened)
        assert os.pwritev(fd, [b"y" * 8192], at, each) == min(16 * MIB - at, 8192)
        found.append(raw.stat()["tracker"]["dirty_bytes"])
        os.close(fd)
    assert found == [min(16 * MIB - at, 8192), 0]


def test_nothing_is_made_cut_or_removed(raw, fd):
    other = raw.path / "other"
    for call, *args in (
        (os.truncate, raw.file, 0), (os.ftruncate, fd, 32 * MIB), (os.unlink, raw.file), (os.mkdir, other),
        (os.open, other, os.O_CREAT | os.O_RDWR), (os.symlink, "0", other), (os.link, raw.file, other),
        (os.rename, raw.file, other), (os.mkfifo, other), (os.chmod, raw.file, 0o666),
        (os.chown, raw.file, 1, 1), (os.open, raw.file, os.O_WRONLY | os.O_TRUNC),
    ):  # fmt: skip
        assert code(call, *args) == errno.EPERM, (call, args)
    assert code(os.setxattr, raw.file, "user.x", b"y") == errno.EOPNOTSUPP
    assert code(os.posix_fallocate, fd, 0, 4096) in (0, errno.EOPNOTSUPP)  # glibc writes instead
    assert os.listdir(raw.path) == ["0"] and os.fstat(fd).st_size == 16 * MIB
    assert not other.exists()


def test_a_mapping_and_the_daemon_see_each_other(raw, fd, transport):
    """Stores of two processes, the daemon's reads and writes, and the source itself."""
    with rawkit.Mapper(raw.file) as one, rawkit.Mapper(raw.file) as two:
        one.store(5 * MIB, "hello")
        assert two.load(5 * MIB, 5) == "hello"
        two.store(5 * MIB + 5, "world")
        assert one.load(5 * MIB, 10) == "helloworld"
        assert os.pread(fd, 10, 5 * MIB) == b"helloworld"
        os.pwrite(fd, b"HELLO", 5 * MIB)
        assert one.load(5 * MIB, 10) == two.load(5 * MIB, 10) == "HELLOworld"
        if transport != "pyfuse3":
            # No page cache of ours between: nothing had to be written back.
            one.store(9 * MIB, "direct")
            with open(raw.source, "rb") as source:
                source.seek(9 * MIB)
                assert source.read(6) == b"direct"
        os.fsync(fd)


def test_fsync_of_a_mapping_gives_holes_no_memory(make, transport):
    """A sparse source stays sparse where fsync has to take every line for dirty."""
    raw = make(64 * MIB)
    with open(raw.file, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[33 * MIB] = 1
        os.fsync(file.fileno())
        os.fsync(file.fileno())
    assert 0 < os.stat(raw.source).st_blocks * 512 <= 4 * MIB
    assert raw.source.read_bytes()[33 * MIB] == 1


def test_pmd(transport):
    """On huge pages below a mapping of a raw file has them too."""
    if transport == "pyfuse3":
        pytest.skip("pyfuse3 has no passthrough")
    where = Path(tempfile.mkdtemp(prefix=mounts.PREFIX))
    done = mounts.run(["mount", "-t", "tmpfs", "-o", "huge=always,size=64m", "tmpfs", where], check=False)
    try:
        if done.returncode:
            pytest.skip(f"no tmpfs with huge pages: {done.stderr}")
        source = where / f"{mounts.PREFIX}huge"
        source.touch()
        os.truncate(source, 16 * MIB)
        with rawkit.RawRegion(16 * MIB, kind="path", source=source, transport=transport) as raw:
            raw.mount()
            with open(raw.file, "r+b") as file, mmap.mmap(file.fileno(), 16 * MIB) as memory:
                memory[::4096] = b"x" * 4096
                kilobytes = _pmd_mapped(str(raw.file))
            if not kilobytes and _huge_below(source) == 0:
                pytest.skip("this tmpfs gave no huge pages")
            assert kilobytes == 16 * 1024
    finally:
        mounts.run(["umount", where], check=False)
        shutil.rmtree(where, ignore_errors=True)


def _pmd_mapped(path: str) -> int:
    """ShmemPmdMapped of our mapping of *path*, in KiB."""
    text = Path("/proc/self/smaps").read_text()
    part = text[text.index(path) :]
    return int(part[part.index("ShmemPmdMapped:") :].split()[1])


def _huge_below(source) -> int:
    with open(source, "r+b") as file, mmap.mmap(file.fileno(), 16 * MIB) as memory:
        assert memory[0]
        return _pmd_mapped(str(source))


def test_root_alone(make):
    raw = make(options="allow_other")
    for flags in (os.O_RDONLY, os.O_RDWR):
        assert rawkit.as_nobody(lambda flags=flags: code(os.open, raw.file, flags)) == errno.EACCES
    assert code(os.open, raw.file, os.O_RDWR) == 0
    assert rawkit.as_nobody(lambda: code(os.stat, raw.file)) == 0


def test_read_only(make):
    raw = make(options="ro")
    raw.source.write_bytes(b"below" + bytes(16 * MIB - 5))
    assert raw.file.read_bytes()[:5] == b"below"
    assert code(os.open, raw.file, os.O_RDWR) == errno.EROFS
    with open(raw.file, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert memory[:5] == b"below"
        os.fsync(file.fileno())


def test_the_source_is_locked(raw):
    """It can't be formatted, mounted, checked or shown a second time."""
    again = Path(tempfile.mkdtemp(prefix=mounts.PREFIX))
    try:
        commands = (
            ("mkfs.daxfs", "--force", raw.source), ("fsck.daxfs", raw.source),
            ("mount.daxfs", raw.source, again), ("daxfs", "raw", raw.source, again),
        )  # fmt: skip
        running = [subprocess.Popen([mounts.command(name), *args], stderr=subprocess.PIPE, text=True)
                   for name, *args in commands]  # all at once: each waits some seconds for a busy source
        for process in running:
            _, said = process.communicate(timeout=60)
            assert process.returncode and "busy" in said, (process.args, said)
        os.utime(raw.source)
        assert mounts.mounts_of(again) == []
    finally:
        again.rmdir()


def test_a_file_system_can_be_shown_raw(make, raw):
    """And is what it was: daxfs raw reads no superblock and changes nothing."""
    raw.umount()
    mounts.run([mounts.command("mkfs.daxfs"), raw.source])
    before = raw.source.read_bytes()
    raw.mount()
    assert raw.file.read_bytes() == before
    raw.umount()
    assert raw.source.read_bytes() == before


def test_umount_is_busy_while_mapped(raw, transport):
    """Also where no descriptor is left."""
    with rawkit.Mapper(raw.file):
        done = mounts.run(["umount", raw.path], check=False)
        assert done.returncode and "busy" in done.stderr
    raw.umount()


def test_killed_daemon(raw, transport):
    """Its mappings live on where they are the kernel's; the source is free at once."""
    fd = os.open(raw.file, os.O_RDWR)
    with rawkit.Mapper(raw.file) as mapper:
        mapper.store(100, "before")
        raw._signal_daemon()
        assert code(os.pread, fd, 1, 0)
        if transport != "pyfuse3":
            assert mapper.load(100, 6) == "before"
            mapper.store(100, "after_")
            assert raw.source.read_bytes()[100:106] == b"after_"
    code(os.close, fd)  # closed in any case; what it says depends on how far the kernel has come
    raw._detach()
    raw.mount()
    assert os.stat(raw.file).st_size == 16 * MIB


def test_a_truncated_source(raw, fd):
    """EIO and no crash; the log and the end say why."""
    raw.expect_log(r"CRITICAL|ended: |Input/output error|truncated under")
    os.truncate(raw.source, MIB)
    assert code(os.pread, fd, 4096, 8 * MIB) == errno.EIO
    assert code(os.pwrite, fd, b"x" * 4096, 0) == errno.EIO
    assert code(os.fsync, fd) == errno.EIO
    assert raw.daemon_alive() and raw.stat()["shut_down"] is True
    os.close(os.dup(fd))


def test_a_truncated_source_ends_with_32(raw):
    raw.expect_log(r"CRITICAL|ended: |Input/output error|truncated under")
    os.truncate(raw.source, MIB)
    with pytest.raises(OSError):
        raw.file.read_bytes()
    raw.umount()
    assert "was truncated under the mount" in raw.log_file.read_text()
    assert "fsck" not in raw.log_file.read_text()


# -- the switch --------------------------------------------------------------------------


@pytest.fixture
def switch(make, transport):
    if transport == "pyfuse3":
        pytest.skip("pyfuse3 has no ioctl")
    return make(options="allow_other")


def direct(raw) -> bool:
    return raw.stat()["raw"][0]["direct"]


def test_the_switch(switch):
    fd = os.open(switch.file, os.O_RDWR)
    assert rawkit.get(fd) == 1 and direct(switch)
    assert rawkit.set_to(fd, 5) == 0 and rawkit.get(fd) == 1
    assert rawkit.set_to(fd, 0) == 0 and rawkit.get(fd) == 0
    assert direct(switch), "who has it open goes on as it was"
    os.close(fd)
    fd = os.open(switch.file, os.O_RDWR)
    assert rawkit.get(fd) == 0 and not direct(switch)
    with mmap.mmap(fd, 0) as memory:
        memory[0:6] = b"cached"
        assert rawkit.set_to(fd, 1) == errno.EBUSY
        assert os.pread(fd, 6, 0) == b"cached"
        memory.flush()
    assert rawkit.set_to(fd, 1) == 0
    os.close(fd)
    fd = os.open(switch.file, os.O_RDWR)
    assert direct(switch) and os.pread(fd, 6, 0) == b"cached"
    os.close(fd)


def test_busy_while_mapped_by_another(switch):
    """A mapping that has outlived its descriptor, in another process."""
    fd = os.open(switch.file, os.O_RDWR)
    with rawkit.Mapper(switch.file) as mapper:
        assert switch.stat()["raw"][0]["opens"] == 1
        assert rawkit.set_to(fd, 0) == errno.EBUSY and rawkit.set_to(fd, 1) == 0
        mapper.kill()
        assert rawkit.set_to(fd, 0) == 0
    os.close(fd)


def test_busy_while_open_elsewhere(switch):
    fd, other = os.open(switch.file, os.O_RDWR), os.open(switch.file, os.O_RDONLY)
    assert rawkit.set_to(fd, 0) == errno.EBUSY
    os.close(other)
    assert rawkit.set_to(fd, 0) == 0
    os.close(fd)


def test_root_alone_switches(switch):
    fd = os.open(switch.file, os.O_RDWR)
    assert rawkit.as_nobody(lambda: rawkit.set_to(fd, 0)) == errno.EACCES
    assert rawkit.get(fd) == 1
    os.close(fd)


def test_a_bad_address(switch):
    fd = os.open(switch.file, os.O_RDWR)
    switch.expect_log("can't be reached")
    for address in (0, 8, 4096):
        assert code(fcntl.ioctl, fd, rawkit.BLKDAXGET, address) == errno.EFAULT
        assert code(fcntl.ioctl, fd, rawkit.BLKDAXSET, address) == errno.EFAULT
    os.close(fd)


def test_other_ioctls(switch):
    fd = os.open(switch.file, os.O_RDWR)
    for command in (0x80086601, 0xC0185879, 0x8004587D, 0x1282):
        assert code(fcntl.ioctl, fd, command, bytes(64)) in (errno.ENOTTY, errno.EOPNOTSUPP)
    os.close(fd)


def test_switched_off_from_the_beginning(make, transport):
    if transport == "pyfuse3":
        pytest.skip("pyfuse3 has no ioctl")
    raw = make(options="dax=never")
    fd = os.open(raw.file, os.O_RDWR)
    assert rawkit.get(fd) == 0 and not direct(raw)
    assert rawkit.set_to(fd, 1) == 0 and rawkit.get(fd) == 1
    os.close(fd)
