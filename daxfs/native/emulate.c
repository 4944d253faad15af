/* SPDX-License-Identifier: MIT
 *
 * The emulating table (emulate.h). Portable C but for the TSC.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daxfs/native/emulate.h"

/* DAXFS_NO_X86 builds what other machines get (tests do). */
#if defined(__x86_64__) && !defined(DAXFS_NO_X86)
#define DAXFS_X86 1
#include <cpuid.h>
#include <x86intrin.h>
#else
#define DAXFS_X86 0
#endif

/* What this thread has sent and not drained, and by which emulator: to another one it is nothing. */
static __thread struct {
	uint64_t emulator;
	uint64_t sent, arrived;	/* ticks at which its lines have left the thread, and are there; 0: none */
	uint64_t drain;		/* of the kinds that were sent, the longer one, in parts of a tick */
} mine;
static uint64_t emulators;

static inline void relax(void)
{
#if DAXFS_X86
	_mm_pause();
#endif
}

/* -- clocks -- */

static uint64_t monotonic(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#if DAXFS_X86
static uint64_t tsc(void)
{
	return __rdtsc();
}

int daxfs_tsc_invariant(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & (1u << 8));
}

/* Both clocks at one moment: the reading of three that an interrupt was least in. */
static void together(uint64_t *ticks, uint64_t *ns)
{
	uint64_t before, at, after, best = UINT64_MAX;
	int i;

	*ticks = *ns = 0;
	for (i = 0; i < 3; i++) {
		before = tsc();
		at = monotonic();
		after = tsc();
		if (after - before >= best)
			continue;
		best = after - before;
		*ticks = before + best / 2;
		*ns = at;
	}
}

static double tsc_rate(uint64_t ns)
{
	uint64_t ticks0, ns0, ticks1, ns1;

	together(&ticks0, &ns0);
	do {
		relax();
	} while (monotonic() - ns0 < ns);
	together(&ticks1, &ns1);
	return (double)(ticks1 - ticks0) / (double)(ns1 - ns0);
}
#else
int daxfs_tsc_invariant(void)
{
	return 0;
}
#endif

void daxfs_clock_find(struct daxfs_clock *c, uint64_t ns)
{
	*c = (struct daxfs_clock){ monotonic, 1, DAXFS_CLOCK_MONOTONIC };
#if DAXFS_X86
	if (daxfs_tsc_invariant())
		*c = (struct daxfs_clock){ tsc, tsc_rate(ns), DAXFS_CLOCK_TSC };
#endif
}

/* -- the model -- */

