/* SPDX-License-Identifier: MIT
 *
 * The slow half of file_lock.h: who found the lock taken waits in a queue, first in, first out. Waiters stand
 * on their threads' stacks. Only the first is ever woken, so it is the first that leaves the queue.
 */
#define _GNU_SOURCE
#include "daxfs/native/file_lock.h"

#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct file_lock_waiter {
	struct file_lock_waiter *next;
	uint64_t since;			/* ns, CLOCK_MONOTONIC */
	int exclusive;
	uint32_t awake;			/* futex: 1 from when it was woken until it looks in vain */
};

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void file_lock_init(struct file_lock *l)
{
	l->word = 0;
	l->first = NULL;
	l->end = &l->first;
	pthread_mutex_init(&l->guard, NULL);
}

void file_lock_destroy(struct file_lock *l)
{
	pthread_mutex_destroy(&l->guard);
}

/* What keeps the first in the queue from taking the lock. */
static uint32_t busy_for(int exclusive)
{
	return FILE_LOCK_EXCLUSIVE | (exclusive ? FILE_LOCK_COUNT : 0);
}

static int is_owed(const struct file_lock_waiter *w)
{
	return now() - w->since >= FILE_LOCK_PATIENCE_NS;
}

/* Wake the first in the queue. Under the guard, without which a waiter does not leave its frame. */
static void wake_first(struct file_lock *l)
{
	struct file_lock_waiter *w = l->first;

	if (!w || w->awake)
		return;
	__atomic_store_n(&w->awake, 1, __ATOMIC_RELAXED);
	syscall(SYS_futex, &w->awake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* The lock can be had by now: 1. Else it is noted that somebody waits, so that the holder will wake: 0. */
static int take_or_note(struct file_lock *l, int exclusive)
{
	uint32_t busy = FILE_LOCK_OWED | busy_for(exclusive), word;

	while (!file_lock_try(l, exclusive)) {
		word = __atomic_load_n(&l->word, __ATOMIC_RELAXED);
		if (word & busy && __atomic_compare_exchange_n(&l->word, &word, word | FILE_LOCK_QUEUE, 0,
							       __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return 0;
	}
	return 1;
}

/* The first in the queue takes the lock and leaves: 1. Somebody else has it, who will wake us again: 0. */
static int first_takes(struct file_lock *l, struct file_lock_waiter *w)
{
	uint32_t busy = busy_for(w->exclusive), word;
	uint32_t add = (w->exclusive ? FILE_LOCK_EXCLUSIVE : FILE_LOCK_SHARED) + (w->next ? FILE_LOCK_QUEUE : 0);

	word = __atomic_load_n(&l->word, __ATOMIC_RELAXED);
	do {
		if (word & busy)
			return 0;
	} while (!__atomic_compare_exchange_n(&l->word, &word, (word & FILE_LOCK_COUNT) + add, 0,
					      __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
	l->first = w->next;
	if (!l->first)
		l->end = &l->first;
	else if (!w->exclusive && !l->first->exclusive)
		wake_first(l);		/* it can share the lock, and need not wait until this is given back */
	return 1;
}

void file_lock_wait(struct file_lock *l, int exclusive)
{
	struct file_lock_waiter w = {.exclusive = exclusive, .since = now()};
	int taken;

	pthread_mutex_lock(&l->guard);
	taken = take_or_note(l, exclusive);
	if (!taken) {
		*l->end = &w;
		l->end = &w.next;
	}
	while (!taken) {
		w.awake = 0;
		pthread_mutex_unlock(&l->guard);
		/* EINTR (a signal that wakes a thread for its end) and EAGAIN: looks, and waits on. */
		while (!__atomic_load_n(&w.awake, __ATOMIC_RELAXED))
			syscall(SYS_futex, &w.awake, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
		pthread_mutex_lock(&l->guard);
		taken = first_takes(l, &w);
	}
	pthread_mutex_unlock(&l->guard);
}

/* Between two turns, while somebody waits. */
void file_lock_wake(struct file_lock *l)
{
	struct file_lock_waiter *w;
	uint32_t word;

	pthread_mutex_lock(&l->guard);
	w = l->first;
	if (w && is_owed(w))
		__atomic_fetch_or(&l->word, FILE_LOCK_OWED, __ATOMIC_RELAXED);
	word = __atomic_load_n(&l->word, __ATOMIC_RELAXED);
	/* Not where it would look in vain. Whoever has the lock by now comes here when giving it back. */
	if (w && !(word & busy_for(w->exclusive)))
		wake_first(l);
	pthread_mutex_unlock(&l->guard);
}
