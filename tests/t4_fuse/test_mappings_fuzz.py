# SPDX-License-Identifier: MIT
"""Random sequences of stores and system calls on one DAX file, against a bytearray that does the same.

Every way to change a file's bytes or size, in any order, mixed with opens and fsync. After each step size and
bytes are compared, by read(2) or by a mapping; the seed of a failure is in its message.
"""

import errno
import importlib
import os
import random

import pytest
from test_posix import table

memory = importlib.import_module(f"{table.__package__}.memory")
native = importlib.import_module(f"{table.__package__}.native")
pytestmark = pytest.mark.mount
PAGE = 4096
MAX = 96 * PAGE
KEEP, PUNCH, ZERO = 1, 2, 16


class Twin:
    """The file and what it must hold. The mapping is as long as the file ever gets, so SIGBUS is near."""

    def __init__(self, path, rng):
        self.path, self.rng, self.want = path, rng, bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.map = memory.Map(self.fd, MAX)
        self.second = -1

    def close(self):
        self.map.unmap()
        for fd in (self.fd, self.second):
            if fd >= 0:
                os.close(fd)

    def spot(self, limit=MAX):
        """(pos, length) within *limit*, often at or near page bounds."""
        rng = self.rng
        pos = rng.randrange(limit)
        if rng.random() < 0.4:
            pos = rng.randrange(limit // PAGE) * PAGE + rng.choice((0, 1, PAGE - 1))
        length = rng.choice((1, 8, 100, PAGE, PAGE + 1, 3 * PAGE, rng.randrange(1, 20 * PAGE)))
        return pos, max(min(length, limit - pos), 1)

    def fill(self, length):
        return self.rng.randbytes(length)

    def grow(self, size):
        self.want.extend(bytes(max(size - len(self.want), 0)))

    def put(self, pos, data):
        self.grow(pos + len(data))
        self.want[pos : pos + len(data)] = data

    # steps

    def write(self):
        pos, length = self.spot()
        data = self.fill(length)
        assert os.pwrite(self.fd, data, pos) == length
        self.put(pos, data)

    def append(self):
        if len(self.want) < MAX - 9000:
            data = self.fill(self.rng.randrange(1, 9000))
            os.lseek(self.fd, 0, os.SEEK_END)
            os.write(self.fd, data)
            self.put(len(self.want), data)

    def store(self):
        if not self.want:
            return
        pos, length = self.spot(len(self.want)) if len(self.want) >= PAGE else (0, len(self.want))
        data = self.fill(length)
        self.map.store(data, pos)
        self.want[pos : pos + length] = data

    def store_behind(self):
        """In the last page, behind the end: never to be seen."""
        left = -len(self.want) % PAGE
        if left:
            self.map.store(b"\xee" * left, len(self.want))

    def truncate(self):
        size = self.spot()[0]
        os.ftruncate(self.fd, size)
        self.grow(size)
        del self.want[size:]

    def truncate_by_open(self):
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self.want.clear()

    def fallocate(self):
        pos, length = self.spot()
        native.fallocate(self.fd, 0, pos, length)
        self.grow(pos + length)

    def reserve(self):
        native.fallocate(self.fd, KEEP, *self.spot())

    def punch(self):
        pos, length = self.spot()
        native.fallocate(self.fd, PUNCH | KEEP, pos, length)
        self._zero(pos, length)

    def zero(self):
        pos, length = self.spot()
        keep = self.rng.choice((0, KEEP))
        native.fallocate(self.fd, ZERO | keep, pos, length)
        if not keep:
            self.grow(pos + length)
        self._zero(pos, length)

    def remove(self):
        """MADV_REMOVE, which the daemon is not told of."""
        first = self.rng.randrange(MAX // PAGE)
        count = self.rng.randrange(1, min(MAX // PAGE - first, 8) + 1)
        self.map.advise("REMOVE", first * PAGE, count * PAGE)
        self._zero(first * PAGE, count * PAGE)

    def _zero(self, pos, length):
        end = min(pos + length, len(self.want))
        if pos < end:
            self.want[pos:end] = bytes(end - pos)

    def copy(self):
        source, length = self.spot()
        target = self.rng.randrange(MAX)
        length = min(length, MAX - target, max(len(self.want) - source, 0))
        if length <= 0 or abs(source - target) < length:
            return
        done = os.copy_file_range(self.fd, self.fd, length, source, target)
        self.put(target, bytes(self.want[source : source + done]))

    def write_from_itself(self):
        """write(2) from the mapping: pages of source and target are others."""
        pages = len(self.want) // PAGE
        if pages >= 4:
            half = pages // 2
            count = self.rng.randrange(1, half + 1)
            self.map.pwrite(self.fd, count * PAGE, half * PAGE, 0)
            self.put(half * PAGE, bytes(self.want[: count * PAGE]))

    def read_into_itself(self):
        pages = len(self.want) // PAGE
        if pages >= 4:
            half = pages // 2
            self.map.pread(self.fd, half * PAGE, 0, half * PAGE)
            self.want[half * PAGE : 2 * half * PAGE] = self.want[: half * PAGE]

    def fsync(self):
        self.rng.choice((os.fsync, os.fdatasync))(self.fd)

    def msync(self):
        self.map.msync(memory.MS_SYNC)

    def reopen(self):
        """Another descriptor; now and then none is left for a moment, only the mapping."""
        if self.second >= 0:
            os.close(self.second)
        self.second = -1
        if self.rng.random() < 0.5:
            self.second = os.open(self.path, self.rng.choice((os.O_RDONLY, os.O_RDWR | os.O_SYNC)))
        else:
            os.close(self.fd)
            self.fd = os.open(self.path, os.O_RDWR)

    def seek(self):
        """What SEEK_DATA calls a hole reads as zeros."""
        size, at = len(self.want), 0
        while at < size:
            try:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                data = size
            assert not any(self.want[at:data]), f"data in what is called a hole, {at}-{data}"
            if data >= size:
                break
            at = os.lseek(self.fd, data, os.SEEK_HOLE)

    def check(self):
        assert os.fstat(self.fd).st_size == len(self.want)
        by_map = self.rng.random() < 0.5 and self.want
        got = self.map.load(0, len(self.want)) if by_map else os.pread(self.fd, MAX, 0)
        if got != self.want:
            at = next(i for i in range(len(self.want)) if got[i : i + 1] != self.want[i : i + 1])
            how, bad, good = "load" if by_map else "read", got[at : at + 8], self.want[at : at + 8]
            raise AssertionError(f"{how}: from {at} of {len(self.want)} on {bytes(bad)} for {bytes(good)}")


STEPS = ["write", "append", "store", "store", "store_behind", "truncate", "fallocate",
         "reserve", "punch", "zero", "remove", "copy", "write_from_itself", "read_into_itself", "fsync",
         "msync", "reopen", "seek"]


def play(path, seed, count):
    rng = random.Random(seed)
    twin = Twin(path, rng)
    steps = []
    try:
        for _ in range(count):
            steps.append(rng.choice(STEPS) if rng.random() > 0.02 else "truncate_by_open")
            getattr(twin, steps[-1])()
            twin.check()
    except BaseException as error:
        where = f"seed {seed}, step {len(steps)}: ... {', '.join(steps[-6:])}"
        raise AssertionError(f"{where}: {error}") from error
    finally:
        twin.close()
    return bytes(twin.want)


@pytest.mark.parametrize("huge", ["never", "always"])
@pytest.mark.parametrize("transport", ["uring", pytest.param("dev", marks=pytest.mark.slow)], indirect=True)
def test_fuzz(mount_factory, huge):
    """Files played one after the other; all are there after a kill of the daemon and after a fresh mount."""
    region = mount_factory(pool=huge)
    files = {region.path / f"file{seed}": play(region.path / f"file{seed}", seed, 150) for seed in range(6)}
    for number, again in enumerate((region.remount, lambda: (region.kill(), region.mount()))):
        again()
        wrong = [path.name for path, data in files.items() if path.read_bytes() != data]
        assert not wrong, f"after {'a kill' if number else 'a fresh mount'}"
    region.umount()
    checked = region.fsck("-n")
    assert checked.returncode == 0, checked.stdout
