/* SPDX-License-Identifier: MIT
 *
 * Write-back of lines in a client: the tables of native/flush.h, one for each kind that the daemon names.
 *
 * Tables are bound when the library is loaded or, where a constructor calls before that, at the first
 * use: all threads that do so store the same. A kind that this CPU lacks (a daemon elsewhere can't be)
 * becomes the best it has. A mount that emulates a medium has kinds of its own, from KINDS on: the same
 * write-back, which then costs what it costs in the daemon (docs/emulation.md).
 */
#include <pthread.h>

#include "daxfs/native/emulate.h"
#include "daxfs/native/flush.h"

/* Not lib.h: names of observe_abi.h and daxfs.h are other things in flush.h. Kinds have the same numbers. */
#define KINDS (DAXFS_MSYNC + 1)
#define HIDDEN __attribute__((visibility("hidden")))
int flushing_medium(int kind, uint32_t line_ps, uint32_t wire_ps, uint64_t drain_ps) HIDDEN;
void flushing_queue(int kind, uintptr_t start, uintptr_t end) HIDDEN;
void flushing_drain(void) HIDDEN;
void flushing_persist(int kind, uintptr_t start, uintptr_t end) HIDDEN;
const char *flushing_name(int kind) HIDDEN;
void flushing_counts(uint64_t *calls, uint64_t *lines, uint64_t *drains) HIDDEN;

static struct daxfs_flush tables[KINDS];
static int bound;
static const char *const NAMES[KINDS] = {"clwb", "clflushopt", "clflush", "none", "msync"};

__attribute__((constructor))
static void bind_tables(void)
{
	int i;

	if (__atomic_load_n(&bound, __ATOMIC_ACQUIRE))
		return;
	for (i = 0; i < KINDS; i++)
		if (daxfs_flush_bind(&tables[i], DAXFS_CACHE_LINE, i, -1))
			daxfs_flush_bind(&tables[i], DAXFS_CACHE_LINE, -1, -1);
	__atomic_store_n(&bound, 1, __ATOMIC_RELEASE);
}

/*
 * Media of the mounts that this process has mapped files of, and of no more than these: files of others are
 * written back at this host's price. `state`: 0, 1 while it is made, 2; never goes back. No lock, which a
 * fork could leave taken: who finds one being made takes the next.
 */
#define MEDIA 8
#define CALIBRATE_NS 10000000
#define MOST_PS UINT64_C(10000000000)	/* of a drain: 10 ms; lines are ours to wait for as long as 0.1 ms */

static struct medium {
	struct daxfs_flush table;
	struct daxfs_emulator emulator;
	int kind, state;
	uint64_t line, wire, drain;	/* ps */
} media[MEDIA];

static uint64_t at_most(uint64_t value, uint64_t most)
{
	return value < most ? value : most;
}

static int make_medium(struct medium *m, int kind, uint64_t line, uint64_t wire, uint64_t drain)
{
	struct daxfs_medium price = {.flush_line_ns = (double)line / 1000, .flush_drain_ns = (double)drain / 1000,
		.write_gb_s = wire ? DAXFS_LINE * 1000.0 / (double)wire : 0};
	struct daxfs_clock clock;

	if (daxfs_flush_bind(&m->table, DAXFS_CACHE_LINE, kind, -1))
		daxfs_flush_bind(&m->table, DAXFS_CACHE_LINE, -1, -1);
	daxfs_clock_find(&clock, CALIBRATE_NS);
	m->kind = kind;
	m->line = line;
	m->wire = wire;
	m->drain = drain;
	return daxfs_emulate(&m->emulator, &m->table, &price, &clock);
}

/* The kind that writes back as `kind` does, at the price of a medium; `kind` where it has none, or where
 * there are too many. The first time takes 10 ms. */
