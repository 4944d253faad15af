/* SPDX-License-Identifier: MIT
 *
 * Parked handles: a direct handle whose RELEASE has nothing to do at once is kept, and answers the next OPEN
 * that is the same (docs/transport.md, "Parked handles"). To the metadata thread it stays open meanwhile,
 * until that thread reaps it. So it learns nothing of a program that opens, maps and closes a file in turn.
 *
 * server.lock guards who is parked. It is taken inside a file's lock, and nothing is taken or waited for
 * under it.
 */
#ifndef DAXFS_SERVE_PARK_H
#define DAXFS_SERVE_PARK_H

#include "daxfs/native/serve.h"

enum serve_parked {
	SERVE_USED = 0,
	SERVE_PARKED = 1,		/* in server.parked; no request may name it */
	SERVE_REAPED = 2,		/* the metadata thread is going to close it; nor then */
};
#define SERVE_NO_OPENER UINT32_MAX	/* serve_opener.flags that no OPEN has */

/* SERVE_DONE, or SERVE_RELAY with nothing changed. h is in use by this request. */
enum serve_verdict serve_release(struct server *s, struct serve_handle *h);
enum serve_verdict serve_open(struct server *s, const struct serve_msg *m, struct serve_reply *r);

/* The numbers of handles, now SERVE_REAPED, that have been parked for `age` ns: of that inode, 0: of all. The
 * caller closes them. fh has room for SERVE_PARKED_MOST. */
int server_reap(struct server *s, uint64_t ino, int64_t age, uint64_t *fh);
/* The inodes with parked handles, one as often as it has some. As above. */
int server_parked(struct server *s, uint64_t *ino);
/* 1: nothing is parked, and the next one that is will be told again. */
int server_disarm(struct server *s);
/* Before a handle is closed. */
void server_unpark(struct server *s, struct serve_handle *h, uint64_t fh);

#endif
