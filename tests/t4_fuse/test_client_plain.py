# SPDX-License-Identifier: MIT
"""map_file without a mount: shapes, modes, views and copies; on files elsewhere msync(2) writes back."""

import copy
import ctypes
import errno
import gc
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import daxfs.client
from daxfs.client import MappedArray, map_file


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)  # 16 KiB
    return path


def is_plain(array) -> bool:
    return type(array) is not MappedArray


def mapped(path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_modes(file, tmp_path):
    with map_file(file) as array:
        assert array.shape == (16384,) and array.dtype == np.uint8 and bytes(array[:3]) == b"\0\1\2"
        assert not array.observed and "not a file of a daxfs mount" in array.why_not
        assert array.flush_kind == "msync"
        array[5] = 99
    assert file.read_bytes()[5] == 99
    assert not map_file(file, "r").flags.writeable
    private = map_file(file, "c")
    private[5] = 1
    private.persist()
    private.msync()
    assert file.read_bytes()[5] == 99 and "private" in private.why_not
    new = map_file(tmp_path / "new", "w+", shape=(3, 5), dtype="<i4")
    new[:] = 7
    assert (tmp_path / "new").read_bytes() == b"\7\0\0\0" * 15


@pytest.mark.parametrize("offset", [0, 8, 4096, 5000])
def test_offsets_and_shapes(file, offset):
    raw = file.read_bytes()
    array = map_file(file, "r", offset, (4, 8), ">u2")
    assert array.tobytes() == raw[offset : offset + 64] and array.shape == (4, 8)
    assert map_file(file, "r", offset, 10).tobytes() == raw[offset : offset + 10]
    assert map_file(file, "r", offset).tobytes() == raw[offset:]


@pytest.mark.parametrize("wrong", [
    {"mode": "x"}, {"offset": -1}, {"offset": 16385}, {"shape": 20000}, {"shape": 0}, {"shape": (4, -1)},
    {"dtype": "V3"}, {"dtype": object}, {"mode": "w+"}, {"offset": 16384}])  # fmt: skip
def test_bad_arguments(file, wrong):
    with pytest.raises(ValueError):
        map_file(file, **wrong)


def test_errors_of_the_system(file, tmp_path):
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "none")
    with pytest.raises(OSError) as caught:
        map_file(file, require=True)
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError) as caught:
        map_file(file).dirty()
    assert caught.value.errno == errno.EOPNOTSUPP


def test_views_are_of_the_mapping_and_results_are_not(file):
    array = map_file(file, shape=(64, 256))
    for view in (array[3], array[:, 4:9], array.T, array[::-2], array.reshape(-1), array.view("<u4")):
        assert type(view) is MappedArray
        view.persist()
        view.flush(0)
        view.drain()
        view.msync(slice(1, 2))
    for other in (array + 1, array.sum(axis=0), array[[1, 2]], array[array > 250], array.copy(),
                  np.array(array), copy.copy(array), copy.deepcopy(array),
                  pickle.loads(pickle.dumps(array)), np.sort(array), array.astype("f8")):  # fmt: skip
        assert is_plain(other) or other._mapping is None or not np.shares_memory(other, array)
        if not is_plain(other):
            with pytest.raises(ValueError, match="copied"):
                other.persist()
    for plain in (array + 1, array[[1, 2]], array[array > 250], array.copy(), copy.deepcopy(array),
                  pickle.loads(pickle.dumps(array)), array.sum(), array.max(axis=1)):  # fmt: skip
        assert is_plain(plain)
    assert isinstance(array[3, 4], np.uint8) and isinstance(array.sum(), np.unsignedinteger)
    array += 1
    assert type(array) is MappedArray and file.read_bytes()[0] == 1
    assert np.add(array, 1, out=array) is array


@pytest.mark.parametrize("where", [slice(None), slice(2, 5), slice(5, 2, -1), slice(9, 9), -1, None])
def test_parts(file, where):
    array = map_file(file, shape=(64, 256))
    array[:] = 3
    array.persist(where)
    array[::-1].persist(where)


def test_parts_out_of_bounds(file):
    array = map_file(file, shape=(64, 256))
    for wrong in (64, -65):
        with pytest.raises(IndexError):
            array.persist(wrong)
    with pytest.raises(TypeError):
        array.persist("x")


def test_lifetime(file):
    array = map_file(file)
    view = array[100:200]
    gone = weakref.ref(array._mapping)
    array.close()
    array.close()
    assert array.closed and not array.flags.writeable and not view.closed
    with pytest.raises(ValueError, match="closed"):
        array.persist()
    del array
    gc.collect()
    view[0] = 77
    view.persist()
    assert mapped(file) and file.read_bytes()[100] == 77
    outside = memoryview(view)
    del view
    gc.collect()
    assert mapped(file) and outside[0] == 77
    outside.release()
    del outside
    gc.collect()
    assert not mapped(file) and gone() is None


def test_no_descriptor_is_left(file):
    before = set(os.listdir("/proc/self/fd"))
    array = map_file(file)
    assert set(os.listdir("/proc/self/fd")) == before
    del array


def test_what_is_installed(tmp_path):
    """The header and the library serve a C program."""
    library = ctypes.CDLL(daxfs.client.LIBRARY)
    assert all(hasattr(library, f"daxfs_{name}") for name in ("map", "unmap", "msync", "persist", "dirty"))
    assert daxfs.client.PRELOAD.exists()
    for compiler, source in (("cc", "x.c"), ("c++", "x.cc")):
        text = "#include <daxfs.h>\nint main(void) { return daxfs_msync(0, 0, 0); }\n"
        (tmp_path / source).write_text(text)
        made = subprocess.run([compiler, "-Wall", "-Werror", "-I", daxfs.client.get_include(), source,
                               str(daxfs.client.LIBRARY), "-o", "x"], cwd=tmp_path, check=False,
                              capture_output=True, text=True)  # fmt: skip
        assert made.returncode == 0, made.stderr
        assert subprocess.run(["./x"], cwd=tmp_path, check=False,
                              env={"LD_LIBRARY_PATH": str(daxfs.client.LIBRARY.parent)}).returncode == 0


def test_the_daemon_is_not_imported():
    wanted = "[m for m in sys.modules if 'daxfs.' in m or m in ('trio', 'pyfuse3')]"
    code = f"import sys, daxfs.client; print({wanted})"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    names = eval(done.stdout)
    assert set(names) <= {"daxfs.client", "daxfs.client._client", "daxfs.client.mapping"}
