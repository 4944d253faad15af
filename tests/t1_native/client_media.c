/* SPDX-License-Identifier: MIT
 *
 * The client's kinds of flush that cost what an emulated medium costs (client/flushing.c): which there are,
 * that they write back and count as others do, and that no time is shorter than the medium's.
 */
#include "daxfs/client/flushing.c"

#include <string.h>
#include <time.h>

#include "tests/t1_native/check.h"

static char memory[4096] __attribute__((aligned(4096)));

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t took(int kind, int persist)
{
	uintptr_t start = (uintptr_t)memory, end = start + sizeof(memory);
	uint64_t began = now();

	if (persist) {
		flushing_persist(kind, start, end);
	} else {
		flushing_queue(kind, start, end);
		flushing_drain();
	}
	return now() - began;
}

int main(void)
{
	uint64_t calls, lines, drains, all[3], shortest = UINT64_MAX;
	int kind, other, i;

	flushing_counts(&calls, &lines, &drains);
	CHECK(!calls && !lines && !drains);
	/* No medium: nothing, an msync, a kind that is none. */
	CHECK(flushing_medium(DAXFS_CLWB, 0, 0, 0) == DAXFS_CLWB);
	CHECK(flushing_medium(DAXFS_MSYNC, 1000, 0, 1000) == DAXFS_MSYNC);
	CHECK(flushing_medium(99, 1000, 0, 1000) == 99 && flushing_medium(-1, 1000, 0, 1000) == -1);
	/* The same numbers are the same one; a kind or a number that differs is another. */
	kind = flushing_medium(DAXFS_CLFLUSH, 1000000, 0, 50000000);
	CHECK(kind >= KINDS && flushing_medium(DAXFS_CLFLUSH, 1000000, 0, 50000000) == kind);
	CHECK(!strcmp(flushing_name(kind), "clflush"));
	other = flushing_medium(DAXFS_CLFLUSH, 0, 3000000, 1000);
	CHECK(other > kind && flushing_medium(DAXFS_FLUSH_NONE, 1000000, 0, 50000000) > other);
	/* 64 lines of 1 us, or of 3 us on the wire, and a drain. */
	for (i = 0; i < 20; i++) {
		memset(memory, i, sizeof(memory));
		CHECK(took(kind, i & 1) >= 64 * 1000 + 50000);
		CHECK(took(other, i & 1) >= 64 * 3000 + 1);
	}
	/* Without one it costs what it costs here, in a thread that has used others; what is pending is waited for. */
	for (i = 0; i < 20; i++) {
		uint64_t ns = took(DAXFS_CLFLUSH, i & 1);

		shortest = ns < shortest ? ns : shortest;
	}
	CHECK(shortest < 64 * 1000);
	flushing_queue(kind, (uintptr_t)memory, (uintptr_t)memory + 64);
	CHECK(daxfs_emulate_pending(&media[kind - KINDS].emulator));
	flushing_drain();
	CHECK(!daxfs_emulate_pending(&media[kind - KINDS].emulator));
	flushing_counts(&calls, &lines, &drains);
	CHECK(calls == 61 && lines == 60 * 64 + 1 && drains == 61);
	/* All of them: five more, then none; what is too long is cut. */
	for (i = 3; i < MEDIA; i++)
		CHECK(flushing_medium(DAXFS_CLFLUSH, (uint32_t)i, 0, UINT64_MAX) == KINDS + i);
	CHECK(media[3].drain == MOST_PS && flushing_medium(DAXFS_CLFLUSH, 99, 0, 0) == DAXFS_CLFLUSH);
	CHECK(flushing_medium(DAXFS_CLFLUSH, 1000000, 0, 50000000) == kind);
	flushing_counts(&all[0], &all[1], &all[2]);
	CHECK(all[0] == calls && all[1] == lines && all[2] == drains);
	return 0;
}
