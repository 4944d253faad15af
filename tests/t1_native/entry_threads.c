/* SPDX-License-Identifier: MIT
 *
 * entry.h under threads: who waits for an entry is told, in turn, and no mark of a store is lost. Built by
 * test_entry_threads.py, also with sanitizers. The order is made by looking at the queue, not by clocks.
 */
#define _GNU_SOURCE
#include "daxfs/native/entry.h"

#include <sched.h>
#include <string.h>

#include "check.h"

#define WAITERS 5
#define THREADS 5
#define PAGES (4 * FAULT_PMD_PAGES)

static struct entry_map map;
static int turns, unmaps;

static void unmap(void *ctx, uint64_t pgoff, uint64_t pages)
{
	CHECK(ctx == &map);
	CHECK(pages == 1 || pages == FAULT_PMD_PAGES);
	CHECK(entry_state(&map, pgoff) & ENTRY_LOCKED);
	__atomic_add_fetch(&unmaps, 1, __ATOMIC_RELAXED);
}

/* Linked with --wrap: memory for so many more groups and page states; negative: for all. */
static int allowed = -1;
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	if (!allowed)
		return NULL;
	allowed -= allowed > 0;
	return __real_calloc(n, size);
}

enum job { GRAB, GRAB_PMD, DROP_CLEAN, WRITEBACK, MKWRITE };

struct waiter {
	pthread_t thread;
	enum job job;
	uint64_t pgoff;
	int turn;			/* when it was done, from 1 */
	int64_t got;
	struct entry e;
};
static struct waiter waiter[WAITERS];

static void *wait_for_it(void *arg)
{
	struct waiter *w = arg;

	if (w->job == DROP_CLEAN)
		w->got = entry_drop(&map, w->pgoff, 1, 1);
	else if (w->job == WRITEBACK)
		w->got = entry_next_dirty(&map, w->pgoff, w->pgoff, &w->e);
	else if (w->job == MKWRITE)
		w->got = entry_mkwrite(&map, w->pgoff, 0, &w->e);
	else
		w->got = entry_grab(&map, w->pgoff, w->job == GRAB_PMD ? FAULT_PMD_ORDER : 0, &w->e);
	w->turn = __atomic_add_fetch(&turns, 1, __ATOMIC_SEQ_CST);
	if (w->job == WRITEBACK && w->got)
		entry_clean(&map, &w->e);
	if (w->job != DROP_CLEAN && (w->job == GRAB || w->job == GRAB_PMD ? !w->got : w->got))
		entry_unlock(&map, &w->e);
	return NULL;
}

/* Start waiter i, and return when it stands in the queue, as the last of all. */
static void start(int i, enum job job, uint64_t pgoff)
{
	struct entry_waiter **end, **before;

	pthread_mutex_lock(&map.lock);
	before = map.end;
	pthread_mutex_unlock(&map.lock);
	waiter[i] = (struct waiter){.job = job, .pgoff = pgoff};
	CHECK(!pthread_create(&waiter[i].thread, NULL, wait_for_it, &waiter[i]));
	do {
		sched_yield();
		pthread_mutex_lock(&map.lock);
		end = map.end;
		pthread_mutex_unlock(&map.lock);
	} while (end == before);
}

/* Everybody has had its turn; the map is empty again. */
static void end(int n)
{
	for (int i = 0; i < n; i++)
		CHECK(!pthread_join(waiter[i].thread, NULL));
	CHECK(!map.first && map.end == &map.first);
	CHECK(__atomic_exchange_n(&turns, 0, __ATOMIC_SEQ_CST) == n);
	entry_drop(&map, 0, UINT64_MAX, 0);
	CHECK(!map.n && !map.count && !map.dirty);
}

static struct entry hold(uint64_t pgoff, unsigned order)
{
	struct entry e;

	CHECK(!entry_grab(&map, pgoff, order, &e));
	return e;
}

static void first_in_first_out(void)
{
	struct entry e = hold(7, 0);

	for (int i = 0; i < WAITERS; i++)
		start(i, GRAB, 7);
	entry_insert(&map, &e, 0);
	entry_unlock(&map, &e);
	end(WAITERS);
	for (int i = 0; i < WAITERS; i++)
		CHECK(waiter[i].turn == i + 1);
}

/* Pages of one PMD entry: all wait for the same lock, and all get it. */
static void pages_of_a_pmd(void)
{
	struct entry e = hold(512, FAULT_PMD_ORDER);

	for (int i = 0; i < WAITERS; i++)
		start(i, i & 1 ? GRAB_PMD : GRAB, 512 + 100 * i);
	entry_insert(&map, &e, ENTRY_DIRTY);
	entry_unlock(&map, &e);
	end(WAITERS);
	for (int i = 0; i < WAITERS; i++)
		CHECK(waiter[i].e.pgoff == 512 && waiter[i].e.order == FAULT_PMD_ORDER);
}

