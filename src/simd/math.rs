//! Elementary functions on lanes, written once for every instruction set.
//!
//! `exp` in float32: x = k ln 2 / 16 + r with k the nearest integer, e^x = S (1 + p), S = 2^(k/16) / (1 + M) from a table
//! of sixteen and a subtraction from the exponent bits, p = (1 + M) e^r - 1 a polynomial. Two choices make it short. M, the
//! constant that rounds to an integer when added ([`ROUNDER`]), is also the polynomial's constant term; and its unit, 2^-33,
//! is what the float32 nearest to ln 2 / 16 is too large by, but for 2 %: so M + 2^-33 k, which is at hand, is the constant
//! term with the correction of r. M is chosen among the floats of its range so that the sixteen table entries are near to
//! floats (0.26 ulp), which keeps the whole below 1 ulp, and so that the result never falls where x rises, also from one
//! entry to the next. Largest error on [-87.33, 0]: 0.92 ulp over every float in it, as the tests below show.
//!
//! `exp` in float64: x = n ln 2 + r, e^x = 2^n (1 + r + r^2 P(r)), P a minimax polynomial.

use super::{Float, Lanes};

/// M: adding it, the unit being 2^-33, rounds to whole steps. It is negative, so the bits of a sum count steps downwards.
const ROUNDER: f32 = -0.001_440_584_8;
/// 2^(j/16) / (1 + M) for j = 0, 1, ... 15; none is below 1, so every power down to 2^-126 is normal.
const SIXTEENTHS: [f32; 16] = [
    1.001_442_7,
    1.045_780_3,
    1.092_081,
    1.140_431_5,
    1.190_922_7,
    1.243_649_4,
    1.298_710_5,
    1.356_209_3,
    1.416_253_8,
    1.478_956_7,
    1.544_435_7,
    1.612_813_7,
    1.684_219_1,
    1.758_785_8,
    1.836_654,
    1.917_969_6,
];
/// What [`Bits::power`] looks up: entry `i` is for sums whose bits end in `i`, with what those bits take from the exponent.
pub(super) static POWERS: [u32; 16] = {
    let mut powers = [0; 16];
    let mut j = 0;
    while j < 16 {
        let bits = ROUNDER.to_bits() - j;
        powers[(bits % 16) as usize] = SIXTEENTHS[j as usize].to_bits().wrapping_add(bits << POWER_SHIFT);
        j += 1;
    }
    powers
};
/// A step is a sixteenth of an octave: its lowest bit moves here.
pub(super) const POWER_SHIFT: u32 = 23 - 4;
/// The bits of 1, to which a whole number of octaves is added.
pub(super) const ONE_BITS: u64 = 1.0f64.to_bits();

/// Powers of two from the low bits of a sum.
pub trait Bits {
    /// In float32, 2^(k/16) / (1 + M) from M + 2^-33 k; in float64, 2^n from 1.5 * 2^52 + n. The result must be normal.
    fn power(self) -> Self;
}

impl Bits for f32 {
    #[inline(always)]
    fn power(self) -> Self {
        let bits = self.to_bits();
        f32::from_bits(POWERS[(bits % 16) as usize].wrapping_sub(bits << POWER_SHIFT))
    }
}

impl Bits for f64 {
    #[inline(always)]
    fn power(self) -> Self {
        f64::from_bits(ONE_BITS.wrapping_add(self.to_bits() << 52))
    }
}

/// The larger of two halves of 16 bits, of either format, by their bits: sign and magnitude order like signed integers
/// unless both are negative, and then like unsigned ones backwards. A positive NaN is the largest, a negative NaN the smallest.
#[inline(always)]
pub(super) fn larger_half(first: u16, second: u16) -> u16 {
    let signed = (first as i16).max(second as i16);
    if signed >= 0 { signed as u16 } else { first.min(second) }
}

/// Horner's form, highest power first.
#[inline(always)]
fn polynomial<L: Lanes>(coefficients: &'static [L::Scalar], x: L) -> L {
    let mut value = x.fill(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        value = value.mul_add(x, x.fill(coefficient));
    }
    value
}

