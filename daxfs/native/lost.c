/* SPDX-License-Identifier: MIT
 *
 * The SIGBUS handler behind lost.h. State of the process: this file is in one extension (_iomap) alone.
 */
#define _GNU_SOURCE
#include "daxfs/native/lost.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_THREAD__
/* ThreadSanitizer takes mmap for a store to each of these bytes, in a race with loads of others. To the
 * processor it is a change of one page table entry, and the mark was set before. */
#include <sys/syscall.h>
#include <unistd.h>
#define mmap(...) ((void *)syscall(SYS_mmap, __VA_ARGS__))
#endif

struct watched {
	char *base;			/* NULL: free. Stored last, cleared first: the handler looks without a lock */
	size_t length, unit;
	struct range_table *table;	/* NULL: a window of own ranges, */
	struct own_range **at;		/* by the number of their place */
	unsigned shift;
};

static struct watched windows[LOST_WINDOWS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;	/* of watch and forget; never the handler's */
static struct sigaction before;
static int installed;

static struct watched *window_of(const char *p)
{
	int i;

	for (i = 0; i < LOST_WINDOWS; i++) {
		const char *base = __atomic_load_n(&windows[i].base, __ATOMIC_ACQUIRE);

		if (base && p >= base && p < base + windows[i].length)
			return &windows[i];
	}
	return NULL;
}

/* Not ours: as if there were no handler of ours. */
static void pass_on(int sig, siginfo_t *info, void *context)
{
	if (before.sa_flags & SA_SIGINFO) {
		before.sa_sigaction(sig, info, context);
	} else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
		before.sa_handler(sig);
	} else {
		/* The instruction is tried again and ends the process, as it should. */
		signal(sig, SIG_DFL);
	}
}

/* Lost (and dead) or torn before the page can be read: what is read from it is never taken for data. */
static int mark(struct watched *w, const char *p)
{
	struct own_range *own;

	if (w->table) {
		__atomic_store_n(&w->table->lost, 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&w->table->dead, 1, __ATOMIC_SEQ_CST);
		return 1;
	}
	own = __atomic_load_n(&w->at[(size_t)(p - w->base) >> w->shift], __ATOMIC_ACQUIRE);
	if (own)
		__atomic_store_n(&own->torn, 1, __ATOMIC_SEQ_CST);
	return own != NULL;
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	char *p = info->si_addr;
	struct watched *w = info->si_code > 0 ? window_of(p) : NULL;	/* <= 0: sent by somebody, not a fault */

	if (!w || !mark(w, p)) {
		pass_on(sig, info, context);
		return;
	}
	p -= (size_t)(p - w->base) & (w->unit - 1);
	if (mmap(p, w->unit, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		 0) == MAP_FAILED)
		pass_on(sig, info, context);
}

static int watch(char *base, const struct watched *new)
{
	struct sigaction sa = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
	int i, rc = -ENOSPC;

	pthread_mutex_lock(&lock);
	if (!installed && sigaction(SIGBUS, &sa, &before)) {
		rc = -errno;
		pthread_mutex_unlock(&lock);
		return rc;
	}
	installed = 1;
	for (i = 0; i < LOST_WINDOWS && rc; i++) {
		if (windows[i].base)
			continue;
		windows[i] = *new;	/* whose base is still NULL */
		__atomic_store_n(&windows[i].base, base, __ATOMIC_RELEASE);
		rc = 0;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

int lost_watch(char *base, size_t length, size_t unit, struct range_table *t)
{
	return watch(base, &(struct watched){.length = length, .unit = unit, .table = t});
}

int lost_watch_own(char *base, size_t length, struct own_range **at, unsigned shift)
{
	return watch(base, &(struct watched){.length = length, .unit = 4096, .at = at, .shift = shift});
}

void lost_forget(const char *base)
{
	int i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < LOST_WINDOWS; i++)
		if (windows[i].base == base)
			__atomic_store_n(&windows[i].base, NULL, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
}
