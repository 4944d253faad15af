/* SPDX-License-Identifier: MIT
 *
 * Where the time of one fsync goes (docs/fsync.md): a run is timed by laps, each of which gives the time
 * since the lap before to one phase. So the phases add up to the whole, whatever is measured.
 *
 * A clock is read between two phases, never for each dirty unit. It is CLOCK_MONOTONIC: the TSC would save
 * some 10 ns at each of the eight readings, and need a rate that is measured at each mount.
 *
 * A run is one thread's at a time. NULL instead of one is allowed everywhere: nothing is timed.
 */
#ifndef DAXFS_FSYNC_H
#define DAXFS_FSYNC_H

#include "daxfs/native/file_lock.h"
#include "daxfs/native/latency.h"

/* daxfs/_fsync.pyx has the names; the order is that of reports. */
enum fsync_phase {
	FSYNC_LOCK,		/* waiting for the file's lock; 0 where it was free */
	FSYNC_LOOK,		/* what programs stored through mappings: page tables, the handler's entries */
	FSYNC_WALK,		/* the tracker: which units are dirty, where they stand, marking them clean */
	FSYNC_FLUSH,		/* queueing their lines */
	FSYNC_DRAIN,		/* until they are durable */
	FSYNC_META,		/* times, the journal's settling, the fsync of a range's own file */
	FSYNC_REPLY,		/* from the verdict until the reply is handed over */
	FSYNC_PYTHON,		/* what waits for Python, and Python itself */
	FSYNC_OTHER,		/* what is left */
	FSYNC_PHASES
};

struct fsync_run {
	uint64_t began, last;		/* ns; began 0: there is none */
	uint64_t ns[FSYNC_PHASES];
};

/* One thread adds, any reads. Times of 0 are in no bucket of a phase: as many as `total` has more. */
struct fsync_counts {
	struct latency total, phase[FSYNC_PHASES];
};

static inline void fsync_begin(struct fsync_run *r, uint64_t now)
{
	*r = (struct fsync_run){.began = now, .last = now};
}

static inline void fsync_lap_at(struct fsync_run *r, enum fsync_phase phase, uint64_t now)
{
	r->ns[phase] += now - r->last;
	r->last = now;
}

static inline void fsync_lap(struct fsync_run *r, enum fsync_phase phase)
{
	if (r)
		fsync_lap_at(r, phase, latency_now());
}

/* Take the file's lock, exclusively. Only who has to wait looks at the clock; `before`: what it did until
 * now. */
static inline void fsync_take_lock(struct fsync_run *r, struct file_lock *l, enum fsync_phase before)
{
	if (file_lock_try(l, 1))
		return;
	fsync_lap(r, before);
	file_lock_wait(l, 1);
	fsync_lap(r, FSYNC_LOCK);
}

/* What another thread, for which this one waited, spent in its phases: taken from PYTHON, where the waiting
 * is. More than was waited for can't have been. */
static inline void fsync_absorb(struct fsync_run *r, const struct fsync_run *other)
{
	uint64_t ns;
	int i;

	for (i = 0; i < FSYNC_PYTHON; i++) {
		ns = other->ns[i] < r->ns[FSYNC_PYTHON] ? other->ns[i] : r->ns[FSYNC_PYTHON];
		r->ns[i] += ns;
		r->ns[FSYNC_PYTHON] -= ns;
	}
}

/* A run that has ended. */
static inline void fsync_count(struct fsync_counts *c, const struct fsync_run *r)
{
	int i;

	latency_add_own(&c->total, r->last - r->began);
	for (i = 0; i < FSYNC_PHASES; i++)
		if (r->ns[i])
			latency_add_own(&c->phase[i], r->ns[i]);
}

#endif