/// `e^x` for `x` in [-87.33, 0]; NaN stays NaN, and at 0 the result is exactly 1.
#[inline(always)]
pub(super) fn exp_f32<L: Lanes<Scalar = f32>>(x: L) -> L {
    const STEPS_PER_NAT: f32 = 16.0 * std::f32::consts::LOG2_E / 8_589_934_592.0;
    const STEP: f32 = std::f32::consts::LN_2 / 16.0 * 8_589_934_592.0;
    // Minimax with the constant term fixed: largest error 0.03 units of 2^-24.
    const ABOVE_ROUNDER: &[f32] = &[0.166_380_26, 0.499_295_62, 0.998_559_4];
    let rounder = x.fill(ROUNDER);
    let sum = x.mul_add(x.fill(STEPS_PER_NAT), rounder);
    let remainder = sum.sub(rounder).neg_mul_add(x.fill(STEP), x);
    let above_one = polynomial(ABOVE_ROUNDER, remainder).mul_add(remainder, sum);
    let power = sum.power();
    power.mul_add(above_one, power)
}

/// `e^x` for `x` in [-708.39, 0]; NaN stays NaN, and at 0 the result is exactly 1.
#[inline(always)]
pub(super) fn exp_f64<L: Lanes<Scalar = f64>>(x: L) -> L {
    // Adding it rounds to the nearest integer.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts, the first short enough that its multiples are exact.
    const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    // (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2]: weighted minimax, largest error 0.0005 units of 2^-53 before rounding.
    const ABOVE_LINE: &[f64] = &[
        2.082_599_420_577_869_7e-9,
        2.511_201_409_352_263_6e-8,
        2.755_758_362_180_009e-7,
        2.755_723_492_171_569_7e-6,
        2.480_158_692_508_571_6e-5,
        0.000_198_412_698_963_333_77,
        0.001_388_888_888_911_593_2,
        0.008_333_333_333_317_048,
        0.041_666_666_666_666_095,
        0.166_666_666_666_666_82,
        0.5,
    ];
    let rounder = x.fill(ROUNDER);
    let sum = x.mul_add(x.fill(std::f64::consts::LOG2_E), rounder);
    let octaves = sum.sub(rounder);
    let remainder = octaves.neg_mul_add(x.fill(LN_2[0]), x);
    let remainder = octaves.neg_mul_add(x.fill(LN_2[1]), remainder);
    let above_one = polynomial(ABOVE_LINE, remainder).mul_add(remainder.mul(remainder), remainder);
    let power = sum.power();
    power.mul_add(above_one, power)
}

/// `e^x` for any `x` from minus infinity to 0: exactly 0 below [`Float::LOWEST_EXPONENT`]; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp_or_zero<L: Lanes>(x: L) -> L {
    // Below its range `exp` gives garbage, which the selection drops; NaN is not less than anything and stays.
    x.zero_if_less(x.fill(L::Scalar::LOWEST_EXPONENT), L::Scalar::exp(x))
}

/// `(b + expm1(-b)) / b^2` for `b` in [-0.5, 0.5].
#[inline(always)]
pub(crate) fn excess<L: Lanes>(b: L) -> L {
    polynomial(L::Scalar::EXCESS, b)
}

/// `ln 2 - H` with H the entropy of a choice between two whose log-odds are `a`: a^2/8 for small `a`, ln 2 for large; even.
/// NaN stays NaN.
#[inline(always)]
pub(crate) fn jensen<L: Lanes>(a: L) -> L {
    let (zero, one, two) = (filled(a, 0.0), filled(a, 1.0), filled(a, 2.0));
    let (magnitude, square) = (a.max(zero.sub(a)), a.mul(a));
    let near = polynomial(L::Scalar::JENSEN, square).mul(square);
    // H = log1p(y) + |a| y / (1 + y), y = e^-|a|; log1p(y) = 2 atanh(u), u = y / (2 + y).
    let y = exp_or_zero(zero.sub(magnitude));
    let u = y.div(two.add(y));
    let log1p = polynomial(L::Scalar::ATANH, u.mul(u)).mul(u.mul(two));
    let weighted = y.select_equal(zero, zero, magnitude.mul(y)).div(one.add(y));
    let far = filled(a, std::f64::consts::LN_2).sub(log1p).sub(weighted);
    let result = magnitude.select_less(one, near, far);
    a.select_equal(a, result, a)
}

/// Every lane `value`, rounded to the compute type.
#[inline(always)]
fn filled<L: Lanes>(lanes: L, value: f64) -> L {
    lanes.fill(L::Scalar::from_f64(value))
}

