/* SPDX-License-Identifier: MIT
 *
 * Entries: what is mapped of a file, one for each page (PTE) or each 2 MiB (PMD), with the lock that a fault,
 * a writeback and an invalidation of the same place take turns with. The model is fs/dax.c of Linux.
 *
 * State of an entry: LOCKED, PMD, ZERO (the zero page, no storage), EMPTY (a grab made it and nothing is
 * inserted yet; if nothing ever is, its unlock drops it), and DIRTY: somebody may have stored through a
 * mapping since it was last flushed. It names no frame, other than the kernel's: the file's extents do
 * (filemap.h), and whoever changes those drops the entries first.
 *
 * Rules, as Linux has them:
 * - A PTE entry keeps PMD entries out of its 2 MiB as long as it lives; a grab of a PMD does not wait for it.
 * - A grab of a page inside a PMD entry with storage gets that PMD entry: a store there dirties all of it.
 * - A grab of a page inside a ZERO PMD entry takes it apart: it is unmapped and dropped, and the page gets
 *   an entry of its own.
 * - An insert replaces EMPTY and ZERO, unmapping the zero page; an entry with storage stays as it is.
 * And where it is better: what came to nothing leaves no entry behind that would keep PMDs out; a dirty PMD
 * entry that is dropped in part leaves the marks of its other pages (Linux 6.12 forgets them); a writeback
 * never passes by an entry that another one has begun to flush.
 *
 * Order of locks: entries, then the file's lock, then `lock` in here. A thread holds one entry, or several
 * taken in ascending order. Who holds one may be waiting for a client's address space (handler.h), so no
 * thread that serves requests waits for an entry, and nobody does under a file's lock. `lock` is held for
 * a few instructions, and nothing is waited for under it; `unmap` is called without it. No GIL anywhere here.
 *
 * Room: 1 GiB of a file with any entry takes one group of 4.7 KiB, each of its 2 MiB with PTE entries 516
 * bytes more: 1 GiB of PMDs 4.7 KiB, of PTEs 263 KiB. A look-up is a binary search over groups and two loads.
 */
#ifndef DAXFS_ENTRY_H
#define DAXFS_ENTRY_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "daxfs/native/fault.h"

#define ENTRY_LOCKED 1u
#define ENTRY_PMD 2u
#define ENTRY_ZERO 4u
#define ENTRY_EMPTY 8u
#define ENTRY_DIRTY 16u
#define ENTRY_THERE 32u		/* of the bytes in here: not 0, whatever the other bits say */

#define ENTRY_GROUP_SLOTS 512u		/* 2 MiB slots of a group: 1 GiB */

struct entry_pages {			/* of a 2 MiB slot with PTE entries */
	uint16_t used, dirty;		/* how many entries; how many of them dirty. Never 0 entries */
	uint8_t state[FAULT_PMD_PAGES];
};

struct entry_group {
	uint64_t number;		/* slots [number * ENTRY_GROUP_SLOTS, ...) */
	uint32_t used;			/* slots with an entry; never 0 */
	uint64_t dirty[ENTRY_GROUP_SLOTS / 64];		/* a bit a slot: it has a dirty entry */
	uint8_t pmd[ENTRY_GROUP_SLOTS];	/* state of the PMD entry, 0: none. Never beside pages */
	struct entry_pages *pages[ENTRY_GROUP_SLOTS];
};

/* Take these pages out of every mapping. Called with their entry locked, and without entry_map.lock. */
typedef void entry_unmap(void *ctx, uint64_t pgoff, uint64_t pages);

struct entry_map {
	pthread_mutex_t lock;		/* of all that follows, but for unmap and ctx, which never change */
	struct entry_group **group;	/* sorted by number */
	size_t n, cap;
	uint64_t count, dirty;		/* entries, and dirty ones */
	struct entry_waiter *first, **end;	/* in the order in which they came */
	entry_unmap *unmap;
	void *ctx;
};

struct entry {				/* one that the caller has locked */
	uint64_t pgoff;			/* its first page */
	uint32_t order;			/* 0 or FAULT_PMD_ORDER */
	uint32_t state;			/* ENTRY_* when it was locked, or last inserted */
};

void entry_map_init(struct entry_map *m, entry_unmap *unmap, void *ctx);
/* No entry is locked and nobody waits. */
void entry_map_destroy(struct entry_map *m);

/* Lock the entry of page pgoff, made EMPTY where there is none; waits for whoever has it. 0; -EEXIST: a PMD
 * was asked for and a PTE entry is in the way (FALLBACK); -ENOMEM. For order 0 a PMD may come back. */
int entry_grab(struct entry_map *m, uint64_t pgoff, unsigned order, struct entry *out);
/* What was grabbed becomes storage, or the zero page (ENTRY_ZERO), and dirty (ENTRY_DIRTY; never with a zero
 * page, and not for a fault that is NEEDDSYNC: its entry_mkwrite marks it). Before the mapping is made. */
void entry_insert(struct entry_map *m, struct entry *e, unsigned how);
void entry_unlock(struct entry_map *m, const struct entry *e);
/* Lock the entry of pgoff that has storage, and mark it dirty, for a store that is to be let through: the end
 * of a NEEDDSYNC fault. 1; 0: there is none of this order any more, and the program has to fault again. */
int entry_mkwrite(struct entry_map *m, uint64_t pgoff, unsigned order, struct entry *out);

/* Drop the entries with a page in [first, first + count), each when nobody holds it; with keep_dirty only
 * those that are not dirty. How many, or -ENOMEM: a PMD entry could not be taken apart, it and those behind
 * it are still there. Mappings were taken away before, and nothing faults there. */
int64_t entry_drop(struct entry_map *m, uint64_t first, uint64_t count, int keep_dirty);

/* For who may not wait: entries that lie wholly in [first, last) and that nobody holds are dropped, marks and
 * all. Their pages are about to go, under the file's exclusive lock. */
void entry_forget(struct entry_map *m, uint64_t first, uint64_t last);

/* Writeback: lock the first dirty entry with a page in [first, last]: 1, or 0: there is none. Then, in this
 * order: write-protect all its mappings, flush, drain, entry_clean, entry_unlock; go on with the page behind
 * it. Each entry comes once, so there is an end to it whoever stores meanwhile. */
int entry_next_dirty(struct entry_map *m, uint64_t first, uint64_t last, struct entry *out);
/* After the drain. A store since the protection waits for this entry in its fault, and marks it again. */
void entry_clean(struct entry_map *m, struct entry *e);

/* For who may not wait: the marks of entries with a page in [first, last] that nobody holds go to `take`,
 * which is called under `lock`: 0, or -errno that ends it. 1: others hold some; 0: none is left; -errno. */
int entry_take_dirty(struct entry_map *m, uint64_t first, uint64_t last,
		     int (*take)(void *ctx, const struct entry *e), void *ctx);

/* State of the entry that holds pgoff, 0: none. Whether a PTE entry is in the 2 MiB of pgoff. As it was at
 * that moment: only an entry that is held, or the file's exclusive lock, keeps it so. */
unsigned entry_state(struct entry_map *m, uint64_t pgoff);
int entry_pte_there(struct entry_map *m, uint64_t pgoff);
/* Entries, and how many of them are dirty. */
uint64_t entry_count(struct entry_map *m, uint64_t *dirty);

#endif
