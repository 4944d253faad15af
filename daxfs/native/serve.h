/* SPDX-License-Identifier: MIT
 *
 * The native half of the FUSE server: takes one request apart, checks it, and answers it if that needs no
 * metadata transaction and no Python (DESIGN.md section 6, "Native service"). It reads and writes no
 * descriptor: native/transport.h brings requests, and so do unit tests and the fuzzer.
 *
 * Any thread, without the GIL. A handle's filemap lock is taken here and is given back before serve()
 * returns, except where serve_reply.handle says otherwise. Nothing waits under it but for the copy and, in an
 * own range, for the file system below (own.h).
 */
#ifndef DAXFS_SERVE_H
#define DAXFS_SERVE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "daxfs/native/daxio.h"
#include "daxfs/native/wire.h"

/* A request in the pieces in which it came: `head` is readable for 40 bytes; `arg` holds the fixed
 * struct of the opcode (io_uring: op_in; /dev/fuse: behind the header), `data` names, payload, extensions. */
struct serve_msg {
	const struct wire_in *head;
	const char *arg;
	size_t arg_len;
	const char *data;
	size_t data_len;
};

#define SERVE_PIECES 16
struct serve_reply {
	/* in: where a reply may be put together, without its wire_out. */
	char *buf;
	size_t cap;			/* at least limits.max_write */
	int by_pieces;			/* the transport can send pieces of the region itself (dev, not uring) */
	uint64_t start;			/* ns at which the request was taken up; 0: now */
	/* out */
	int error;			/* 0 or -errno */
	size_t len;			/* bytes in buf, or in all pieces */
	int npieces;			/* > 0: the reply is in piece[], buf is unused */
	struct iovec piece[SERVE_PIECES];
	struct serve_handle *handle;	/* pieces: its map's lock (shared) and the region are held until serve_done() */
	struct fsync_run fsync;		/* of an FSYNC; what becomes of it after a CALL is the caller's business */
	struct serve_counts *counts;	/* where serve_done() counts it; NULL: nowhere */
};

enum serve_verdict {
	SERVE_DONE = 0,		/* the reply is ready (an errno too); send it, then serve_done() */
	SERVE_RELAY = 1,	/* well formed; pyfuse3's */
	SERVE_CALL = 2,		/* well formed; for the trio loop, where pyfuse3 has no handler */
	SERVE_FORGET = 3,	/* well formed, gets no reply: pyfuse3's */
	SERVE_INTERRUPT = 4,	/* well formed: the transport's own */
	SERVE_DROP = 5,		/* a request that has no reply: malformed, or nobody asked for it (NOTIFY_REPLY) */
};

/* Whose OPEN it was, and which: what one that is answered by a parked handle must have, too. */
struct serve_opener {
	uint32_t flags;			/* of open(2) */
	uint32_t uid, gid, pid;
};

/* One open file or directory. Made and removed in the metadata thread, used by any. */
#define SERVE_WRITE (1u << 0)		/* opened for writing */
#define SERVE_DIRECT (1u << 1)		/* FUSE direct I/O: writes are the program's, not the page cache's */
#define SERVE_DSYNC (1u << 2)		/* each write is followed by an fsync before its reply */
#define SERVE_NOATIME (1u << 3)
#define SERVE_DIRECTORY (1u << 4)
#define SERVE_RAW (1u << 5)		/* a raw region file: no inode, no times, never another size */
struct serve_handle {
	uint64_t fh;			/* 0: closed, or never open */
	int64_t users;			/* requests under way; counted before `fh` is looked at, so see server_close */
	struct filemap *f;		/* a directory's has its state and its inode; NULL: only Python knows it */
	uint64_t ino;
	uint32_t flags, generation, index;
	int32_t backing;		/* the kernel's number of the file that mappings are of; 0: none (docs/transport.md) */
	struct serve_handle *next_free;
	/* serve_park.h; `parked` and `parked_at` under server.lock. */
	struct serve_opener opener;
	uint32_t open_flags;		/* FOPEN_* that the reply to its OPEN had; 0: not parked ever */
	int parked;			/* enum serve_parked */
	uint32_t taken;			/* times that it answered an OPEN while it was parked; relaxed */
	int64_t parked_at;		/* ns, CLOCK_MONOTONIC_COARSE */
};

