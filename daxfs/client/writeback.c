/* SPDX-License-Identifier: MIT
 *
 * How a client writes its observed mappings back: what was stored to them is found, and made durable.
 *
 * Order of a write-back: protect (the scan does, page by page), flush what was found, drain. A store that
 * comes after the protection is found by the next scan, here or in the daemon. Two threads that write the
 * same mapping back take turns: who finds a page clean must not return before the thread that took its
 * mark has drained. Large ranges are not scanned where the records of page faults say which pages can have
 * been stored to (candidates.c).
 *
 * Threads: any, under the turn of the mapping's file; pieces are looked up without a lock. While a lock is
 * held signals wait.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daxfs/client/lib.h"
#include "daxfs/native/latency.h"
#include "daxfs/native/pagemap.h"

#define RUNS 32		/* small: a signal handler's stack may be all there is */
#define LOOK 256	/* pages: as small */
#define MADV_POPULATE_READ_ 22	/* linux/mman.h of 5.14 */

/*
 * Where the time of write-backs goes, by laps as the daemon times an fsync (native/fsync.h): each gives the
 * time since the lap before to one phase. For each turn, and under it: so without locked adds.
 */
enum phase { WAIT, SCAN, FLUSH, DRAIN, PHASES };
static struct times {
	uint64_t count, last, ns[PHASES];
} __attribute__((aligned(64))) times[CLIENT_TURNS];

static void add(uint64_t *sum, uint64_t n)
{
	__atomic_store_n(sum, *sum + n, __ATOMIC_RELAXED);
}

static void lap(const struct piece *p, enum phase phase)
{
	struct times *t = &times[p->turn];
	uint64_t now = latency_now();

	add(&t->ns[phase], now - t->last);
	t->last = now;
}

/* Take the turn. Only who has to wait for it looks at the clock before. */
static void begin(const struct piece *p)
{
	uint64_t began = 0;

	if (!client_turn_try(p->turn)) {
		began = latency_now();
		client_turn_take(p->turn);
	}
	times[p->turn].last = began ? began : latency_now();
	add(&times[p->turn].count, 1);
	if (began)
		lap(p, WAIT);
}

void client_sync_times(uint64_t *count, uint64_t *wait, uint64_t *scan, uint64_t *flush, uint64_t *drain)
{
	int i;

	*count = *wait = *scan = *flush = *drain = 0;
	for (i = 0; i < CLIENT_TURNS; i++) {
		*count += __atomic_load_n(&times[i].count, __ATOMIC_RELAXED);
		*wait += __atomic_load_n(&times[i].ns[WAIT], __ATOMIC_RELAXED);
		*scan += __atomic_load_n(&times[i].ns[SCAN], __ATOMIC_RELAXED);
		*flush += __atomic_load_n(&times[i].ns[FLUSH], __ATOMIC_RELAXED);
		*drain += __atomic_load_n(&times[i].ns[DRAIN], __ATOMIC_RELAXED);
	}
}

/* Pages that can't be loaded from are written back through another mapping, made before any mark is taken:
 * lines are the memory's. 0 or -errno. */
static int show(struct piece *p)
{
	uintptr_t at;

	if (!p->hidden)
		return 0;
	at = syscall(SYS_mmap, NULL, p->end - p->start, PROT_READ, MAP_SHARED, kernel_held(p->holder), p->offset);
	if (at == (uintptr_t)MAP_FAILED)
		return -errno;
	p->shift = at - p->start;
	return 0;
}

static void unshow(const struct piece *p)
{
	if (p->shift)
		syscall(SYS_munmap, p->start + p->shift, p->end - p->start);
}

static void queue(const struct piece *p, uintptr_t start, uintptr_t end)
{
	flushing_queue(p->flush, start + p->shift, end + p->shift);
}

/* Queue what of [start, end) can be loaded: not what is behind the end of the file, nor where the file of the
 * mapping was taken away. */
