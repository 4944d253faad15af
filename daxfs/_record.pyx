# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False
"""L1: the recorder: every store, flush and drain on a region, written to a log (native/record.c).

`Recorder` puts a recording table in the place of the functions that a region was bound to; daxfs/testing
reads the log. Limits: attach and detach in one thread, while no other stores; any thread may store in
between; `take` when none does. A call site is the Python line that the storing thread stands in: finding
it needs the GIL, so a thread that stores without it waits for it, under its FileMap lock too. That can't
deadlock, because no thread waits for a FileMap lock with the GIL (docs/concurrency.md). Native threads have
no Python line: site 0.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EBUSY
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from daxfs._flush cimport Flush, daxfs_flush
from daxfs._iomap cimport RangeTable, range_table

import errno
import fcntl
import json
import os
import stat
import struct
import sys

from daxfs._own import PFN_BASE
from daxfs.errors import UsageError, fail
from daxfs.layout import SB_MAGIC

cdef extern from "Python.h" nogil:
    void *PyGILState_GetThisThreadState()

cdef extern from "Python.h":
    ctypedef struct PyFrameObject
    ctypedef struct PyCodeObject
    PyFrameObject *PyEval_GetFrame()        # borrowed; the next two give a reference
    PyFrameObject *PyFrame_GetBack(PyFrameObject *)
    PyCodeObject *PyFrame_GetCode(PyFrameObject *)
    int PyFrame_GetLasti(PyFrameObject *)

cdef extern from "daxfs/native/record.h" nogil:
    enum: DAXFS_EV_SITE, DAXFS_EV_IMAGE, DAXFS_EV_SCAN, DAXFS_EV_RANGE
    struct daxfs_recorder:
        const range_table *ranges
        uint32_t (*site)(void *) noexcept nogil
        void *context
        char *buf
        size_t used
        int error
        uint64_t events, bytes, ops
    struct own_watch:
        void (*note)(own_watch *w, const char *what, uint64_t a, uint64_t b) noexcept
    struct daxfs_range_watch:
        own_watch watch
        daxfs_recorder *r
        char name[40]
    void daxfs_record_range(own_watch *w, const char *what, uint64_t a, uint64_t b) noexcept
    int daxfs_record_init(daxfs_recorder *r, const void *base, int fd)
    void daxfs_record_destroy(daxfs_recorder *r)
    int daxfs_record_attach(daxfs_recorder *r, daxfs_flush *t)
    void daxfs_record_detach(daxfs_recorder *r)
    void daxfs_record_note(daxfs_recorder *r, int kind, uint32_t site, uint64_t place, const void *data,
                           size_t len)
    uint64_t daxfs_record_begin(daxfs_recorder *r, const void *text, size_t len)
    void daxfs_record_end(daxfs_recorder *r, uint64_t op, const void *text, size_t len)
    int daxfs_record_sync(daxfs_recorder *r)

MAGIC = b"DAXFSREC"
VERSION = 2
PAGE = 4096
PIECE = 1 << 20
cdef enum:
    SITE_DEPTH = 4  # Python frames that make a call site

cdef struct frame_key:
    void *code
    int64_t lasti


cdef uint32_t _site(void *context) noexcept nogil:
    if PyGILState_GetThisThreadState() == NULL:
        return 0
    with gil:
        return _python_site(<Recorder>context)


cdef uint32_t _python_site(Recorder recorder) noexcept:
    try:
        return recorder.here()
    except Exception:
        return 0        # an exception of a signal handler, or no memory: the store itself must go on


cdef void _frames(frame_key *key):
    """Code and place in it of the innermost Python frames: what tells one call site from another.

    Places in the byte code, not lines: to look up a line number costs more than all of this.
    """
    cdef PyFrameObject *frame = PyEval_GetFrame()
    cdef PyFrameObject *back
    cdef PyCodeObject *code
    cdef int depth
    memset(key, 0, SITE_DEPTH * sizeof(frame_key))
    if frame is not NULL:
        Py_INCREF(<object>frame)
    for depth in range(SITE_DEPTH):
        if frame is NULL:
            break
        code = PyFrame_GetCode(frame)
        key[depth].code, key[depth].lasti = code, PyFrame_GetLasti(frame)
        Py_DECREF(<object>code)     # its frame holds it
        back = PyFrame_GetBack(frame)
        Py_DECREF(<object>frame)
        frame = back
    if frame is not NULL:
        Py_DECREF(<object>frame)


cdef class RangeWatch:
    """What an own range tells, put into the log of *recorder* under the range's *name*."""

    cdef daxfs_range_watch w
    cdef Recorder recorder      # alive as long as the range may tell something

    def __cinit__(self, Recorder recorder not None, str name):
        cdef bytes raw = name.encode()
        if len(raw) >= sizeof(self.w.name):
            raise ValueError(name)
        memset(&self.w, 0, sizeof(self.w))
        memcpy(self.w.name, <const char *>raw, len(raw))
        self.w.watch.note = daxfs_record_range
        self.w.r = &recorder.r
        self.recorder = recorder

    @property
    def address(self):
        return <uintptr_t>&self.w.watch


