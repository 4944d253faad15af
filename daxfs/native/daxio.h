/* SPDX-License-Identifier: MIT
 *
 * dax_io in plain C: copies between buffers and the region over the extents of one file, and the write-back
 * of what is dirty. Called by daxfs/data/_dax_io.pyx (metadata thread) and by native/serve.c (native threads).
 *
 * Nothing here locks: the caller holds filemap.lock, shared for what only reads, exclusive for the rest.
 * Every function enters the range table for as long as it uses addresses (-EIO once it is dead), runs
 * without the GIL, and returns 0 or -errno.
 */
#ifndef DAXFS_DAXIO_H
#define DAXFS_DAXIO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "daxfs/native/filemap.h"
#include "daxfs/native/flush.h"

/* What may be dirty (S14); the policy behind it is data/_tracker.pyx's. All under the exclusive lock. */
struct dax_tracker {
	/* Pages [pgoff, pgoff + pages) may be dirty from now on. 0, -ENOMEM, -EINVAL without attach. */
	int (*mark)(struct dax_tracker *, struct filemap *, uint64_t pgoff, uint64_t pages, uint64_t pfn);
	/* First dirty page at or after start and the length of its run; UINT64_MAX: none. */
	uint64_t (*next_run)(struct dax_tracker *, struct filemap *, uint64_t start, uint64_t *pages);
	void (*clean)(struct dax_tracker *, struct filemap *, uint64_t pgoff, uint64_t pages);
};
extern struct dax_tracker dax_tracker_none, dax_tracker_pte;	/* pte: filemap.dirty, a bit a page */

struct daxio {
	struct range_table *table;
	struct daxfs_flush *ops;
	struct dax_tracker *tracker;
	int nt, drain_write, writable;
	uint64_t dirtied_pages, flushed_pages, writebacks;	/* relaxed atomics */
};

/* Shared lock. [pos, pos + size) is inside the file. Holes and unwritten extents read as zeros. */
int dax_copy_out(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size, char *target);
/* Shared lock, kept until the pieces are used up: [pos, pos + size) as pieces of the region itself (and of a
 * page of zeros). The caller has entered the range table. Number of pieces; -E2BIG: more than `max`; -EIO. */
int dax_pieces(struct daxio *io, const struct filemap *f, uint64_t pos, uint64_t size, struct iovec *iov, int max);
/* 1 where all pages of [pos, pos + size) are MAPPED. */
int dax_covered(const struct filemap *f, uint64_t pos, uint64_t size);
/* Copy over mapped pages: past the cache (nt) or through it, marked before the store. No drain. -EROFS. */
int dax_copy_in(struct daxio *io, struct filemap *f, uint64_t pos, uint64_t size, const char *source, int nt);
/* Flush the dirty pages of [first, last), drain, mark them clean; their number, or -errno. */
int64_t dax_writeback(struct daxio *io, struct filemap *f, uint64_t first, uint64_t last);

#endif
