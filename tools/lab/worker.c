/* SPDX-License-Identifier: MIT
 *
 * The program whose calls the experiments time (worker.py starts it): it makes dirty and makes durable. It
 * reads commands from stdin, a line each, and answers each with a line of JSON; {"error": TEXT, "errno": N}
 * where it could not. All times are in ns, taken in here.
 *
 *   open PATH LENGTH VIA       the file from now on, made and written to LENGTH bytes where it is shorter.
 *                              VIA: write; mmap (plain mmap(2)); kernel, kernel-pte, user (observed by
 *                              libdaxfs); a mapping is touched from end to end. Nothing is dirty then
 *   other PATH LENGTH BYTES    this file is the one of which `dirty` makes BYTES dirty
 *   dirty SEED                 write them
 *   use                        store to all of the file once, by VIA (mappings: a line of each page), and fsync
 *   run CALL PATTERN DIRTY COUNT NS SEED PLACES
 *                              up to COUNT times, for about NS: store DIRTY bytes, then time CALL: fsync,
 *                              fdatasync, msync (of what was stored; observed: in the process), none. PATTERN: together (one piece at a random place),
 *                              scattered (pages of 4 KiB at random places). PLACES: new (others each time),
 *                              same.
 *                              {"store_ns": [...], "ns": [...], "lines": N, "drains": N}; the last two: what
 *                              this process itself wrote back, for each call. Who wants the caches warm runs it
 *                              once before, and leaves those times out
 *   close
 *
 * Descriptors: for VIA write it is open for writing alone, and for observed mappings for reading, so that the
 * daemon does not take it for one of a plain mapping, all of which counts as dirty at fsync (docs/client.md).
 * PATH has no spaces.
 */
#define _GNU_SOURCE

#include <daxfs.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../bench/bench.h"

#define PAGE 4096ul
#define PIECE (1ul << 20)
#define MOST 100000

enum via { WRITE, MMAP, KERNEL, KERNEL_PTE, USER, VIAS };
static const char *const vias[VIAS] = { "write", "mmap", "kernel", "kernel-pte", "user" };

static int fd = -1, other_fd = -1;
static size_t other_bytes, other_length;
static enum via via;
static char *base;
static size_t length;
static char piece[PIECE];
static uint64_t random_state, store_ns[MOST], call_ns[MOST];
static int failed;	/* errno of this command, with what failed in it */
static const char *failed_in = "";

static int fail(const char *what)
{
	failed = errno ? errno : EINVAL;
	failed_in = what;
	return -1;
}

static uint64_t next_random(void)	/* xorshift64 */
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void close_file(void)
{
	if (base && via == MMAP)
		munmap(base, length);
	else if (base)
		daxfs_unmap(base, length);
	base = NULL;
	if (fd >= 0)
		close(fd);
	if (other_fd >= 0)
		close(other_fd);
	fd = other_fd = -1;
	other_bytes = 0;
}

/* The file at `path`, open for writing, written from end to end, so that every page has storage. */
static int filled(const char *path, size_t bytes)
{
	int out = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	struct stat st;
	size_t pos;

	if (out < 0)
		return fail("open");
	if (fstat(out, &st)) {
		fail("fstat");
		goto bad;
	}
	if ((size_t)st.st_size >= bytes)
		return out;
	for (pos = 0; pos < bytes; pos += PIECE) {
		size_t n = bytes - pos < PIECE ? bytes - pos : PIECE;

		errno = ENOSPC;	/* a short write */
		if (pwrite(out, piece, n, (off_t)pos) != (ssize_t)n) {
			fail("pwrite");
			goto bad;
		}
	}
	if (!fsync(out))
		return out;
	fail("fsync");
bad:
	close(out);
	return -1;
}

static int map(const char *path)
{
	unsigned flags = DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE;
	struct daxfs_info info = {0};
	size_t pos;
	int sum = 0;

	if (via == MMAP) {
		base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (base == MAP_FAILED) {
			base = NULL;
			return fail("mmap");
		}
	} else {
		flags |= via == KERNEL_PTE ? DAXFS_MAP_PTE : via == USER ? DAXFS_MAP_USER : 0;
		base = daxfs_map(path, flags, 0, length, &info);
		if (!base)
			return fail(info.why ? info.why : "daxfs_map");
	}
	for (pos = 0; pos < length; pos += PAGE)
		sum += *(volatile char *)(base + pos);
	return sum == -1 ? 1 : 0;	/* never: the loads are needed */
}

static int do_open(const char *path, size_t bytes, const char *name)
{
	int n;

	close_file();
	for (n = 0; n < VIAS && strcmp(vias[n], name); n++)
		;
	errno = EINVAL;
	if (n == VIAS || !bytes)
		return fail("via");
	via = (enum via)n;
	length = bytes;
	fd = filled(path, bytes);
	if (fd < 0)
		return -1;
	if (via != WRITE) {
		close(fd);
		fd = open(path, (via == MMAP ? O_RDWR : O_RDONLY) | O_CLOEXEC);
		if (fd < 0)
			return fail("open");
		if (map(path))
			return -1;
	}
	return fsync(fd) ? fail("fsync") : 0;
}

static int do_other(const char *path, size_t bytes, size_t dirty)
{
	errno = EINVAL;
	if (!dirty || dirty > bytes)
		return fail("other");
	if (other_fd >= 0)
		close(other_fd);
	other_length = bytes;
	other_bytes = dirty;
	other_fd = filled(path, bytes);
	return other_fd < 0 ? -1 : 0;
}