cdef class Recorder:
    """Records what is stored on *region* between ``with`` and its end.

    region: daxfs.region.Region. path: the log, a file that is made or replaced (mode 0600: it holds data);
    None keeps it in memory for `take`. sites: note the call sites. info: what the header says besides the
    region's own facts (plain values). UsageError where *path* can't be a log of this region, OSError where
    it can't be made, EBUSY where the region is being recorded already. A log that can't be written (disk
    full) ends there: ``error`` is the errno, the region goes on.
    """

    cdef daxfs_recorder r
    cdef object region
    cdef RangeTable table
    cdef dict known, sites      # frames, and text, to the number of a call site
    cdef list codes
    cdef Flush flush
    cdef int fd
    cdef bint attached
    cdef readonly object path

    def __cinit__(self, region, path=None, sites=True, info=None):
        self.fd = -1
        self.attached = False
        self.region, self.flush, self.path = region, region.flush, path
        self.table = region.table
        self.known, self.sites, self.codes = {}, {}, []
        if path is not None:
            self.fd = _create(path, region)
        if daxfs_record_init(&self.r, <const void *><uintptr_t>region.address, self.fd):
            raise MemoryError("no memory for the buffer of a recorder")
        self.r.ranges = &self.table.t
        if sites:
            self.r.site = _site
            self.r.context = <void *>self
        if path is not None:
            self._header(info or {})
            self._image()

    def __dealloc__(self):
        if self.attached:
            daxfs_record_detach(&self.r)
        daxfs_record_destroy(&self.r)
        if self.fd >= 0:
            os.close(self.fd)

    def __enter__(self):
        if daxfs_record_attach(&self.r, self.flush.t):
            raise fail(EBUSY, "the region is being recorded already")
        self.attached = True
        self.region.recorder = self
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """Stop recording and complete the log. Twice is fine. Look at ``error`` afterwards."""
        if self.attached:
            self.region.recorder = None
            daxfs_record_detach(&self.r)
            self.attached = False
        if self.fd >= 0:
            daxfs_record_sync(&self.r)
            os.close(self.fd)
            self.fd = -1

    @property
    def events(self):
        """Events so far."""
        return self.r.events

    @property
    def bytes(self):
        """Bytes of log so far, the header of a file not counted."""
        return self.r.bytes

    @property
    def error(self):
        """errno that ended the log before its time, 0 for none."""
        return self.r.error

    def take(self) -> bytes:
        """The events since the last take, of a log in memory (daxfs.testing.log.parse reads them)."""
        if self.path is not None:
            raise ValueError("the log is in a file")
        if self.r.error:
            raise MemoryError("no memory for the log")
        out = PyBytes_FromStringAndSize(self.r.buf, self.r.used)
        self.r.used = 0
        return out

    def begin(self, text: str) -> int:
        """An operation begins on this thread: what is stored from now on belongs to it. Its number."""
        cdef bytes raw = text.encode("utf-8", "surrogateescape")
        return daxfs_record_begin(&self.r, <const char *>raw, len(raw))

    def end(self, op: int, text: str = ""):
        """Operation *op* of this thread has returned, *text* says with what."""
        cdef bytes raw = text.encode("utf-8", "surrogateescape")
        daxfs_record_end(&self.r, op, <const char *>raw, len(raw))

    def scan(self, uint64_t place, data):
        """Note bytes that a client's mapping was found to have stored, in an order that nobody knows."""
        cdef Py_buffer b
        PyObject_GetBuffer(data, &b, PyBUF_SIMPLE)
        try:
            daxfs_record_note(&self.r, DAXFS_EV_SCAN, self.here(), place, b.buf, b.len)
        finally:
            PyBuffer_Release(&b)

    def range(self, text: str):
        """Note what happened to the file of an own range, or to their folder (docs/recording.md)."""
        cdef bytes raw = text.encode()
        daxfs_record_note(&self.r, DAXFS_EV_RANGE, self.here(), 0, <const char *>raw, len(raw))

    def watch(self, name: str) -> RangeWatch:
        """For OwnRange.watch: the range of that name tells what happens to its file."""
        return RangeWatch(self, name)

    def here(self) -> int:
        """The number of the call site: the innermost Python frames of this thread."""
        cdef frame_key key[SITE_DEPTH]
        _frames(key)
        whole = PyBytes_FromStringAndSize(<char *>key, sizeof(key))
        found = self.known.get(whole)
        return self._new_site(whole) if found is None else found

    cdef _new_site(self, bytes whole):
        """The number of frames not met before; the same one where lines and functions are the same."""
        frames, frame = [], sys._getframe()
        while frame is not None and len(frames) < SITE_DEPTH:
            frames.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        text = " < ".join(f"{_short(code.co_filename)}:{line} {code.co_name}" for code, line in frames)
        found = self.sites.get(text)
        if found is None:
            found = self.sites[text] = len(self.sites) + 1
            self._note_site(found, text)
        self.codes.extend(code for code, _ in frames)   # so that no other code gets one's address
        self.known[whole] = found
        return found

    cdef _note_site(self, uint32_t number, str text):
        cdef bytes raw = text.encode("utf-8", "surrogateescape")
        daxfs_record_note(&self.r, DAXFS_EV_SITE, number, 0, <const char *>raw, len(raw))

    cdef _header(self, dict info):
        facts = {"version": VERSION, "region": self.region.describe(), **info}
        text = json.dumps(facts).encode()
        text += b" " * (-len(text) % 8)
        os.write(self.fd, MAGIC + struct.pack("<II", VERSION, len(text)) + text)

    cdef _image(self):
        """What the region holds now, pages of zeros left out: the log is whole without the region."""
        for source in self.region.sources:
            self._image_of(source.fd, source.pages * PAGE, source.pfn_start * PAGE)
        self._ranges()
        if daxfs_record_sync(&self.r):
            raise fail(self.r.error, f"{self.path}: {os.strerror(self.r.error)}")

    cdef _image_of(self, int fd, uint64_t size, uint64_t place):
        cdef bytes piece
        cdef const char *p
        cdef uint64_t at
        zero = bytes(PAGE)
        for start, stop in _data(fd, size):
            for at in range(start, stop, PIECE):
                piece = os.pread(fd, min(PIECE, stop - at), at)
                for first, last in _runs(piece, zero):
                    p = piece
                    daxfs_record_note(&self.r, DAXFS_EV_IMAGE, 0, place + at + <uint64_t>first,
                                      p + <size_t>first, <size_t>(last - first))

    cdef _ranges(self):
        """The same of own ranges, each at a place that is its own until it gets another one."""
        cdef uint64_t place = <uint64_t>PFN_BASE * PAGE
        cdef uint64_t size
        pool = self.region.pool
        if pool is None:
            return
        for name in sorted(pool.owners().values()):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=pool.dir_fd)
            try:
                size = (os.fstat(fd).st_size + PAGE - 1) // PAGE * PAGE
                self.range(f"create {name}")
                self.range(f"size {name} {size}")
                self.range(f"place {name} {place} {size}")
                self._image_of(fd, size, place)
                place += size
            finally:
                os.close(fd)
        self.range("start")


