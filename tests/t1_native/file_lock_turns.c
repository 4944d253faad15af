/* SPDX-License-Identifier: MIT
 *
 * file_lock.h: who waits gets its turn, whoever else comes meanwhile. Built by test_file_lock.py, also with
 * sanitizers. The order is made by looking at the queue, not by clocks: the one time that counts is that a
 * waiter has waited for longer than its patience.
 */
#define _GNU_SOURCE
#include "daxfs/native/file_lock.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"

#define WAITERS 6
#define THREADS 6
#define WORDS 64

static struct file_lock lock;
static int turns, holding;		/* turns that were taken; how many are inside */

struct waiter {
	pthread_t thread;
	int exclusive, turn, until;	/* turn: when it came, from 1; it stays inside until so many are */
};
static struct waiter waiter[WAITERS];

static void *wait_for_it(void *arg)
{
	struct waiter *w = arg;

	file_lock_take(&lock, w->exclusive);
	w->turn = __atomic_add_fetch(&turns, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&holding, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&holding, __ATOMIC_SEQ_CST) < w->until)
		sched_yield();
	file_lock_give(&lock);
	return NULL;
}

/* Start waiter i, and return when it stands in the queue, as the last of all. */
static void start(int i, int exclusive, int until)
{
	struct file_lock_waiter **end, **before;

	pthread_mutex_lock(&lock.guard);
	before = lock.end;
	pthread_mutex_unlock(&lock.guard);
	waiter[i] = (struct waiter){.exclusive = exclusive, .until = until};
	CHECK(!pthread_create(&waiter[i].thread, NULL, wait_for_it, &waiter[i]));
	do {
		sched_yield();
		pthread_mutex_lock(&lock.guard);
		end = lock.end;
		pthread_mutex_unlock(&lock.guard);
	} while (end == before);
}

static void begin(int exclusive)
{
	turns = holding = 0;
	CHECK(lock.word == 0 && !lock.first && lock.end == &lock.first);
	file_lock_take(&lock, exclusive);
}

static void run_out_of_patience(void)
{
	usleep(FILE_LOCK_PATIENCE_NS / 1000 + 1000);
}

static void end(int n)
{
	for (int i = 0; i < n; i++)
		CHECK(!pthread_join(waiter[i].thread, NULL));
	CHECK(lock.word == 0 && !lock.first && lock.end == &lock.first);
}

/* The holder gives it back and comes again at once: after the one that waits. One of the two is exclusive. */
static void comes_again(int mine, int theirs)
{
	begin(mine);
	start(0, theirs, 1);
	run_out_of_patience();
	file_lock_give(&lock);
	file_lock_take(&lock, mine);
	CHECK(__atomic_load_n(&turns, __ATOMIC_SEQ_CST) == 1);
	file_lock_give(&lock);
	end(1);
}

/* The queue is first in, first out, but for readers side by side. `kinds`: a bit for each, 1: exclusive. */
static void in_order(unsigned kinds)
{
	begin(1);
	for (int i = 0; i < WAITERS; i++)
		start(i, kinds >> i & 1, 1);
	run_out_of_patience();
	file_lock_give(&lock);
	end(WAITERS);
	for (int i = 0; i < WAITERS; i++)
		for (int k = i + 1; k < WAITERS; k++)
			if (waiter[i].exclusive || waiter[k].exclusive)
				CHECK(waiter[i].turn < waiter[k].turn);
}

/* Readers that come and go, so that there always is one, don't keep a writer waiting. */
static void readers_without_end(void)
{
	begin(0);
	file_lock_take(&lock, 0);
	start(0, 1, 1);
	run_out_of_patience();
	file_lock_give(&lock);
	CHECK(!file_lock_try(&lock, 0));
	file_lock_give(&lock);
	end(1);
}

/* Readers that waited behind a writer are inside together: each stays until all are. */
static void readers_together(void)
{
	begin(1);
	for (int i = 0; i < WAITERS; i++)
		start(i, 0, WAITERS);
	file_lock_give(&lock);
	end(WAITERS);
}

/* -- all at once ---------------------------------------------------------------------------------- */

static long words[WORDS], rounds;

static void *go_round(void *arg)
{
	long me = (long)(intptr_t)arg, seen;
	int exclusive = me & 1;

	for (long n = 0; n < rounds; n++) {
		file_lock_take(&lock, exclusive);
		seen = words[0];
		for (int i = 0; i < WORDS; i++) {
			CHECK(words[i] == seen);
			if (exclusive)
				words[i] = seen + 1;
		}
		file_lock_give(&lock);
	}
	return NULL;
}

static void all_at_once(void)
{
	pthread_t thread[THREADS];

	for (long i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, go_round, (void *)(intptr_t)i));
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_join(thread[i], NULL));
	CHECK(words[0] == THREADS / 2 * rounds && lock.word == 0);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	rounds = atol(argv[1]);
	file_lock_init(&lock);
	for (int i = 0; i < 20; i++) {
		comes_again(1, 1);
		comes_again(1, 0);
		comes_again(0, 1);
		readers_without_end();
		readers_together();
	}
	for (unsigned kinds = 0; kinds < 1u << WAITERS; kinds++)
		in_order(kinds);
	all_at_once();
	file_lock_destroy(&lock);
	return 0;
}
