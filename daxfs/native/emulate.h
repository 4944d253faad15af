/* SPDX-License-Identifier: MIT
 *
 * An emulating table: it stands in for the bound functions of a struct daxfs_flush (flush.h), makes
 * each call, and then waits until a slower medium would have been done. What is stored, and when it is
 * durable, is as without it. While nothing is emulated the table holds the bound functions themselves,
 * so it costs nothing.
 *
 * The model (docs/emulation.md says what it leaves out). A thread's lines go to the medium one behind
 * the other, each takes line_ns of the kind that sent it. All threads' lines go over one wire, which is
 * busy 64 bytes / write_gb_s for each. A line has arrived when it is through both. A call returns while
 * at most DAXFS_UNDER_WAY of the thread's lines are not there yet; a drain returns drain_ns after all are.
 * Times count from the beginning of the call: what this host itself takes is part of them.
 *
 * Threading: attached by one thread, before the table is shared. Then any thread; the wire is one atomic
 * word, everything else of a thread is its own. Waiting is spinning: no lock, no sleep, no system call.
 */
#ifndef DAXFS_EMULATE_H
#define DAXFS_EMULATE_H

#include <stdint.h>

#include "daxfs/native/flush.h"

#define DAXFS_UNDER_WAY 64	/* lines */
#define DAXFS_TICK 1024u	/* times are kept in this many parts of a tick of the clock */

/* A medium, in ns. write_gb_s: 10^9 bytes a second, of all threads together; 0: no limit. */
struct daxfs_medium {
	double flush_line_ns, flush_drain_ns;	/* write-back of a cached line */
	double nt_line_ns, nt_drain_ns;		/* non-temporal store of a line */
	double write_gb_s;
};

enum daxfs_clock_kind { DAXFS_CLOCK_TSC = 0, DAXFS_CLOCK_MONOTONIC = 1 };

struct daxfs_clock {
	uint64_t (*now)(void);	/* ticks; never goes back, the same on all CPUs */
	double ticks_per_ns;
	int kind;
};

struct daxfs_emulator {
	struct daxfs_flush bound;	/* the table's functions as they were; nothing else of it is used */
	struct daxfs_clock clock;
	uint64_t number;		/* no other emulator of this process had it */
	/* In parts of a tick. wire: for each line. */
	uint64_t flush_line, flush_drain, nt_line, nt_drain, wire;
	uint64_t busy;			/* atomic: the tick at which the wire is free again */
	/* Counters, only ever added to. late: drains that this host took longer for than the medium. */
	uint64_t lines, drains, late, spun;	/* spun: ticks */
};

/* The TSC where it is invariant (CPUID), measured for `ns` against CLOCK_MONOTONIC, otherwise that. */
void daxfs_clock_find(struct daxfs_clock *c, uint64_t ns);
/* 1 where CPUID says that the TSC runs at one rate, always. */
int daxfs_tsc_invariant(void);

/* -EOPNOTSUPP for kind msync (a page cache has another medium), -EBUSY where t is recorded or emulated. With
 * kind none a flush writes nothing back: it costs nothing. e stays in use as long as t. */
int daxfs_emulate(struct daxfs_emulator *e, struct daxfs_flush *t, const struct daxfs_medium *m,
		  const struct daxfs_clock *c);

/* 1 where this thread has sent lines to e, the last emulator that it used, and not drained them. */
int daxfs_emulate_pending(const struct daxfs_emulator *e);

/* ns from the start of one call with n lines until the drain right after it is done, by the model, where
 * nothing else is under way. nt: lines of nt_store, otherwise of flush. */
double daxfs_emulate_asked(const struct daxfs_emulator *e, uint64_t n, int nt);

/* The same, measured by CLOCK_MONOTONIC on n lines at buf: shortest and median of `rounds`, which are at most
 * DAXFS_CHECK_ROUNDS. emulated 0: of the bound functions. Counted nowhere; t must not be recorded. */
#define DAXFS_CHECK_ROUNDS 64
void daxfs_emulate_measure(const struct daxfs_emulator *e, const struct daxfs_flush *t, void *buf, uint64_t n,
			   int nt, int emulated, int rounds, uint64_t *shortest, uint64_t *median);

#endif
