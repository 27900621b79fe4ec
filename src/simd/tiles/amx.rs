//! AMX-BF16: TDPBF16PS multiplies 16 rows of 32 bfloat16 with 32 rows of 16 columns.
//!
//! The tile of the left operand is sixteen rows as they lie; that of the right is sixteen pairs of k of a packed panel,
//! 1,024 bytes in a row. Thirty-two rows and two panels are four tiles of sums. Within a step of 32 the even and the odd
//! terms are summed apart and then added (Intel SDM, TDPBF16PS), and the chain runs over the whole depth, not over chunks:
//! so the bits differ from those of `plain.rs`, within the same error bound.

use super::{PANEL, Product, Tiles};
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use half::bf16;
use std::sync::OnceLock;

/// The token of AMX-BF16, made only by [`Amx::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(());

impl Amx {
    /// The token, if the processor has these instructions, the system saves their state, and it lets this process use it.
    pub(in crate::simd) fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        // Asked once: a child process inherits the permission.
        let found = *FOUND.get_or_init(|| {
            // The lanes' own detection sees that AVX-512 runs, which implies XGETBV.
            super::Avx512Bf16::detect().is_some() && processor_has_amx() && system_saves_tiles() && ask_for_tiles()
        });
        found.then_some(Self(()))
    }
}

/// CPUID leaf 7: AMX-TILE and AMX-BF16.
fn processor_has_amx() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let wanted = AMX_BF16 | AMX_TILE;
    __cpuid_count(7, 0).edx & wanted == wanted
}

/// XCR0: the system saves tile configuration and tile data between threads.
fn system_saves_tiles() -> bool {
    const TILE_STATE: u64 = 0b11 << 17;
    // SAFETY: AVX-512 was detected, which needs XGETBV itself.
    unsafe { saved_state() & TILE_STATE == TILE_STATE }
}

#[target_feature(enable = "xsave")]
fn saved_state() -> u64 {
    // SAFETY: register 0 exists wherever XGETBV does.
    unsafe { _xgetbv(0) }
}

/// Linux gives the room for tile data only to processes that ask (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
fn ask_for_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: the call reads two numbers and touches no memory; a kernel that does not know it returns an error.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// The argument of LDTILECFG.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of sixteen rows of 64 bytes.
static TILES: TileConfig = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// Rows of a tile.
const ROWS: usize = 16;
/// Elements of a tile of bfloat16.
const TILE: usize = ROWS * 32;

impl Tiles for Amx {
    type Operand = bf16;
    type Sum = f32;

    fn multiply(self, mut product: Product<'_, bf16, f32>) {
        if !product.check() {
            return;
        }
        let last = (product.rows - 1) / ROWS * ROWS;
        let last_rows = padded_rows(&product, last);
        // SAFETY: the token says that tiles may be used here. Without a configuration of its own a thread's first tile
        // instruction is illegal, so each product loads one, and gives the tiles back at its end.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &TILES, options(nostack, readonly)) };
        for panel in (0..product.panels).step_by(2) {
            // With an odd number of panels the last is multiplied twice and stored once.
            let panels = [panel, (panel + 1).min(product.panels - 1)];
            let right = panels.map(|panel| &product.right[panel * product.right_stride..][..PANEL * product.depth]);
            for row in (0..product.rows).step_by(2 * ROWS) {
                let rows = [row, if row + ROWS < product.rows { row + ROWS } else { row }];
                let left = rows.map(|row| {
                    if row == last {
                        (last_rows.as_slice(), product.depth)
                    } else {
                        (&product.left[row * product.left_stride..], product.left_stride)
                    }
                });
                let sums = multiply_tiles(left, right, product.depth);
                store(&mut product, &sums, rows, panels);
            }
        }
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The rows from `first` on as a whole tile, the missing ones 0.
fn padded_rows(product: &Product<'_, bf16, f32>, first: usize) -> Vec<bf16> {
    let mut padded = vec![bf16::ZERO; ROWS * product.depth];
    for (row, target) in (first..product.rows).zip(padded.chunks_mut(product.depth.max(1))) {
        target.copy_from_slice(&product.left[row * product.left_stride..][..product.depth]);
    }
    padded
}

/// Four tiles of sums: those of two row tiles (and their strides) times those of two panels.
fn multiply_tiles(left: [(&[bf16], usize); 2], right: [&[bf16]; 2], depth: usize) -> [[f32; ROWS * PANEL]; 4] {
    let mut sums = [[0f32; ROWS * PANEL]; 4];
    for (left, stride) in left {
        assert!(left.len() >= (ROWS - 1) * stride + depth);
    }
    assert!(right.iter().all(|right| right.len() >= PANEL * depth) && depth.is_multiple_of(32));
    if depth == 0 {
        return sums;
    }
    // SAFETY: the caller has loaded the tile configuration. Each step reads 32 operands of sixteen rows of each left tile, and
    // 512 of each panel, all inside the slices as just asserted; the four tiles fit `sums`.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{left} + {left_stride}*1]",
            "tileloadd tmm6, [{right} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{next_right} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{next_left} + {next_left_stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left}, 64", "add {next_left}, 64", "add {right}, {tile_bytes}", "add {next_right}, {tile_bytes}",
            "dec {steps}", "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            "tilestored [{sums} + {line}*1 + 3072], tmm3",
            left = inout(reg) left[0].0.as_ptr() => _,
            next_left = inout(reg) left[1].0.as_ptr() => _,
            right = inout(reg) right[0].as_ptr() => _,
            next_right = inout(reg) right[1].as_ptr() => _,
            steps = inout(reg) depth / 32 => _,
            left_stride = in(reg) left[0].1 * size_of::<bf16>(),
            next_left_stride = in(reg) left[1].1 * size_of::<bf16>(),
            line = in(reg) 64usize,
            sums = in(reg) sums.as_mut_ptr(),
            tile_bytes = const TILE * size_of::<bf16>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
    sums
}

/// Copies or adds four tiles of sums to their places; a tile that came twice is stored once.
fn store(product: &mut Product<'_, bf16, f32>, sums: &[[f32; ROWS * PANEL]; 4], rows: [usize; 2], panels: [usize; 2]) {
    for (tile, sums) in sums.iter().enumerate() {
        let (first_row, panel) = (rows[tile / 2], panels[tile % 2]);
        let is_repeated = (tile / 2 == 1 && rows[1] == rows[0]) || (tile % 2 == 1 && panels[1] == panels[0]);
        if is_repeated {
            continue;
        }
        for (row, sums) in (first_row..product.rows.min(first_row + ROWS)).zip(sums.chunks(PANEL)) {
            let places = &mut product.sums[row * product.stride + panel * PANEL..][..PANEL];
            for (place, sum) in places.iter_mut().zip(sums) {
                *place = if product.adds { *place + sum } else { *sum };
            }
        }
    }
}
