# SPDX-License-Identifier: MIT
"""L0: pfn_t, a page frame number of the region that says what stands behind it.

One unsigned 64-bit value: frame number in the low 48 bits, flags in the highest
four, as in the kernel's ``pfn_t`` (SEEDS.md S1; a reviewer there asked for the
flags to sit above any physical address). On media and in the native maps the
same encoding is used, so that a frame is never copied without its kind.

Frames count 4 KiB pages of the *region*, not of the machine: frame 0 is the
first page of the first source.
"""

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PMD_SHIFT = 21
PMD_SIZE = 1 << PMD_SHIFT
PMD_PAGES = PMD_SIZE // PAGE_SIZE
PMD_ORDER = PMD_SHIFT - PAGE_SHIFT
CACHE_LINE = 64

PFN_SG_CHAIN = 1 << 63  # the next entry of a scatter list is another list
PFN_SG_LAST = 1 << 62  # the last entry of a scatter list
PFN_DEV = 1 << 61  # device memory, not ordinary RAM
PFN_MAP = 1 << 60  # yet has a page mapping, so that it can be pinned for DMA
PFN_FLAGS = PFN_SG_CHAIN | PFN_SG_LAST | PFN_DEV | PFN_MAP
PFN_MASK = (1 << 48) - 1


def pfn_t(frame: int, flags: int = 0) -> int:
    """Make a pfn_t. ValueError if *frame* does not fit 48 bits or *flags* has unknown bits."""
    if frame & ~PFN_MASK or flags & ~PFN_FLAGS:
        raise ValueError(f"no pfn_t: frame {frame:#x}, flags {flags:#x}")
    return frame | flags


def to_pfn(pfn: int) -> int:
    """Frame number without flags."""
    return pfn & PFN_MASK


def to_offset(pfn: int) -> int:
    """Byte offset in the region (the kernel's ``pfn_t_to_phys``)."""
    return (pfn & PFN_MASK) << PAGE_SHIFT


def has_page(pfn: int) -> bool:
    """True where the frame has a page mapping: MAP is set or DEV is clear (``pfn_t_has_page``)."""
    return bool(pfn & PFN_MAP) or not pfn & PFN_DEV


def sg_list(runs) -> list[tuple[int, int]]:
    """A scatter list [(pfn_t, bytes)] from runs (pfn_t, bytes); the last one gets SG_LAST (S3)."""
    out = [(pfn & ~(PFN_SG_CHAIN | PFN_SG_LAST), length) for pfn, length in runs if length]
    if out:
        out[-1] = (out[-1][0] | PFN_SG_LAST, out[-1][1])
    return out
