/* SPDX-License-Identifier: MIT */
/* STAND-IN until h2b-serve lands: relays everything. */
#include "daxfs/native/serve.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
int server_init(struct server *s, struct daxio *io) { memset(s, 0, sizeof *s); s->io = io; return 0; }
void server_destroy(struct server *s) { (void)s; }
uint64_t server_open(struct server *s, struct filemap *f, uint64_t ino, uint32_t flags) { return ++s->used; }
int server_close(struct server *s, uint64_t fh) { return 0; }
size_t serve_arg_size(uint32_t op)
{
	static const unsigned char size[64] = {[2]=8,[3]=16,[4]=88,[8]=16,[9]=8,[12]=8,[13]=8,[14]=8,[15]=40,[16]=40,[18]=24,
		[20]=16,[21]=8,[22]=8,[23]=8,[25]=24,[26]=64,[27]=8,[28]=40,[29]=24,[30]=16,[34]=8,[35]=16,[36]=8,[39]=32,[42]=8,[43]=32,[44]=40,[45]=16,[46]=24};
	return op < 64 ? size[op] : 0;
}
enum serve_verdict serve(struct server *s, struct serve_counts *c, const struct serve_msg *m, struct serve_reply *r)
{
	switch (m->head->opcode) {
	case WIRE_FORGET: case WIRE_BATCH_FORGET: return SERVE_FORGET;
	case WIRE_INTERRUPT: return SERVE_INTERRUPT;
	case WIRE_FLUSH: r->len = 0; r->error = 0; return SERVE_DONE;
	case WIRE_FALLOCATE: case WIRE_LSEEK: case WIRE_IOCTL: case WIRE_COPY_FILE_RANGE: case WIRE_STATX: case WIRE_TMPFILE: case WIRE_READDIR: case WIRE_POLL: case WIRE_SYNCFS:
		r->error = -ENOSYS; r->len = 0; return SERVE_DONE;
	}
	return SERVE_RELAY;
}
void serve_done(struct server *s, struct serve_reply *r) { (void)s; (void)r; }
