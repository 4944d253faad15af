/* SPDX-License-Identifier: MIT
 *
 * The policies of tracker.h: a bitmap for each file (dirty.h), of lines, pages or PMDs; 256 extents; nothing.
 */
#include "daxfs/native/tracker.h"

#include <stdlib.h>
#include <string.h>

#include "daxfs/native/dirty.h"

static int none_mark(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn)
{
	return 0;
}

static uint64_t none_next_run(const struct filemap *f, uint64_t pos, uint64_t *len)
{
	*len = 0;
	return UINT64_MAX;
}

static void none_clean(struct filemap *f, uint64_t pos, uint64_t len)
{
}

static int none_any(const struct filemap *f)
{
	return 0;
}

static int map_mark(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn)
{
	unsigned shift = f->tracker->shift;
	uint64_t first = pos >> shift;

	if (!f->dirty)
		return -EINVAL;
	return len ? dirty_mark(f->dirty, first, ((pos + len - 1) >> shift) - first + 1) : 0;
}

static uint64_t map_next_run(const struct filemap *f, uint64_t pos, uint64_t *len)
{
	unsigned shift = f->tracker->shift;
	uint64_t first = f->dirty ? dirty_next_run(f->dirty, pos >> shift, len) : DIRTY_NONE;

	if (first == DIRTY_NONE)
		return none_next_run(f, pos, len);
	*len <<= shift;
	return first << shift;
}

static void map_clean(struct filemap *f, uint64_t pos, uint64_t len)
{
	unsigned shift = f->tracker->shift;
	uint64_t mask = (UINT64_C(1) << shift) - 1, first = (pos + mask) >> shift, last = (pos + len) >> shift;

	if (f->dirty && first < last)
		dirty_clear(f->dirty, first, last - first);
}

static int map_any(const struct filemap *f)
{
	return f->dirty && f->dirty->count;
}

/* -- extents (S15) ------------------------------------------------------------------------------- */

static uint64_t *words(struct extent_map *m)
{
	return m->slot ? m->slot : m->word;
}

void extent_map_init(struct extent_map *m, struct dirty_arena *arena, uint64_t pages)
{
	*m = (struct extent_map){.arena = arena, .pages = pages};
	m->slot = arena ? dirty_arena_take(arena) : NULL;
	extent_map_clear(m);
}

void extent_map_end(struct extent_map *m)
{
	if (m && m->slot)
		dirty_arena_give(m->arena, m->slot);
}

void extent_map_clear(struct extent_map *m)
{
	memset(words(m), 0, sizeof(m->word));
	__atomic_store_n(&m->active, 0, __ATOMIC_SEQ_CST);
}

static void activate(struct extent_map *m, unsigned n)
{
	uint64_t bit = UINT64_C(1) << n % 64;

	/* Most marks find it active: no line is written, which other CPUs have to fetch. */
	if (extent_is_active(m, n))
		return;
	/* Counted before anybody can find it active, who then relies on any(). Of two, one takes it back. */
	__atomic_fetch_add(&m->active, 1, __ATOMIC_SEQ_CST);
	if (__atomic_fetch_or(&words(m)[n / 64], bit, __ATOMIC_SEQ_CST) & bit)
		__atomic_fetch_sub(&m->active, 1, __ATOMIC_SEQ_CST);
}

void extent_map_fill(struct extent_map *m, unsigned n)
{
	while (n--)
		activate(m, n);
}

/* Extents of twice the length: one of two neighbours was active, so the pair is. Own ranges alone. */
static void merge(struct extent_map *m)
{
	struct extent_map twice = {.pages = m->pages * 2};

	for (unsigned n = 0; n < EXTENTS; n++)
		if (extent_is_active(m, n))
			activate(&twice, n / 2);
	memcpy(words(m), twice.word, sizeof(twice.word));
	m->active = twice.active;
	m->pages = twice.pages;
}

/* The pages of an own range up to `last` have extents. 0 or -ENOMEM. */
static int reach(struct filemap *f, uint64_t last)
{
	if (!f->active) {
		struct extent_map *m = malloc(sizeof(*m));

		if (!m)
			return -ENOMEM;
		extent_map_init(m, f->shared ? f->shared->arena : NULL, 1);
		/* Order: what it holds before that it is there, for those who look without the lock. */
		__atomic_store_n(&f->active, m, __ATOMIC_RELEASE);
	}
	if (last < f->own->pages)
		last = f->own->pages;
	while (last > f->active->pages * EXTENTS)
		merge(f->active);
	return 0;
}

static int extent_mark(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn)
{
	struct extent_map *m;
	uint64_t first = pos >> DAXFS_PAGE_SHIFT, last = (pos + len - 1) >> DAXFS_PAGE_SHIFT, n;

	if (!len)
		return 0;
	if (f->own) {
		if (reach(f, last + 1))
			return -ENOMEM;
	} else {
		n = last - first;
		first = pfn & DAXFS_PFN_MASK;
		last = first + n;
	}
	m = tracker_extents(f);
	if (!m || last / m->pages >= EXTENTS)
		return -EINVAL;
	for (n = first / m->pages; n <= last / m->pages; n++)
		activate(m, (unsigned)n);
	return 0;
}

