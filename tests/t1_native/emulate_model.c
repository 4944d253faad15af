/* SPDX-License-Identifier: MIT
 *
 * The model of native/emulate.c by arithmetic: the clock is made here and goes on by one tick with each look
 * at it, so every time is exact; what the host takes is made here too. Then threads on one wire. Built and
 * run by test_emulate.py, also with sanitizers.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "daxfs/native/emulate.h"
#include "check.h"

#define LINES 1000
#define THREADS 4
#define TURNS 200000

static uint64_t at, host;	/* the clock; what a call of the bound table takes */
static char buf[LINES * DAXFS_LINE] __attribute__((aligned(64)));
static struct daxfs_emulator e;
static struct daxfs_flush t;
static unsigned calls;

static uint64_t now(void)
{
	return __atomic_add_fetch(&at, 1, __ATOMIC_RELAXED);
}

static const struct daxfs_clock one = { now, 1, DAXFS_CLOCK_MONOTONIC };

static void take_time(void)
{
	__atomic_fetch_add(&at, host, __ATOMIC_RELAXED);
	__atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
}

static void bound_store(struct daxfs_flush *p, void *dst, const void *src, size_t len)
{
	take_time();
}

static void bound_fill(struct daxfs_flush *p, void *dst, int byte, size_t len)
{
	take_time();
}

static void bound_flush(struct daxfs_flush *p, const void *addr, size_t len)
{
	take_time();
}

static void bound_drain(struct daxfs_flush *p)
{
	take_time();
}

/* A table of that kind, emulating m. The clock stands far from 0. */
static void begin(int kind, int nt_kind, struct daxfs_medium m, uint64_t host_takes)
{
	at = 1000000;
	host = host_takes;
	calls = 0;
	t = (struct daxfs_flush){ bound_store, bound_store, bound_fill, bound_flush, bound_drain,
				  .kind = kind, .nt_kind = nt_kind };
	CHECK(daxfs_emulate(&e, &t, &m, &one) == 0);
}

static const struct daxfs_medium medium = { 10, 100, 7, 50, 0 };

/* The tick at which the next call of the table starts. */
static uint64_t start(void)
{
	return at + 1;
}

static void what_a_line_and_a_drain_cost(void)
{
	uint64_t n, first;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 0);
	for (n = 1; n < 300; n++) {
		first = start();
		t.flush(&t, buf, n * DAXFS_LINE);
		t.drain(&t);	/* order is not looked at here, nor below */
		CHECK(at == first + n * 10 + 100);
		first = start();
		t.nt_store(&t, buf, buf, n * DAXFS_LINE);
		t.drain(&t);
		CHECK(at == first + n * 7 + 50);
		first = start();
		t.nt_fill(&t, buf + 1, 0, n * DAXFS_LINE);	/* one line more: edges on both sides */
		t.drain(&t);
		CHECK(at == first + (n + 1) * 7 + 50);
	}
	CHECK(calls == 299 * 6);
	CHECK(e.drains == 299 * 3 && e.late == 0);
	CHECK(e.lines == 3 * 299 * 300 / 2 + 299);
}

static void what_costs_nothing(void)
{
	uint64_t first;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 0);
	CHECK(t.store == bound_store);
	t.flush(&t, buf, 64);
	t.drain(&t);
	first = at;
	t.drain(&t);
	t.drain(&t);
	CHECK(at == first);
	first = at;
	t.flush(&t, buf, 0);
	t.nt_store(&t, buf, buf, 0);
	t.nt_fill(&t, buf, 0, 0);
	t.drain(&t);
	CHECK(at == first);	/* they did not even look at the clock */
}

static void several_calls_are_one_queue(void)
{
	uint64_t first;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 0);
	first = start();
	t.flush(&t, buf, 3 * 64);
	t.flush(&t, buf + 640, 2 * 64);
	t.nt_store(&t, buf, buf, 4 * 64);
	t.drain(&t);	/* the longer of the two kinds' drains, once */
	CHECK(at == first + 3 * 10 + 2 * 10 + 4 * 7 + 100);
	first = start();
	t.nt_store(&t, buf, buf, 64);
	t.drain(&t);
	CHECK(at == first + 7 + 50);
}

