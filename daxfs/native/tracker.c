/* SPDX-License-Identifier: MIT
 *
 * The policies of tracker.h: a bitmap for each file (dirty.h), of lines, pages or PMDs, or nothing.
 */
#include "daxfs/native/tracker.h"

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
	return len ? dirty_set(f->dirty, first, ((pos + len - 1) >> shift) - first + 1) : 0;
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

const struct dax_tracker dax_tracker_none = {"none", 0, none_mark, none_next_run, none_clean, none_any};
const struct dax_tracker dax_tracker_line = {"line", 6, map_mark, map_next_run, map_clean, map_any};
const struct dax_tracker dax_tracker_pte = {"pte", 12, map_mark, map_next_run, map_clean, map_any};
const struct dax_tracker dax_tracker_pmd = {"pmd", 21, map_mark, map_next_run, map_clean, map_any};

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
	return f->tracker && f->dirty ? f->dirty->count << f->tracker->shift : 0;
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

int tracker_switch(struct filemap *f, const struct dax_tracker *to, struct dirty_map *dirty, int all)
{
	struct filemap copy = *f;	/* its extents, for the time of this call; its lock is not used */
	int err;

	copy.tracker = to;
	copy.dirty = dirty;
	err = f->tracker ? hand_over(f, &copy, all) : 0;
	if (err)
		return err;
	f->tracker = to;
	f->dirty = dirty;
	return 0;
}
