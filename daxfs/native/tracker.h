/* SPDX-License-Identifier: MIT
 *
 * What may be dirty in a file since its last fsync (SEEDS.md S14 to S16): one interface, a policy behind it
 * for each file (struct filemap). `tracker` and the marks that it keeps change together, under the file's
 * exclusive lock, so that whoever holds the lock sees a policy with its own marks.
 *
 * All in bytes of the file. A policy rounds outwards to its units when it marks, and inwards when it cleans.
 * All under the exclusive lock but any(), for which the shared one is enough; and, as marks may stand in the
 * region (dirty.h), between range_enter and range_exit, but for any().
 */
#ifndef DAXFS_TRACKER_H
#define DAXFS_TRACKER_H

#include "daxfs/native/filemap.h"

struct dax_tracker {
	const char *name;		/* as track= has it */
	unsigned shift;			/* a unit is 1 << shift bytes; 0: it marks nothing */
	/* [pos, pos + len) may be dirty from now on. pfn: of the page of pos; what follows is contiguous. 0,
	 * -ENOMEM, -EINVAL. */
	int (*mark)(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn);
	/* Where the first run of dirty units begins that ends behind pos, at the unit of pos or later, and its
	 * length; UINT64_MAX: none. */
	uint64_t (*next_run)(const struct filemap *f, uint64_t pos, uint64_t *len);
	/* Written back, flushed and drained already; or gone. */
	void (*clean)(struct filemap *f, uint64_t pos, uint64_t len);
	/* Has fsync anything to flush? */
	int (*any)(const struct filemap *f);
};

/* none: nothing is ever marked. The others keep bits in filemap.dirty: of 64 bytes, 4 KiB, 2 MiB. */
extern const struct dax_tracker dax_tracker_none, dax_tracker_line, dax_tracker_pte, dax_tracker_pmd;

/* tracker->mark; -EINVAL without a tracker. */
int tracker_mark(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn);
/* The same for those of the pages [first, first + pages) that are MAPPED. */
int tracker_mark_pages(struct filemap *f, uint64_t first, uint64_t pages);
/* Bytes that are marked. */
uint64_t tracker_bytes(const struct filemap *f);
/*
 * From now on f has the tracker `to` with the marks `dirty` (NULL: none of its own): at least what its old
 * one had, or with `all` every page that is MAPPED, since the old one can't tell. The old marks are the
 * caller's then. 0, or -ENOMEM, -EINVAL with f as it was.
 */
int tracker_switch(struct filemap *f, const struct dax_tracker *to, struct dirty_map *dirty, int all);

static inline int tracker_any(const struct filemap *f)
{
	return f->tracker && f->tracker->any(f);
}

/* Bytes of the units that hold [pos, pos + len). */
static inline uint64_t tracker_span(const struct dax_tracker *t, uint64_t pos, uint64_t len)
{
	uint64_t mask = (UINT64_C(1) << t->shift) - 1;

	return t->shift ? ((pos + len + mask) & ~mask) - (pos & ~mask) : 0;
}

#endif