/* What the metadata thread lets native threads do; plain words, read with __atomic_load_n. */
struct serve_limits {
	int writes;			/* WRITE, FALLOCATE, FSYNC, times may be served (rw, not PAGE granularity) */
	int nothing;			/* relay everything (record=, after shutdown) */
	int atime;			/* 0 noatime (or read-only), 1 relatime, 2 strictatime */
	int lazytime;
	int getattr;			/* GETATTR may be served (no damaged inodes) */
	char *inodes;			/* inode table in the region; inode n stands at inodes + 256 n */
	uint64_t inode_limit;		/* inodes [1, limit) are valid; moves before the reply that names a new one */
	uint64_t raw_first, raw_end;	/* and so are [raw_first, raw_end), which stand in no table (fuse/raw.py) */
	uint64_t max_write;		/* largest WRITE, READ, READDIR */
	int parks;			/* handles may be parked, and taken (serve_park.h) */
	int ranges;			/* descriptor of the folder of own ranges, -1: none; open as long as requests come */
};

/* A thread's counters: only it writes them. */
#define SERVE_BUCKETS 40
struct serve_counts {
	uint64_t count[WIRE_OPCODES], errors[WIRE_OPCODES], total_ns[WIRE_OPCODES];	/* served requests */
	uint64_t relayed[WIRE_OPCODES];
	uint64_t bucket[WIRE_OPCODES][SERVE_BUCKETS];	/* bucket b: [2^(b-1), 2^b) ns, as stats.py has it */
	uint64_t malformed;
	struct fsync_counts fsync;
	uint64_t sending;		/* 1: the reply to an FSYNC is being sent, and it is not counted yet */
};
_Static_assert(sizeof(struct serve_counts) % 8 == 0, "serve_counts_add sums words");

/* Handles stand in chunks, of which chunk k has SERVE_CHUNK << k. Chunks are never moved and never freed
 * before server_destroy, so that a request finds its handle without a lock. */
#define SERVE_CHUNK 64u
#define SERVE_CHUNKS 20
#define SERVE_PARKED_MOST 64		/* each keeps a descriptor of its range open */
#define SERVE_PARKED_EACH 4		/* of one inode */
struct server {
	struct daxio *io;
	struct serve_limits limits;
	/* Fault accounting, or NULL: pages of a mapping are read or written back. The map's lock is held. */
	void (*fault)(void *ctx, struct filemap *f, uint64_t pos, uint64_t size, int write);
	void *fault_ctx;
	int64_t (*now)(struct server *s);	/* ns since the epoch: CLOCK_REALTIME, or what a test wants */
	int64_t test_time;
	pthread_mutex_t lock;		/* of all that follows: open, close, parking. The innermost lock */
	struct serve_handle *chunk[SERVE_CHUNKS];
	uint32_t used;
	struct serve_handle *free;
	struct serve_handle *parked[SERVE_PARKED_MOST];	/* oldest first */
	int nparked;
	int armed;			/* somebody was told that handles are parked, and comes to reap them */
	int park_event;			/* eventfd that tells so; -1: nobody is told */
};

int server_init(struct server *s, struct daxio *io);
void server_destroy(struct server *s);
int64_t server_realtime(struct server *s);	/* what server.now is at first */
/* A handle on f: its fh, never 0; 0: no memory. f must live until server_close. opener: NULL where no later
 * OPEN can be the same. */
uint64_t server_open(struct server *s, struct filemap *f, uint64_t ino, uint32_t flags, int32_t backing,
		     const struct serve_opener *opener);
/* The backing number of that handle; 0: it has none, or there is no such handle. */
int32_t server_backing(struct server *s, uint64_t fh);
/* The pid of who opened it last, as the request had it; 0: not known, or there is no such handle. */
uint32_t server_opener(struct server *s, uint64_t fh);
/* How often it answered one more OPEN: who had it before may have mappings. 0: or there is no such handle. */
uint32_t server_taken(struct server *s, uint64_t fh);
/* The reply to its OPEN or CREATE is about to be sent, with these FOPEN_*: from now on it may be parked. */
void server_opened(struct server *s, uint64_t fh, uint32_t open_flags);
/* Removes it and waits until no request uses it: holding neither the GIL nor a map's lock. -EBADF. */
int server_close(struct server *s, uint64_t fh);

/* Take apart n bytes of one whole message, as /dev/fuse has them. -EINVAL: not even a header. */
int serve_split(const char *bytes, size_t n, struct serve_msg *m);
/* Check `m` and, where that is possible, answer it. With any verdict but SERVE_DONE no file was changed
 * (an fsync that becomes a CALL may have written back what was dirty). */
enum serve_verdict serve(struct server *s, struct serve_counts *c, const struct serve_msg *m,
			 struct serve_reply *r);
/* After the reply was sent, in the same thread. */
void serve_done(struct server *s, struct serve_reply *r);
/* Bytes of an opcode's fixed struct (what io_uring has in op_in); 0: it has none, or is not known. */
size_t serve_arg_size(uint32_t opcode);
/* Add c, another thread's perhaps, to sum. An FSYNC whose reply is on its way is waited for, a moment, so
 * that who got it finds it counted. */
void serve_counts_add(struct serve_counts *sum, const struct serve_counts *c);

#endif
