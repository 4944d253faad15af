/* SPDX-License-Identifier: MIT
 *
 * Two lookups that the data path makes without the GIL: pfn -> address (struct
 * range_table, one for a region) and page of a file -> extent (struct filemap,
 * one for each inode in use). Both are sorted arrays with binary search: a
 * lookup costs O(log n) once for each extent, never for each page (SEEDS.md S2).
 *
 * range_table: entry and exit around every use of an address; after kill, entry
 * answers -EIO and kill waits until the last user has left (S6, S9, S11). Ranges
 * are added before the table is shared and never move.
 * filemap: readers hold `lock` shared, whoever changes extents or size holds it
 * exclusive (docs/concurrency.md).
 */
#ifndef DAXFS_FILEMAP_H
#define DAXFS_FILEMAP_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "daxfs/native/file_lock.h"

#define DAXFS_PAGE_SHIFT 12
#define DAXFS_PFN_MASK ((UINT64_C(1) << 48) - 1)
#define DAXFS_PFN_NEITHER (UINT64_C(0xfff) << 48)	/* neither frame nor flag: always clear */
#define DAXFS_MAX_PGOFF (UINT64_C(1) << 32)	/* 16 TiB in pages */

struct range {
	uint64_t pfn_start, pfn_end;	/* [start, end) */
	char *addr;			/* of pfn_start */
	uint64_t flags;			/* PFN_DEV, PFN_MAP */
	int fd;				/* of the file that it is, from byte 0 on; -1: nobody has said */
};

struct range_table {
	struct range *r;
	size_t n, cap;
	int64_t users;			/* entered and not left */
	int dead;
	int lost;			/* a page of a source is gone (lost.h); dead, too */
	uint64_t seq;			/* odd while metadata are stored in place: native readers of an inode look again */
	uint64_t own_seq;		/* odd while an inode and the file of its own range change together */
};

static inline int range_enter(struct range_table *t)
{
	__atomic_fetch_add(&t->users, 1, __ATOMIC_SEQ_CST);
	/* Counted before the look at `dead`, which kill sets before it looks at `users`: no
	 * user can slip in between. Both sides are sequentially consistent for that reason. */
	if (__builtin_expect(__atomic_load_n(&t->dead, __ATOMIC_SEQ_CST), 0)) {
		__atomic_fetch_sub(&t->users, 1, __ATOMIC_RELEASE);
		return -EIO;
	}
	return 0;
}

static inline void range_exit(struct range_table *t)
{
	__atomic_fetch_sub(&t->users, 1, __ATOMIC_RELEASE);
}

/* The same at the end of a use whose result counts: err, or -EIO where a page went away meanwhile. */
static inline int range_leave(struct range_table *t, int err)
{
	int lost = __atomic_load_n(&t->lost, __ATOMIC_SEQ_CST);

	range_exit(t);
	return __builtin_expect(lost, 0) ? -EIO : err;
}

/* The range that holds pfn (flags are ignored); NULL outside every range. */
const struct range *range_lookup(const struct range_table *t, uint64_t pfn);
/* Address of pfn and, in *avail, pages to the end of its range; NULL outside every range. */
char *range_address(const struct range_table *t, uint64_t pfn, uint64_t *avail);
/* pfn, or where it is in no range the first one behind it that is; UINT64_MAX: none. */
uint64_t range_next(const struct range_table *t, uint64_t pfn);
/* 0, -EINVAL (empty, too high, flags), -EEXIST (overlaps a range), -ENOMEM. */
int range_add(struct range_table *t, uint64_t pfn_start, uint64_t pfn_end, char *addr, uint64_t flags);
/* The range that begins at pfn_start is the file `fd`, which stays open as long as the table is alive. */
void range_is_file(struct range_table *t, uint64_t pfn_start, int fd);

enum iomap_type { IOMAP_HOLE = 0, IOMAP_UNWRITTEN = 1, IOMAP_MAPPED = 2 };

struct iomap {
	uint64_t pgoff;			/* first page of the piece */
	uint64_t len;			/* pages */
	uint64_t pfn;			/* of pgoff; meaningless for a hole */
	uint32_t type;			/* enum iomap_type */
	uint32_t slot;			/* where the extent stands on media (meta's business) */
};

/* An inode's own range: a file of the pool directory whose offsets equal the inode's (own.h). Changed under
 * the map's exclusive lock; `torn` by the SIGBUS handler (lost.h) at any time.
 * Programs may have the range mapped, store into its holes and punch holes (MADV_REMOVE) without telling us.
 * So an extent of the map, always MAPPED, says that storage was there when we looked, and a hole says
 * nothing: dax_io reads such a page through `fd`, and takes storage (own_cover) before it stores there. */
