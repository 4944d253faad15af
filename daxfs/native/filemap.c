/* SPDX-License-Identifier: MIT
 *
 * The two sorted arrays behind filemap.h: ranges of the region by pfn, extents of
 * a file by page. Plain C without Python: every function here runs without the
 * GIL. None of them locks: the caller holds filemap.lock (shared for look-ups,
 * exclusive for splice), and a range_table is filled before it is shared.
 */
#define _GNU_SOURCE
#include "daxfs/native/tracker.h"

#include <stdlib.h>
#include <string.h>

/* Index of the first range that ends after pfn. */
static size_t range_find(const struct range_table *t, uint64_t pfn)
{
	size_t low = 0, high = t->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (t->r[mid].pfn_end <= pfn)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

const struct range *range_lookup(const struct range_table *t, uint64_t pfn)
{
	size_t i;

	if (pfn & DAXFS_PFN_NEITHER)	/* damaged: don't take its low bits for a frame */
		return NULL;
	pfn &= DAXFS_PFN_MASK;
	i = range_find(t, pfn);
	if (i == t->n || t->r[i].pfn_start > pfn)
		return NULL;
	return &t->r[i];
}

char *range_address(const struct range_table *t, uint64_t pfn, uint64_t *avail)
{
	const struct range *r = range_lookup(t, pfn);

	if (!r)
		return NULL;
	pfn &= DAXFS_PFN_MASK;
	*avail = r->pfn_end - pfn;
	return r->addr + ((pfn - r->pfn_start) << DAXFS_PAGE_SHIFT);
}

uint64_t range_next(const struct range_table *t, uint64_t pfn)
{
	size_t i = range_find(t, pfn);

	if (i == t->n)
		return UINT64_MAX;
	return t->r[i].pfn_start > pfn ? t->r[i].pfn_start : pfn;
}

int range_add(struct range_table *t, uint64_t pfn_start, uint64_t pfn_end, char *addr, uint64_t flags)
{
	size_t i;

	if (pfn_start >= pfn_end || pfn_end > DAXFS_PFN_MASK + 1 || !addr || (flags & DAXFS_PFN_MASK))
		return -EINVAL;
	i = range_find(t, pfn_start);
	if (i < t->n && t->r[i].pfn_start < pfn_end)
		return -EEXIST;
	if (t->n == t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 4;
		struct range *r = realloc(t->r, cap * sizeof(*r));

		if (!r)
			return -ENOMEM;
		t->r = r;
		t->cap = cap;
	}
	memmove(&t->r[i + 1], &t->r[i], (t->n - i) * sizeof(*t->r));
	t->r[i] = (struct range){pfn_start, pfn_end, addr, flags, -1};
	t->n++;
	return 0;
}

void range_is_file(struct range_table *t, uint64_t pfn_start, int fd)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->r[i].pfn_start == pfn_start)
			t->r[i].fd = fd;
}

void filemap_init(struct filemap *m)
{
	memset(m, 0, sizeof(*m));
	file_lock_init(&m->lock);
}

void filemap_destroy(struct filemap *m)
{
	free(m->e);
	extent_map_end(m->active);
	free(m->active);
	m->e = NULL;
	m->active = NULL;
	m->n = m->cap = 0;
	file_lock_destroy(&m->lock);
}

size_t filemap_find(const struct filemap *m, uint64_t pgoff)
{
	size_t low = 0, high = m->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (m->e[mid].pgoff + m->e[mid].len <= pgoff)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

void filemap_lookup(const struct filemap *m, uint64_t pgoff, struct iomap *out)
{
	size_t i = filemap_find(m, pgoff);
	uint64_t end = DAXFS_MAX_PGOFF, skip;

	if (i < m->n && m->e[i].pgoff <= pgoff) {
		skip = pgoff - m->e[i].pgoff;
		*out = m->e[i];
		out->pgoff = pgoff;
		out->len -= skip;
		out->pfn += skip;	/* the flags in the high bits stay: the frame has 48 bits */
		return;
	}
	if (i < m->n)
		end = m->e[i].pgoff;
	else if (pgoff >= DAXFS_MAX_PGOFF)
		end = UINT64_MAX;	/* never an empty piece: a walk always moves on */
	*out = (struct iomap){pgoff, end - pgoff, 0, IOMAP_HOLE, 0};
}

/* 0 if the new extents are sound and fit between `floor` and `ceiling`; *pages = their sum. */
static int splice_check(const struct iomap *e, size_t n, uint64_t floor, uint64_t ceiling, uint64_t *pages)
{
	uint64_t frame;
	size_t i;

	*pages = 0;
	for (i = 0; i < n; i++) {
		frame = e[i].pfn & DAXFS_PFN_MASK;
		if (e[i].type != IOMAP_UNWRITTEN && e[i].type != IOMAP_MAPPED)
			return -EINVAL;
		if (e[i].pgoff < floor || e[i].pgoff >= ceiling)
			return -EINVAL;
		if (!e[i].len || e[i].len > ceiling - e[i].pgoff)
			return -EINVAL;
		if ((e[i].pfn & DAXFS_PFN_NEITHER) || e[i].len > DAXFS_PFN_MASK + 1 - frame)
			return -EINVAL;
		floor = e[i].pgoff + e[i].len;
		*pages += e[i].len;
	}
	return 0;
}

/* Room for n extents. Shrinks too, so that a file that was cut down gives its memory back. */
static int filemap_resize(struct filemap *m, size_t n)
{
	size_t cap = n <= 2 ? n : n + n / 2;
	struct iomap *e;

	if (n <= m->cap && n > m->cap / 4)
		return 0;
	if (!n) {
		free(m->e);
		m->e = NULL;
		m->cap = 0;
		return 0;
	}
	e = realloc(m->e, cap * sizeof(*e));
	if (!e)
		return n <= m->cap ? 0 : -ENOMEM;	/* could not shrink: no harm */
	m->e = e;
	m->cap = cap;
	return 0;
}

int filemap_splice(struct filemap *m, size_t index, size_t count, const struct iomap *e, size_t n)
{
	uint64_t floor = 0, ceiling = DAXFS_MAX_PGOFF, added, removed = 0;
	size_t i, tail, total;
	int rc;

	if (index > m->n || count > m->n - index)
		return -EINVAL;
	if (index)
		floor = m->e[index - 1].pgoff + m->e[index - 1].len;
	if (index + count < m->n)
		ceiling = m->e[index + count].pgoff;
	rc = splice_check(e, n, floor, ceiling, &added);
	if (rc)
		return rc;
	for (i = index; i < index + count; i++)
		removed += m->e[i].len;
	tail = m->n - index - count;
	total = m->n - count + n;
	/* Growing comes before the move, shrinking after it: both need all that is still kept. */
	if (total > m->cap && (rc = filemap_resize(m, total)))
		return rc;
	if (tail && n != count)
		memmove(&m->e[index + n], &m->e[index + count], tail * sizeof(*e));
	if (n)
		memcpy(&m->e[index], e, n * sizeof(*e));
	m->n = total;
	m->pages += added - removed;
	return filemap_resize(m, total);
}
