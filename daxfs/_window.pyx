# SPDX-License-Identifier: MIT
"""L1: mapped memory: the window that holds a region, and what the kernel says about a file to map.

Limits: knows sources only as descriptors and pages only by number. Not for use after close; who hands
out addresses in the window sees to that (`_iomap.RangeTable`).
"""
cimport libc.errno
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memset

import os

from daxfs.errors import fail

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_NONE, PROT_READ, PROT_WRITE
    enum: MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_SHARED_VALIDATE, MAP_SYNC
    enum: MADV_HUGEPAGE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset)
    int munmap(void *addr, size_t length)
    int mprotect(void *addr, size_t length, int prot)
    int madvise(void *addr, size_t length, int advice)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_s "statfs":
        unsigned long f_type
        unsigned long f_bsize
    int fstatfs(int fd, statfs_s *buf)

cdef extern from "<fcntl.h>" nogil:
    enum: AT_EMPTY_PATH

cdef extern from "<sys/stat.h>" nogil:
    struct statx_s "statx":
        uint64_t stx_attributes
        uint64_t stx_attributes_mask
    int statx(int dirfd, const char *path, int flags, unsigned int mask, statx_s *buf)

cdef extern from *:
    """
    #define DAXFS_ATTR_DAX UINT64_C(0x00200000) /* STATX_ATTR_DAX, which older headers lack */
    """
    uint64_t DAXFS_ATTR_DAX

cdef enum:
    PAGE_SHIFT = 12
    PMD_BYTES = 1 << 21


def file_facts(int fd):
    """(f_type, f_bsize, dax) of an open file; dax is True, False, or None where the kernel doesn't say."""
    cdef statfs_s fs
    cdef statx_s sx
    if fstatfs(fd, &fs):
        raise OSError(errno, os.strerror(errno))
    memset(&sx, 0, sizeof(sx))
    dax = None
    if statx(fd, b"", AT_EMPTY_PATH, 0, &sx) == 0 and sx.stx_attributes_mask & DAXFS_ATTR_DAX:
        dax = bool(sx.stx_attributes & DAXFS_ATTR_DAX)
    return fs.f_type & 0xFFFFFFFF, fs.f_bsize, dax


def map_sync_works(int fd, uint64_t length=4096):
    """True if *fd* can be mapped with MAP_SYNC: then stores need cache lines flushed and nothing else."""
    cdef void *p = mmap(NULL, length, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0)
    if p == MAP_FAILED:
        return False
    munmap(p, length)
    return True