/// Hyperbolic tangent of any `x`, as `-expm1(-2|x|) / (2 + expm1(-2|x|))`; NaN stays NaN.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    let zero = x.fill(L::Scalar::ZERO);
    let one = x.fill(L::Scalar::ONE);
    let two = x.fill(L::Scalar::TWO);
    let magnitude = x.select_less(zero, zero.sub(x), x);
    let b = magnitude.mul(two);
    // Below a half expm1 comes from its own polynomial, which keeps the relative accuracy of small values.
    let near = excess(b).mul(b).mul_add(b, zero.sub(b));
    let far = exp_or_zero(zero.sub(b)).sub(one);
    let expm1 = b.select_less(x.fill(L::Scalar::from_f64(0.5)), near, far);
    let result = zero.sub(expm1).div(two.add(expm1));
    x.select_less(zero, zero.sub(result), result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Element, Isa, Job, LANES, Simd};

    /// Sixteen results of `exp_or_zero` on one instruction set.
    struct Exp<F>([F; LANES]);

    impl<F: Float + Element<Compute = F>> Job for Exp<F> {
        type Output = [F; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [F; LANES] {
            let block: Vec<F> = self.0.repeat(LANES);
            let lanes = crate::simd::lent::Lent::from_slice(&block).block(0).load(simd, 0);
            exp_or_zero(lanes).to_array()
        }
    }

    /// Every `step`-th float32 from -87.33 to 0: at most 1 ulp from e^x, and never falling.
    fn sweep(isa: Isa, step: usize) -> f64 {
        let (zero, lowest) = ((-0.0f32).to_bits(), (-87.33f32).to_bits());
        let (mut worst, mut last) = (0.0f64, 2.0f32);
        let bits: Vec<u32> = (zero..=lowest).step_by(step).collect();
        for sixteen in bits.chunks(LANES) {
            let mut x = [0.0f32; LANES];
            for (lane, &bits) in x.iter_mut().zip(sixteen) {
                *lane = f32::from_bits(bits);
            }
            for (&x, &result) in x[..sixteen.len()].iter().zip(&isa.run(Exp(x))) {
                let exact = libm::exp(f64::from(x));
                let ulp = f64::from(result.next_up() - result).max(f64::from(f32::MIN_POSITIVE * f32::EPSILON));
                worst = worst.max((f64::from(result) - exact).abs() / ulp);
                assert!(result <= last, "exp rises from {last:e} to {result:e} below {x:e}");
                last = result;
            }
        }
        worst
    }

    #[test]
    fn exp_is_within_one_ulp_and_monotone() {
        let is_exhaustive = std::env::var_os("XENTRS_EXHAUSTIVE").is_some();
        for isa in Isa::available() {
            let worst = sweep(isa, if is_exhaustive { 1 } else { 77 });
            println!("exp on {isa}: largest error {worst:.4} ulp, exhaustive: {is_exhaustive}");
            assert!(worst <= 1.0, "exp on {isa} is {worst} ulp off");
        }
    }

    #[test]
    fn exp_is_zero_below_its_range_and_one_at_zero() {
        for isa in Isa::available() {
            let x = [0.0, -0.0, f32::NEG_INFINITY, f32::MIN, (-87.33f32).next_down(), -88.0, -1e30, -87.33];
            let mut lanes = [f32::NAN; LANES];
            lanes[..8].copy_from_slice(&x);
            let results = isa.run(Exp(lanes));
            assert_eq!(results[..7], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
            assert!(results[7] > 0.0 && results[8..].iter().all(|result| result.is_nan()));
        }
    }

    #[test]
    fn exp_keeps_every_nan() {
        for isa in Isa::available() {
            for bits in [0x7fc0_0000, 0x7fc0_0001, 0x7f80_0001, 0x7fff_ffff, 0xffc0_0001, 0xff80_0001, 0xffff_ffff] {
                let results = isa.run(Exp([f32::from_bits(bits); LANES]));
                assert!(results.iter().all(|result| result.is_nan()), "{bits:#x} on {isa}: {results:?}");
            }
            assert!(isa.run(Exp([f64::from_bits(0x7ff0_0000_0000_0001); LANES])).iter().all(|result| result.is_nan()));
        }
    }

    #[test]
    fn exp_in_float64_is_within_one_ulp() {
        for isa in Isa::available() {
            for i in 0..200_000 {
                let x = -708.39 * f64::from(i) / 200_000.0;
                let result = isa.run(Exp([x; LANES]))[i as usize % LANES];
                let ulps = (result - libm::exp(x)).abs() / (result.next_up() - result);
                // The comparison value itself may be an ulp off.
                assert!(ulps <= 2.0, "exp({x}) on {isa} is {ulps} ulp off");
            }
        }
    }
}
