/* SPDX-License-Identifier: MIT
 *
 * Two threads that work in turns: one gives work and waits for its end, a while; the other one waits for
 * work. Each wakes the other and sleeps in one go, so that two of Python's can do both without the GIL: who
 * wakes with somebody else at the GIL goes to sleep again at once.
 *
 * One thread gives, one takes. Work may be given before the last one has ended (its giver did not wait to the
 * end): it is taken next. Limits: Linux, futex(2).
 */
#ifndef DAXFS_BATON_H
#define DAXFS_BATON_H

#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "daxfs/native/latency.h"

struct baton {
	uint32_t given, ended;		/* how often, modulo 2^32 */
};

static inline void baton_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Until *word is not `old`, or `until` (CLOCK_MONOTONIC, ns; 0: no end); or for no reason. 0: it is late. */
static inline int baton_sleep(uint32_t *word, uint32_t old, uint64_t until)
{
	struct timespec at = {(time_t)(until / 1000000000), (long)(until % 1000000000)};
	long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, old, until ? &at : NULL, NULL,
			  FUTEX_BITSET_MATCH_ANY);

	return !(rc < 0 && errno == ETIMEDOUT);
}

/* Give work. Whether it has ended within `ns`. */
static inline int baton_give(struct baton *b, uint64_t ns)
{
	uint64_t until = latency_now() + ns;
	/* Order: what the work is, before that there is some. */
	uint32_t mine = __atomic_add_fetch(&b->given, 1, __ATOMIC_RELEASE), ended;

	baton_wake(&b->given);
	while ((ended = __atomic_load_n(&b->ended, __ATOMIC_ACQUIRE)) != mine)
		if (!baton_sleep(&b->ended, ended, until))
			return 0;
	return 1;
}

/* Wait for work. */
static inline void baton_take(struct baton *b)
{
	uint32_t ended = __atomic_load_n(&b->ended, __ATOMIC_RELAXED);	/* ours alone to change */

	while (__atomic_load_n(&b->given, __ATOMIC_ACQUIRE) == ended)
		baton_sleep(&b->given, ended, 0);
}

/* The work has ended. */
static inline void baton_end(struct baton *b)
{
	/* Order: what came of it, before its end. */
	__atomic_add_fetch(&b->ended, 1, __ATOMIC_RELEASE);
	baton_wake(&b->ended);
}

#endif