cdef void *_replace(void *p, size_t length, int prot, int flags, int fd, uint64_t offset):
    """mmap at *p*, in place of what is mapped there; that stays where it fails, with MAP_FAILED.

    By itself MAP_FIXED unmaps what was there before it asks the file, and a file that refuses (a private
    mapping of devdax) leaves a hole, which becomes another's memory: so the file is asked elsewhere first.
    """
    cdef void *got = mmap(NULL, length, prot, flags, fd, offset)
    cdef int code
    if got == MAP_FAILED:
        return got
    munmap(got, length)
    got = mmap(p, length, prot, flags | MAP_FIXED, fd, offset)
    if got == MAP_FAILED:  # what came in between may have left a hole
        code = errno
        mmap(p, length, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        libc.errno.errno = code
    return got


cdef class Window:
    """One area of virtual addresses that holds a whole region; a buffer of bytes over all of it.

    Reserved once and filled by place(), so that byte ``pfn * 4096`` of the buffer is page pfn. Pages
    that nothing was placed on must not be touched (SIGSEGV) unless pad() made them readable zeros.
    """

    def __cinit__(self):
        self.base = NULL
        self.exports = 0
        self.writable = False
        self.placed = {}

    @classmethod
    def reserve(cls, uint64_t npages, uint64_t align=PMD_BYTES):
        """Reserve *npages* pages at an address that is a multiple of *align* bytes (a power of two)."""
        cdef Window w = cls()
        cdef size_t length = npages << PAGE_SHIFT, head
        cdef char *p
        if not npages or npages >> 36 or align < 4096 or align & (align - 1):
            raise ValueError(f"can't reserve {npages} pages aligned to {align}")
        p = <char *>mmap(NULL, length + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>p == MAP_FAILED:
            raise fail(errno, f"no room in the address space for {npages} pages")
        head = (align - <uintptr_t>p % align) % align
        if head:
            munmap(p, head)
        munmap(p + head + length, align - head)
        w.base = p + head
        w.length = length
        return w

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.length)

    cdef char *_at(self, uint64_t pfn, uint64_t npages) except NULL:
        if self.base == NULL:
            raise ValueError("the window is closed")
        if pfn > self.length >> PAGE_SHIFT or not npages or npages > (self.length >> PAGE_SHIFT) - pfn:
            raise ValueError(f"pages {pfn}+{npages} are outside the window")
        return self.base + (pfn << PAGE_SHIFT)

    def place(self, uint64_t pfn_start, uint64_t npages, int fd, uint64_t offset, str prot="rw",
              bint private=False, bint sync=False, bint huge=True):
        """Map *npages* pages of *fd* from byte *offset* on at page *pfn_start*; returns the address.

        prot "r" or "rw"; private: stores stay in this process; sync: MAP_SYNC, OSError where it can't be had.
        huge: ask for huge pages, which a small file would get 2 MiB of storage by.
        """
        cdef char *p = self._at(pfn_start, npages)
        cdef size_t length = npages << PAGE_SHIFT
        cdef int flags = 0
        if prot not in ("r", "rw"):
            raise ValueError(f"prot is r or rw, not {prot!r}")
        if private:
            # A private copy of a large region is almost never filled: don't account for it.
            flags |= MAP_PRIVATE | MAP_NORESERVE
        else:
            flags |= (MAP_SHARED_VALIDATE | MAP_SYNC) if sync else MAP_SHARED
        rc = _replace(p, length, PROT_READ | (PROT_WRITE if prot == "rw" else 0), flags, fd, offset)
        if rc == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        if huge:
            madvise(p, length, MADV_HUGEPAGE)  # best effort; what it brings is reported by region.Region.pmd
        self.writable = self.writable or prot == "rw"
        self.placed[<uintptr_t>(p - self.base)] = length, fd, offset
        return <uintptr_t>p

    def unplace(self, uint64_t pfn_start, uint64_t npages):
        """Take away what place() put there: its pages are as they were after reserve()."""
        cdef char *p = self._at(pfn_start, npages)
        # In its place at once, without a moment in which somebody else's mapping could get in between.
        if mmap(p, npages << PAGE_SHIFT, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0) == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.placed.pop(<uintptr_t>(p - self.base), None)

    def pad(self, uint64_t pfn_start, uint64_t npages):
        """Make unplaced pages readable as zeros, so that a scan over the whole window is safe."""
        if mprotect(self._at(pfn_start, npages), npages << PAGE_SHIFT, PROT_READ):
            raise OSError(errno, os.strerror(errno))

    def detach(self):
        """Turn every placed page into a private one: stores through views that are left reach nobody.

        What can't be private (devdax) stays and becomes read-only: such a store is SIGSEGV.
        """
        cdef char *p
        cdef size_t length
        for at, (size, fd, offset) in self.placed.items():
            p = self.base + <uintptr_t>at
            length = size
            if not self.writable:
                continue
            if _replace(p, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd,
                        <uint64_t>offset) == MAP_FAILED:
                mprotect(p, length, PROT_READ)
        self.placed = {}

    def close(self):
        """Unmap. BufferError while views of the buffer exist. Closing twice is fine."""
        if self.base == NULL:
            return
        if self.exports:
            raise BufferError(f"{self.exports} views of the region still exist")
        munmap(self.base, self.length)
        self.base = NULL
        self.length = 0
        self.placed = {}

    @property
    def address(self):
        return <uintptr_t>self.base

    @property
    def exported(self):
        """Views of the buffer that exist."""
        return self.exports

    @property
    def closed(self):
        return self.base == NULL

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.base == NULL:
            raise BufferError("the region is closed")
        PyBuffer_FillInfo(view, self, self.base, self.length, not self.writable, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
