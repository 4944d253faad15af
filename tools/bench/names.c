/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/names.py: each call on names is done COUNT times, each one timed.
 *
 *     names CPU COUNT DIR [look]
 *
 * CPU: number, or -1 for any. Works in DIR and leaves COUNT empty files there for the next run; with "look"
 * it only looks those up, which on a fresh mount is a LOOKUP each, and removes them. Prints one line of JSON
 * with the median of each call in ns.
 */
#define _GNU_SOURCE

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

#define PER_DIRECTORY 50	/* names in the directory that is read */

static unsigned count;
static uint64_t *ns;
static const char *separator = "{";

/* ---- the calls; 0 or -1 ---- */

static int look(const char *name)
{
	struct stat st;
	return stat(name, &st);
}

static int look_absent(const char *name)
{
	return look(name) < 0 && errno == ENOENT ? 0 : -1;
}

static int stat_anew(const char *name)
{
	struct statx st;
	return statx(AT_FDCWD, name, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &st);
}

static int create(const char *name)
{
	int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
	return fd < 0 ? fd : close(fd);
}

static int open_close(const char *name)
{
	int fd = open(name, O_RDONLY);
	return fd < 0 ? fd : close(fd);
}

static int set_mode(const char *name)
{
	return chmod(name, 0600);
}

static int move(const char *name)
{
	char other[64];
	snprintf(other, sizeof(other), "%s-moved", name);
	return rename(name, other) ? -1 : rename(other, name);
}

static int make_directory(const char *name)
{
	return mkdir(name, 0755);
}

static int list(const char *name)
{
	DIR *d = opendir(name);
	int n = 0;

	if (!d)
		return -1;
	while (readdir(d))
		n++;
	closedir(d);
	return n == PER_DIRECTORY + 2 ? 0 : -1;
}

/* *call* for each of count names, or count times for the one *name*. */
static void measure(const char *what, int (*call)(const char *), const char *prefix, int many)
{
	char name[64];
	unsigned i;

	for (i = 0; i < count; i++) {
		uint64_t began;

		snprintf(name, sizeof(name), many ? "%s%06u" : "%s", prefix, i);
		began = now();
		if (call(name))
			die(what);
		ns[i] = now() - began;
	}
	printf("%s\"%s\": %llu", separator, what, (unsigned long long)median(ns, count));
	separator = ", ";
	usleep(20000);	/* RELEASE comes asynchronously */
}

static void all(void)
{
	char name[64];
	int i;

	measure("stat, absent", look_absent, "f", 1);
	measure("create", create, "f", 1);
	measure("stat, known", stat_anew, "f", 1);
	measure("open, close", open_close, "f", 1);
	measure("chmod", set_mode, "f", 1);
	measure("rename, twice", move, "f", 1);
	measure("unlink", unlink, "f", 1);
	measure("mkdir", make_directory, "d", 1);
	measure("rmdir", rmdir, "d", 1);
	if (mkdir("list", 0755))
		die("list");
	for (i = 0; i < PER_DIRECTORY; i++) {
		snprintf(name, sizeof(name), "list/%d", i);
		if (create(name))
			die(name);
	}
	measure("readdir of 50", list, "list", 0);
	for (i = 0; i < PER_DIRECTORY; i++) {
		snprintf(name, sizeof(name), "list/%d", i);
		unlink(name);
	}
	rmdir("list");
	for (i = 0; i < (int)count; i++) {
		snprintf(name, sizeof(name), "look%06d", i);
		if (create(name))
			die(name);
	}
}

int main(int argc, char **argv)
{
	cpu_set_t set;

	if (argc < 4)
		return 2;
	count = atoi(argv[2]);
	ns = calloc(count, sizeof(*ns));
	if (!ns || chdir(argv[3]))
		die(argv[3]);
	if (atoi(argv[1]) >= 0) {
		CPU_ZERO(&set);
		CPU_SET(atoi(argv[1]), &set);
		if (sched_setaffinity(0, sizeof(set), &set))
			die("affinity");
	}
	if (argc == 4) {
		all();
	} else {
		char name[64];
		unsigned i;

		measure("stat, not known", look, "look", 1);
		for (i = 0; i < count; i++) {
			snprintf(name, sizeof(name), "look%06u", i);
			unlink(name);
		}
	}
	printf("}\n");
	return 0;
}
