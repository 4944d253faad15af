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
	int extents;			/* 1: fsync flushes whatever is active in tracker_extents(f), all of it */
};

/* none: nothing is ever marked. The others keep bits in filemap.dirty: of 64 bytes, 4 KiB, 2 MiB. */
extern const struct dax_tracker dax_tracker_none, dax_tracker_line, dax_tracker_pte, dax_tracker_pmd;
/*
 * S15: an extent is active from its first mark on, and clean() changes nothing. The packed files of a mount
 * have one map together, over the region's pages, so that any fsync flushes for all. An own range is a device
 * of its own, as its file is: its extents are the file's, twice as long each time that it outgrows them.
 */
extern const struct dax_tracker dax_tracker_extent, dax_tracker_extent_clear;

/* NULL: none of an own range was ever active. */
static inline struct extent_map *tracker_extents(const struct filemap *f)
{
	return f->own ? f->active : f->shared;
}

static inline const uint64_t *extent_words(const struct extent_map *m)
{
	return m->slot ? m->slot : m->word;
}

static inline int extent_is_active(const struct extent_map *m, unsigned n)
{
	return __atomic_load_n(&extent_words(m)[n / 64], __ATOMIC_ACQUIRE) >> n % 64 & 1;
}

/* All idle, extents of `pages` pages; in a slot of the arena (NULL: none) if there is one, else in DRAM. */
void extent_map_init(struct extent_map *m, struct dirty_arena *arena, uint64_t pages);
/* Gives the slot back; not a byte of the region is touched. m may be NULL, or zeros. */
void extent_map_end(struct extent_map *m);
/* All idle again. Nobody marks meanwhile. */
void extent_map_clear(struct extent_map *m);
/* The first n extents are active. Nobody else has m. */
void extent_map_fill(struct extent_map *m, unsigned n);
/* How many are active, and whether any is: not between range_enter and range_exit, either. */
unsigned extent_count(const struct extent_map *m);

/* tracker->mark; -EINVAL without a tracker. */
int tracker_mark(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn);
/* The same for those of the pages [first, first + pages) that are MAPPED. */
int tracker_mark_pages(struct filemap *f, uint64_t first, uint64_t pages);
/* Bytes that are marked. */
uint64_t tracker_bytes(const struct filemap *f);
/*
 * From now on f has the tracker `to` with the marks `dirty` and `shared` (NULL: not its kind): at least what
 * its old one had, or with `all` every page that is MAPPED, since the old one can't tell. The old marks are
 * the caller's then. 0, or -ENOMEM, -EINVAL with f as it was.
 */
int tracker_switch(struct filemap *f, const struct dax_tracker *to, struct dirty_map *dirty,
		   struct extent_map *shared, int all);

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
