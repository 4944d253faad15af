/* SPDX-License-Identifier: MIT
 *
 * PAGEMAP_SCAN and PROCMAP_QUERY (pagemap.h). The structs are written down here: no distribution's headers
 * that are built with have them yet. Limits: system calls alone.
 */
#define _GNU_SOURCE
#include "daxfs/native/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define RUNS 256		/* of one system call of pagemap_each */
#define PAGE_MASK UINT64_C(4095)

/* linux/fs.h, 6.7 */
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN _IOWR('f', 16, struct scan_arg)
#define SCAN_PROTECT (1u << 0)		/* PM_SCAN_WP_MATCHING */
#define SCAN_CHECK (1u << 1)		/* PM_SCAN_CHECK_WPASYNC */
#define IS_WRITTEN (1u << 1)		/* PAGE_IS_WRITTEN */
#define IS_PRESENT (1u << 3)		/* PAGE_IS_PRESENT */
#define IS_HUGE (1u << 6)		/* PAGE_IS_HUGE */
#define IS_SWAPPED (1u << 4)		/* PAGE_IS_SWAPPED */

/* linux/fs.h, 6.11 */
struct query_arg {
	uint64_t size, flags, address;
	uint64_t start, end, vma_flags, page_size, offset, inode;
	uint32_t major, minor, name_size, build_id_size;
	uint64_t name, build_id;
};
#define QUERY _IOWR('f', 17, struct query_arg)

_Static_assert(sizeof(struct scan_arg) == 96, "struct pm_scan_arg");
_Static_assert(sizeof(struct query_arg) == 104, "struct procmap_query");
_Static_assert(PAGEMAP_IS_HUGE == IS_HUGE, "PAGE_IS_HUGE");
_Static_assert(sizeof(struct pagemap_run) == 24, "struct page_region");

int pagemap_scan(int pagemap, uint64_t start, uint64_t end, int protect, struct pagemap_run *run, size_t room,
		 uint64_t *next)
{
	struct scan_arg a;
	int n;

	*next = start;
	if ((start | end) & PAGE_MASK || start > end || !room)
		return -EINVAL;
	while (*next < end) {
		memset(&a, 0, sizeof(a));
		a.size = sizeof(a);
		a.flags = protect < 0 ? 0 : SCAN_CHECK | (protect ? SCAN_PROTECT : 0);
		a.start = *next;
		a.end = end;
		a.vec = (uintptr_t)run;
		a.vec_len = room;
		/* Where nothing was ever mapped nothing is written, though no protection stands there. */
		a.category_mask = IS_WRITTEN;
		a.category_anyof_mask = IS_PRESENT | IS_SWAPPED;
		a.return_mask = IS_WRITTEN | IS_HUGE;
		if (protect == PAGEMAP_SMALL) {
			a.category_mask |= IS_HUGE;
			a.category_inverted = IS_HUGE;
		}
		n = ioctl(pagemap, SCAN, &a);
		if (n < 0) {
			/* walk_end is told with an error, too. A signal ends a scan before it has found anything:
			 * then it begins anew, and what it had found would be told. */
			if (errno == EINTR || errno == EAGAIN)
				continue;
			return -errno;
		}
		*next = a.walk_end > *next ? a.walk_end : end;
		if (n)
			return n;
	}
	return 0;
}

int pagemap_each(int pagemap, uint64_t start, uint64_t end, int protect,
		 int (*found)(void *ctx, uint64_t start, uint64_t end), void *ctx)
{
	struct pagemap_run run[RUNS];
	uint64_t next = start;
	int n, i, rc;

	while (next < end) {
		n = pagemap_scan(pagemap, next, end, protect, run, RUNS, &next);
		if (n < 0)
			return n;
		for (i = 0; i < n; i++) {
			rc = found(ctx, run[i].start, run[i].end);
			if (rc)
				return rc;
		}
	}
	return 0;
}

int pagemap_area_at(int maps, uint64_t address, struct pagemap_area *out)
{
	struct query_arg q;

	memset(&q, 0, sizeof(q));
	q.size = sizeof(q);
	q.address = address;
	while (ioctl(maps, QUERY, &q))
		if (errno != EINTR)
			return -errno;
	out->start = q.start;
	out->end = q.end;
	out->offset = q.offset;
	out->ino = q.inode;
	out->major = q.major;
	out->minor = q.minor;
	out->flags = (uint32_t)q.vma_flags;
	return 0;
}

int pagemap_available(void)
{
	struct pagemap_area area;
	struct pagemap_run run;
	uint64_t next;
	int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int there = maps >= 0 && pagemap >= 0;

	/* Page 0 shows nothing: the kernel answers without a walk. */
	there = there && pagemap_scan(pagemap, 0, 4096, 0, &run, 1, &next) == 0;
	there = there && pagemap_area_at(maps, (uintptr_t)&area, &area) == 0;
	if (maps >= 0)
		close(maps);
	if (pagemap >= 0)
		close(pagemap);
	return there;
}