def _create(path, region) -> int:
    """A new log; UsageError where *path* is a source of the region, a region, or no regular file."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path}: a recording needs a regular file")
        for source in region.sources:
            own = os.fstat(source.fd)
            if (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino):
                raise UsageError(f"{path}: is a source of the region that is to be recorded")
        if os.pread(fd, len(SB_MAGIC), 0) == SB_MAGIC:
            raise UsageError(f"{path}: holds a daxfs region, which a recording would replace")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise fail(EBUSY, f"{path}: busy: another recording, or another program, has it") from None
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _data(fd: int, size: int):
    """(start, end) of the pieces of a source that may hold something, in whole pages."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            end = min(os.lseek(fd, at, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            end = size      # a device knows no holes
        at = at // PAGE * PAGE
        end = (end + PAGE - 1) // PAGE * PAGE
        yield at, end
        at = end


def _runs(piece: bytes, zero: bytes):
    """(first, last) of the runs of pages in *piece* that are not all zero."""
    start = None
    for at in range(0, len(piece), PAGE):
        if piece[at:at + PAGE] != zero[:len(piece) - at]:
            start = at if start is None else start
        elif start is not None:
            yield start, at
            start = None
    if start is not None:
        yield start, len(piece)


def _short(path: str) -> str:
    """A file's name as a reader knows it: from the package on, or with its folder."""
    parts = path.split("/")
    if "daxfs" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("daxfs"):])
    return "/".join(parts[-2:])
