//! Copies by assembly: as fast as `memcpy`, and outside the compiler's race rules.
//!
//! JUSTIFICATION for assembly: from a few kilobytes on `rep movsb` equals `memcpy` (and beats it beyond the second-level
//! cache), below that wide registers do; a loop of atomic words is two to four times slower (`cargo bench -p ringmail-mem`),
//! and a plain `memcpy` would be a data race. Stores that bypass the cache were slower at every size up to 32 MiB.
//!
//! Ordering: stores of one `rep movsb` may appear in any order, but before every later store (Intel SDM vol. 3,
//! "Fast-String Operation and Out-of-Order Stores"). So the last word is stored separately, and last.

use std::arch::asm;

use super::Span;

/// Below this a vector loop is faster than the start-up of `rep movsb`.
const STRING_FROM: usize = 2048;
/// The same where registers are wide.
const STRING_FROM_WIDE: usize = 24 << 10;
/// From here on wide registers pay; they need 128.
const WIDE_FROM: usize = 192;

/// Writes `bytes` to the span, those of its last aligned word last.
///
/// # Safety
/// - `span` is valid for writes of `bytes.len()` bytes, and accessed by others only as the crate's invariant says.
#[inline]
pub(crate) unsafe fn place(span: Span, bytes: &[u8]) {
    debug_assert_eq!(span.len, bytes.len());
    // SAFETY: both ranges are valid by the caller's promise and do not overlap, `bytes` being private.
    unsafe { publish(span.ptr, bytes.as_ptr(), span.len) };
}

/// Reads the span into `bytes`.
///
/// # Safety
/// - `span` is valid for reads of `bytes.len()` bytes, and accessed by others only as the crate's invariant says.
#[inline]
pub(crate) unsafe fn fetch(span: Span, bytes: &mut [u8]) {
    debug_assert_eq!(span.len, bytes.len());
    // SAFETY: both ranges are valid by the caller's promise and do not overlap, `bytes` being private.
    unsafe { bulk(bytes.as_mut_ptr(), span.ptr, span.len) };
}

/// Copies one span to another of the same length, the bytes of its last aligned word last.
///
/// # Safety
/// - `from` is valid for reads and `to` for writes; both are accessed by others only as the crate's invariant says.
#[inline]
pub(crate) unsafe fn transfer(to: Span, from: Span) {
    debug_assert_eq!(to.len, from.len);
    // SAFETY: valid by the caller's promise. Should they overlap, each instruction still copies what is there.
    unsafe { publish(to.ptr, from.ptr, to.len) };
}

/// Copies `len` bytes, those of the last aligned word of `dst` last.
///
/// # Safety
/// - `src` is valid for reads and `dst` for writes of `len` bytes.
#[inline]
unsafe fn publish(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: each branch copies exactly `len` bytes: the first an aligned word, the second all up to the last aligned word
    // that the range touches, and then that.
    unsafe {
        if len == 8 && dst.addr().is_multiple_of(8) {
            return move_word(dst, src);
        }
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        let split = last.saturating_sub((dst.addr() + last) % 8);
        bulk(dst, src, split);
        let mut at = split;
        while at < len {
            at += move_piece(dst.add(at), src.add(at), len - at);
        }
    }
}

/// Moves eight bytes with one load and one store.
///
/// # Safety
/// - `src` is valid for reads and `dst` for writes of eight bytes.
#[inline]
unsafe fn move_word(dst: *mut u8, src: *const u8) {
    // An x86-64 store is a release store; without `nomem` it is one to the compiler, too.
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "mov {word}, qword ptr [{src}]",
            "mov qword ptr [{dst}], {word}",
            word = out(reg) _, src = in(reg) src, dst = in(reg) dst,
            options(nostack, preserves_flags),
        );
    }
}

/// Moves the largest piece of up to eight bytes that is naturally aligned at `dst`, in one store; answers its length.
///
/// # Safety
/// - `src` is valid for reads and `dst` for writes of `len` bytes, which is not zero.
#[inline]
unsafe fn move_piece(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let aligned = 1 << dst.addr().trailing_zeros().min(3);
    // SAFETY: each arm moves as many bytes as it matched, which are within the range.
    unsafe {
        match (aligned, len) {
            (8, 8..) => {
                move_word(dst, src);
                8
            }
            (4.., 4..) => {
                asm!(
                    "mov {word:e}, dword ptr [{src}]",
                    "mov dword ptr [{dst}], {word:e}",
                    word = out(reg) _, src = in(reg) src, dst = in(reg) dst,
                    options(nostack, preserves_flags),
                );
                4
            }
            (2.., 2..) => {
                asm!(
                    "mov {word:x}, word ptr [{src}]",
                    "mov word ptr [{dst}], {word:x}",
                    word = out(reg) _, src = in(reg) src, dst = in(reg) dst,
                    options(nostack, preserves_flags),
                );
                2
            }
            _ => {
                asm!(
                    "mov {byte}, byte ptr [{src}]",
                    "mov byte ptr [{dst}], {byte}",
                    byte = out(reg_byte) _, src = in(reg) src, dst = in(reg) dst,
                    options(nostack, preserves_flags),
                );
                1
            }
        }
    }
}

