/* SPDX-License-Identifier: MIT
 *
 * What marking costs, in the loop: the C core of the data path (daxfs/native/daxio.c) without locks and
 * requests, write after write of 4 KiB through the cache, the trackers of track= in turns. For tracker.py.
 *
 *     tracker FILE MIB ROUNDS
 *
 * FILE, on tmpfs, of at least MIB MiB, is the region; extents are as long as in one of 64 MiB. A round of one
 * tracker: everything is flushed and no longer marked, untimed; each page is written once, in a random order
 * ("clean"), then once more ("dirty"). Prints JSON: for each policy and both kinds the time of a write in ns, a
 * number for each round.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxfs/native/daxio.h"
#include "daxfs/native/dirty.h"
#include "daxfs/native/tracker.h"

#include "bench.h"

#define PAGE 4096
#define KINDS 5

static const struct dax_tracker *const trackers[KINDS] = {
	&dax_tracker_none, &dax_tracker_pte, &dax_tracker_pmd, &dax_tracker_line, &dax_tracker_extent
};
static struct range_table table;
static struct daxfs_flush ops;
static struct daxio io = {.table = &table, .ops = &ops, .writable = 1, .ram = 1};
static struct filemap file[KINDS];
static struct dirty_map dirty[KINDS];
static struct extent_map extents;
static uint32_t *order;
static char data[PAGE];

static double once(struct filemap *f, uint64_t pages)
{
	uint64_t began = now();

	for (uint64_t i = 0; i < pages; i++)
		if (dax_copy_in(&io, f, (uint64_t)order[i] * PAGE, PAGE, data, 0))
			die("dax_copy_in");
	return (double)(now() - began) / (double)pages;
}

static void shuffle(uint64_t pages)
{
	uint64_t x = 88172645463325252u;

	for (uint64_t i = 0; i < pages; i++)
		order[i] = (uint32_t)i;
	for (uint64_t i = pages; i-- > 1;) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		uint64_t j = x % (i + 1), swap = order[i];

		order[i] = order[j];
		order[j] = (uint32_t)swap;
	}
}

static void prepare(uint64_t pages)
{
	struct iomap e = {0, pages, 0, IOMAP_MAPPED, 0};

	extents.pages = 64;
	for (int k = 0; k < KINDS; k++) {
		filemap_init(&file[k]);
		if (filemap_splice(&file[k], 0, 0, &e, 1))
			die("filemap_splice");
		file[k].size = pages * PAGE;
		file[k].tracker = trackers[k];
		dirty_init(&dirty[k], NULL);
		file[k].dirty = &dirty[k];
		file[k].shared = &extents;
	}
}

int main(int argc, char **argv)
{
	uint64_t pages, rounds;
	double *found;
	char *p;
	int fd;

	if (argc != 4) {
		fprintf(stderr, "usage: tracker FILE MIB ROUNDS\n");
		return 2;
	}
	pages = strtoull(argv[2], NULL, 0) << 8;
	rounds = strtoull(argv[3], NULL, 0);
	order = malloc(pages * sizeof(*order));
	found = malloc(rounds * KINDS * 2 * sizeof(*found));
	fd = open(argv[1], O_RDWR);
	p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (!order || !found || fd < 0 || p == MAP_FAILED)
		die(argv[1]);
	if (daxfs_flush_bind(&ops, DAXFS_CACHE_LINE, -1, -1) || range_add(&table, 0, pages, p, 0))
		die("bind");
	memset(p, 1, pages * PAGE);
	shuffle(pages);
	prepare(pages);
	for (uint64_t r = 0; r < rounds; r++)
		for (int n = 0; n < KINDS; n++) {
			int k = r % 2 ? n : KINDS - 1 - n;

			/* Flushed as often whoever comes: how long a write takes depends on it. */
			trackers[k]->clean(&file[k], 0, pages * PAGE);
			memset(&extents.word, 0, sizeof(extents.word));
			if (dax_persist(&io, &file[k], 0, pages * PAGE) < 0)
				die("dax_persist");
			found[(k * 2) * rounds + r] = once(&file[k], pages);
			found[(k * 2 + 1) * rounds + r] = once(&file[k], pages);
		}
	for (int k = 0; k < KINDS * 2; k++) {
		printf("%s\"%s %s\": [", k ? ", " : "{", trackers[k / 2]->name, k % 2 ? "dirty" : "clean");
		for (uint64_t r = 0; r < rounds; r++)
			printf("%s%.2f", r ? ", " : "", found[k * rounds + r]);
		printf("]");
	}
	printf("}\n");
	return 0;
}
