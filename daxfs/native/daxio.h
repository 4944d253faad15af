/* SPDX-License-Identifier: MIT
 *
 * dax_io in plain C: copies between buffers and the region over the extents of one file, and the
 * write-back of what is dirty. Called by daxfs/data/_dax_io.pyx (metadata thread) and by native/serve.c
 * (native threads).
 *
 * Nothing here locks: the caller holds filemap.lock, shared for what only reads, exclusive for the rest.
 * Every function enters the range table for as long as it uses addresses (-EIO once it is dead), runs
 * without the GIL, and returns 0 or -errno. No global state: each extension may have its own copy.
 */
#ifndef DAXFS_DAXIO_H
#define DAXFS_DAXIO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "daxfs/native/filemap.h"
#include "daxfs/native/flush.h"
#include "daxfs/native/flushers.h"
#include "daxfs/native/fsync.h"
#include "daxfs/native/latency.h"
#include "daxfs/native/trace.h"

struct daxio {
	struct range_table *table;
	struct daxfs_flush *ops;
	int nt, drain_write, writable;
	uint64_t nt_threshold;			/* less than so many bytes at once go through the cache all the same */
	int ram;				/* all ranges are files on tmpfs, ramfs or hugetlbfs */
	uint64_t dirtied_bytes, flushed_bytes, writebacks;	/* relaxed atomics; dirtied: the units that were marked */
	struct latency writeback_ns, writeback_pages;	/* of those that found something dirty */
	struct trace_ring *trace;		/* NULL: nobody can watch */
	struct flushers *flushers;		/* who help to write back; NULL: nobody */
};

/* Shared lock. [pos, pos + size) is inside the file. Holes and unwritten extents read as zeros; in an own
 * range (filemap.h) a hole is read through its file. */
int dax_copy_out(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size, char *target);
/* Shared lock, kept until the pieces are used up: [pos, pos + size) as pieces of the region itself (and of
 * a page of zeros). The caller has entered the range table and leaves it after them. Number of pieces;
 * -E2BIG: more than `max`, or the pages may go away (own ranges); -EIO. */
int dax_pieces(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size,
	       struct iovec *iov, int max);
/* Shared lock. Read a byte of each page of [pos, pos + size), which somebody is going to be given as it is:
 * -EIO where one of them is gone, as dax_copy_out would say. */
int dax_touch(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size);
/* 1 where all pages of [pos, pos + size) are MAPPED. */
int dax_covered(const struct filemap *f, uint64_t pos, uint64_t size);
/* Copy over mapped pages: past the cache (nt; below nt_threshold through it, and flushed at once: as durable
 * at the next drain), or through it and marked before the store. No drain. -EROFS; -EIO, with what lies
 * before it copied, at a page that is not mapped. */
int dax_copy_in(struct daxio *io, struct filemap *f, uint64_t pos, uint64_t size, const char *source, int nt);
/* New pages that no extent names yet, so without a lock: what of source, which stands at pos of the file,
 * falls on the pages [pgoff, pgoff + pages) goes to pfn, zeros around it, all past the cache. No drain.
 * -EROFS; -EINVAL where nothing of it does. */
int dax_fill_new(struct daxio *io, uint64_t pgoff, uint64_t pages, uint64_t pfn, uint64_t pos, uint64_t size,
		 const char *source);
/* Shared lock. Have the kernel map the pages of [pos, pos + size), which may have no memory yet, as behind
 * the end of a file, at once. Only a hint, and nothing for a short piece. */
void dax_populate(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size);
/* Zeros over the mapped pages of [pos, pos + size), past the cache; holes and unwritten pages stay. No
 * drain. */
int dax_zero(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size);
/* Flush what is dirty in the pages [first, last), and in the rest of the tracker's units there, where it is
 * mapped and inside the file; drain, mark it clean. Bytes that were flushed, or -errno. After a failed msync
 * the marks stay, and so does ops->error, for whoever takes it (daxfs_flush_take_error). run: the fsync that
 * it is done for, or NULL. */
int64_t dax_writeback(struct daxio *io, struct filemap *f, uint64_t first, uint64_t last,
		      struct fsync_run *run);
/* The same as one part of a write-back that the caller tells about, and counts. */
int64_t dax_writeback_part(struct daxio *io, struct filemap *f, uint64_t first, uint64_t last,
			   struct fsync_run *run);
/* Flush [pos, pos + len) where it is mapped and inside the file, and drain, whatever is marked: bytes, or
 * -errno. The shared lock is enough. */
int64_t dax_persist(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t len);
/* For `daxfs trace`: DAX_WRITEBACK_* of the pages [first, last), which took ns until now; r may be NULL. */
void dax_trace_writeback(struct trace_ring *r, enum trace_dax what, const struct filemap *f, uint64_t first,
			 uint64_t last, uint64_t ns);

#endif
