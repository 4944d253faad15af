/* SPDX-License-Identifier: MIT
 *
 * Write-back of lines in a client: the tables of native/flush.h, one for each kind that the daemon names.
 *
 * Tables are bound when the library is loaded or, where a constructor calls before that, at the first
 * use: all threads that do so store the same. A kind that this CPU lacks (a daemon elsewhere can't be)
 * becomes the best it has.
 */
#include "daxfs/native/flush.h"

/* Not lib.h: names of observe_abi.h and daxfs.h are other things in flush.h. Kinds have the same numbers. */
#define KINDS (DAXFS_MSYNC + 1)
#define HIDDEN __attribute__((visibility("hidden")))
void flushing_queue(int kind, uintptr_t start, uintptr_t end) HIDDEN;
void flushing_drain(void) HIDDEN;
void flushing_persist(int kind, uintptr_t start, uintptr_t end) HIDDEN;
const char *flushing_name(int kind) HIDDEN;
void flushing_counts(uint64_t *calls, uint64_t *lines, uint64_t *drains) HIDDEN;

static struct daxfs_flush tables[KINDS];
static int bound;
static const char *const NAMES[KINDS] = {"clwb", "clflushopt", "clflush", "none", "msync"};

__attribute__((constructor))
static void bind_tables(void)
{
	int i;

	if (__atomic_load_n(&bound, __ATOMIC_ACQUIRE))
		return;
	for (i = 0; i < KINDS; i++)
		if (daxfs_flush_bind(&tables[i], DAXFS_CACHE_LINE, i, -1))
			daxfs_flush_bind(&tables[i], DAXFS_CACHE_LINE, -1, -1);
	__atomic_store_n(&bound, 1, __ATOMIC_RELEASE);
}

static struct daxfs_flush *table(int kind)
{
	if (!__atomic_load_n(&bound, __ATOMIC_ACQUIRE))
		bind_tables();
	return &tables[kind >= 0 && kind < KINDS ? kind : DAXFS_MSYNC];
}

void flushing_queue(int kind, uintptr_t start, uintptr_t end)
{
	struct daxfs_flush *t = table(kind);

	t->flush(t, (const void *)start, end - start);
}

void flushing_drain(void)
{
	struct daxfs_flush *t = table(DAXFS_CLWB);

	/* Orders what any kind has queued before every later store: the fence is the same for all. */
	t->drain(t);
}

void flushing_persist(int kind, uintptr_t start, uintptr_t end)
{
	/* Orders the stores to these bytes before whatever the caller stores next. */
	daxfs_persist_counted_first(table(kind), (const void *)start, end - start);
}

const char *flushing_name(int kind)
{
	return NAMES[kind >= 0 && kind < KINDS ? kind : DAXFS_MSYNC];
}

void flushing_counts(uint64_t *calls, uint64_t *lines, uint64_t *drains)
{
	int i;

	*calls = *lines = *drains = 0;
	for (i = 0; i < DAXFS_MSYNC; i++) {
		*calls += tables[i].n_flush;
		*lines += tables[i].flush_lines;
		*drains += tables[i].n_drain;
	}
}
