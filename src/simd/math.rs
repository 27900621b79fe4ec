//! Elementary functions on lanes, written once for both compute types and every instruction set.
//!
//! `exp`: x = n ln 2 + r with n the nearest integer, e^x = 2^n (1 + (r + r^2 P(r))), P a minimax polynomial. Only the two last
//! sums round visibly, and rounding keeps order, so the result never falls where x rises.
//! Largest error on [-87.33, 0] in float32: below 1 ulp over every float in it, as the tests below show.

use super::{Float, Lanes};

/// Two to an integer, by adding to the exponent bits.
pub trait Bits {
    /// The value times two to the integer that adding [`Float::ROUNDER`] left in the low bits of `shifted`. Both the
    /// value and the result are normal numbers.
    fn with_exponent_added(self, shifted: Self) -> Self;
}

impl Bits for f32 {
    #[inline(always)]
    fn with_exponent_added(self, shifted: Self) -> Self {
        f32::from_bits(self.to_bits().wrapping_add(shifted.to_bits() << 23))
    }
}

impl Bits for f64 {
    #[inline(always)]
    fn with_exponent_added(self, shifted: Self) -> Self {
        f64::from_bits(self.to_bits().wrapping_add(shifted.to_bits() << 52))
    }
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

/// `e^x` for `x` in [[`Float::LOWEST_EXPONENT`], 0]; NaN stays NaN. At 0 the result is exactly 1.
#[inline(always)]
fn exp<L: Lanes>(x: L) -> L {
    let rounder = x.fill(L::Scalar::ROUNDER);
    let shifted = x.mul_add(x.fill(L::Scalar::LOG2_E), rounder);
    let exponent = shifted.sub(rounder);
    let [high, low] = L::Scalar::LN_2;
    let remainder = exponent.neg_mul_add(x.fill(high), x);
    let remainder = exponent.neg_mul_add(x.fill(low), remainder);
    let square = remainder.mul(remainder);
    let above_one = polynomial(L::Scalar::EXP, remainder).mul_add(square, remainder);
    above_one.add(x.fill(L::Scalar::ONE)).add_exponent(shifted)
}

/// `e^x` for any `x` from minus infinity to 0: exactly 0 below [`Float::LOWEST_EXPONENT`]; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp_or_zero<L: Lanes>(x: L) -> L {
    // Below its range `exp` gives garbage, which the selection drops; NaN is not less than anything and stays.
    x.select_less(x.fill(L::Scalar::LOWEST_EXPONENT), x.fill(L::Scalar::ZERO), exp(x))
}

/// `(b + expm1(-b)) / b^2` for `b` in [-0.5, 0.5].
#[inline(always)]
pub(crate) fn excess<L: Lanes>(b: L) -> L {
    polynomial(L::Scalar::EXCESS, b)
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
