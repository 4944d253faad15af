/* SPDX-License-Identifier: MIT
 *
 * Threads that help to flush (SEEDS.md S15; flushers=). Whoever has much to flush shares its pieces with
 * those that are free, takes part itself, and waits for no helper that has not begun. Each helper drains what
 * it has flushed before it says that it is done: a fence orders its own thread's lines alone.
 *
 * Helpers are kept warm: after some work they look for more for FLUSHERS_SPIN_NS, then they sleep. A flush of
 * less than FLUSHERS_FROM bytes never wakes them. One job at a time: a second caller flushes by itself.
 *
 * A helper never stands on its caller's CPU: the kernel would wake it there and let it do the whole job in
 * the caller's place (docs/tracking.md). Where there is no other CPU nobody is woken.
 */
#ifndef DAXFS_FLUSHERS_H
#define DAXFS_FLUSHERS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "daxfs/native/flush.h"

#define FLUSHERS_MOST 16
#define FLUSH_PIECE (UINT64_C(1) << 20)	/* S15 */
/* Two take 0.95 of the time of one for 2 MiB, 0.82 for 3 (tools/bench/flushers.py); to wake one takes 9 us,
 * also where its CPU turns out to be busy. */
#define FLUSHERS_FROM (UINT64_C(3) << 20)
#define FLUSHERS_SPIN_NS 50000

struct flush_piece {
	const char *p;
	size_t n;
};

struct flushers;

struct flush_cpus {
	unsigned long word[1024 / 8 / sizeof(long)];	/* a cpu_set_t, which needs _GNU_SOURCE */
};

struct flusher {
	struct flushers *f;
	int number;
	uint32_t seen;			/* the last job that it need not look at */
	pthread_t thread;
	struct flush_cpus cpus;			/* where we last put it */
};

struct flushers {
	struct flusher helper[FLUSHERS_MOST - 1];
	int helpers;			/* threads beside the caller: changed under `turn`, read by anybody */
	pthread_mutex_t turn;		/* of the caller whose job it is, or who changes their number */
	struct flush_cpus cpus;			/* that helpers may use: the process's, when they were first asked for */
	int away_from;			/* CPU that the helpers are kept off; -1: none yet */
	/* The job. Written by the caller while it is closed. */
	struct daxfs_flush *ops;
	const struct flush_piece *piece;
	uint32_t count;
	uint32_t step;			/* pieces that are taken at once: about FLUSH_PIECE together */
	uint32_t next;			/* piece that nobody has taken */
	uint64_t state;			/* OPEN, and below it the helpers that are at work */
	uint32_t jobs;			/* a futex: one more for each job; helpers sleep on it */
	uint32_t asleep;		/* helpers that sleep, or are about to */
	int keep;			/* helpers from this number on shall end */
	/* Relaxed atomics, for reports. */
	uint64_t shared, helped;	/* jobs; pieces that helpers flushed */
};

/* Start `flushers` - 1 helpers, of at most FLUSHERS_MOST. 0 or -errno, with none started. */
int flushers_start(struct flushers *f, int flushers);
/* Another number from now on, also while others flush: waits for the job that is being done. 0 or -errno,
 * with as many as there were. */
int flushers_set(struct flushers *f, int flushers);
/* End them. No job is being done. */
void flushers_stop(struct flushers *f);
/* Flush the pieces. Those of helpers are drained on return; the caller drains its own. */
void flushers_run(struct flushers *f, struct daxfs_flush *ops, const struct flush_piece *piece,
		  uint32_t count);

static inline int flushers_count(const struct flushers *f)
{
	return 1 + __atomic_load_n(&f->helpers, __ATOMIC_RELAXED);
}

#endif
