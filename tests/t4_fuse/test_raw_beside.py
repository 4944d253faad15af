# SPDX-License-Identifier: MIT
"""-o raw: the region in a hidden directory of a mounted file system, and how little it disturbs it."""

import errno
import mmap
import os
import subprocess

import mounts
import pytest
import rawkit
from rawkit import code

pytestmark = [pytest.mark.mount, pytest.mark.transports]
MIB = mounts.MIB
NAME = ".daxfs-raw"


@pytest.fixture(scope="module")
def region(transport):
    """One mount with -o raw for the whole module."""
    with mounts.MountedRegion(64 * MIB, options="raw,allow_other", transport=transport) as made:
        yield made.mount()


@pytest.fixture
def raw(region):
    return region.path / NAME


def test_hidden_and_there(region, raw):
    assert NAME not in os.listdir(region.path)
    st = os.stat(raw)
    assert (st.st_mode, st.st_uid) == (0o40700, 0) and st.st_ino >= 1 << 40
    assert os.listdir(raw) == ["0"]
    assert os.path.samefile(raw / "..", region.path)
    st = os.stat(raw / "0")
    assert (st.st_mode, st.st_size) == (0o100600, 64 * MIB) and st.st_ino >= 1 << 40
    facts = region.stat()
    assert facts["raw"][0]["path"] == str(region.source) and "raw" in facts["options"].split(",")


