/* SPDX-License-Identifier: MIT
 *
 * A two-level bitmap of dirty units on 64-bit words, sparse over 2^40 units.
 *
 * Leaf chunks cover DIRTY_CHUNK_BITS units each and hold a bit a unit and, above
 * it, a summary bit a leaf word; chunks are made on the first set and freed when
 * they fall empty, so that set, run search and clear cost what is dirty and not
 * what the file could hold (SEEDS.md S16). Not locked: the caller holds the
 * inode's lock (docs/concurrency.md).
 */
#ifndef DAXFS_DIRTY_H
#define DAXFS_DIRTY_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define DIRTY_CHUNK_SHIFT 15
#define DIRTY_CHUNK_BITS (1u << DIRTY_CHUNK_SHIFT)
#define DIRTY_WORDS (DIRTY_CHUNK_BITS / 64)
#define DIRTY_NONE UINT64_MAX
#define DIRTY_LIMIT (UINT64_C(1) << 40)	/* units of a map: [0, DIRTY_LIMIT) */

struct dirty_chunk {
	uint64_t number;		/* units [number << SHIFT, (number + 1) << SHIFT) */
	uint64_t count;			/* bits set */
	uint64_t summary[DIRTY_WORDS / 64];
	uint64_t word[DIRTY_WORDS];
};

/*
 * Room for chunks in the region (SEEDS.md S5), shared by the maps of one mount;
 * a map of extents (tracker.h) takes a slot, too.
 * What stands in it is volatile: a slot is zeroed when it is taken, nothing is
 * flushed, and which slots are in use is known in DRAM alone, so that nothing of
 * an earlier mount is ever looked at and giving a slot back touches no region.
 * `lock` guards the rest; maps take it with their inode's lock held.
 */
#define DIRTY_SLOT_BYTES ((sizeof(struct dirty_chunk) + 63) & ~(size_t)63)

struct dirty_arena {
	char *base;			/* of `slots` slots of DIRTY_SLOT_BYTES */
	uint32_t slots;
	uint32_t fresh;			/* slots from here on were never taken */
	uint32_t *back;			/* stack of slots that were given back, room for all */
	uint32_t nback;
	uint64_t fallbacks;		/* chunks that had to be made in DRAM */
	pthread_mutex_t lock;
};

/* 0, or -ENOMEM. `base` is a multiple of 64; bytes that make no slot are left alone. */
int dirty_arena_init(struct dirty_arena *a, void *base, size_t bytes);
void dirty_arena_destroy(struct dirty_arena *a);
/* A slot, not zeroed, or NULL when all are in use, which is counted. */
void *dirty_arena_take(struct dirty_arena *a);
/* Back with p, of which not a byte is touched: the region may be gone. 0: it is no slot. `a` may be NULL. */
int dirty_arena_give(struct dirty_arena *a, const void *p);
/* Slots in use. */
uint32_t dirty_arena_used(struct dirty_arena *a);
uint64_t dirty_arena_fallbacks(struct dirty_arena *a);

struct dirty_map {
	struct dirty_arena *arena;	/* where chunks come from first; NULL: DRAM alone */
	struct dirty_chunk **chunk;	/* sorted by number */
	size_t n, cap;
	uint64_t count;			/* bits set in all chunks */
	struct dirty_chunk *last;	/* what was marked last: writes come side by side. NULL: it is gone */
};

/* With an arena, dirty_destroy alone may be called when the region is not entered. */
void dirty_init(struct dirty_map *m, struct dirty_arena *arena);
void dirty_destroy(struct dirty_map *m);
/* Chunks that are in DRAM. */
size_t dirty_in_dram(const struct dirty_map *m);
/* 0, or -ENOMEM (memory) or -EINVAL (past DIRTY_LIMIT) with nothing changed. */
int dirty_set(struct dirty_map *m, uint64_t first, uint64_t count);
/* The same as dirty_set, without a call for units of one word in the chunk that was marked last: what a write
 * marks. */
static inline int dirty_mark(struct dirty_map *m, uint64_t first, uint64_t count)
{
	struct dirty_chunk *c = m->last;
	unsigned lo = first & (DIRTY_CHUNK_BITS - 1), w = lo / 64;
	uint64_t fresh;

	if (!c || c->number != first >> DIRTY_CHUNK_SHIFT || count - 1 > 63 - lo % 64)
		return dirty_set(m, first, count);
	fresh = (~UINT64_C(0) >> (64 - count)) << lo % 64 & ~c->word[w];
	if (!fresh)
		return 0;
	c->word[w] |= fresh;
	c->summary[w / 64] |= UINT64_C(1) << w % 64;
	/* One bit is what a page has; the builtin is a call where the CPU may lack the instruction. */
	count = fresh & (fresh - 1) ? (uint64_t)__builtin_popcountll(fresh) : 1;
	c->count += count;
	m->count += count;
	return 0;
}

/* What lies past DIRTY_LIMIT is clear already; the same goes for the questions below. */
void dirty_clear(struct dirty_map *m, uint64_t first, uint64_t count);
/* First run at or after `from`: its first unit and *len, or DIRTY_NONE. */
uint64_t dirty_next_run(const struct dirty_map *m, uint64_t from, uint64_t *len);
uint64_t dirty_count_range(const struct dirty_map *m, uint64_t first, uint64_t count);
int dirty_test(const struct dirty_map *m, uint64_t unit);

#endif