/// Copies `len` bytes, in no particular order.
///
/// # Safety
/// - `src` is valid for reads and `dst` for writes of `len` bytes.
#[inline]
unsafe fn bulk(dst: *mut u8, src: *const u8, len: usize) {
    if (WIDE_FROM..STRING_FROM_WIDE).contains(&len) && is_x86_feature_detected!("avx2") {
        // SAFETY: the caller's promise; the length and the registers were checked.
        return unsafe { wide(dst, src, len) };
    }
    if len >= STRING_FROM {
        // SAFETY: copies exactly `len` bytes; the direction flag is clear, as the ABI demands.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rdi") dst => _,
                inout("rsi") src => _,
                options(nostack, preserves_flags),
            );
        }
        return;
    }
    // SAFETY: 64 bytes at a time while there are as many, then one piece for each set bit of what is left: exactly `len`.
    unsafe {
        asm!(
            "cmp {len}, 64",
            "jb 3f",
            "2:",
            "movups {x0}, [{src}]",
            "movups {x1}, [{src} + 16]",
            "movups {x2}, [{src} + 32]",
            "movups {x3}, [{src} + 48]",
            "movups [{dst}], {x0}",
            "movups [{dst} + 16], {x1}",
            "movups [{dst} + 32], {x2}",
            "movups [{dst} + 48], {x3}",
            "add {src}, 64",
            "add {dst}, 64",
            "sub {len}, 64",
            "cmp {len}, 64",
            "jae 2b",
            "3:",
            "test {len}, 32",
            "jz 4f",
            "movups {x0}, [{src}]",
            "movups {x1}, [{src} + 16]",
            "movups [{dst}], {x0}",
            "movups [{dst} + 16], {x1}",
            "add {src}, 32",
            "add {dst}, 32",
            "4:",
            "test {len}, 16",
            "jz 5f",
            "movups {x0}, [{src}]",
            "movups [{dst}], {x0}",
            "add {src}, 16",
            "add {dst}, 16",
            "5:",
            "test {len}, 8",
            "jz 6f",
            "mov {word}, [{src}]",
            "mov [{dst}], {word}",
            "add {src}, 8",
            "add {dst}, 8",
            "6:",
            "test {len}, 4",
            "jz 7f",
            "mov {word:e}, [{src}]",
            "mov [{dst}], {word:e}",
            "add {src}, 4",
            "add {dst}, 4",
            "7:",
            "test {len}, 2",
            "jz 8f",
            "mov {word:x}, [{src}]",
            "mov [{dst}], {word:x}",
            "add {src}, 2",
            "add {dst}, 2",
            "8:",
            "test {len}, 1",
            "jz 9f",
            "mov {word:l}, [{src}]",
            "mov [{dst}], {word:l}",
            "9:",
            len = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            word = out(reg) _,
            x0 = out(xmm_reg) _,
            x1 = out(xmm_reg) _,
            x2 = out(xmm_reg) _,
            x3 = out(xmm_reg) _,
            options(nostack),
        );
    }
}

/// Copies at least 128 bytes by registers of 32: the first piece up to alignment, whole blocks, and the last block, which
/// overlaps the one before it and is loaded first.
///
/// # Safety
/// - `src` is valid for reads and `dst` for writes of `len` bytes, at least 128, and the processor has AVX2.
unsafe fn wide(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the first store covers the bytes up to the first aligned address; each block lies below the last 128 bytes or
    // begins before them; the last four stores cover those.
    unsafe {
        asm!(
            "vmovdqu ymm4, [{src}]",
            "vmovdqu ymm5, [{src} + {len} - 32]",
            "vmovdqu ymm6, [{src} + {len} - 64]",
            "vmovdqu ymm7, [{src} + {len} - 96]",
            "vmovdqu ymm8, [{src} + {len} - 128]",
            "lea {end}, [{dst} + {len} - 128]",
            "vmovdqu [{dst}], ymm4",
            // The distance to the next multiple of 32 beyond `dst`.
            "mov {len}, {dst}",
            "or {len}, -32",
            "neg {len}",
            "add {src}, {len}",
            "add {dst}, {len}",
            "cmp {dst}, {end}",
            "jae 3f",
            "2:",
            "vmovdqu ymm0, [{src}]",
            "vmovdqu ymm1, [{src} + 32]",
            "vmovdqu ymm2, [{src} + 64]",
            "vmovdqu ymm3, [{src} + 96]",
            "vmovdqa [{dst}], ymm0",
            "vmovdqa [{dst} + 32], ymm1",
            "vmovdqa [{dst} + 64], ymm2",
            "vmovdqa [{dst} + 96], ymm3",
            "add {src}, 128",
            "add {dst}, 128",
            "cmp {dst}, {end}",
            "jb 2b",
            "3:",
            "vmovdqu [{end}], ymm8",
            "vmovdqu [{end} + 32], ymm7",
            "vmovdqu [{end} + 64], ymm6",
            "vmovdqu [{end} + 96], ymm5",
            "vzeroupper",
            len = inout(reg) len => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            end = out(reg) _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _,
            out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm8") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Around every length at which the way changes, at every alignment of either side, and nothing beside it.
    #[test]
    fn every_way_of_copying_is_exact() {
        let source: Vec<u8> = (0..25_000_u32)
            .map(|index| (index * 7 % 251) as u8)
            .collect();
        let lengths = (0..420)
            .chain(2040..2060)
            .chain(4090..4100)
            .chain(24_566..24_586);
        for len in lengths {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (8, 24), (31, 33), (5, 63), (32, 31)] {
                let mut target = vec![0xee; 64 + len + 64];
                // SAFETY: both ranges lie within the vectors.
                unsafe { publish(target.as_mut_ptr().add(to), source.as_ptr().add(from), len) };
                assert!(
                    target[to..to + len] == source[from..from + len],
                    "{len} from {from} to {to}"
                );
                assert!(target[..to].iter().all(|&byte| byte == 0xee));
                assert!(target[to + len..].iter().all(|&byte| byte == 0xee));
                let mut back = vec![0xee; len + 64];
                // SAFETY: as above.
                unsafe { bulk(back.as_mut_ptr(), target.as_ptr().add(to), len) };
                assert!(back[..len] == source[from..from + len]);
                assert!(back[len..].iter().all(|&byte| byte == 0xee));
            }
        }
    }
}
