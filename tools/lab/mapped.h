/* SPDX-License-Identifier: MIT
 *
 * The ways in which a program maps a file, by name, for the C programs of tools/bench and tools/lab. To be included
 * with _GNU_SOURCE defined; needs bench.h, and libdaxfs to link with.
 *
 *   plain              mmap(2), at an address that is a multiple of 2 MiB
 *   kernel, user       observed by libdaxfs, with pages of 2 MiB where they can be had
 *   kernel-pte, user-pte  the same in pages of 4 KiB
 */
#ifndef DAXFS_LAB_MAPPED_H
#define DAXFS_LAB_MAPPED_H

#include <daxfs.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../bench/bench.h"

#define PAGE 4096ul
#define HUGE (512 * PAGE)

struct mapped {
	char *base;
	size_t length;
	int plain, pages;	/* mmap(2); of 4 KiB, wanted so */
};

/* A multiple of 2 MiB behind which `length` bytes are free, and `colour` more bytes. They are given away again by
 * whoever maps there (MAP_FIXED). */
__attribute__((unused))
static char *free_place(size_t length, size_t colour)
{
	char *at = mmap(NULL, length + 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		die("memory");
	return (char *)(((uintptr_t)at + HUGE - 1) & -HUGE) + colour;
}

/* The first `length` bytes of the file `path`, shared and writable. Observed: or an end with the reason. */
__attribute__((unused))
static struct mapped map_file(const char *how, const char *path, size_t length)
{
	struct mapped m = {.length = length, .plain = !strcmp(how, "plain"), .pages = strstr(how, "-pte") != NULL};
	unsigned flags = DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE | (m.pages ? DAXFS_MAP_PTE : 0)
			 | (strncmp(how, "user", 4) ? 0 : DAXFS_MAP_USER);
	struct daxfs_info info = {0};
	int fd;

	if (m.plain) {
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			die(path);
		m.base = mmap(free_place(length, 0), length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
		if (m.base == MAP_FAILED)
			die(path);
		close(fd);
		return m;
	}
	m.base = daxfs_map(path, flags, 0, length, &info);
	if (!m.base)
		die(info.why ? info.why : path);
	return m;
}

/* What was stored is durable, and protected again where somebody tracks stores. */
__attribute__((unused))
static void write_back(const struct mapped *m)
{
	if (m->plain ? msync(m->base, m->length, MS_SYNC) : daxfs_msync(m->base, m->length, MS_SYNC))
		die("msync");
}

#endif
