/* SPDX-License-Identifier: MIT
 *
 * daxfs_dirty: what a scan of the page table finds, with nothing protected by it. Limits: the marks are the
 * kernel's, so fsync(2) of another process takes them, too.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "daxfs/client/daxfs.h"
#include "daxfs/client/lib.h"
#include "daxfs/native/pagemap.h"

struct list {
	struct daxfs_piece *out;
	size_t n, room;
	uintptr_t start, end;	/* what is asked for */
};

static int add(void *ctx, uint64_t start, uint64_t end)
{
	struct list *list = ctx;
	struct daxfs_piece *last = list->n ? &list->out[list->n - 1] : NULL;

	start = start < list->start ? list->start : start;
	end = end > list->end ? list->end : end;
	if (start >= end)
		return 0;
	if (last && (uintptr_t)last->start + last->length == start) {
		last->length += end - start;
		return 0;
	}
	if (list->n == list->room)
		return 1;
	list->out[list->n++] = (struct daxfs_piece){(void *)(uintptr_t)start, end - start};
	return 0;
}

/* A huge page is stored to as a whole, and only one of its pages is a candidate: so whole ones are asked
 * for. */
static int dirty_part(const struct piece *p, uintptr_t start, uintptr_t end, struct list *list)
{
	struct piece part = *p;
	uint64_t low = start, high = end;

	pagemap_widen(&low, &high, p->start, p->end);
	part.start = low;
	part.end = high;
	part.offset += low - p->start;
	list->start = start;
	list->end = end;
	return client_dirty(&part, add, list);
}

ssize_t daxfs_dirty(const void *addr, size_t length, struct daxfs_piece *out, size_t room)
{
	uintptr_t at = (uintptr_t)addr & ~(CLIENT_PAGE - 1);
	uintptr_t end = ((uintptr_t)addr + length + CLIENT_PAGE - 1) & ~(CLIENT_PAGE - 1);
	struct list list = {out, 0, room, 0, 0};
	struct piece p;
	int r = 0;

	if (!room || end < at) {
		errno = EINVAL;
		return -1;
	}
	for (; at < end && !r; at = p.end) {
		if (!pieces_next(at, end, &p) || p.start > at || !p.id)
			r = -EOPNOTSUPP;
		else if (!kernel_is_owner())
			r = -EPERM;
		else
			r = dirty_part(&p, at, p.end < end ? p.end : end, &list);
	}
	if (r >= 0)
		return list.n;
	errno = -r;
	return -1;
}