/* The entry that they wait for goes: taken apart for the first of them, or never inserted. */
static void what_they_waited_for_is_gone(unsigned how)
{
	struct entry e = hold(512, FAULT_PMD_ORDER);
	int before = unmaps;

	for (int i = 0; i < WAITERS; i++)
		start(i, GRAB, 512 + i);
	if (how)
		entry_insert(&map, &e, how);
	entry_unlock(&map, &e);
	end(WAITERS);
	CHECK(unmaps - before == (how ? 1 : 0));
	for (int i = 0; i < WAITERS; i++)
		CHECK(waiter[i].e.pgoff == (uint64_t)(512 + i) && !waiter[i].e.order);
}

/* The first in the queue finds that it has nothing to do here: the next one is told all the same. */
static void passed_on(enum job first, unsigned how)
{
	struct entry e = hold(3, 0);

	if (first == WRITEBACK)
		entry_insert(&map, &e, ENTRY_DIRTY);
	start(0, first, 3);
	start(1, GRAB, 3);
	entry_insert(&map, &e, how);
	if (first == WRITEBACK)
		entry_clean(&map, &e);
	entry_unlock(&map, &e);
	end(2);
	CHECK(!waiter[0].got && !waiter[1].got);
}

/* A writeback does not pass by what another one has begun to flush, and does not flush it again. */
static void two_writebacks(void)
{
	struct entry e = hold(9, 0);

	entry_insert(&map, &e, ENTRY_DIRTY);
	entry_unlock(&map, &e);
	CHECK(entry_next_dirty(&map, 0, 100, &e) == 1 && e.pgoff == 9);
	start(0, WRITEBACK, 9);
	CHECK(!__atomic_load_n(&turns, __ATOMIC_SEQ_CST));
	entry_clean(&map, &e);
	entry_unlock(&map, &e);
	end(1);
	CHECK(!waiter[0].got);
}

/* Nothing is left of what could not be had, and what was there stays as it was. */
static void no_memory(void)
{
	struct entry e;

	for (allowed = 0; allowed < 2; allowed++) {
		int may = allowed;

		CHECK(entry_grab(&map, 5, 0, &e) == -ENOMEM);
		CHECK(!map.count && !map.n && !entry_state(&map, 5));
		allowed = may;
	}
	allowed = 0;
	CHECK(entry_grab(&map, 5, FAULT_PMD_ORDER, &e) == -ENOMEM && !map.count && !map.n);
	allowed = 1;
	e = hold(5, FAULT_PMD_ORDER);
	entry_insert(&map, &e, ENTRY_DIRTY);
	entry_unlock(&map, &e);
	CHECK(entry_drop(&map, 100, 1, 0) == -ENOMEM);
	CHECK(entry_state(&map, 100) & ENTRY_DIRTY && map.count == 1 && map.dirty == 1);
	allowed = -1;
	CHECK(entry_drop(&map, 100, 1, 0) == 1 && !entry_state(&map, 100) && map.dirty == FAULT_PMD_PAGES - 1);
	CHECK(entry_drop(&map, 0, UINT64_MAX, 0) == FAULT_PMD_PAGES - 1 && !map.n);
}

/* -- all at once ---------------------------------------------------------------------------------- */

static pthread_rwlock_t file = PTHREAD_RWLOCK_INITIALIZER;	/* stands for the file's lock */
static int stored[PAGES];		/* by whoever holds the page's entry: it was stored to since it was flushed */
static int holder[PAGES];		/* the same: nobody else holds it */
static long rounds;
static int stop;

static void took(const struct entry *e, int me)
{
	for (uint64_t p = e->pgoff; p < e->pgoff + (UINT64_C(1) << e->order); p++) {
		CHECK(!holder[p]);
		holder[p] = me;
	}
}

static void gives(const struct entry *e, int me)
{
	for (uint64_t p = e->pgoff; p < e->pgoff + (UINT64_C(1) << e->order); p++) {
		CHECK(holder[p] == me);
		holder[p] = 0;
	}
	entry_unlock(&map, e);
}

