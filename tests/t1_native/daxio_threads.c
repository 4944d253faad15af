/* SPDX-License-Identifier: MIT
 *
 * daxio.c under real threads: readers, writers, write-back and a splicer on the same few files, and the end
 * of the region in the middle of it. Built by test_daxio_threads.py, also with sanitizers.
 * usage: daxio_threads best|plain ROUNDS [SEED]; "plain": no instruction that a sanitizer can't see.
 *
 * A model of the media stands beside: what was flushed or stored past the cache is copied to it. Where it
 * differs from the region the page has to be marked, or fsync would lose the store.
 */
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daxfs/native/daxio.h"
#include "daxfs/native/dirty.h"
#include "daxfs/native/tracker.h"
#include "check.h"

#define PAGE 4096ul
#define PAGES 512ul			/* of the region: two ranges of equal length */
#define FILES 3
#define GROUPS 3			/* runs of written pages in a file, far from each other: in own chunks */
#define GROUP_PAGES 8ul
#define GROUP_AT(g) ((g) * 40000ul)
#define EDGE 128ul			/* at both ends of a group: bytes that not every write covers */
#define BODY (GROUP_PAGES * PAGE - 2 * EDGE)
#define KILLS 20
#define THREADS 9

static struct range_table table;
static struct daxfs_flush ops, bound;	/* what is called; what does the work */
static struct dirty_arena arena;
static struct filemap file[FILES];
static struct dirty_map dirty[FILES];
static struct dax_tracker tracker;	/* dax_tracker_pte, watched */
static struct daxio io = {.table = &table, .ops = &ops, .writable = 1};
static char *region, *media;
static uint64_t pages_flushed;
static int stop, done;			/* the threads shall end; how many have */

struct worker {
	pthread_t thread;
	int (*step)(struct worker *, struct filemap *);
	unsigned seed;
	int nt, err;
	long turns;
	char buf[GROUP_PAGES * PAGE];
};
static struct worker workers[THREADS];

static unsigned draw(struct worker *w, unsigned n)
{
	w->seed = w->seed * 1103515245u + 12345u;
	return (w->seed >> 16) % n;
}

/* -- flush table and tracker, watched, and the media ------------------------------------------ */

static void is_entered(void)
{
	CHECK(__atomic_load_n(&table.users, __ATOMIC_RELAXED) > 0);
}

static void reaches_media(const void *p, size_t len)
{
	is_entered();
	memcpy(media + ((const char *)p - region), p, len);
}

static void on_flush(struct daxfs_flush *t, const void *p, size_t len)
{
	bound.flush(&bound, p, len);
	reaches_media(p, len);
	__atomic_fetch_add(&pages_flushed, len / PAGE, __ATOMIC_RELAXED);
}

static void on_nt_store(struct daxfs_flush *t, void *p, const void *source, size_t len)
{
	bound.nt_store(&bound, p, source, len);
	reaches_media(p, len);
}

static void on_store(struct daxfs_flush *t, void *p, const void *source, size_t len)
{
	is_entered();
	bound.store(&bound, p, source, len);
}

static void on_drain(struct daxfs_flush *t)
{
	bound.drain(&bound);
}

static int on_mark(struct filemap *f, uint64_t pos, uint64_t len, uint64_t pfn)
{
	is_entered();
	return dax_tracker_pte.mark(f, pos, len, pfn);
}

static uint64_t on_next_run(const struct filemap *f, uint64_t pos, uint64_t *len)
{
	is_entered();
	return dax_tracker_pte.next_run(f, pos, len);
}

static void on_clean(struct filemap *f, uint64_t pos, uint64_t len)
{
	is_entered();
	dax_tracker_pte.clean(f, pos, len);
}

/* -- what the threads do --------------------------------------------------------------------------- */

static void all_equal(const char *p, size_t len, char value)
{
	for (size_t i = 0; i < len; i++)
		CHECK(p[i] == value);
}

static int read_step(struct worker *w, struct filemap *f)
{
	uint64_t start = GROUP_AT(draw(w, GROUPS)) * PAGE;
	char tail[200];
	int err;

	file_lock_take(&f->lock, 0);
	err = dax_copy_out(&io, f, start + EDGE, BODY, w->buf);
	if (!err && start + GROUP_PAGES * PAGE < f->size)
		err = dax_copy_out(&io, f, start + GROUP_PAGES * PAGE - 64, sizeof(tail), tail);
	file_lock_give(&f->lock);
	if (err)
		return err;
	all_equal(w->buf, BODY, w->buf[0]);
	if (start + GROUP_PAGES * PAGE < f->size)
		all_equal(tail + 64, sizeof(tail) - 64, 0);
	return 0;
}

