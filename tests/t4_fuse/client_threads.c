/* SPDX-License-Identifier: MIT
 *
 * A program that knows nothing of daxfs: threads that map, store, msync and unmap one file, change parts of
 * mappings, and fork. client_threads FILE ROUNDS SEED. What must be in the file at the end is checked by reading it.
 *
 * The file has a slot of 256 KiB for each thread; a thread counts its stores in 8-byte words of its own pages.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/t1_native/check.h"

#define THREADS 4
#define PAGE 4096
#define SLOT (64 * PAGE)

static int file, rounds;
static uint64_t expected[THREADS][64];

static unsigned next(unsigned *state)
{
	return *state = *state * 1103515245 + 12345, *state >> 8;
}

static char *map_slot(int number)
{
	char *at = mmap(NULL, SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)number * SLOT);

	CHECK(at != MAP_FAILED);
	return at;
}

static char *change(char *at, int number, unsigned what, unsigned page)
{
	char *room;
	int status;
	pid_t child;

	switch (what) {
	case 0:
		/* Not munmap: what other threads map meanwhile could come to stand in the hole. */
		CHECK(mmap(at + page * PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
		      == at + page * PAGE);
		CHECK(mmap(at + page * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
			   (off_t)number * SLOT + page * PAGE) == at + page * PAGE);
		break;
	case 1:
		CHECK(!madvise(at, SLOT, MADV_DONTNEED));
		break;
	case 2:
		CHECK(!mprotect(at + page * PAGE, PAGE, PROT_READ) && !mprotect(at, SLOT, PROT_READ | PROT_WRITE));
		break;
	case 3:
		room = mmap(NULL, SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(!munmap(at, SLOT));	/* of several mappings by now: mremap takes one */
		at = map_slot(number);
		at = mremap(at, SLOT, SLOT, MREMAP_MAYMOVE | MREMAP_FIXED, room);
		CHECK(at == room);
		break;
	case 4:
		child = fork();
		if (!child) {
			((uint64_t *)(at + page * PAGE))[1]++;
			CHECK(!msync(at + page * PAGE, PAGE, MS_SYNC));
			_exit(0);
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0);
		break;
	default:
		CHECK(!munmap(at, SLOT));
		at = map_slot(number);
	}
	return at;
}

static void *work(void *argument)
{
	int number = (int)(intptr_t)argument & 0xff;
	unsigned state = (unsigned)((intptr_t)argument >> 8) + number;
	char *at = map_slot(number);

	for (int i = 0; i < rounds; i++) {
		unsigned page = next(&state) % 64, what = next(&state) % 256;

		*(uint64_t *)(at + page * PAGE) = ++expected[number][page];
		if (what % 4 == 0)
			CHECK(!msync(at + page * PAGE, PAGE, MS_SYNC));
		if (what < 12)
			at = change(at, number, what % 6, page);
	}
	CHECK(!msync(at, SLOT, MS_SYNC) && !munmap(at, SLOT));
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[THREADS];
	uint64_t word;

	CHECK(argc == 4);
	file = open(argv[1], O_RDWR | O_CLOEXEC);
	rounds = atoi(argv[2]);
	CHECK(file >= 0 && !ftruncate(file, THREADS * SLOT));
	for (intptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, work, (void *)(i | (intptr_t)atoi(argv[3]) << 8)));
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_join(thread[i], NULL));
	for (int i = 0; i < THREADS; i++)
		for (int page = 0; page < 64; page++) {
			CHECK(pread(file, &word, 8, (off_t)i * SLOT + page * PAGE) == 8);
			CHECK(word == expected[i][page]);
		}
	return 0;
}
