/* SPDX-License-Identifier: MIT
 *
 * Flush primitives, x86-64 half: which instructions this CPU and this kernel grant,
 * write-back of cache lines, and non-temporal copy and fill. Every function that uses
 * more than the x86-64 baseline carries its own target attribute and is reached only
 * through a table that daxfs_x86_bind filled after CPUID said yes. Elsewhere this file
 * is empty.
 */
#include "daxfs/native/flush_cpu.h"

#if DAXFS_X86
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

/* Which register files the operating system saves (XCR0); 0 where it can't be asked. */
static uint64_t saved_state(unsigned leaf1_ecx)
{
	uint32_t lo, hi;

	if (!(leaf1_ecx & bit_OSXSAVE))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

unsigned daxfs_x86_available(void)
{
	unsigned a, b1, c1, d1, b7 = 0, c, d, have = DAXFS_HAS_NT(DAXFS_NT_SSE2);
	uint64_t xcr0;

	if (!__get_cpuid(1, &a, &b1, &c1, &d1))
		return have;
	if (__get_cpuid_max(0, NULL) >= 7)
		__cpuid_count(7, 0, a, b7, c, d);
	xcr0 = saved_state(c1);
	if ((c1 & bit_AVX) && (xcr0 & 0x06) == 0x06)
		have |= DAXFS_HAS_NT(DAXFS_NT_AVX);
	if ((b7 & (1u << 16)) && (xcr0 & 0xe6) == 0xe6)		/* AVX512F; opmask and ZMM state */
		have |= DAXFS_HAS_NT(DAXFS_NT_AVX512);
	/* All loops step by 64 bytes. CLFLUSH's line size is in 8-byte units. */
	if (!(d1 & (1u << 19)) || ((b1 >> 8) & 0xff) * 8 != DAXFS_LINE)
		return have;
	have |= DAXFS_HAS_KIND(DAXFS_CLFLUSH);
	if (b7 & (1u << 23))
		have |= DAXFS_HAS_KIND(DAXFS_CLFLUSHOPT);
	if (b7 & (1u << 24))
		have |= DAXFS_HAS_KIND(DAXFS_CLWB);
	return have;
}

__attribute__((target("clwb")))
static void clwb_lines(uintptr_t line, size_t n)
{
	for (; n; n--, line += DAXFS_LINE)
		_mm_clwb((void *)line);
}

__attribute__((target("clflushopt")))
static void clflushopt_lines(uintptr_t line, size_t n)
{
	for (; n; n--, line += DAXFS_LINE)
		_mm_clflushopt((void *)line);
}

static void clflush_lines(uintptr_t line, size_t n)
{
	for (; n; n--, line += DAXFS_LINE)
		_mm_clflush((const void *)line);
}

static void sfence(void)
{
	/* Orders every clwb, clflushopt and non-temporal store before it as durable before every
	 * later store. clflush orders itself; the fence is then for the non-temporal stores. */
	_mm_sfence();
}

static void sfence_drain(struct daxfs_flush *t)
{
	DAXFS_COUNT(t->n_drain, 1);
	/* The order is the fence's. */
	sfence();
}

/*
 * A piece of one line. Up to four aligned words go past the cache one by one and need no
 * flush; more or odd pieces are cheaper through the cache, with their line queued.
 */
static void nt_edge(struct daxfs_flush *t, char *dst, const char *src, size_t len)
{
	long long w;

	if ((((uintptr_t)dst | len) & 7) == 0 && len <= 32) {
		for (; len; len -= 8, dst += 8, src += 8) {
			memcpy(&w, src, 8);
			_mm_stream_si64((long long *)dst, w);
		}
		return;
	}
	memcpy(dst, src, len);
	t->lines((uintptr_t)dst & ~(uintptr_t)(DAXFS_LINE - 1), 1);
}

#define NT_NAME(x) sse2_##x
#define NT_TARGET "sse2"
#define NT_VEC __m128i
#define NT_LOAD _mm_loadu_si128
#define NT_STREAM _mm_stream_si128
#define NT_SET1 _mm_set1_epi8
#define NT_BLOCK 4
#include "daxfs/native/flush_nt.h"

#define NT_NAME(x) avx_##x
#define NT_TARGET "avx"
#define NT_VEC __m256i
#define NT_LOAD _mm256_loadu_si256
#define NT_STREAM _mm256_stream_si256
#define NT_SET1 _mm256_set1_epi8
#define NT_BLOCK 8
#include "daxfs/native/flush_nt.h"

/* AVX512F alone: a byte is spread through 32-bit lanes, as set1_epi8 would need AVX512BW. */
#define NT_NAME(x) avx512_##x
#define NT_TARGET "avx512f"
#define NT_VEC __m512i
#define NT_LOAD _mm512_loadu_si512
#define NT_STREAM _mm512_stream_si512
#define NT_SET1(byte) _mm512_set1_epi32((int)(0x01010101u * (unsigned char)(byte)))
#define NT_BLOCK 16
#include "daxfs/native/flush_nt.h"

void daxfs_x86_bind(struct daxfs_flush *t)
{
	t->drain = sfence_drain;
	t->fence = sfence;
	if (t->kind == DAXFS_CLWB)
		t->lines = clwb_lines;
	else if (t->kind == DAXFS_CLFLUSHOPT)
		t->lines = clflushopt_lines;
	else if (t->kind == DAXFS_CLFLUSH)
		t->lines = clflush_lines;
	if (t->nt_kind == DAXFS_NT_GENERIC)
		return;
	t->edge = nt_edge;
	t->copy_lines = t->nt_kind == DAXFS_NT_SSE2 ? sse2_copy
		: t->nt_kind == DAXFS_NT_AVX ? avx_copy : avx512_copy;
	t->fill_lines = t->nt_kind == DAXFS_NT_SSE2 ? sse2_fill
		: t->nt_kind == DAXFS_NT_AVX ? avx_fill : avx512_fill;
}
#else
typedef int daxfs_not_x86;	/* ISO C wants one declaration in a file */
#endif
