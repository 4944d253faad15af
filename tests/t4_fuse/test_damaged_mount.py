# SPDX-License-Identifier: MIT
"""A damaged region, mounted by each transport: refused in one line, or every request gets an answer.

Seeded damage, half of it with good checksums (damage.chaos), on the frozen image. Programs may meet errors,
never a hang, a dead daemon or a traceback in its log.
"""

import errno
import os
import random

import damage
import mounts
import populate
import pytest
from images import make_images

from daxfs.meta import fs as meta_fs
from daxfs.region import Region

pytestmark = [pytest.mark.mount, pytest.mark.transports]
# What a file system may answer where its own data are wrong, and where a damaged mode or link stands.
ALLOWED = {errno.EIO, errno.EUCLEAN, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOSPC,
           errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENXIO, errno.ENODATA, errno.ESTALE, errno.EINVAL,
           errno.EROFS, errno.EXDEV, errno.EBADMSG, errno.ENAMETOOLONG, errno.EOPNOTSUPP}  # fmt: skip


@pytest.fixture(scope="module")
def image():
    """(path, Facts) of the frozen image."""
    path = make_images.unpack("rev1", f"/dev/shm/{mounts.PREFIX}damaged")
    yield path, damage.Facts([path], populate.lookup)
    os.unlink(path)


def ask(call, *args):
    """The result of a call, or None where it fails as a damaged file system may."""
    try:
        return call(*args)
    except OSError as error:
        assert error.errno in ALLOWED, error
        return None


def use(path) -> int:
    """Read, overwrite, append to, sync and shrink a regular file. Bytes that could be read."""
    fd = ask(os.open, path, os.O_RDWR)
    if fd is None:
        return 0
    size = len(ask(os.pread, fd, 1 << 20, 0) or b"")
    for call, *args in ((os.pwrite, b"x" * 5000, 100), (os.fsync,), (os.lseek, 0, os.SEEK_DATA),
                        (os.pwrite, b"y" * 100, size), (os.ftruncate, 3), (os.fstat,), (os.fdatasync,)):
        ask(call, fd, *args)
    ask(os.close, fd)
    return size


def walk(root) -> int:
    """Use everything below *root*; how many names were seen."""
    seen = 0
    folders = [os.fsencode(root)]
    while folders and seen < 2000:
        folder = folders.pop()
        for name in ask(os.listdir, folder) or []:
            seen += 1
            path = os.path.join(folder, name)
            info = ask(os.lstat, path)
            ask(os.listxattr, path)
            if info is None:
                continue
            if info.st_mode & 0o170000 == 0o040000 and path.count(b"/") < 12:
                folders.append(path)
            elif info.st_mode & 0o170000 == 0o100000:
                use(path)
            elif info.st_mode & 0o170000 == 0o120000:
                ask(os.readlink, path)
    ask(os.mkdir, os.path.join(os.fsencode(root), b"new"))
    return seen


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(8))
def test_damaged(image, region_factory, seed):
    path, facts = image
    region = region_factory(os.path.getsize(path))
    populate.copy(path, str(region.source))
    with Region.open([str(region.source)]) as opened:
        damage.chaos(damage.Damage(opened, facts), random.Random(seed))
    done = mounts.run(region.mount_command(), check=False, timeout=30)
    assert "Traceback" not in done.stderr
    if done.returncode != 0:
        assert done.stderr.strip() and mounts.mounts_of(region.path) == []
        return
    region.adopt()
    # A damaged inode may be named in the log; a traceback may not.
    region.expect_log(r"^(?!Traceback|\w+Error: ).*\bERROR\b")
    walk(region.path)
    assert region.daemon_alive()
    region.umount()


def test_the_good_image_is_used_whole(image, region_factory):
    """The test of the test: without damage every name is met, and files are changed."""
    path, _ = image
    with Region.open([path], "cow") as opened:
        names = populate.tree(meta_fs.mount(opened))
    region = region_factory(os.path.getsize(path))
    populate.copy(path, str(region.source))
    region.mount()
    assert walk(region.path) == len(names.keys() - {b"", b"/"}) > 200
    assert (region.path / "new").is_dir()
    assert os.stat(region.path / "file").st_size == 3
