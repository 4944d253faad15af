/* SPDX-License-Identifier: MIT
 *
 * The lock of one file: shared or exclusive, and nobody waits for long (docs/concurrency.md).
 *
 * Whoever comes and finds it free takes it, also past others who are still waking up: that keeps a CPU at
 * work while another one is woken. Who has waited for FILE_LOCK_PATIENCE_NS is owed the lock: then only the
 * first in the queue may take it, and each one behind it that has waited as long gets its turn, in order.
 * So a thread waits at most for its patience, and for one turn of each that came before it.
 *
 * Not recursive: a thread that holds it, shared even, must not ask again.
 */
#ifndef DAXFS_FILE_LOCK_H
#define DAXFS_FILE_LOCK_H

#include <pthread.h>
#include <stdint.h>

#define FILE_LOCK_PATIENCE_NS 100000u

/* Of `word`: */
#define FILE_LOCK_EXCLUSIVE (1u << 31)
#define FILE_LOCK_QUEUE (1u << 30)	/* somebody waits: who gives the lock back wakes the first */
#define FILE_LOCK_OWED (1u << 29)	/* the first in the queue alone may take it */
#define FILE_LOCK_SHARED 1u		/* one of those that hold it shared; below: how many */
#define FILE_LOCK_COUNT (FILE_LOCK_OWED - 1)

struct file_lock {
	uint32_t word;
	pthread_mutex_t guard;		/* of the queue; nothing is waited for under it */
	struct file_lock_waiter *first, **end;
};

void file_lock_init(struct file_lock *l);
void file_lock_destroy(struct file_lock *l);
/* For the two below: there is something to wait for; somebody waits. */
void file_lock_wait(struct file_lock *l, int exclusive);
void file_lock_wake(struct file_lock *l);

/* 1: taken; 0: there is something to wait for. */
static inline int file_lock_try(struct file_lock *l, int exclusive)
{
	uint32_t busy = FILE_LOCK_EXCLUSIVE | FILE_LOCK_OWED | (exclusive ? FILE_LOCK_COUNT : 0);
	uint32_t add = exclusive ? FILE_LOCK_EXCLUSIVE : FILE_LOCK_SHARED;
	uint32_t word = __atomic_load_n(&l->word, __ATOMIC_RELAXED);

	while (!(word & busy))
		if (__atomic_compare_exchange_n(&l->word, &word, word + add, 1, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return 1;
	return 0;
}

static inline void file_lock_take(struct file_lock *l, int exclusive)
{
	if (!file_lock_try(l, exclusive))
		file_lock_wait(l, exclusive);
}

/* Give back what this thread holds. One LOCK-prefixed instruction on x86, which data stores rely on. The lock
 * must stay until this returns: each thread that uses it keeps its file from going away. */
static inline void file_lock_give(struct file_lock *l)
{
	uint32_t word = __atomic_load_n(&l->word, __ATOMIC_RELAXED);
	/* EXCLUSIVE is set: it is this thread that holds it so. Clear: nobody can set it before this. */
	uint32_t hold = word & FILE_LOCK_EXCLUSIVE ? FILE_LOCK_EXCLUSIVE : FILE_LOCK_SHARED;

	word = __atomic_sub_fetch(&l->word, hold, __ATOMIC_RELEASE);
	if (__builtin_expect(word & FILE_LOCK_QUEUE, 0))
		file_lock_wake(l);
}

#endif