static int put_bytes(int to, size_t pos, size_t n)
{
	size_t some;

	for (; n; pos += some, n -= some) {
		some = n < PIECE ? n : PIECE;
		errno = ENOSPC;	/* a short write */
		if (pwrite(to, piece, some, (off_t)pos) != (ssize_t)some)
			return fail("pwrite");
	}
	return 0;
}

static int store(size_t pos, size_t n)
{
	size_t some;

	if (!base)
		return put_bytes(fd, pos, n);
	for (; n; pos += some, n -= some) {
		some = n < PIECE ? n : PIECE;
		memcpy(base + pos, piece, some);
	}
	return 0;
}

/* A place for `bytes` of `all`, at a multiple of a power of two, no larger than they are, at most 2 MiB. */
static size_t place(size_t bytes, size_t all)
{
	size_t unit = 64;

	while (unit * 2 <= bytes && unit < 2 * PIECE)
		unit *= 2;
	return bytes >= all ? 0 : next_random() % ((all - bytes) / unit + 1) * unit;
}

struct span {
	size_t pos, len;	/* what msync has to cover */
};

static int make_dirty(int scattered, size_t bytes, struct span *s)
{
	size_t left, n;

	piece[next_random() % PIECE]++;
	s->pos = scattered ? 0 : place(bytes, length);
	s->len = scattered ? length : bytes;
	if (!scattered)
		return store(s->pos, bytes);
	for (left = bytes; left; left -= n) {
		n = left < PAGE ? left : PAGE;
		if (store(place(PAGE, length), n))
			return -1;
	}
	return 0;
}

static int call(const char *name, const struct span *s)
{
	size_t from = s->pos & ~(PAGE - 1), n = s->pos + s->len - from;

	switch (name[0]) {
	case 'f':
		return (name[1] == 's' ? fsync(fd) : fdatasync(fd)) ? fail(name) : 0;
	case 'm':
		if (!base) {
			errno = EINVAL;
			return fail("msync without a mapping");
		}
		if (via == MMAP)
			return msync(base + from, n, MS_SYNC) ? fail(name) : 0;
		return daxfs_msync(base + from, n, MS_SYNC) ? fail(name) : 0;
	}
	return 0;
}

static int do_run(const char *name, int scattered, size_t bytes, size_t count, uint64_t ns, uint64_t seed,
		  int same, size_t *made, struct daxfs_flushes *spent)
{
	uint64_t began, t, t2;
	struct daxfs_flushes before;
	struct span s;
	size_t i;

	*made = 0;
	random_state = seed * 2 + 1;
	errno = EINVAL;
	if (fd < 0 || !bytes || bytes > length)
		return fail("run");
	daxfs_flushes(&before);
	began = now();
	for (i = 0; i < count && i < MOST && (!i || now() - began < ns); i++) {
		if (same)
			random_state = seed * 2 + 1;
		t = now();
		if (make_dirty(scattered, bytes, &s))
			return -1;
		t2 = now();
		store_ns[i] = t2 - t;
		if (call(name, &s))
			return -1;
		call_ns[i] = now() - t2;
	}
	*made = i;
	daxfs_flushes(spent);
	spent->lines -= before.lines;
	spent->drains -= before.drains;
	return 0;
}

static int do_dirty(uint64_t seed)
{
	random_state = seed * 2 + 1;
	errno = EINVAL;
	return other_bytes ? put_bytes(other_fd, place(other_bytes, other_length), other_bytes) : fail("dirty");
}

static int do_use(void)
{
	size_t pos;

	errno = EINVAL;
	if (fd < 0)
		return fail("use");
	if (!base && store(0, length))
		return -1;
	for (pos = 0; base && pos + 64 <= length; pos += PAGE)
		if (store(pos, 64))
			return -1;
	return fsync(fd) ? fail("fsync") : 0;
}

static void put(const char *name, const uint64_t *values, size_t n, const char *end)
{
	size_t i;

	printf("\"%s\":[", name);
	for (i = 0; i < n; i++)
		printf("%s%llu", i ? "," : "", (unsigned long long)values[i]);
	printf("]%s", end);
}

static void command(char *line)
{
	char word[3][512] = {"", "", ""}, path[4096];
	unsigned long long a = 0, b = 0, ns = 0, seed = 0;
	struct daxfs_flushes spent = {0};
	size_t made = 0;
	int rc;

	failed = 0;
	errno = EINVAL;
	if (sscanf(line, "open %4095s %llu %511s", path, &a, word[0]) == 3)
		rc = do_open(path, a, word[0]);
	else if (sscanf(line, "run %511s %511s %llu %llu %llu %llu %511s", word[0], word[1], &a, &b, &ns, &seed,
			word[2]) == 7)
		rc = do_run(word[0], word[1][0] == 's', a, b, ns, seed, word[2][0] == 's', &made, &spent);
	else if (sscanf(line, "other %4095s %llu %llu", path, &a, &b) == 3)
		rc = do_other(path, a, b);
	else if (sscanf(line, "dirty %llu", &seed) == 1)
		rc = do_dirty(seed);
	else if (!strncmp(line, "use", 3))
		rc = do_use();
	else if (!strncmp(line, "close", 5))
		close_file(), rc = 0;
	else
		rc = fail("unknown command");
	if (rc)
		printf("{\"error\":\"%s: %s\",\"errno\":%d}\n", failed_in, strerror(failed), failed);
	else {
		printf("{");
		put("store_ns", store_ns, made, ",");
		put("ns", call_ns, made, ",");
		printf("\"lines\":%.3f,\"drains\":%.3f}\n", made ? (double)spent.lines / (double)made : 0,
		       made ? (double)spent.drains / (double)made : 0);
	}
	fflush(stdout);
}

int main(void)
{
	static char line[8192];

	while (fgets(line, sizeof(line), stdin))
		command(line);
	close_file();
	return 0;
}
