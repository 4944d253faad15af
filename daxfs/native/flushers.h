/* SPDX-License-Identifier: MIT
 *
 * Threads that help to flush (SEEDS.md S15; flushers=). Whoever has much to flush shares its pieces with
 * those that are free, takes part itself, and waits for no helper that has not begun. Each helper drains what
 * it has flushed before it says that it is done: a fence orders its own thread's lines alone.
 *
 * Helpers are kept warm: after some work they look for more for FLUSHERS_SPIN_NS, then they sleep. A flush of
 * less than FLUSHERS_FROM bytes never wakes them. One job at a time: a second caller flushes by itself.
 */
#ifndef DAXFS_FLUSHERS_H
#define DAXFS_FLUSHERS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "daxfs/native/flush.h"

#define FLUSHERS_MOST 16
#define FLUSH_PIECE (UINT64_C(1) << 20)	/* S15 */
/* Chosen on a busy machine, where two began to gain there. tools/bench/flushers.py on a quiet one (2 CPUs,
 * Intel, acce427), medians in us of one and of two: 4 MiB 165 and 218, 16 MiB 607 and 642, 64 MiB 2436 and
 * 1256. */
#define FLUSHERS_FROM (UINT64_C(3) << 20)
#define FLUSHERS_SPIN_NS 50000

struct flush_piece {
	const char *p;
	size_t n;
};

struct flushers {
	pthread_t thread[FLUSHERS_MOST];
	int helpers;			/* threads beside the caller */
	pthread_mutex_t turn;		/* of the caller whose job it is */
	/* The job. Written by the caller while it is closed. */
	struct daxfs_flush *ops;
	const struct flush_piece *piece;
	uint32_t count;
	uint32_t next;			/* piece that nobody has taken */
	uint64_t state;			/* OPEN, and below it the helpers that are at work */
	uint32_t jobs;			/* a futex: one more for each job; helpers sleep on it */
	uint32_t asleep;		/* helpers that sleep, or are about to */
	int stop;
	/* Relaxed atomics, for reports. */
	uint64_t shared, helped;	/* jobs; pieces that helpers flushed */
};

/* Start `flushers` - 1 helpers, of at most FLUSHERS_MOST. 0 or -errno, with none started. */
int flushers_start(struct flushers *f, int flushers);
/* End them. No job is being done. */
void flushers_stop(struct flushers *f);
/* Flush the pieces. Those of helpers are drained on return; the caller drains its own. */
void flushers_run(struct flushers *f, struct daxfs_flush *ops, const struct flush_piece *piece,
		  uint32_t count);

#endif