static inline uint64_t later(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Whole ticks, rounded up: never less than asked for. */
static inline uint64_t ticks(uint64_t parts)
{
	return (parts + DAXFS_TICK - 1) / DAXFS_TICK;
}

/* Spin until `until`, which may be 0. 0 where that is over already. */
static int wait_until(struct daxfs_emulator *e, uint64_t until)
{
	uint64_t first, now;

	if (!until)
		return 0;
	first = now = e->clock.now();
	if (now >= until)
		return 0;
	do {
		relax();
		now = e->clock.now();
	} while (now < until);
	DAXFS_COUNT(e->spun, now - first);
	return 1;
}

/* Room for n lines on the wire, behind all that is on it: when they are through. */
static uint64_t over_the_wire(struct daxfs_emulator *e, uint64_t start, uint64_t n)
{
	uint64_t busy = __atomic_load_n(&e->busy, __ATOMIC_RELAXED), end;

	if (!e->wire)
		return start;
	do {
		end = later(busy, start) + ticks(n * e->wire);
	} while (!__atomic_compare_exchange_n(&e->busy, &busy, end, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return end;
}

/*
 * This thread sends n lines, from `start` on. Answers the tick until which the call has to wait, so that few
 * enough of them are under way. Called before the lines are stored or written back: a locked instruction
 * behind them would wait until this host is done with them, and so add its time to the medium's.
 */
static uint64_t send(struct daxfs_emulator *e, uint64_t start, uint64_t n, uint64_t line, uint64_t drain)
{
	uint64_t under_way = ticks(DAXFS_UNDER_WAY * later(line, e->wire));

	if (mine.emulator != e->number) {
		memset(&mine, 0, sizeof(mine));
		mine.emulator = e->number;
	}
	DAXFS_COUNT(e->lines, n);
	mine.sent = later(mine.sent, start) + ticks(n * line);
	mine.arrived = later(mine.arrived, later(mine.sent, over_the_wire(e, start, n)));
	mine.drain = later(mine.drain, drain);
	return mine.arrived > under_way ? mine.arrived - under_way : 0;
}

/* -- the functions of the table -- */

static struct daxfs_emulator *emulator(struct daxfs_flush *t)
{
	return t->emulator;
}

/* Lines that go past the cache. The generic kind is stores and a write-back, and costs what that costs. */
static uint64_t send_nt(struct daxfs_flush *t, uint64_t start, const void *dst, size_t len)
{
	struct daxfs_emulator *e = emulator(t);

	if (t->nt_kind != DAXFS_NT_GENERIC)
		return send(e, start, daxfs_lines(dst, len), e->nt_line, e->nt_drain);
	if (t->kind != DAXFS_FLUSH_NONE)
		return send(e, start, daxfs_lines(dst, len), e->flush_line, e->flush_drain);
	return 0;
}

static void nt_store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	struct daxfs_emulator *e = emulator(t);
	uint64_t until;

	if (!len)
		return;
	until = send_nt(t, e->clock.now(), dst, len);
	e->bound.nt_store(t, dst, src, len);
	wait_until(e, until);
}

static void nt_fill(struct daxfs_flush *t, void *dst, int byte, size_t len)
{
	struct daxfs_emulator *e = emulator(t);
	uint64_t until;

	if (!len)
		return;
	until = send_nt(t, e->clock.now(), dst, len);
	e->bound.nt_fill(t, dst, byte, len);
	wait_until(e, until);
}

static void flush(struct daxfs_flush *t, const void *addr, size_t len)
{
	struct daxfs_emulator *e = emulator(t);
	uint64_t until = 0;

	if (!len)
		return;
	if (t->kind != DAXFS_FLUSH_NONE)
		until = send(e, e->clock.now(), daxfs_lines(addr, len), e->flush_line, e->flush_drain);
	e->bound.flush(t, addr, len);
	wait_until(e, until);
}

static void drain(struct daxfs_flush *t)
{
	struct daxfs_emulator *e = emulator(t);
	uint64_t until = 0;

	if (daxfs_emulate_pending(e)) {
		until = later(mine.arrived, e->clock.now()) + ticks(mine.drain);
		mine.arrived = mine.drain = 0;
		DAXFS_COUNT(e->drains, 1);
	}
	/* Orders what the caller's own comment says. */
	e->bound.drain(t);
	if (until && !wait_until(e, until))
		DAXFS_COUNT(e->late, 1);
}

/* ns as parts of a tick, rounded to the nearest. */
static uint64_t parts(const struct daxfs_clock *c, double ns)
{
	return (uint64_t)(ns * c->ticks_per_ns * DAXFS_TICK + 0.5);
}

int daxfs_emulate(struct daxfs_emulator *e, struct daxfs_flush *t, const struct daxfs_medium *m,
		  const struct daxfs_clock *c)
{
	if (t->kind == DAXFS_MSYNC)
		return -EOPNOTSUPP;
	if (t->recorder || t->emulator)
		return -EBUSY;
	memset(e, 0, sizeof(*e));
	e->bound = *t;
	e->clock = *c;
	e->number = __atomic_add_fetch(&emulators, 1, __ATOMIC_RELAXED);
	e->flush_line = parts(c, m->flush_line_ns);
	e->flush_drain = parts(c, m->flush_drain_ns);
	e->nt_line = parts(c, m->nt_line_ns);
	e->nt_drain = parts(c, m->nt_drain_ns);
	e->wire = m->write_gb_s > 0 ? parts(c, DAXFS_LINE / m->write_gb_s) : 0;
	t->emulator = e;
	t->nt_store = nt_store;
	t->nt_fill = nt_fill;
	t->flush = flush;
	t->drain = drain;
	return 0;
}

int daxfs_emulate_pending(const struct daxfs_emulator *e)
{
	return mine.emulator == e->number && mine.arrived;
}

/* -- the self-check -- */

double daxfs_emulate_asked(const struct daxfs_emulator *e, uint64_t n, int nt)
{
	int flushes = !nt || e->bound.nt_kind == DAXFS_NT_GENERIC;
	uint64_t line = flushes ? e->flush_line : e->nt_line;

	if (flushes && e->bound.kind == DAXFS_FLUSH_NONE)
		return 0;
	return (double)(n * later(line, e->wire) + (flushes ? e->flush_drain : e->nt_drain))
		/ DAXFS_TICK / e->clock.ticks_per_ns;
}

static int by_length(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

void daxfs_emulate_measure(const struct daxfs_emulator *e, const struct daxfs_flush *t, void *buf, uint64_t n,
			   int nt, int emulated, int rounds, uint64_t *shortest, uint64_t *median)
{
	static const char line[DAXFS_LINE];
	struct daxfs_emulator own = *e;
	struct daxfs_flush table = emulated ? *t : e->bound;
	uint64_t took[DAXFS_CHECK_ROUNDS], i;
	int round;

	own.number = __atomic_add_fetch(&emulators, 1, __ATOMIC_RELAXED);
	own.busy = 0;
	table.emulator = &own;
	for (round = 0; round < rounds; round++) {
		for (i = 0; i < n; i++)
			table.store(&table, (char *)buf + i * DAXFS_LINE, line, DAXFS_LINE);
		took[round] = monotonic();
		if (nt)
			table.nt_fill(&table, buf, 0, n * DAXFS_LINE);
		else
			table.flush(&table, buf, n * DAXFS_LINE);
		/* Orders nothing: the time of the pair is what is wanted. */
		table.drain(&table);
		took[round] = monotonic() - took[round];
	}
	qsort(took, (size_t)rounds, sizeof(*took), by_length);
	*shortest = took[0];
	*median = took[rounds / 2];
}