struct own_range {
	int fd;				/* of the range's file */
	int syncs;			/* what the file system below does is durable after fdatasync alone */
	int torn;			/* a page went away under a load or store; what is mapped there now is nobody's */
	uint64_t pfn;			/* of page 0, in the own window; 0: the range has no address yet */
	uint64_t room;			/* pages that have an address */
	uint64_t pages;			/* size of the range's file: a mapping's SIGBUS begins behind it */
	struct own_watch *watch;	/* is told what happens to the file (own.h); NULL: nobody is */
};

/* 256 extents of pages in a row, each active or not (SEEDS.md S15; tracker.h). */
#define EXTENTS 256
struct extent_map {
	uint64_t word[EXTENTS / 64];	/* a bit an extent, unless it has a slot; set and read with atomics */
	uint64_t *slot;			/* the words in the region (dirty.h); NULL: `word` */
	struct dirty_arena *arena;	/* of the slot; NULL: DRAM alone */
	uint64_t pages;			/* of an extent; 0: none is active yet */
	uint64_t active;		/* bits set, or about to be: in DRAM, for who has not entered the region */
};

struct filemap {
	struct iomap *e;		/* extents sorted by pgoff, no overlap, no holes */
	size_t n, cap;
	uint64_t size;			/* bytes */
	uint64_t pages;			/* allocated, the sum of the lengths */
	uint64_t ino;			/* 0: not an inode of a mounted file system */
	const struct dax_tracker *tracker;	/* tracker.h: who knows what is dirty; NULL until one is attached */
	struct dirty_map *dirty;	/* its marks, in units of its own; NULL: it has none in the map */
	struct extent_map *shared;	/* of the region, for all packed files of the mount (track=extent) */
	struct extent_map *active;	/* of the file's own range (track=extent), malloc'ed at its first mark */
	char *inode;			/* the inode's 256 bytes in the region; NULL: not an inode of a mounted file system */
	struct own_range *own;		/* NULL: packed, every page stands where its extent says */
	uint32_t state;			/* FILEMAP_*; changed with __atomic_fetch_or/and, under the lock where it says so */
	struct file_lock lock;
};

/* What native threads must know of an inode beside its extents. Set and cleared by the metadata thread.
 * UNSETTLED: a record since the journal's tail holds this inode: replay would bring its size and times back.
 * Set under the exclusive lock; no size may be stored in place while it is set.
 * PLAIN: a write takes nothing away (no setuid, setgid, capabilities), and the file may be written. Cleared,
 * under the exclusive lock, by every record with this inode.
 * STALE_TIMES (lazytime): times were stored and not flushed; fsync has to. Set by any thread.
 * PARKS: handles of this inode may be parked (serve_park.h): set when its first one opens directly, cleared,
 * under the exclusive lock, before anything that the next first open has to look at changes.
 * COARSE: a program may store through a mapping that nobody observes and no kernel tracks: fsync takes every
 * page for dirty, and is left to the metadata thread.
 * OBSERVED: programs have mappings that are observed (fault/observer.py): fsync has to look at them first, so
 * it is left to the metadata thread, too.
 * POISONED: pages of it are poisoned (meta/poison.py). Set under the exclusive lock; reads and writes are the
 * metadata thread's.
 * STORED: mappings of an earlier use of the inode may have stored what no fsync has flushed: the next one
 * takes every page for dirty, as with COARSE, and ends it. Or a failed switch has left the tracker `none`. */
#define FILEMAP_UNSETTLED 1u
#define FILEMAP_PLAIN 2u
#define FILEMAP_STALE_TIMES 4u
#define FILEMAP_COARSE 8u
#define FILEMAP_PARKS 16u
#define FILEMAP_OBSERVED 32u
#define FILEMAP_POISONED 64u
#define FILEMAP_STORED 128u

void filemap_init(struct filemap *m);
void filemap_destroy(struct filemap *m);
/* The piece that holds pgoff: from pgoff (not from the extent's start) to its end. A hole ends at the
 * next extent or at DAXFS_MAX_PGOFF (beyond that: at UINT64_MAX); a piece is never empty. */
void filemap_lookup(const struct filemap *m, uint64_t pgoff, struct iomap *out);
/* Index of the first extent that ends after pgoff (== n: none). */
size_t filemap_find(const struct filemap *m, uint64_t pgoff);
/* Replace `count` extents from `index` on by `n` new ones; 0, -ENOMEM, -EINVAL (order, overlap,
 * type, a pfn of more than 48 bits); on failure nothing has changed. */
int filemap_splice(struct filemap *m, size_t index, size_t count, const struct iomap *e, size_t n);

#endif