static int pieces_step(struct worker *w, struct filemap *f)
{
	uint64_t start = GROUP_AT(draw(w, GROUPS)) * PAGE, sum = 0;
	struct iovec iov[16];
	int n;

	file_lock_take(&f->lock, 0);
	n = range_enter(&table);
	if (!n) {
		n = dax_pieces(&io, f, start + EDGE, BODY, iov, 16);
		for (int i = 0; i < n; i++) {
			all_equal(iov[i].iov_base, iov[i].iov_len, *(char *)iov[0].iov_base);
			sum += iov[i].iov_len;
		}
		range_exit(&table);
		CHECK(n > 0 && sum == BODY);
	}
	file_lock_give(&f->lock);
	return n < 0 ? n : 0;
}

static int write_step(struct worker *w, struct filemap *f)
{
	uint64_t start = GROUP_AT(draw(w, GROUPS)) * PAGE, skew = draw(w, EDGE + 1);
	int err;

	memset(w->buf, 1 + (int)draw(w, 255), sizeof(w->buf));
	file_lock_take(&f->lock, 1);
	CHECK(dax_covered(f, start + skew, GROUP_PAGES * PAGE - 2 * skew));
	CHECK(!dax_covered(f, start + skew, GROUP_PAGES * PAGE + 1));
	err = dax_copy_in(&io, f, start + skew, GROUP_PAGES * PAGE - 2 * skew, w->buf, w->nt);
	file_lock_give(&f->lock);
	return err;
}

static int sync_step(struct worker *w, struct filemap *f)
{
	uint64_t first = GROUP_AT(draw(w, GROUPS)) + draw(w, GROUP_PAGES);
	int64_t n;

	file_lock_take(&f->lock, 1);
	n = draw(w, 2) ? dax_writeback(&io, f, 0, UINT64_MAX, NULL) : dax_writeback(&io, f, first, first + 40003, NULL);
	file_lock_give(&f->lock);
	CHECK(n <= (int64_t)(GROUPS * GROUP_PAGES * PAGE));
	sched_yield();
	return n < 0 ? (int)n : 0;
}

/* An extent in two pieces and whole again: the array moves, the file stays the same. */
static int splice_step(struct worker *w, struct filemap *f)
{
	struct iomap whole, half[2];
	size_t i;

	file_lock_take(&f->lock, 1);
	i = draw(w, (unsigned)f->n);
	whole = f->e[i];
	if (i + 1 < f->n && f->e[i + 1].pfn == whole.pfn + whole.len) {
		whole.len += f->e[i + 1].len;
		CHECK(!filemap_splice(f, i, 2, &whole, 1));
	} else if (whole.len > 1) {
		half[0] = half[1] = whole;
		half[0].len = 1;
		half[1].pgoff++, half[1].pfn++, half[1].len--;
		CHECK(!filemap_splice(f, i, 1, half, 2));
	}
	file_lock_give(&f->lock);
	return __atomic_load_n(&table.dead, __ATOMIC_SEQ_CST) ? -EIO : 0;
}

