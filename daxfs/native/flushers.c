/* SPDX-License-Identifier: MIT
 *
 * Helpers of a flush (flushers.h). Limits: knows nothing of files; what the pieces name stays mapped as long
 * as flushers_run has not returned, since its caller has entered the region.
 */
#define _GNU_SOURCE
#include "daxfs/native/flushers.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define OPEN (UINT64_C(1) << 32)
#define PATIENCE 10000

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#endif
}

static void futex(uint32_t *word, int what, uint32_t value)
{
	syscall(SYS_futex, word, what | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Take pieces until there is none; how many. */
static uint32_t work(struct flushers *f)
{
	uint32_t taken = 0, i;

	while ((i = __atomic_fetch_add(&f->next, 1, __ATOMIC_RELAXED)) < f->count) {
		f->ops->flush(f->ops, f->piece[i].p, f->piece[i].n);
		taken++;
	}
	return taken;
}

/* 1: the job is open, and its caller waits for us. */
static int join(struct flushers *f)
{
	uint64_t state = __atomic_load_n(&f->state, __ATOMIC_ACQUIRE);

	while (state & OPEN)
		if (__atomic_compare_exchange_n(&f->state, &state, state + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			return 1;
	return 0;
}

static void help(struct flushers *f)
{
	uint32_t taken;

	if (!join(f))
		return;
	taken = work(f);
	DAXFS_COUNT(f->helped, taken);
	if (taken)
		/* Orders the lines that this thread flushed before it says that it is done. */
		f->ops->drain(f->ops);
	__atomic_fetch_sub(&f->state, 1, __ATOMIC_ACQ_REL);
}

/* Until there is a job after `seen`, or the end. */
static void wait_for_job(struct flushers *f, uint32_t seen)
{
	uint64_t until = now_ns() + FLUSHERS_SPIN_NS;

	while (__atomic_load_n(&f->jobs, __ATOMIC_ACQUIRE) == seen && now_ns() < until)
		relax();
	while (__atomic_load_n(&f->jobs, __ATOMIC_ACQUIRE) == seen) {
		/* Counted before the kernel looks at `jobs` again: who adds one later sees that somebody sleeps. */
		__atomic_fetch_add(&f->asleep, 1, __ATOMIC_SEQ_CST);
		futex(&f->jobs, FUTEX_WAIT, seen);
		__atomic_fetch_sub(&f->asleep, 1, __ATOMIC_SEQ_CST);
	}
}

static void *helper(void *arg)
{
	struct flushers *f = arg;
	uint32_t seen = 0;

	for (;;) {
		wait_for_job(f, seen);
		if (__atomic_load_n(&f->stop, __ATOMIC_ACQUIRE))
			return NULL;
		seen = __atomic_load_n(&f->jobs, __ATOMIC_ACQUIRE);
		help(f);
	}
}

static void tell(struct flushers *f)
{
	__atomic_fetch_add(&f->jobs, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&f->asleep, __ATOMIC_SEQ_CST))
		futex(&f->jobs, FUTEX_WAKE, FLUSHERS_MOST);
}

int flushers_start(struct flushers *f, int flushers)
{
	sigset_t all, before;
	int err = 0;

	memset(f, 0, sizeof(*f));
	if (flushers < 1 || flushers > FLUSHERS_MOST)
		return -EINVAL;
	pthread_mutex_init(&f->turn, NULL);
	/* Signals are for the thread that waits for them, but those of a page that is gone are ours (lost.h). */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	for (; f->helpers < flushers - 1 && !err; f->helpers += !err)
		err = pthread_create(&f->thread[f->helpers], NULL, helper, f);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err)
		flushers_stop(f);
	return -err;
}

void flushers_stop(struct flushers *f)
{
	__atomic_store_n(&f->stop, 1, __ATOMIC_RELEASE);
	tell(f);
	while (f->helpers)
		pthread_join(f->thread[--f->helpers], NULL);
	pthread_mutex_destroy(&f->turn);
}

static void alone(struct daxfs_flush *ops, const struct flush_piece *piece, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		ops->flush(ops, piece[i].p, piece[i].n);
}

void flushers_run(struct flushers *f, struct daxfs_flush *ops, const struct flush_piece *piece,
		  uint32_t count)
{
	if (!f->helpers || pthread_mutex_trylock(&f->turn)) {
		alone(ops, piece, count);
		return;
	}
	f->ops = ops;
	f->piece = piece;
	f->count = count;
	__atomic_store_n(&f->next, 0, __ATOMIC_RELAXED);
	/* After the job itself: who joins sees all of it. */
	__atomic_store_n(&f->state, OPEN, __ATOMIC_RELEASE);
	tell(f);
	work(f);
	/* Nobody joins any more; who has, is waited for: at most one piece each. */
	__atomic_fetch_and(&f->state, ~OPEN, __ATOMIC_ACQ_REL);
	for (unsigned turns = 0; __atomic_load_n(&f->state, __ATOMIC_ACQUIRE); turns++)
		if (turns < PATIENCE)
			relax();
		else	/* it may wait for this very CPU */
			sched_yield();
	DAXFS_COUNT(f->shared, 1);
	pthread_mutex_unlock(&f->turn);
}
