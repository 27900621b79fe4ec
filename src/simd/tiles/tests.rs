//! Every class against plain sums, at shapes on both sides of every block.

use super::*;
use crate::simd::Isa;

/// Repeatable numbers of both signs, not all of one size.
fn numbers<O: Operand<Compute = F>, F: Float>(count: usize, seed: u64) -> Vec<O> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let fraction = (state >> 33) as f64 / f64::from(1u32 << 31) - 0.5;
        O::narrow(F::from_f64(fraction * f64::from(1 << (state >> 60))))
    };
    (0..count).map(|_| next()).collect()
}

/// Packed and plain operands of one product, and its sums.
fn run<T: Tiles>(tiles: T, rows: usize, panels: usize, depth: usize, adds: bool) -> (Vec<T::Sum>, Vec<f64>, Vec<f64>) {
    let (left_stride, stride) = (depth + T::Operand::DEPTH, panels * PANEL + 16);
    let left: Vec<T::Operand> = numbers(rows * left_stride, 1);
    let columns: Vec<T::Operand> = numbers(panels * PANEL * depth, 2);
    let mut right = columns.clone();
    for (panel, rows) in right.chunks_mut((PANEL * depth).max(1)).zip(columns.chunks((PANEL * depth).max(1))) {
        pack_rows(Isa::best(), rows, depth, depth, panel);
    }
    let mut sums = vec![T::Sum::ONE; rows * stride];
    tiles.multiply(Product {
        left: &left,
        left_stride,
        rows,
        right: &right,
        panels,
        depth,
        right_stride: PANEL * depth,
        sums: &mut sums,
        stride,
        adds,
    });
    let value = |operand: T::Operand| -> f64 { operand.widen().into() };
    let (mut expected, mut scale) = (Vec::new(), Vec::new());
    for row in 0..rows {
        for column in 0..stride {
            if column >= panels * PANEL {
                expected.push(1.0);
                scale.push(0.0);
                continue;
            }
            let terms = (0..depth).map(|k| value(left[row * left_stride + k]) * value(columns[column * depth + k]));
            expected.push(terms.clone().sum::<f64>() + f64::from(u8::from(adds)));
            scale.push(terms.map(f64::abs).sum::<f64>() + 1.0);
        }
    }
    (sums, expected, scale)
}

/// Each sum has at most as many roundings as terms in a chain and chunks in a sum, of at most its absolute terms.
fn check<T: Tiles>(tiles: T, widest_chain: impl Fn(usize) -> usize) {
    let shapes = [(1, 1), (2, 3), (3, 4), (5, 5), (6, 8), (7, 1), (16, 2), (17, 3), (33, 5), (64, 4)];
    for depth in [32, 64, 256, 288, 608] {
        for (rows, panels) in shapes {
            for adds in [false, true] {
                let (sums, expected, scale) = run(tiles, rows, panels, depth, adds);
                for ((sum, expected), scale) in sums.into_iter().zip(expected).zip(scale) {
                    let sum: f64 = sum.into();
                    let chain = widest_chain(depth).min(depth);
                    let roundings = (chain + depth.div_ceil(chain) + 1) as f64;
                    assert!(
                        (sum - expected).abs() <= roundings * T::Sum::UNIT_ROUNDOFF * scale,
                        "{} {rows} x {panels} x {depth}: {sum} for {expected}",
                        std::any::type_name::<T>()
                    );
                }
            }
        }
    }
}

#[test]
fn lanes_multiply_on_every_instruction_set_with_the_same_bits() {
    for isa in [Isa::available(), vec![Isa::emulated()]].concat() {
        if isa.name() == "scalar" || isa == Isa::best() {
            check(LaneTiles::<f32>::new(isa), chunk);
            check(LaneTiles::<f64>::new(isa), chunk);
        }
        for (rows, panels, depth) in [(1, 1, 0), (7, 5, 300), (13, 4, 257)] {
            let best = Isa::best();
            let (sums, expected) = (
                run(LaneTiles::<f32>::new(isa), rows, panels, depth, true).0,
                run(LaneTiles::<f32>::new(best), rows, panels, depth, true).0,
            );
            assert!(sums.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "float32 {isa}");
            let (sums, expected) = (
                run(LaneTiles::<f64>::new(isa), rows, panels, depth, false).0,
                run(LaneTiles::<f64>::new(best), rows, panels, depth, false).0,
            );
            assert!(sums.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "float64 {isa}");
        }
    }
}

#[test]
fn the_emulation_is_the_product() {
    check(PlainBf16, chunk);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn avx512bf16_has_the_emulations_bits() {
    let Some(tiles) = Avx512Bf16::detect() else {
        eprintln!("skipped: this machine has no AVX512-BF16");
        return;
    };
    check(tiles, chunk);
    for (rows, panels, depth) in [(1, 1, 32), (7, 5, 288), (13, 4, 1056)] {
        let (sums, expected) = (run(tiles, rows, panels, depth, true).0, run(PlainBf16, rows, panels, depth, true).0);
        assert!(sums.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows} x {panels} x {depth}");
    }
}

#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_multiplies() {
    let Some(tiles) = Amx::detect() else {
        eprintln!("skipped: this machine has no AMX-BF16");
        return;
    };
    check(tiles, |depth| depth);
    // Every thread needs the tile configuration.
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| check(tiles, |depth| depth)))));
}

#[test]
fn a_sum_has_the_same_bits_wherever_it_stands() {
    for rows in [1, 2, 3, 6, 7, 20] {
        let whole = run(LaneTiles::<f32>::new(Isa::best()), rows, 9, 300, false).0;
        let single = run(LaneTiles::<f32>::new(Isa::best()), 1, 9, 300, false).0;
        assert_eq!(&whole[..9 * PANEL], &single[..9 * PANEL]);
    }
}

#[test]
fn columns_pack_like_rows() {
    let (depth, columns) = (50, 37);
    let rows: Vec<bf16> = numbers(depth * columns, 3);
    let padded = depth.next_multiple_of(bf16::DEPTH);
    let mut panels = vec![bf16::ONE; columns.div_ceil(PANEL) * PANEL * padded];
    pack_columns(Isa::best(), &rows, columns, columns, &mut panels);
    for (place, operand) in panels.into_iter().enumerate() {
        let (panel, inside) = (place / (PANEL * padded), place % (PANEL * padded));
        let (k, column) = (inside / (2 * PANEL) * 2 + inside % 2, panel * PANEL + inside % (2 * PANEL) / 2);
        let expected = if k < depth && column < columns { rows[k * columns + column] } else { bf16::ZERO };
        assert_eq!(operand, expected, "k {k}, column {column}");
    }
}