/* What the host takes is part of the medium's time, and all of it where the host is slower. */
static void the_host_is_not_added(void)
{
	uint64_t first;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 60);
	first = start();
	t.flush(&t, buf, 10 * 64);
	t.drain(&t);
	CHECK(at == first + 10 * 10 + 100 && e.late == 0);

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 5000);
	first = start();
	t.flush(&t, buf, 64);
	t.drain(&t);
	CHECK(at >= first + 10000 && at < first + 10010);
	CHECK(e.late == 1 && e.spun == 0);
}

static void a_call_returns_with_some_lines_under_way(void)
{
	uint64_t first;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 0);
	first = start();
	t.flush(&t, buf, 64 * DAXFS_UNDER_WAY);
	CHECK(at < first + 5);
	t.drain(&t);
	CHECK(at == first + DAXFS_UNDER_WAY * 10 + 100);

	first = start();
	t.flush(&t, buf, 500 * 64);
	CHECK(at == first + (500 - DAXFS_UNDER_WAY) * 10);
	t.flush(&t, buf, 64);
	CHECK(at == first + (501 - DAXFS_UNDER_WAY) * 10);
	at += 100000;	/* while it does something else they arrive */
	first = start();
	t.drain(&t);
	CHECK(at == first + 100);
}

static void the_wire_is_a_limit(void)
{
	struct daxfs_medium slow = { 10, 100, 7, 50, 64.0 / 25 };	/* 25 ns a line */
	uint64_t first;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, slow, 0);
	first = start();
	t.flush(&t, buf, 100 * 64);
	CHECK(at == first + (100 - DAXFS_UNDER_WAY) * 25);
	t.drain(&t);
	CHECK(at == first + 100 * 25 + 100);
	CHECK(daxfs_emulate_asked(&e, 100, 0) == 100 * 25 + 100);
	CHECK(daxfs_emulate_asked(&e, 100, 1) == 100 * 25 + 50);
}

static void parts_of_a_tick_are_kept(void)
{
	struct daxfs_medium fine = { 0.25, 0, 0.5, 0, 0 };
	uint64_t first;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, fine, 0);
	first = start();
	t.flush(&t, buf, 1000 * 64);
	t.drain(&t);
	CHECK(at == first + 250);
	fine.flush_line_ns = 2.25;
	begin(DAXFS_CLWB, DAXFS_NT_AVX, fine, 0);
	first = start();
	t.flush(&t, buf, 3 * 64);
	t.drain(&t);
	CHECK(at == first + 7);	/* of 6.75: never shorter than asked for */
}

static void other_kinds(void)
{
	uint64_t first;

	/* Flush on power failure: nothing is written back, what goes past the cache still arrives. */
	begin(DAXFS_FLUSH_NONE, DAXFS_NT_AVX, medium, 0);
	first = at;
	t.flush(&t, buf, 640);
	t.drain(&t);
	CHECK(at == first && calls == 2);
	CHECK(daxfs_emulate_asked(&e, 10, 0) == 0);
	first = start();
	t.nt_store(&t, buf, buf, 640);
	t.drain(&t);
	CHECK(at == first + 70 + 50);
	/* Generic stores go through the cache: they cost the write-back, where there is one. */
	begin(DAXFS_FLUSH_NONE, DAXFS_NT_GENERIC, medium, 0);
	first = at;
	t.nt_store(&t, buf, buf, 640);
	t.drain(&t);
	CHECK(at == first + 1);	/* it looked at the clock, and waited for nothing */
	begin(DAXFS_CLFLUSH, DAXFS_NT_GENERIC, medium, 0);
	first = start();
	t.nt_fill(&t, buf, 1, 640);
	t.drain(&t);
	CHECK(at == first + 100 + 100);
	CHECK(daxfs_emulate_asked(&e, 10, 1) == 200);
}

static void refusals(void)
{
	struct daxfs_emulator other;
	struct daxfs_flush same;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 0);
	same = t;
	CHECK(daxfs_emulate(&other, &t, &medium, &one) == -EBUSY);
	t.emulator = NULL;
	t.recorder = &other;
	CHECK(daxfs_emulate(&other, &t, &medium, &one) == -EBUSY);
	t.recorder = NULL;
	t.kind = DAXFS_MSYNC;
	CHECK(daxfs_emulate(&other, &t, &medium, &one) == -EOPNOTSUPP);
	t.kind = same.kind;
	t.emulator = same.emulator;
	CHECK(!memcmp(&t, &same, sizeof(t)));
}

