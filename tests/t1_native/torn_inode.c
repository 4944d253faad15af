/* SPDX-License-Identifier: MIT
 *
 * GETATTR while a record is stored: the metadata thread comes exactly between the two halves of the copy
 * that serve.c makes of the inode. Built by test_torn_inode.py.
 *
 * The inode stands across the border of two pages, and the second can't be read: so the copy stops in the
 * middle, in the handler of SIGSEGV, which does what the metadata thread would do.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daxfs/native/serve.h"
#include "check.h"

#define PAGE 4096ul
#define INO 1ul
#define HALF 128			/* INODE.blocks begins the second half */
enum { SIZE_AT = 0, INO_AT = 72, MODE_AT = 84, BLOCKS_AT = 128 };	/* daxfs/layout.py INODE */

static struct range_table table;
static struct daxfs_flush ops;
static struct daxio io = {.table = &table, .ops = &ops};
static struct server server;
static struct serve_counts counts;
static char *pages, *inode;
static int faults, half_stored;

static void put(size_t at, uint64_t value)
{
	memcpy(inode + at, &value, sizeof(value));
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	if (number != SIGSEGV || (char *)info->si_addr < pages + PAGE || (char *)info->si_addr >= pages + 2 * PAGE)
		_Exit(3);
	faults++;
	mprotect(pages + PAGE, PAGE, PROT_READ | PROT_WRITE);
	__atomic_fetch_add(&table.seq, 1, __ATOMIC_SEQ_CST);
	put(SIZE_AT, 2 * PAGE);
	put(BLOCKS_AT, 2);
	if (!half_stored)
		__atomic_fetch_add(&table.seq, 1, __ATOMIC_SEQ_CST);
}

/* The verdict on GETATTR; *attr: the reply. The inode has one page before, and two from the fault on. */
static enum serve_verdict ask(struct wire_attr_out *attr)
{
	struct wire_in head = {.len = sizeof(head) + 16, .opcode = WIRE_GETATTR, .unique = 2, .nodeid = INO};
	char arg[16] = {0}, buf[256];
	struct serve_msg m = {.head = &head, .arg = arg, .arg_len = sizeof(arg)};
	struct serve_reply r = {.buf = buf, .cap = sizeof(buf)};
	enum serve_verdict verdict;

	put(SIZE_AT, PAGE);
	put(BLOCKS_AT, 1);
	faults = 0;
	CHECK(!mprotect(pages + PAGE, PAGE, PROT_NONE));
	verdict = serve(&server, &counts, &m, &r);
	CHECK(faults == 1 && !r.error);
	CHECK(verdict != SERVE_DONE || r.len == sizeof(*attr));
	memcpy(attr, buf, sizeof(*attr));
	return verdict;
}

int main(void)
{
	struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	struct wire_attr_out out;

	pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(pages != MAP_FAILED);
	inode = pages + PAGE - HALF;
	put(INO_AT, INO);
	put(MODE_AT, 0100644);
	CHECK(!sigaction(SIGSEGV, &sa, NULL));
	CHECK(!server_init(&server, &io));
	server.limits.getattr = 1;
	server.limits.inodes = inode - 256 * INO;
	server.limits.inode_limit = INO + 1;
	server.limits.max_write = PAGE;

	/* A whole record in between: the copy is made again. */
	CHECK(ask(&out) == SERVE_DONE);
	CHECK(out.attr.size == 2 * PAGE && out.attr.blocks == 16);
	/* One that has begun: no answer from here. */
	half_stored = 1;
	CHECK(ask(&out) == SERVE_RELAY);
	server_destroy(&server);
	return 0;
}