def test_it_is_the_region(region, raw):
    """A file's bytes are found in it, and what is stored there is in the file."""
    mark = os.urandom(4096)
    (region.path / "file").write_bytes(mark * 4)
    os.sync()
    with open(raw / "0", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(mark * 4)
        assert at > 0 and at % 4096 == 0
        assert os.pread(file.fileno(), 4096, at) == mark
        memory[at : at + 5] = b"store"
        memory.flush()
        with open(region.path / "file", "rb") as other:
            assert os.pread(other.fileno(), 5, 0) == b"store"
        os.pwrite(file.fileno(), b"write", at)
        with open(region.path / "file", "rb", buffering=0) as other:
            os.posix_fadvise(other.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(other.fileno(), 5, 0) == b"write"
        os.fsync(file.fileno())
    os.unlink(region.path / "file")


def test_the_name_is_taken(region, raw):
    """For everybody and every way to make a name; and it can't be taken away."""
    other, directory = region.path / "other", region.path / "directory"
    other.touch()
    directory.mkdir()
    for call, *args in (
        (os.mkdir, raw), (os.mkfifo, raw), (os.symlink, "x", raw), (os.link, other, raw),
        (os.open, raw, os.O_CREAT | os.O_EXCL | os.O_RDWR),
    ):  # fmt: skip
        assert code(call, *args) == errno.EEXIST, call
    assert code(os.rename, other, raw) in (errno.EEXIST, errno.EISDIR)  # EISDIR: by the kernel itself
    assert code(os.rename, directory, raw) == errno.EEXIST
    assert code(os.rename, raw, region.path / "elsewhere") == errno.EPERM
    assert code(os.rmdir, raw) == errno.EPERM
    for call, *args in (
        (os.unlink, raw / "0"), (os.truncate, raw / "0", 0), (os.mkdir, raw / "x"), (os.mkfifo, raw / "x"),
        (os.open, raw / "x", os.O_CREAT | os.O_RDWR), (os.rename, raw / "0", other),
        (os.rename, other, raw / "x"), (os.rename, other, raw / "0"), (os.link, other, raw / "x"),
        (os.link, raw / "0", region.path / "x"), (os.chmod, raw, 0o777), (os.chown, raw / "0", 5, 5),
    ):  # fmt: skip
        assert code(call, *args) == errno.EPERM, (call, args)
    # The name is the root directory's alone.
    (directory / NAME).mkdir()
    (directory / NAME).rmdir()
    directory.rmdir()
    other.unlink()


def test_root_alone(region, raw):
    assert code(os.listdir, raw) == 0
    for call, *args in ((os.listdir, raw), (os.stat, raw / "0"), (os.open, raw / "0", os.O_RDONLY)):
        assert rawkit.as_nobody(lambda call=call, args=args: code(call, *args)) == errno.EACCES
    assert rawkit.as_nobody(lambda: code(os.mkdir, raw)) in (errno.EEXIST, errno.EACCES)


def test_who_passes_the_modes_is_refused_by_the_daemon(raw):
    """With CAP_DAC_OVERRIDE and another uid than 0: the daemon asks for uid 0."""
    script = ("import os, sys\n"
              "for path in sys.argv[1:]:\n"
              "    try: os.open(path, os.O_RDONLY)\n"
              "    except OSError as error: print(error.errno)\n"
              "    else: print(0)\n")  # fmt: skip
    base = ["setpriv", "--reuid=65534", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    if subprocess.run([*base, "true"], capture_output=True, check=False).returncode:
        pytest.skip("setpriv can't keep a capability here")
    done = subprocess.run([*base, "python3", "-c", script, str(raw), str(raw / "0")], capture_output=True,
                          text=True, check=True)
    assert done.stdout.split() == [str(errno.EACCES)] * 2


def test_forgotten_inodes(region, raw):
    """FORGETs of raw inodes among those of files: all are counted right, and nothing is left over."""
    for n in range(50):
        (region.path / f"f{n}").touch()
        os.stat(raw / "0")
    known = region.stat()["inodes"]["known_to_kernel"]
    assert known >= 50
    for n in range(50):
        os.unlink(region.path / f"f{n}")
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("2")
    except OSError:
        pytest.skip("drop_caches can't be written")
    os.stat(raw / "0")
    assert region.stat()["inodes"]["known_to_kernel"] <= known - 50
    assert region.stat()["inodes"]["orphans"] == 0


def test_what_it_has_not(raw, region, transport):
    fd = os.open(raw / "0", os.O_RDWR)
    try:
        assert os.listxattr(raw / "0") == [] and code(os.getxattr, raw / "0", "user.x") == errno.ENODATA
        assert code(os.setxattr, raw / "0", "user.x", b"y") == errno.EOPNOTSUPP
        with open(region.path / "copy", "wb") as out:  # the kernel copies where the daemon does not
            assert os.copy_file_range(fd, out.fileno(), 8192) == 8192
        assert (region.path / "copy").read_bytes() == os.pread(fd, 8192, 0)
        (region.path / "copy").unlink()
    finally:
        os.close(fd)


def test_the_switch(region, raw, transport):
    if transport == "pyfuse3":
        pytest.skip("pyfuse3 has no ioctl")
    fd = os.open(raw / "0", os.O_RDWR)
    assert rawkit.get(fd) == 1
    with rawkit.Mapper(raw / "0"):
        assert rawkit.set_to(fd, 0) == errno.EBUSY
    assert rawkit.set_to(fd, 0) == 0 and rawkit.get(fd) == 0
    assert rawkit.set_to(fd, 1) == 0
    os.close(fd)
    (region.path / "file").touch()
    fd = os.open(region.path / "file", os.O_RDWR)
    assert rawkit.set_to(fd, 0) == errno.ENOTTY and code(rawkit.get, fd) == errno.ENOTTY
    os.close(fd)


def test_the_file_system_stays_whole(region_factory):
    """Mounted raw, looked at, unmounted: fsck has nothing to say."""
    region = region_factory(options="raw")
    region.mount()
    (region.path / "file").write_bytes(b"x" * 100000)
    with open(region.path / NAME / "0", "rb") as file:
        while file.read(MIB):
            pass
    region.umount()
    assert region.fsck("-n").returncode == 0


def test_the_name_was_there_before(region_factory):
    """Refused, with what to do; and the region is as clean as it was."""
    region = region_factory()
    region.mount()
    (region.path / NAME).write_text("mine")
    region.umount()
    region.options = "raw"
    done = mounts.run(region.mount_command(), check=False)
    assert done.returncode == 32 and f"{NAME} of its own" in done.stderr and "rename it" in done.stderr
    assert region.fsck("-n").returncode == 0
    region.mount("")
    assert (region.path / NAME).read_text() == "mine"


def test_refused_options(region_factory, tmp_path):
    region = region_factory()
    for options in ("raw,ro", f"raw,record={tmp_path}/log"):
        region.options = options
        done = mounts.run(region.mount_command(), check=False)
        assert done.returncode == 1 and "raw can't be had with" in done.stderr