static void *flushes(void *barrier)
{
	int i;

	pthread_barrier_wait(barrier);
	for (i = 0; i < TURNS; i++)
		t.flush(&t, buf, 64 * (1 + (i & 3)));
	return NULL;
}

/*
 * One medium for all threads: with never a gap on the wire it is busy for exactly the sum of their lines.
 * There is none as nobody drains: the clock stands while nobody looks, and who looks stops before the wire is
 * free.
 */
static void threads_share_the_wire(void)
{
	struct daxfs_medium shared = { 1, 0, 1, 0, 64.0 / 4 };
	uint64_t first, lines = THREADS * TURNS * 10 / 4;
	pthread_t thread[THREADS];
	pthread_barrier_t barrier;
	int i;

	pthread_barrier_init(&barrier, NULL, THREADS);
	begin(DAXFS_CLWB, DAXFS_NT_AVX, shared, 0);
	first = start();
	t.flush(&t, buf, 64);	/* the wire is busy from here on */
	for (i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, flushes, &barrier));
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&barrier);
	CHECK(e.lines == lines + 1);
	CHECK(e.busy == first + (lines + 1) * 4);
	CHECK(at >= e.busy - DAXFS_UNDER_WAY * 4);
	CHECK(at < e.busy);
}

static void *one_line(void *arg)
{
	uint64_t first = start();

	t.flush(&t, buf, 64);
	t.drain(&t);
	CHECK(at == first + 10 + 100);
	return NULL;
}

/* Without a limit of the wire's, what another thread has under way delays nobody. */
static void threads_have_lines_of_their_own(void)
{
	uint64_t first;
	pthread_t thread;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 0);
	first = start();
	t.flush(&t, buf, 60 * 64);
	CHECK(!pthread_create(&thread, NULL, one_line, NULL));
	pthread_join(thread, NULL);
	t.drain(&t);
	CHECK(at == first + 60 * 10 + 100);
}

static void *drains(void *arg)
{
	t.drain(&t);
	return NULL;
}

static void a_drain_waits_for_its_own_thread(void)
{
	uint64_t first;
	pthread_t thread;

	begin(DAXFS_CLWB, DAXFS_NT_AVX, medium, 0);
	t.flush(&t, buf, 64 * 64);
	first = at;
	CHECK(!pthread_create(&thread, NULL, drains, NULL));
	pthread_join(thread, NULL);
	CHECK(at == first && e.drains == 0);
	t.drain(&t);
	CHECK(e.drains == 1);
}

static uint64_t real(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The clock that a mount gets, and without the x86 half the one that other machines have. */
static void the_real_clock(void)
{
	static const struct daxfs_medium slow = { 50000, 100000, 0, 0, 0 };
	struct daxfs_clock c;
	uint64_t took, least = UINT64_MAX;
	int i;

	daxfs_clock_find(&c, 2000000);
	CHECK(c.ticks_per_ns > 0.1 && c.ticks_per_ns < 20);
#ifdef DAXFS_NO_X86
	CHECK(!daxfs_tsc_invariant() && c.kind == DAXFS_CLOCK_MONOTONIC && c.ticks_per_ns == 1);
#else
	CHECK(c.kind == (daxfs_tsc_invariant() ? DAXFS_CLOCK_TSC : DAXFS_CLOCK_MONOTONIC));
#endif
	t = (struct daxfs_flush){ bound_store, bound_store, bound_fill, bound_flush, bound_drain,
				  .kind = DAXFS_CLWB, .nt_kind = DAXFS_NT_AVX };
	CHECK(daxfs_emulate(&e, &t, &slow, &c) == 0);
	for (i = 0; i < 20; i++) {
		took = real();
		t.flush(&t, buf, 128);
		t.drain(&t);
		took = real() - took;
		CHECK(took >= 200000 * 0.99);
		if (took < least)
			least = took;
	}
	CHECK(least < 300000);
}

int main(void)
{
	what_a_line_and_a_drain_cost();
	what_costs_nothing();
	several_calls_are_one_queue();
	the_host_is_not_added();
	a_call_returns_with_some_lines_under_way();
	the_wire_is_a_limit();
	parts_of_a_tick_are_kept();
	other_kinds();
	refusals();
	threads_share_the_wire();
	threads_have_lines_of_their_own();
	a_drain_waits_for_its_own_thread();
	the_real_clock();
	return 0;
}
