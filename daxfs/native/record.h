/* SPDX-License-Identifier: MIT
 *
 * A recording table: it stands in for the bound functions of a struct daxfs_flush
 * (flush.h), writes one event for each call to a log, and then makes the call. While
 * nothing records, the table holds the bound functions themselves, so it costs nothing.
 *
 * The log is a row of events, little endian: a struct daxfs_event, then its data,
 * padded to 8 bytes. An event is written and its store made under one lock, so the
 * order of the log is the order of the memory, over all threads.
 *
 * Attaching and detaching belong to one thread, at a time when no other stores.
 */
#ifndef DAXFS_RECORD_H
#define DAXFS_RECORD_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "daxfs/native/flush.h"
#include "daxfs/native/own.h"

enum daxfs_event_kind {
	DAXFS_EV_STORE = 1,	/* data: the bytes */
	DAXFS_EV_NT_STORE = 2,	/* data: the bytes */
	DAXFS_EV_NT_FILL = 3,	/* `length` times the byte `fill`; no data */
	DAXFS_EV_FLUSH = 4,	/* no data */
	DAXFS_EV_DRAIN = 5,	/* no data */
	DAXFS_EV_BEGIN = 6,	/* operation `op` begins; data: text */
	DAXFS_EV_END = 7,	/* and has returned; data: text */
	DAXFS_EV_SITE = 8,	/* data: text of call site `site` */
	DAXFS_EV_IMAGE = 9,	/* data: what the region held here when recording began; zeros are left out */
	DAXFS_EV_SCAN = 10,	/* data: what a client's mapping was found to have stored, order unknown */
	DAXFS_EV_RANGE = 11,	/* data: text: something happened to the file of an own range, or to their folder */
};

struct daxfs_event {
	uint8_t kind, fill;
	uint16_t thread;	/* small number, from 1 on, in order of first use */
	uint32_t site;		/* 0: not known */
	uint64_t op;		/* 0: outside any operation */
	uint64_t place;		/* byte of the region */
	uint64_t length;
};

struct daxfs_recorder {
	struct daxfs_flush *table;
	struct daxfs_flush bound;	/* its functions as they were; nothing else of it is used */
	const char *base;		/* byte 0 of the region */
	const struct range_table *ranges;	/* which place an address in the own window has; may be NULL */
	/* Number of the call site of this thread, asked before the lock is taken. */
	uint32_t (*site)(void *context);
	void *context;
	pthread_mutex_t lock;
	char *buf;
	size_t used, cap;
	int fd;			/* -1: everything stays in buf */
	int error;		/* errno of the first failure; nothing is logged after it */
	uint64_t events, bytes, ops;
	uint64_t number;	/* no other recorder of this process had it */
};

/* fd -1 keeps the log in memory. 0 or -ENOMEM. */
int daxfs_record_init(struct daxfs_recorder *r, const void *base, int fd);
void daxfs_record_destroy(struct daxfs_recorder *r);
/* -EBUSY where another recorder is on this table. */
int daxfs_record_attach(struct daxfs_recorder *r, struct daxfs_flush *t);
void daxfs_record_detach(struct daxfs_recorder *r);
/* A struct own_watch that logs what it is told as DAXFS_EV_RANGE: "size NAME 8192". Nothing after detach. */
struct daxfs_range_watch {
	struct own_watch watch;
	struct daxfs_recorder *r;
	char name[40];
};
void daxfs_record_range(struct own_watch *w, const char *what, uint64_t a, uint64_t b);
/* Log an event that is no call on the table. `len` bytes of data; `length` as in the event. */
void daxfs_record_note(struct daxfs_recorder *r, int kind, uint32_t site, uint64_t place,
		       const void *data, size_t len);
/* The operation that this thread is in from now on; its number. */
uint64_t daxfs_record_begin(struct daxfs_recorder *r, const void *text, size_t len);
void daxfs_record_end(struct daxfs_recorder *r, uint64_t op, const void *text, size_t len);
/* Write what is buffered to fd; 0 or -errno (kept in r->error). */
int daxfs_record_sync(struct daxfs_recorder *r);

#endif