/* Where the file is MAPPED and its extent active. A run may end where the next one begins. */
static uint64_t extent_next_run(const struct filemap *f, uint64_t pos, uint64_t *len)
{
	const struct extent_map *m = tracker_extents(f);
	uint64_t page = pos >> DAXFS_PAGE_SHIFT, at, n;
	size_t i = m ? filemap_find(f, page) : f->n;
	const struct iomap *e;

	for (; i < f->n; i++) {
		e = &f->e[i];
		if (page < e->pgoff)
			page = e->pgoff;
		for (; e->type == IOMAP_MAPPED && page < e->pgoff + e->len; page += n) {
			at = f->own ? page : (e->pfn & DAXFS_PFN_MASK) + (page - e->pgoff);
			n = m->pages - at % m->pages;
			if (n > e->pgoff + e->len - page)
				n = e->pgoff + e->len - page;
			if (at / m->pages < EXTENTS && extent_is_active(m, (unsigned)(at / m->pages))) {
				*len = n << DAXFS_PAGE_SHIFT;
				return page << DAXFS_PAGE_SHIFT;
			}
		}
	}
	return none_next_run(f, pos, len);
}

static int extent_any(const struct filemap *f)
{
	const struct extent_map *m = tracker_extents(f);

	return m && extent_count(m);
}

unsigned extent_count(const struct extent_map *m)
{
	return (unsigned)__atomic_load_n(&m->active, __ATOMIC_RELAXED);
}

/* -- tables -------------------------------------------------------------------------------------- */

const struct dax_tracker dax_tracker_none = {"none", 0, none_mark, none_next_run, none_clean, none_any, 0};
const struct dax_tracker dax_tracker_line = {"line", 6, map_mark, map_next_run, map_clean, map_any, 0};
const struct dax_tracker dax_tracker_pte = {"pte", 12, map_mark, map_next_run, map_clean, map_any, 0};
const struct dax_tracker dax_tracker_pmd = {"pmd", 21, map_mark, map_next_run, map_clean, map_any, 0};
const struct dax_tracker dax_tracker_extent = {
	"extent", 12, extent_mark, extent_next_run, none_clean, extent_any, 1};
const struct dax_tracker dax_tracker_extent_clear = {
	"extent+clear", 12, extent_mark, extent_next_run, none_clean, extent_any, 1};

int tracker_mark(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn)
{
	return f->tracker ? f->tracker->mark(f, pos, len, pfn) : -EINVAL;
}

int tracker_mark_pages(struct filemap *f, uint64_t first, uint64_t pages)
{
	uint64_t last = first + pages, n;
	struct iomap m;
	int err = 0;

	for (; first < last && !err; first += n) {
		filemap_lookup(f, first, &m);
		n = m.len < last - first ? m.len : last - first;
		if (m.type == IOMAP_MAPPED)
			err = tracker_mark(f, first << DAXFS_PAGE_SHIFT, n << DAXFS_PAGE_SHIFT, m.pfn);
	}
	return err;
}

uint64_t tracker_bytes(const struct filemap *f)
{
	uint64_t at = 0, len, sum = 0;

	if (!f->tracker || !f->tracker->extents)
		return f->tracker && f->dirty ? f->dirty->count << f->tracker->shift : 0;
	for (; (at = f->tracker->next_run(f, at, &len)) != UINT64_MAX; at += len)
		sum += len;
	return sum;
}

/* What f's tracker has, or all that is MAPPED, goes to `copy`, which has another. */
static int hand_over(const struct filemap *f, struct filemap *copy, int all)
{
	uint64_t at = 0, len;
	int err = 0;

	if (all)
		return tracker_mark_pages(copy, 0, DAXFS_MAX_PGOFF);
	while (!err && (at = f->tracker->next_run(f, at, &len)) != UINT64_MAX) {
		err = tracker_mark_pages(copy, at >> DAXFS_PAGE_SHIFT,
					 ((at + len - 1) >> DAXFS_PAGE_SHIFT) - (at >> DAXFS_PAGE_SHIFT) + 1);
		at += len;
	}
	return err;
}

int tracker_switch(struct filemap *f, const struct dax_tracker *to, struct dirty_map *dirty,
		   struct extent_map *shared, int all)
{
	struct filemap copy = *f;	/* its extents, for the time of this call; its lock is not used */
	int err;

	copy.tracker = to;
	copy.dirty = dirty;
	copy.shared = shared;
	copy.active = NULL;
	err = f->tracker ? hand_over(f, &copy, all) : 0;
	if (err) {
		extent_map_end(copy.active);
		free(copy.active);
		return err;
	}
	extent_map_end(f->active);
	free(f->active);
	f->tracker = to;
	f->dirty = dirty;
	f->shared = shared;
	f->active = copy.active;
	return 0;
}