/* The turns of the thread that has made fewest. */
static long slowest(void)
{
	long least = LONG_MAX, turns;

	for (int i = 0; i < THREADS; i++) {
		turns = __atomic_load_n(&workers[i].turns, __ATOMIC_RELAXED);
		least = turns < least ? turns : least;
	}
	return least;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	while (!w->err && !__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		w->err = w->step(w, &file[draw(w, FILES)]);
		__atomic_fetch_add(&w->turns, 1, __ATOMIC_RELAXED);
	}
	__atomic_fetch_add(&done, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* -- set-up and checks ----------------------------------------------------------------------------- */

static void make_region(const char *kind)
{
	int plain = !strcmp(kind, "plain");

	CHECK(plain || !strcmp(kind, "best"));
	CHECK(!daxfs_flush_bind(&bound, plain ? DAXFS_BYTE : DAXFS_CACHE_LINE, plain ? DAXFS_FLUSH_NONE : -1,
				plain ? DAXFS_NT_GENERIC : -1));
	tracker = (struct dax_tracker){"pte", 12, on_mark, on_next_run, on_clean, dax_tracker_pte.any, 0};
	ops = (struct daxfs_flush){.store = on_store, .nt_store = on_nt_store, .flush = on_flush, .drain = on_drain};
	region = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	media = calloc(PAGES, PAGE);
	CHECK(region != MAP_FAILED && media);
	CHECK(!range_add(&table, 0, PAGES / 2, region, 0));
	CHECK(!range_add(&table, PAGES / 2, PAGES, region + PAGES / 2 * PAGE, 0));
	/* Fewer slots than there are chunks at times: some stand in the region, some in DRAM. */
	CHECK(!dirty_arena_init(&arena, region + (PAGES - 16) * PAGE, 4 * DIRTY_SLOT_BYTES));
}

/* Each group is two extents, in either range of the region. */
static void make_files(void)
{
	uint64_t pfn = 0;

	for (int i = 0; i < FILES; i++) {
		filemap_init(&file[i]);
		dirty_init(&dirty[i], &arena);
		file[i].dirty = &dirty[i];
		file[i].tracker = &tracker;
		for (uint64_t g = 0; g < GROUPS; g++, pfn += GROUP_PAGES / 2) {
			struct iomap e[2] = {
				{GROUP_AT(g), GROUP_PAGES / 2, PAGES / 2 + pfn, IOMAP_MAPPED, 0},
				{GROUP_AT(g) + GROUP_PAGES / 2, GROUP_PAGES / 2, pfn, IOMAP_MAPPED, 0},
			};

			CHECK(!filemap_splice(&file[i], file[i].n, 0, e, 2));
		}
		file[i].size = (GROUP_AT(GROUPS - 1) + GROUP_PAGES) * PAGE;
	}
}

/* Where the media differ, the page is marked. */
static void nothing_is_lost(void)
{
	for (int i = 0; i < FILES; i++)
		for (size_t k = 0; k < file[i].n; k++)
			for (uint64_t n = 0; n < file[i].e[k].len; n++) {
				size_t at = (file[i].e[k].pfn + n) * PAGE;

				if (memcmp(region + at, media + at, PAGE))
					CHECK(dirty_test(&dirty[i], file[i].e[k].pgoff + n));
			}
}

/* Start all threads, and wait until each has made some turns beside the others. */
static void run(long turns)
{
	struct worker *w = workers;

	static int (*const steps[THREADS])(struct worker *, struct filemap *) = {
		read_step, write_step, sync_step, pieces_step, write_step, read_step, write_step, sync_step,
		splice_step,
	};

	stop = done = 0;
	for (int i = 0; i < THREADS; i++)
		w[i].turns = 0;
	for (int i = 0; i < THREADS; i++) {
		w[i].step = steps[i];
		w[i].nt = i == 1;
		CHECK(!pthread_create(&w[i].thread, NULL, work, &w[i]));
	}
	while (slowest() < turns)
		sched_yield();
	CHECK(__atomic_load_n(&done, __ATOMIC_ACQUIRE) == 0);
}

static void join(int err)
{
	for (int i = 0; i < THREADS; i++) {
		CHECK(!pthread_join(workers[i].thread, NULL));
		CHECK(workers[i].err == err);
	}
	CHECK(table.users == 0 && done == THREADS);
}

/* Kill as _iomap.pyx does it; then no byte of the region may be touched. */
static void kill_region(void)
{
	__atomic_store_n(&table.dead, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&table.users, __ATOMIC_SEQ_CST))
		sched_yield();
	CHECK(!mprotect(region, PAGES * PAGE, PROT_NONE));
	join(-EIO);
}

static void revive(void)
{
	CHECK(!mprotect(region, PAGES * PAGE, PROT_READ | PROT_WRITE));
	table.dead = 0;
	for (int i = 0; i < THREADS; i++)
		workers[i].err = 0;
}

int main(int argc, char **argv)
{
	CHECK(argc >= 3);
	make_region(argv[1]);
	make_files();
	for (int i = 0; i < THREADS; i++)
		workers[i].seed = (argc > 3 ? (unsigned)atol(argv[3]) : 1) * 77 + (unsigned)i;
	run(atol(argv[2]));
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	join(0);
	nothing_is_lost();
	for (int i = 0; i < FILES; i++)
		CHECK(dax_writeback(&io, &file[i], 0, UINT64_MAX, NULL) >= 0 && dirty[i].count == 0);
	nothing_is_lost();
	CHECK(io.flushed_bytes == pages_flushed * PAGE && io.flushed_bytes <= io.dirtied_bytes && io.flushed_bytes);
	CHECK(dirty_arena_used(&arena) == 0 && dirty_arena_fallbacks(&arena));

	for (int i = 0; i < KILLS; i++) {
		revive();
		run(1 + i % 7);
		kill_region();
	}
	printf("dirtied %lu, flushed %lu, writebacks %lu\n", io.dirtied_bytes, io.flushed_bytes, io.writebacks);
	for (int i = 0; i < FILES; i++) {
		dirty_destroy(&dirty[i]);	/* the region is gone */
		filemap_destroy(&file[i]);
	}
	dirty_arena_destroy(&arena);
	free(table.r);
	free(media);
	return 0;
}