int flushing_medium(int kind, uint32_t line_ps, uint32_t wire_ps, uint64_t drain_ps)
{
	uint64_t line = at_most(line_ps, MOST_PS / 100), wire = at_most(wire_ps, MOST_PS / 100);
	uint64_t drain = at_most(drain_ps, MOST_PS);
	int i, state;

	if (!(line || wire || drain) || kind < 0 || kind >= DAXFS_MSYNC)
		return kind;
	for (i = 0; i < MEDIA; i++) {
		struct medium *m = &media[i];

		state = 0;
		if (__atomic_compare_exchange_n(&m->state, &state, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
			if (make_medium(m, kind, line, wire, drain))
				return kind;
			/* After all of it: who reads 2 has the rest. */
			__atomic_store_n(&m->state, 2, __ATOMIC_RELEASE);
			return KINDS + i;
		}
		if (state == 2 && m->kind == kind && m->line == line && m->wire == wire && m->drain == drain)
			return KINDS + i;
	}
	return kind;
}

static struct medium *medium_of(int kind)
{
	return kind >= KINDS && kind < KINDS + MEDIA ? &media[kind - KINDS] : NULL;
}

static struct daxfs_flush *table(int kind)
{
	if (!__atomic_load_n(&bound, __ATOMIC_ACQUIRE))
		bind_tables();
	if (medium_of(kind))
		return &medium_of(kind)->table;
	return &tables[kind >= 0 && kind < KINDS ? kind : DAXFS_MSYNC];
}

void flushing_queue(int kind, uintptr_t start, uintptr_t end)
{
	struct daxfs_flush *t = table(kind);

	t->flush(t, (const void *)start, end - start);
}

void flushing_drain(void)
{
	struct daxfs_flush *t = table(DAXFS_CLWB);

	/* What this thread has sent to a medium has to arrive there. */
	for (int i = 0; i < MEDIA && __atomic_load_n(&media[i].state, __ATOMIC_ACQUIRE); i++)
		if (__atomic_load_n(&media[i].state, __ATOMIC_ACQUIRE) == 2 && daxfs_emulate_pending(&media[i].emulator))
			t = &media[i].table;
	/* Orders what any kind has queued before every later store: the fence is the same for all. */
	t->drain(t);
}

/*
 * What persist counts. A locked add waits until every store before it has left the CPU, and so costs half as
 * much as 4 KiB of lines: each thread has a place of its own, which another one takes when it has ended. Who
 * finds none left shares the last one, by locked adds.
 */
#define PLACES 256

static struct place {
	uint64_t calls, lines, drains;
	int taken;
} __attribute__((aligned(DAXFS_LINE))) places[PLACES + 1];
static __thread struct place *mine __attribute__((tls_model("initial-exec")));
static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static int has_key;

static void give_place(void *place)
{
	mine = NULL;	/* what else runs at this thread's end takes one anew */
	__atomic_store_n(&((struct place *)place)->taken, 0, __ATOMIC_RELEASE);
}

static void make_key(void)
{
	has_key = !pthread_key_create(&key, give_place);
}

static struct place *take_place(void)
{
	int i, none;

	pthread_once(&key_once, make_key);
	for (i = 0; has_key && i < PLACES; i++) {
		none = 0;
		/* After the last count of the thread before. */
		if (__atomic_compare_exchange_n(&places[i].taken, &none, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
			if (!pthread_setspecific(key, &places[i]))
				return mine = &places[i];
			give_place(&places[i]);
			break;
		}
	}
	return mine = &places[PLACES];
}

/* One thread adds (a handler of a signal that comes in between may be lost), any reads. */
static inline void add(uint64_t *count, uint64_t n)
{
	__atomic_store_n(count, __atomic_load_n(count, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

void flushing_persist(int kind, uintptr_t start, uintptr_t end)
{
	struct daxfs_flush *t = table(kind);
	struct place *p;
	size_t n = daxfs_lines((const void *)start, end - start);

	if (medium_of(kind)) {
		/* Orders the stores to these bytes before whatever the caller stores next, as below. */
		daxfs_persist(t, (const void *)start, end - start);
		return;
	}
	p = mine ? mine : take_place();
	t->lines(start & ~(uintptr_t)(DAXFS_LINE - 1), n);
	/* Orders the stores to these bytes before whatever the caller stores next. */
	t->fence();
	if (p == &places[PLACES]) {
		DAXFS_COUNT(p->calls, n > 0);
		DAXFS_COUNT(p->lines, n);
		DAXFS_COUNT(p->drains, 1);
	} else {
		add(&p->calls, n > 0);
		add(&p->lines, n);
		add(&p->drains, 1);
	}
}

const char *flushing_name(int kind)
{
	if (medium_of(kind))
		kind = medium_of(kind)->kind;
	return NAMES[kind >= 0 && kind < KINDS ? kind : DAXFS_MSYNC];
}

void flushing_counts(uint64_t *calls, uint64_t *lines, uint64_t *drains)
{
	int i;

	*calls = *lines = *drains = 0;
	for (i = 0; i < DAXFS_MSYNC; i++) {
		*calls += tables[i].n_flush;
		*lines += tables[i].flush_lines;
		*drains += tables[i].n_drain;
	}
	for (i = 0; i < MEDIA; i++) {
		*calls += __atomic_load_n(&media[i].table.n_flush, __ATOMIC_RELAXED);
		*lines += __atomic_load_n(&media[i].table.flush_lines, __ATOMIC_RELAXED);
		*drains += __atomic_load_n(&media[i].table.n_drain, __ATOMIC_RELAXED);
	}
	for (i = 0; i <= PLACES; i++) {
		*calls += __atomic_load_n(&places[i].calls, __ATOMIC_RELAXED);
		*lines += __atomic_load_n(&places[i].lines, __ATOMIC_RELAXED);
		*drains += __atomic_load_n(&places[i].drains, __ATOMIC_RELAXED);
	}
}