static void queue_loadable(int flush, uintptr_t start, uintptr_t end)
{
	uintptr_t middle = start + (end - start) / 2 / CLIENT_PAGE * CLIENT_PAGE;

	if (!syscall(SYS_madvise, start, end - start, MADV_POPULATE_READ_)
	    || (errno != EFAULT && errno != ENOMEM && errno != EHWPOISON)) {	/* the call is forbidden */
		flushing_queue(flush, start, end);
	} else if (middle > start) {
		queue_loadable(flush, start, middle);
		queue_loadable(flush, middle, end);
	}
}

/* Queue all of [start, end) that has storage, where it is not known what was stored. Also what the page table
 * has no more; and no hole, which a load would fill. A user who may not write the range below is told that
 * all has storage. */
static void queue_all(const struct piece *p, uintptr_t start, uintptr_t end)
{
	unsigned char there[LOOK];
	uintptr_t at, stop;
	size_t n, i, low;

	for (at = start + p->shift, stop = end + p->shift; at < stop; at += n * CLIENT_PAGE) {
		n = (stop - at) / CLIENT_PAGE < LOOK ? (stop - at) / CLIENT_PAGE : LOOK;
		if (syscall(SYS_mincore, at, n * CLIENT_PAGE, there))
			memset(there, 1, n);
		for (low = i = 0; i <= n; i++) {
			if (i < n && there[i] & 1)
				continue;
			if (low < i)
				queue_loadable(p->flush, at + low * CLIENT_PAGE, at + i * CLIENT_PAGE);
			low = i + 1;
		}
	}
}

/* With fault=kernel the scan protects what it finds; else we do, before the flush, and the daemon's thread
 * answers the next store. The bytes found; or -errno: a part of the marks may be gone. */
static int64_t scan(const struct piece *p, uint64_t start, uint64_t end, int protect)
{
	int n = 0, i, user = p->mode == DAXFS_FAULT_USER;
	struct pagemap_run run[RUNS];
	int64_t bytes = 0;

	while (n >= 0 && start < end) {
		n = pagemap_scan(kernel_pagemap(), start, end, user ? -1 : protect, run, RUNS, &start);
		/* It fails where the daemon is gone: nobody is to see the next store. */
		for (i = 0; user && i < n; i++)
			kernel_protect(p->mode, run[i].start, run[i].end, 1);
		if (n > 0)
			lap(p, SCAN);
		for (i = 0; i < n; i++) {
			queue(p, run[i].start, run[i].end);
			bytes += run[i].end - run[i].start;
		}
		if (n > 0)
			lap(p, FLUSH);
	}
	return n < 0 ? n : bytes;
}

/* Can a huge page map a part of it? */
static int has_huge(const struct piece *p)
{
	uintptr_t low = (p->start + PAGEMAP_HUGE - 1) & ~(uintptr_t)(PAGEMAP_HUGE - 1);

	return !((p->start - p->offset) % PAGEMAP_HUGE) && low < p->end && p->end - low >= PAGEMAP_HUGE;
}

/* What of the huge page around `run` is in `p`. */
static void widen(const struct piece *p, struct pagemap_run *run)
{
	run->start &= ~(PAGEMAP_HUGE - 1);
	run->end = (run->end + PAGEMAP_HUGE - 1) & ~(PAGEMAP_HUGE - 1);
	if (run->start < p->start)
		run->start = p->start;
	if (run->end > p->end)
		run->end = p->end;
}

/* The huge pages that have a candidate of [start, end), each as a whole. */
static int scan_huge(const struct piece *p, uint64_t start, uint64_t end)
{
	struct pagemap_run run;
	int n = 0;

	while (n >= 0 && start < end) {
		n = pagemap_scan(kernel_pagemap(), start, end, 0, &run, 1, &start);
		if (n < 1 || !(run.categories & PAGEMAP_IS_HUGE))
			continue;
		widen(p, &run);
		n = scan(p, run.start, run.end, 1) < 0 ? -EPERM : 0;
		start = start < run.end ? run.end : start;
	}
	return n < 0 ? n : 0;
}

