/* SPDX-License-Identifier: MIT
 *
 * Which pages of an address range were stored to since they were protected last: ioctl PAGEMAP_SCAN (Linux
 * 6.7) on a descriptor of /proc/PID/pagemap. And what an address shows: ioctl PROCMAP_QUERY (Linux 6.11) on
 * one of /proc/PID/maps. Used by the daemon of its clients, and by a client of itself.
 *
 * No state, no allocation, nothing of daxfs: any thread, any number at once. Each call takes the mmap lock of
 * the process that the descriptor is of, so it may wait for that process; not for who must answer it.
 *
 * "Stored to" is: mapped and not write-protected by userfaultfd. So what was mapped before it was protected
 * for the first time counts, even if it was only read.
 */
#ifndef DAXFS_PAGEMAP_H
#define DAXFS_PAGEMAP_H

#include <stddef.h>
#include <stdint.h>

/* One run of pages, as the kernel has it (struct page_region). */
struct pagemap_run {
	uint64_t start, end;		/* addresses */
	uint64_t categories;		/* PAGEMAP_IS_HUGE: a huge page maps them */
};
#define PAGEMAP_IS_HUGE (UINT64_C(1) << 6)
enum { PAGEMAP_SMALL = 2 };	/* of `protect` */

/* Put runs of stored pages of [start, end), in order, into run[0..room). `protect`: and protect them again,
 * so that the next scan finds what was stored after this one. Returns how many (0: none is left), or -errno:
 * -EPERM where a part of it is not registered for asynchronous write protection (what came before it was
 * protected and is lost: take all pages for stored), -EINVAL (misaligned, room 0), -ENOTTY (no such kernel).
 * A signal ends no scan. `protect` < 0: not even the registration is looked at; who protects, is the caller.
 * PAGEMAP_SMALL: find and protect, but nothing that a huge page maps.
 * *next: where to go on; `end` when all is done. Addresses that show nothing have no pages.
 *
 * With `protect`, [start, end) has to have whole huge pages (pagemap_widen): the kernel splits one that it is
 * to protect in part, and a split takes a file's pages out of the page table, with what is known of them
 * (tried on 6.18). munmap, mprotect and madvise of a part of one do the same, and so does a hole that is
 * punched into its file: before them, take all its pages for stored. */
int pagemap_scan(int pagemap, uint64_t start, uint64_t end, int protect, struct pagemap_run *run, size_t room,
		 uint64_t *next);

#define PAGEMAP_HUGE (UINT64_C(1) << 21)
/* [*start, *end), made larger to whole huge pages, as far as the mapping [from, to) goes. */
static inline void pagemap_widen(uint64_t *start, uint64_t *end, uint64_t from, uint64_t to)
{
	uint64_t low = *start & ~(PAGEMAP_HUGE - 1), high = (*end + PAGEMAP_HUGE - 1) & ~(PAGEMAP_HUGE - 1);

	*start = low < from ? from : low;
	*end = high > to || high < *end ? to : high;
}

/* The whole of [start, end): found(ctx, start, end) for each run, in order. It returns 0, or what ends the
 * scan and is returned; the pages of its run were protected then. As above, 0 at the end. */
int pagemap_each(int pagemap, uint64_t start, uint64_t end, int protect,
		 int (*found)(void *ctx, uint64_t start, uint64_t end), void *ctx);

/* What an address shows. */
struct pagemap_area {
	uint64_t start, end;		/* addresses of the whole area */
	uint64_t offset;		/* in the file, of `start` */
	uint64_t ino;			/* as stat(2) of the file has it; 0: no file */
	uint32_t major, minor;		/* its st_dev */
	uint32_t flags;			/* PAGEMAP_* */
};
enum { PAGEMAP_READABLE = 1, PAGEMAP_WRITABLE = 2, PAGEMAP_EXECUTABLE = 4, PAGEMAP_SHARED = 8 };

/* The area that holds `address`: 0, -ENOENT: nothing is there, -ESRCH: the address space is gone (its process
 * ended, or became another program), -ENOTTY: no such kernel. */
int pagemap_area_at(int maps, uint64_t address, struct pagemap_area *out);

/* 1: this kernel has both ioctls; 0: it doesn't. */
int pagemap_available(void);

#endif
