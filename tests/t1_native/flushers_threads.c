/* SPDX-License-Identifier: MIT
 *
 * flushers.c under real threads: several that have something to flush, some helpers, beginnings and ends of
 * them. Each piece is flushed once before its flushers_run returns, and drained by who flushed it, but for the
 * caller's own. Built by test_flushers_threads.py, also with sanitizers. usage: flushers_threads ROUNDS
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daxfs/native/flushers.h"
#include "check.h"

#define CALLERS 3
#define PIECES 40

static struct flushers pool;
static __thread int queued;		/* pieces of this thread that no drain followed */
static uint64_t flushed, drained;
static long rounds;

static void on_flush(struct daxfs_flush *t, const void *p, size_t n)
{
	char *count = (char *)p;

	CHECK(n == 1);
	*count += 1;			/* a sanitizer sees it where two threads do this to one */
	queued++;
	__atomic_fetch_add(&flushed, 1, __ATOMIC_RELAXED);
}

static void on_drain(struct daxfs_flush *t)
{
	CHECK(queued);
	__atomic_fetch_add(&drained, (uint64_t)queued, __ATOMIC_RELAXED);
	queued = 0;
}

static struct daxfs_flush ops = {.flush = on_flush, .drain = on_drain};

static void *call(void *arg)
{
	struct flush_piece piece[PIECES];
	char seen[PIECES];
	uint32_t n;

	for (long round = 0; round < rounds; round++) {
		n = 1 + (uint32_t)((size_t)arg + (size_t)round) % PIECES;
		memset(seen, 0, sizeof(seen));
		for (uint32_t i = 0; i < n; i++)
			piece[i] = (struct flush_piece){&seen[i], 1};
		flushers_run(&pool, &ops, piece, n);
		for (uint32_t i = 0; i < n; i++)
			CHECK(seen[i] == 1);	/* without a race: what helpers did was before the return */
		if (queued)
			on_drain(&ops);
	}
	return NULL;
}

/* Helpers come and go while three flush. */
static void change(void)
{
	pthread_t thread[CALLERS];

	CHECK(!flushers_start(&pool, 1));
	CHECK(flushers_set(&pool, 0) == -EINVAL && flushers_set(&pool, FLUSHERS_MOST + 1) == -EINVAL);
	for (size_t i = 0; i < CALLERS; i++)
		CHECK(!pthread_create(&thread[i], NULL, call, (void *)i));
	for (int n = 0; n < 30; n++) {
		CHECK(!flushers_set(&pool, 1 + n * 7 % 5));
		CHECK(flushers_count(&pool) == 1 + n * 7 % 5);
	}
	for (size_t i = 0; i < CALLERS; i++)
		pthread_join(thread[i], NULL);
	flushers_stop(&pool);
	CHECK(flushed == drained);
	printf("changed: %lu pieces, %lu of them by helpers\n", flushed, pool.helped);
	flushed = drained = 0;
}

int main(int argc, char **argv)
{
	pthread_t thread[CALLERS];

	rounds = argc > 1 ? atol(argv[1]) : 100;
	CHECK(flushers_start(&pool, 0) == -EINVAL && flushers_start(&pool, FLUSHERS_MOST + 1) == -EINVAL);
	for (int n = 1; n <= 4; n++) {
		CHECK(!flushers_start(&pool, n) && pool.helpers == n - 1);
		for (size_t i = 0; i < CALLERS; i++)
			CHECK(!pthread_create(&thread[i], NULL, call, (void *)i));
		for (size_t i = 0; i < CALLERS; i++)
			pthread_join(thread[i], NULL);
		CHECK(flushed == drained && (n > 1 || !pool.shared));
		flushers_stop(&pool);
		CHECK(flushed == drained);
		printf("%d flushers: %lu pieces, %lu of them by helpers\n", n, flushed, pool.helped);
		flushed = drained = 0;
	}
	change();
	return 0;
}