/* 0, or -1: a part of the marks may be gone. */
static int scan_candidates(const struct piece *p)
{
	uintptr_t at = p->start, start, end;
	struct pagemap_run run;
	int huge = has_huge(p);
	int64_t r;
	uint64_t next;

	if (!candidates_next(&at, p->end, 1, &start, &end)) {	/* but is it registered still? */
		r = pagemap_scan(kernel_pagemap(), p->start, p->start + CLIENT_PAGE, 0, &run, 1, &next);
		return r < 0 ? -1 : 0;
	}
	do {
		r = scan(p, start, end, PAGEMAP_SMALL);
		if (huge && r >= 0 && (uint64_t)r != end - start)	/* what was found is not huge */
			r = scan_huge(p, start, end);
	} while (r >= 0 && candidates_next(&at, p->end, 1, &start, &end));
	return r < 0 ? -1 : 0;
}

/* Under the turn of the mapping. */
static void write_back(const struct piece *p)
{
	int all = !kernel_is_owner();	/* a child of _Fork(2): the pagemap is its parent's */
	int counts = !all && p->mode == DAXFS_FAULT_KERNEL;

	if (counts)
		kernel_begins(p->turn);

	if (counts && candidates_begin(p->start, p->end, 1))
		all = scan_candidates(p);
	else if (!all)
		all = scan(p, p->start, p->end, 1) < 0;
	if (all)	/* it is not registered any more, and a part of the marks may be gone */
		candidates_forget(p->start, p->end);
	lap(p, SCAN);
	if (all) {
		queue_all(p, p->start, p->end);
		lap(p, FLUSH);
	}
	/* Orders the lines queued here before whatever the caller, or who waits for this turn, stores next; and
	 * before the count that an fsync waits for. */
	flushing_drain();
	lap(p, DRAIN);
	if (counts)
		kernel_ends(p->turn);
	/* After our own count, or both would wait. What the daemon has protected, no scan of ours has found. */
	if (kernel_is_owner() && !kernel_daemon_has_flushed(p->turn)) {
		lap(p, WAIT);
		queue_all(p, p->start, p->end);
		lap(p, FLUSH);
		/* Orders them as above: these are what the daemon is about to flush, too. */
		flushing_drain();
		lap(p, DRAIN);
	} else {
		lap(p, WAIT);
	}
}

static int sync_piece(struct piece *p)
{
	int r;

	if (p->flush == DAXFS_FLUSH_MSYNC)
		return kernel_msync(p->start, p->end, MS_SYNC);
	r = show(p);
	if (r)
		return r;
	begin(p);
	write_back(p);
	client_turn_leave(p->turn);
	unshow(p);
	return 0;
}

static int tell(const struct piece *p, const struct pagemap_run *run, uintptr_t *told,
		int (*found)(void *ctx, uint64_t start, uint64_t end), void *ctx)
{
	struct pagemap_run whole = *run;

	if (run->categories & PAGEMAP_IS_HUGE)	/* a huge page is stored to as a whole */
		widen(p, &whole);
	if (whole.start < *told)
		whole.start = *told;
	if (whole.start >= whole.end)
		return 0;
	*told = whole.end;
	return found(ctx, whole.start, whole.end);
}

/* Under its turn: who writes back has taken candidates, and not scanned all of them. */
static int dirty(const struct piece *p, int (*found)(void *ctx, uint64_t start, uint64_t end), void *ctx)
{
	int n = 0, protect = p->mode == DAXFS_FAULT_USER ? -1 : 0, known = 0;
	uintptr_t at = p->start, start = p->start, end = p->end, told = p->start;
	struct pagemap_run run;
	uint64_t next;

	if (!protect)
		known = candidates_begin(p->start, p->end, 0);
	while (known ? candidates_next(&at, p->end, 0, &start, &end) : at < p->end) {
		for (next = start; next < end;) {
			n = pagemap_scan(kernel_pagemap(), next, end, protect, &run, 1, &next);
			if (n > 0)
				n = tell(p, &run, &told, found, ctx);
			if (n)
				return n;
		}
		at = known ? at : p->end;
	}
	return 0;
}