static void fault(unsigned *seed, int me)
{
	uint64_t pgoff = (uint64_t)rand_r(seed) % PAGES;
	unsigned order = rand_r(seed) % 4 ? FAULT_PMD_ORDER : 0, how = (unsigned)rand_r(seed) % 4;
	struct entry e;

	if (how == 3) {
		if (!entry_mkwrite(&map, pgoff, order, &e))
			return;
		took(&e, me);
		stored[pgoff] = 1;
	} else {
		int err = entry_grab(&map, pgoff, order, &e);

		CHECK(!err || (err == -EEXIST && order));
		if (err)
			return;
		took(&e, me);
		if (how == 2) {
			entry_insert(&map, &e, ENTRY_DIRTY);
			stored[pgoff] = 1;
		} else if (how) {
			entry_insert(&map, &e, e.state & (ENTRY_EMPTY | ENTRY_ZERO) ? ENTRY_ZERO : 0);
		}
	}
	gives(&e, me);
}

static void *faults(void *arg)
{
	int me = (int)(intptr_t)arg;
	unsigned seed = (unsigned)me;

	for (long n = 0; n < rounds; n++) {
		pthread_rwlock_rdlock(&file);
		fault(&seed, me);
		pthread_rwlock_unlock(&file);
	}
	__atomic_add_fetch(&stop, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *writebacks(void *arg)
{
	int me = (int)(intptr_t)arg;
	struct entry e;

	while (__atomic_load_n(&stop, __ATOMIC_SEQ_CST) < THREADS) {
		pthread_rwlock_rdlock(&file);
		for (uint64_t at = 0; entry_next_dirty(&map, at, PAGES, &e); at = e.pgoff + (UINT64_C(1) << e.order)) {
			took(&e, me);
			memset(stored + e.pgoff, 0, sizeof(*stored) << e.order);
			entry_clean(&map, &e);
			gives(&e, me);
		}
		pthread_rwlock_unlock(&file);
		sched_yield();
	}
	return NULL;
}

/* Nobody else does anything: each store that was not flushed is marked, and nothing is locked. */
static void no_mark_is_lost(void)
{
	for (uint64_t p = 0; p < PAGES; p++) {
		CHECK(!(entry_state(&map, p) & (ENTRY_LOCKED | ENTRY_EMPTY)) && !holder[p]);
		CHECK(!stored[p] || entry_state(&map, p) & ENTRY_DIRTY);
	}
}

static void *drops(void *arg)
{
	unsigned seed = (unsigned)(intptr_t)arg;

	while (__atomic_load_n(&stop, __ATOMIC_SEQ_CST) < THREADS) {
		uint64_t first = (uint64_t)rand_r(&seed) % PAGES, count = (uint64_t)rand_r(&seed) % 700 + 1;
		int keep = rand_r(&seed) % 2;

		if (rand_r(&seed) % 2) {	/* all of it, so that PMD entries can be again */
			first = 0;
			count = PAGES;
		}
		count = count < PAGES - first ? count : PAGES - first;
		if (keep)		/* the entries don't mind if others fault meanwhile; mappings would */
			pthread_rwlock_rdlock(&file);
		else
			pthread_rwlock_wrlock(&file);
		CHECK(entry_drop(&map, first, count, keep) >= 0);
		if (!keep) {
			memset(stored + first, 0, count * sizeof(*stored));
			no_mark_is_lost();
		}
		pthread_rwlock_unlock(&file);
		sched_yield();
	}
	return NULL;
}

static void all_at_once(void)
{
	pthread_t thread[THREADS + 3];

	for (long i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, faults, (void *)(intptr_t)(i + 1)));
	CHECK(!pthread_create(&thread[THREADS], NULL, writebacks, (void *)(intptr_t)(THREADS + 1)));
	CHECK(!pthread_create(&thread[THREADS + 1], NULL, writebacks, (void *)(intptr_t)(THREADS + 2)));
	CHECK(!pthread_create(&thread[THREADS + 2], NULL, drops, (void *)(intptr_t)(THREADS + 3)));
	for (int i = 0; i < THREADS + 3; i++)
		CHECK(!pthread_join(thread[i], NULL));
	CHECK(!map.first);
	no_mark_is_lost();
	entry_drop(&map, 0, UINT64_MAX, 0);
	CHECK(!map.n && !map.count && !map.dirty);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	rounds = atol(argv[1]);
	entry_map_init(&map, unmap, &map);
	no_memory();
	for (int i = 0; i < 20; i++) {
		first_in_first_out();
		pages_of_a_pmd();
		what_they_waited_for_is_gone(0);
		what_they_waited_for_is_gone(ENTRY_ZERO);
		passed_on(DROP_CLEAN, ENTRY_DIRTY);
		passed_on(WRITEBACK, 0);
		passed_on(MKWRITE, ENTRY_ZERO);
		two_writebacks();
	}
	all_at_once();
	printf("%d unmapped\n", unmaps);
	entry_map_destroy(&map);
	return 0;
}
