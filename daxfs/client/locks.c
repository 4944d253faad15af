/* SPDX-License-Identifier: MIT
 *
 * The locks of a client: who maps and unmaps (client_lock), and turns of write-back, one for files whose
 * numbers have the same remainder.
 *
 * Whoever takes one holds signals back before, so a handler that calls msync(2) never meets its own thread
 * in here. But for SIGBUS: a page that is truncated away while it is written back is a fault in the middle
 * of it, and the program's handler runs then. It may call us, fork or exit: so a thread gets again what it
 * has. Or it leaves by siglongjmp(3), which ends the holding back of signals, too: by that it is known, the
 * next time, that what this thread has was left behind. Limits: until then others wait for it; nothing is
 * known of longjmp(3), nor in a thread that blocks all signals by itself.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>

#include "daxfs/client/lib.h"

/* `owner` is compared with the own thread alone, so any other value will do; `depth` is the owner's. */
struct lock {
	pthread_mutex_t mutex;
	uintptr_t owner;
	unsigned depth;
};
static struct lock big = {.mutex = PTHREAD_MUTEX_INITIALIZER};
static struct lock turns[CLIENT_TURNS] = {[0 ... CLIENT_TURNS - 1] = {.mutex = PTHREAD_MUTEX_INITIALIZER}};

static int is_mine(const struct lock *l)
{
	return __atomic_load_n(&l->owner, __ATOMIC_RELAXED) == (uintptr_t)pthread_self();
}

static void take(struct lock *l)
{
	if (!is_mine(l)) {
		pthread_mutex_lock(&l->mutex);
		__atomic_store_n(&l->owner, (uintptr_t)pthread_self(), __ATOMIC_RELAXED);
	}
	l->depth++;
}

static int try_take(struct lock *l)
{
	if (!is_mine(l)) {
		if (pthread_mutex_trylock(&l->mutex))
			return 0;
		__atomic_store_n(&l->owner, (uintptr_t)pthread_self(), __ATOMIC_RELAXED);
	}
	l->depth++;
	return 1;
}

static void leave(struct lock *l)
{
	if (--l->depth)
		return;
	__atomic_store_n(&l->owner, 0, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&l->mutex);
}

static void leave_behind(struct lock *l)
{
	if (is_mine(l)) {
		l->depth = 1;
		leave(l);
	}
}

void client_hold_signals(sigset_t *old)
{
	sigset_t all;
	int i;

	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGTRAP);
	sigdelset(&all, SIGABRT);
	pthread_sigmask(SIG_SETMASK, &all, old);
	/* Two that hardly any program blocks. They were let through just now, so that no lock of ours is held. */
	if (sigismember(old, SIGWINCH) && sigismember(old, SIGURG))
		return;
	for (i = CLIENT_TURNS; i-- > 0;)
		leave_behind(&turns[i]);
	leave_behind(&big);
}

void client_lock(sigset_t *old)
{
	client_hold_signals(old);
	take(&big);
}

void client_unlock(const sigset_t *old)
{
	leave(&big);
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

void client_turn_take(int turn)
{
	take(&turns[turn]);
}

int client_turn_try(int turn)
{
	return try_take(&turns[turn]);
}

void client_turn_leave(int turn)
{
	leave(&turns[turn]);
}

void client_turns_take(void)
{
	int i;

	for (i = 0; i < CLIENT_TURNS; i++)
		take(&turns[i]);
}

void client_turns_leave(void)
{
	int i;

	for (i = CLIENT_TURNS; i-- > 0;)
		leave(&turns[i]);
}