int client_dirty(const struct piece *p, int (*found)(void *ctx, uint64_t start, uint64_t end), void *ctx)
{
	sigset_t old;
	int r;

	client_hold_signals(&old);
	client_turn_take(p->turn);
	r = dirty(p, found, ctx);
	client_turn_leave(p->turn);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

/* The end of the pieces that follow each other without a gap from `p` on, of one file. */
static uintptr_t end_of_row(const struct piece *p, uintptr_t limit)
{
	struct piece next;
	uintptr_t end = p->end;

	while (!p->hidden && end < limit && pieces_next(end, end + 1, &next) && next.id && next.turn == p->turn
	       && !next.hidden && next.flush == p->flush && next.mode == p->mode)
		end = next.end;
	return end < limit ? end : limit;
}

/* Can the 2 MiB around `edge` be one huge page, of which one side is meant? Only if all of it is
 * observed, and the kernel answers the faults: the daemon maps pages. */
static int is_cut(uintptr_t edge, struct piece *p)
{
	uintptr_t low = edge & ~(uintptr_t)(PAGEMAP_HUGE - 1);

	return edge != low && pieces_next(low, low + 1, p) && p->id && p->mode == DAXFS_FAULT_KERNEL
		&& end_of_row(p, low + PAGEMAP_HUGE) == low + PAGEMAP_HUGE;
}

/* Is it one, with stores? To protect a part of it would split it, and so lose what is known of the rest. */
static int is_huge(uintptr_t edge)
{
	uintptr_t low = edge & ~(uintptr_t)(PAGEMAP_HUGE - 1);
	struct pagemap_run run;
	struct piece p;
	uint64_t next;

	/* One of its pages will do: a huge one is stored to as a whole. */
	return is_cut(edge, &p) && kernel_is_owner()
		&& pagemap_scan(kernel_pagemap(), low, low + CLIENT_PAGE, 0, &run, 1, &next) == 1
		&& run.categories & PAGEMAP_IS_HUGE;
}

int client_sync(uintptr_t start, uintptr_t end)
{
	struct piece p;
	sigset_t old;
	int r, first = 0;

	if (is_huge(start))
		start &= ~(uintptr_t)(PAGEMAP_HUGE - 1);
	if (is_huge(end))
		end = (end | (PAGEMAP_HUGE - 1)) + 1;
	while (start < end && pieces_next(start, end, &p)) {
		piece_clip(&p, start, end);
		if (p.id)
			p.end = end_of_row(&p, end);
		start = p.end;
		if (!p.id)
			continue;
		client_hold_signals(&old);
		r = sync_piece(&p);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		first = first ? first : r;
	}
	return first;
}

int client_cuts(uintptr_t start, uintptr_t end)
{
	struct piece p;

	return is_cut(start, &p) || is_cut(end, &p);
}

/* The huge page around `edge`, as far as it is observed. Not with fault=user: a page that is not mapped would
 * fault, and it may be one that the daemon has been told to forget. */
static void flush_edge(uintptr_t edge)
{
	uintptr_t start = edge & ~(uintptr_t)(PAGEMAP_HUGE - 1), end = start + PAGEMAP_HUGE;
	struct piece p;

	for (; edge != start && start < end && pieces_next(start, end, &p); start = p.end) {
		piece_clip(&p, start, end);
		if (!p.id || p.mode == DAXFS_FAULT_USER)
			continue;
		if (p.flush == DAXFS_FLUSH_MSYNC) {
			kernel_msync(p.start, p.end, MS_SYNC);
		} else if (!show(&p)) {
			queue_all(&p, p.start, p.end);
			unshow(&p);
		}
	}
}

void client_flush_edges(uintptr_t start, uintptr_t end)
{
	flush_edge(start);
	if (!(start % PAGEMAP_HUGE) || start / PAGEMAP_HUGE != end / PAGEMAP_HUGE)	/* else that was done */
		flush_edge(end);
	/* Orders the lines queued above before what those store next that wait for a turn. */
	flushing_drain();
}
