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

_Static_assert(sizeof(struct flush_cpus) == sizeof(cpu_set_t), "struct flush_cpus");

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
	uint32_t taken = 0, i, end;

	while ((i = __atomic_fetch_add(&f->next, f->step, __ATOMIC_RELAXED)) < f->count) {
		end = f->count - i < f->step ? f->count : i + f->step;
		for (taken += end - i; i < end; i++)
			f->ops->flush(f->ops, f->piece[i].p, f->piece[i].n);
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

/* Wake one that sleeps, if any; it wakes the next one (help). */
static void wake(struct flushers *f)
{
	if (__atomic_load_n(&f->asleep, __ATOMIC_SEQ_CST))
		futex(&f->jobs, FUTEX_WAKE, 1);
}

static void help(struct flushers *f)
{
	uint32_t taken;

	if (!join(f))
		return;
	if ((uint64_t)__atomic_load_n(&f->next, __ATOMIC_RELAXED) + f->step < f->count)
		wake(f);	/* 9 us each, which is not all to be the caller's time */
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
	struct flusher *me = arg;
	struct flushers *f = me->f;

	for (;;) {
		wait_for_job(f, me->seen);
		if (me->number >= __atomic_load_n(&f->keep, __ATOMIC_ACQUIRE))
			return NULL;
		me->seen = __atomic_load_n(&f->jobs, __ATOMIC_ACQUIRE);
		help(f);
	}
}

/* Keep the helpers off `cpu`, where the caller is. One that somebody else has put elsewhere (taskset) stays
 * there. The turn is ours. 0: there is no other CPU. */
static int place(struct flushers *f, int cpu)
{
	cpu_set_t cpus, found;

	memcpy(&cpus, &f->cpus, sizeof(cpus));
	if (cpu >= 0 && cpu < CPU_SETSIZE)
		CPU_CLR(cpu, &cpus);
	if (!CPU_COUNT(&cpus))
		return 0;
	for (int i = 0; i < f->helpers && cpu != f->away_from; i++) {
		struct flusher *h = &f->helper[i];

		if (pthread_getaffinity_np(h->thread, sizeof(found), &found)
				|| memcmp(&found, &h->cpus, sizeof(found)))
			continue;
		if (!pthread_setaffinity_np(h->thread, sizeof(cpus), &cpus))
			memcpy(&h->cpus, &cpus, sizeof(cpus));
	}
	f->away_from = cpu;
	return 1;
}

/* End the helpers from number `from` on. The turn is ours, or nobody has one any more. */
static void end_from(struct flushers *f, int from)
{
	__atomic_store_n(&f->keep, from, __ATOMIC_RELEASE);
	__atomic_fetch_add(&f->jobs, 1, __ATOMIC_SEQ_CST);
	futex(&f->jobs, FUTEX_WAKE, FLUSHERS_MOST);
	for (int i = f->helpers; i > from; i--)
		pthread_join(f->helper[i - 1].thread, NULL);
	if (from < f->helpers)
		__atomic_store_n(&f->helpers, from, __ATOMIC_RELAXED);
}

/* Add helpers until there are `wanted`. As above. 0 or -errno, with as many as there were. */
static int begin(struct flushers *f, int wanted)
{
	int before = f->helpers, err = 0;
	struct flusher *h;
	cpu_set_t cpus;
	sigset_t all, old;

	__atomic_store_n(&f->keep, wanted, __ATOMIC_RELEASE);
	/* Signals are for the thread that waits for them, but those of a page that is gone are ours (lost.h). */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	while (f->helpers < wanted && !err) {
		h = &f->helper[f->helpers];
		*h = (struct flusher){.f = f, .number = f->helpers, .seen = f->jobs};
		err = pthread_create(&h->thread, NULL, helper, h);
		if (err)
			break;
		/* Its maker's would be the metadata thread's, which may keep to one CPU at the time. */
		memcpy(&cpus, &f->cpus, sizeof(cpus));
		pthread_setaffinity_np(h->thread, sizeof(cpus), &cpus);
		pthread_getaffinity_np(h->thread, sizeof(cpus), &cpus);
		memcpy(&h->cpus, &cpus, sizeof(cpus));
		__atomic_store_n(&f->helpers, f->helpers + 1, __ATOMIC_RELAXED);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	f->away_from = -1;
	if (err)
		end_from(f, before);
	return -err;
}

int flushers_start(struct flushers *f, int flushers)
{
	cpu_set_t cpus;

	memset(f, 0, sizeof(*f));
	if (flushers < 1 || flushers > FLUSHERS_MOST)
		return -EINVAL;
	/* EINVAL: the kernel has more CPUs than a cpu_set_t. It takes those of a mask that are there. */
	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		memset(&cpus, 0xff, sizeof(cpus));
	memcpy(&f->cpus, &cpus, sizeof(cpus));
	pthread_mutex_init(&f->turn, NULL);
	return flushers_set(f, flushers);
}

int flushers_set(struct flushers *f, int flushers)
{
	int err = 0;

	if (flushers < 1 || flushers > FLUSHERS_MOST)
		return -EINVAL;
	pthread_mutex_lock(&f->turn);
	if (flushers - 1 < f->helpers)
		end_from(f, flushers - 1);
	else
		err = begin(f, flushers - 1);
	pthread_mutex_unlock(&f->turn);
	return err;
}

void flushers_stop(struct flushers *f)
{
	end_from(f, 0);
	pthread_mutex_destroy(&f->turn);
}

static void alone(struct daxfs_flush *ops, const struct flush_piece *piece, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		ops->flush(ops, piece[i].p, piece[i].n);
}

/* Pieces to take at once: about FLUSH_PIECE, and enough times for everybody to have a share. */
static uint32_t step_of(const struct flushers *f, const struct flush_piece *piece, uint32_t count)
{
	uint64_t bytes = 0, step;
	uint32_t most = count / (4 * (uint32_t)(f->helpers + 1));

	for (uint32_t i = 0; i < count; i++)
		bytes += piece[i].n;
	step = bytes ? count * FLUSH_PIECE / bytes : 1;
	if (step > most)
		step = most;
	return step ? (uint32_t)step : 1;
}

void flushers_run(struct flushers *f, struct daxfs_flush *ops, const struct flush_piece *piece,
		  uint32_t count)
{
	if (!__atomic_load_n(&f->helpers, __ATOMIC_RELAXED) || pthread_mutex_trylock(&f->turn)) {
		alone(ops, piece, count);
		return;
	}
	if (!f->helpers || !place(f, sched_getcpu())) {
		pthread_mutex_unlock(&f->turn);
		alone(ops, piece, count);
		return;
	}
	f->ops = ops;
	f->piece = piece;
	f->count = count;
	f->step = step_of(f, piece, count);
	__atomic_store_n(&f->next, 0, __ATOMIC_RELAXED);
	/* After the job itself: who joins sees all of it. */
	__atomic_store_n(&f->state, OPEN, __ATOMIC_RELEASE);
	__atomic_fetch_add(&f->jobs, 1, __ATOMIC_SEQ_CST);
	wake(f);
	work(f);
	/* Nobody joins any more; who has, is waited for: at most FLUSH_PIECE each. */
	__atomic_fetch_and(&f->state, ~OPEN, __ATOMIC_ACQ_REL);
	for (unsigned turns = 0; __atomic_load_n(&f->state, __ATOMIC_ACQUIRE); turns++)
		if (turns < PATIENCE)
			relax();
		else	/* it may wait for this very CPU */
			sched_yield();
	DAXFS_COUNT(f->shared, 1);
	pthread_mutex_unlock(&f->turn);
}
