//! Products of blocks of rows with a panel, computed with the tile registers of AMX.
//!
//! A tile register has up to 16 rows of 64 bytes. Two registers hold 32 rows of activations, as these lie in memory. Two
//! registers hold a step of a panel of 32 columns, because a row of such a register has the pairs, or the quads, of 16
//! columns. The sums of 32 rows and 32 columns are in four registers:
//!
//! ```text
//!                 tmm6   tmm7     a step of the panel
//! tmm4  rows 0–15 tmm0   tmm1
//! tmm5      16–31 tmm2   tmm3
//! ```
//!
//! The intrinsics for AMX are not stable, so this file uses assembly. Tile registers and their configuration persist from
//! one block of assembly to the next. No other code of this thread uses them until [`release`], because compilers use
//! tile registers only for the intrinsics.

#[cfg(all(test, target_os = "linux"))]
pub(in crate::cpu) mod emulator;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::arch::asm;
use std::cell::Cell;

use half::bf16;

use crate::cpu::simd::matrix::{MOST_MATRIX_ROWS, MatrixBlock};

/// The largest number of rows of a tile register.
const ROWS: usize = MOST_MATRIX_ROWS / 2;

/// Bytes of a step of a panel for one pair or quad of `k`, and of a row of results: 32 columns of four bytes.
const PANEL_ROW_BYTES: usize = 128;

thread_local! {
    /// The number of rows for which the tile registers of this thread are configured, or zero.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each register. The last eight are reserved.
    row_bytes: [u16; 16],
    /// Rows of each register. The last eight are reserved.
    rows: [u8; 16],
}

/// Configures the tile registers for blocks of `n_rows` rows of activations, if they are not.
///
/// # Safety
///
/// The CPU has AMX, and the operating system lets this process use it.
#[inline(always)]
unsafe fn configure(n_rows: usize) {
    if CONFIGURED.get() == n_rows {
        return;
    }
    let first = n_rows.min(ROWS) as u8;
    let second = (n_rows - n_rows.min(ROWS)) as u8;
    let mut row_bytes = [0; 16];
    row_bytes[..8].fill(64);
    let mut rows = [0; 16];
    rows[..8].copy_from_slice(&[first, first, second, second, first, second, 16, 16]);
    let configuration =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
    // SAFETY: the caller's promise.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack)) };
    CONFIGURED.set(n_rows);
}

/// Ends the use of tile registers by this thread.
///
/// # Safety
///
/// As of [`multiply_pairs`].
#[inline(always)]
pub(in crate::cpu::simd) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack)) };
    CONFIGURED.set(0);
}

/// [`MatrixOps::multiply_pairs`](crate::cpu::simd::MatrixOps::multiply_pairs), which writes `n_rows` rows of 32 f32 to `sums`.
///
/// # Safety
///
/// As of that method, for registers of 16 lanes. The CPU has AMX for bf16, and the operating system lets this process
/// use it. `n_rows` is from 1 to 32.
#[inline(never)]
pub(in crate::cpu::simd) unsafe fn multiply_pairs(
    block: &MatrixBlock<bf16, bf16>,
    sums: *mut f32,
    n_rows: usize,
) {
    let &MatrixBlock { rows, stride, panel, n_steps, ahead, ahead_step } = block;
    // SAFETY: the caller's promise. The assembly reads `n_steps` steps of the rows and of the panel, writes `n_rows` rows
    // of sums, and changes only registers that it declares. Prefetched addresses need not be valid.
    unsafe {
        if n_steps == 0 {
            return sums.write_bytes(0, n_rows * 32);
        }
        configure(n_rows);
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "cmp {n_rows}, 16",
            "jbe 2f",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{panel} + {columns}]",
            "tileloadd tmm7, [{panel} + {columns} + 64]",
            "tileloadd tmm4, [{first} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "cmp {n_rows}, 16",
            "jbe 3f",
            "tileloadd tmm5, [{second} + {stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "3:",
            ".rept 16",
            "prefetcht1 [{ahead}]",
            "add {ahead}, {ahead_step}",
            ".endr",
            "add {first}, 64",
            "add {second}, 64",
            "add {panel}, 2048",
            "dec {n_steps}",
            "jnz 2b",
            "tilestored [{sums} + {columns}], tmm0",
            "tilestored [{sums} + {columns} + 64], tmm1",
            "cmp {n_rows}, 16",
            "jbe 4f",
            "tilestored [{sums} + {columns} + 2048], tmm2",
            "tilestored [{sums} + {columns} + 2112], tmm3",
            "4:",
            n_rows = in(reg) n_rows,
            panel = inout(reg) panel => _,
            first = inout(reg) rows => _,
            second = inout(reg) rows.wrapping_add(ROWS * stride) => _,
            n_steps = inout(reg) n_steps => _,
            ahead = inout(reg) ahead => _,
            ahead_step = in(reg) ahead_step,
            stride = in(reg) stride * size_of::<bf16>(),
            columns = in(reg) PANEL_ROW_BYTES,
            sums = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// [`MatrixOps::multiply_quads`](crate::cpu::simd::MatrixOps::multiply_quads), which writes `n_rows` rows of 32 i32 to `products`.
///
/// # Safety
///
/// As of that method, for registers of 16 lanes. The CPU has AMX for bytes, and the operating system lets this process
/// use it. `n_rows` is from 1 to 32.
#[inline(never)]
pub(in crate::cpu::simd) unsafe fn multiply_quads(
    block: &MatrixBlock<i8, u8>,
    products: *mut i32,
    n_rows: usize,
) {
    let &MatrixBlock { rows, stride, panel, ahead, ahead_step, .. } = block;
    // SAFETY: as in `multiply_pairs`, for one step.
    unsafe {
        configure(n_rows);
        asm!(
            ".rept 16",
            "prefetcht1 [{ahead}]",
            "add {ahead}, {ahead_step}",
            ".endr",
            "tileloadd tmm6, [{panel} + {columns}]",
            "tileloadd tmm7, [{panel} + {columns} + 64]",
            "tileloadd tmm4, [{first} + {stride}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm4, tmm7",
            "tilestored [{products} + {columns}], tmm0",
            "tilestored [{products} + {columns} + 64], tmm1",
            "cmp {n_rows}, 16",
            "jbe 2f",
            "tileloadd tmm5, [{second} + {stride}]",
            "tilezero tmm2",
            "tilezero tmm3",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "tilestored [{products} + {columns} + 2048], tmm2",
            "tilestored [{products} + {columns} + 2112], tmm3",
            "2:",
            n_rows = in(reg) n_rows,
            panel = in(reg) panel,
            first = in(reg) rows,
            second = in(reg) rows.wrapping_add(ROWS * stride),
            ahead = inout(reg) ahead => _,
            ahead_step = in(reg) ahead_step,
            stride = in(reg) stride,
            columns = in(reg) PANEL_ROW_BYTES,
            products = in(reg) products,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}
