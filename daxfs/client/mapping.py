# SPDX-License-Identifier: MIT
"""map_file: a file as a numpy array that knows what was stored to it.

Views of such an array are such arrays, and keep the mapping. Results of arithmetic, copies and what was
pickled are plain arrays: they are other memory. Limits: libdaxfs does the work (_client.pyx).
"""

import os

import numpy as np

from ._client import Mapping

PAGE = 4096
MODES = {"r": os.O_RDONLY, "c": os.O_RDONLY, "r+": os.O_RDWR, "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC}


class MappedArray(np.ndarray):
    """A numpy array over a mapped file; made by :func:`map_file`.

    ``observed``: what is stored is known page by page, and ``msync`` writes back that alone; otherwise
    ``why_not`` says why, and everything is done by msync(2). A slice, where a method takes one, is of the
    first axis; of strided arrays everything from the lowest to the highest byte is meant.
    """

    _mapping = None
    _closed = False

    def __array_finalize__(self, source):
        # A view's base is its source, or the source's own; new memory has none, or is a copy's.
        base = self.base
        if type(source) is MappedArray and base is not None and (base is source or base is source.base):
            self._mapping, self._closed = source._mapping, source._closed

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """Results of ufuncs are plain; with ``out=`` of this kind they are that."""
        if array is self:
            return self
        array = array.view(np.ndarray)
        return array[()] if return_scalar else array

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if type(found) is MappedArray and found._mapping is None:  # indexed by lists or masks: a copy
            return found.view(np.ndarray)
        return found

    def copy(self, order="C"):
        """A plain array with the same values."""
        return self.view(np.ndarray).copy(order)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy("K")

    def __reduce__(self):
        return self.copy("K").__reduce__()

    def __reduce_ex__(self, protocol):
        return self.copy("K").__reduce_ex__(protocol)

    def _of(self) -> Mapping:
        if self._mapping is None:
            raise ValueError("this array is no mapping of a file: it was copied")
        if self._closed:
            raise ValueError("the mapping is closed")
        return self._mapping

    @property
    def observed(self) -> bool:
        return self._mapping is not None and self._mapping.observed

    @property
    def why_not(self) -> str:
        """Why it is not observed; "" if it is."""
        return "a copy in memory" if self._mapping is None else self._mapping.why_not

    @property
    def flush_kind(self) -> str:
        """How lines are written back: clwb, clflushopt, clflush, none (durable once visible), or msync."""
        return self._of().flush_kind

    def persist(self, where=None) -> None:
        """Make what was stored to the bytes of *where* (a slice, an index, None: all) durable; no scan."""
        # As `_of`, without a call: the shortest way counts here.
        mapping = self._mapping if self._mapping is not None and not self._closed else self._of()
        # The caller's next store is ordered behind these bytes: that is what it asked for.
        mapping.persist(self, where)

    def flush(self, where=None) -> None:
        """Queue the lines of *where* for write-back; ``drain`` waits for them."""
        self._of().flush(self, where)

    def drain(self) -> None:
        """Everything flushed before is durable before any later store."""
        # Orders what this program flushed before its next store.
        self._of().drain()

    def msync(self, where=None) -> None:
        """Find what was stored to the pages of *where* since their last write-back, and make it durable."""
        self._of().msync(self, where)

    def dirty(self, where=None) -> list[tuple[int, int]]:
        """``[(first, end), ...]`` in bytes from the start of *where*: what ``msync`` would write back.

        Whole pages, of 4 KiB or 2 MiB. OSError (EOPNOTSUPP) if the mapping is not observed.
        """
        return self._of().dirty(self, where)

    def close(self) -> None:
        """``msync``, and no more stores through this array. Unmapped once no other array or view is left."""
        if not self._closed and self._mapping is not None:
            if self.flags.writeable:
                self.msync()
                self.flags.writeable = False
            self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()


def map_file(path, mode: str = "r+", offset: int = 0, shape=None, dtype="u1", *, pte: bool = False,
             require: bool = False, fault: str | None = None) -> MappedArray:  # fmt: skip
    """The file at *path* from byte *offset* on, as an array of *shape* and *dtype*.

    *mode* as for numpy.memmap: "r", "r+", "w+" (made anew, *shape* says how large), "c" (copy on write).
    *shape* None: one axis, up to the end of file. *pte*: pages of 4 KiB from the start, so that less is
    written back, at the price of more faults. *require*: OSError where the mapping can't be observed, else
    it is a plain one (``observed``, ``why_not``). *fault*: "kernel" or "user", who answers page faults; None:
    as the environment says (DAXFS_FAULT), else the kernel. ValueError: a mode that there is not, an offset
    below 0, a file that is too short or, without *shape*, no multiple of *dtype*.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; one of: {', '.join(MODES)}")
    if fault not in (None, "kernel", "user"):
        raise ValueError(f"fault {fault!r} is unknown; one of: kernel, user")
    user = (fault or os.environ.get("DAXFS_FAULT")) == "user"
    dtype = np.dtype(dtype)
    if offset < 0 or not dtype.itemsize or dtype.hasobject:
        raise ValueError(f"no array of {dtype} can be mapped at offset {offset}")
    if mode == "w+" and shape is None:
        raise ValueError("mode 'w+' needs a shape")
    shape = (int(shape),) if isinstance(shape, int | np.integer) else shape
    # O_NONBLOCK: a new handle, not one that was parked and of which a mapping may be left (docs/fault.md).
    fd = os.open(path, MODES[mode] | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    try:
        size = os.fstat(fd).st_size
        if shape is None:
            if size < offset or (size - offset) % dtype.itemsize:
                raise ValueError(f"{size} bytes from {offset} on are no whole number of {dtype}")
            shape = ((size - offset) // dtype.itemsize,)
        shape = tuple(int(n) for n in shape)
        length = _length(shape, dtype)
        if mode == "w+":
            os.ftruncate(fd, offset + length)
        elif offset + length > size:
            raise ValueError(f"{offset + length} bytes are wanted of a file of {size}")
        mapping = Mapping(fd, offset - offset % PAGE, length + offset % PAGE, mode in ("r+", "w+"),
                          mode == "c", pte, require, user)  # fmt: skip
    finally:
        os.close(fd)
    # Of a memoryview: it holds the mapping as long as an array does.
    whole = np.frombuffer(mapping, np.uint8, length, offset % PAGE)
    array = whole.view(dtype).reshape(shape).view(MappedArray)
    array._mapping = mapping
    return array


def _length(shape, dtype) -> int:
    """Bytes of an array; ValueError where there are none."""
    length = dtype.itemsize
    for n in shape:
        length *= n
    if length <= 0 or min(shape, default=1) < 0:
        raise ValueError(f"nothing to map: shape {shape} of {dtype}")
    return length
