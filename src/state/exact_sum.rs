//! Exact sums of float64: the same bits in any order, over any shards.
//!
//! A fixed-point number wide enough for every finite float64, in digits of 32 bits held in 64 (the small superaccumulator of
//! Neal, "Fast exact summation using small and large superaccumulators", arXiv 1505.05571). Carries wait in the upper halves.

use serde::{Deserialize, Serialize};

const DIGIT_BITS: u32 = 32;
/// 2,098 bits from the smallest subnormal to the largest float64, and 64 more for sums of up to 2^63 of them.
const DIGITS: usize = 68;
/// Additions until carries must move on: each adds less than 2^32 to a digit.
const MOST_PENDING: u32 = 1 << 30;

/// A sum of finite values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExactSum {
    digits: Vec<i64>,
    pending: u32,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { digits: vec![0; DIGITS], pending: 0 }
    }
}

impl ExactSum {
    /// Whether the digits are as many as this version keeps.
    pub(crate) fn is_well_formed(&self) -> bool {
        self.digits.len() == DIGITS && self.pending <= MOST_PENDING
    }

    /// Adds a finite value.
    pub(crate) fn add(&mut self, value: f64) {
        let bits = value.to_bits();
        let exponent_bits = (bits >> 52 & 0x7ff) as u32;
        let fraction = bits & ((1 << 52) - 1);
        // A subnormal has the exponent of the smallest normal number and no implicit bit.
        let (mantissa, shift) =
            if exponent_bits == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent_bits - 1) };
        let wide = u128::from(mantissa) << (shift % DIGIT_BITS);
        let first = (shift / DIGIT_BITS) as usize;
        for (i, digit) in self.digits[first..first + 3].iter_mut().enumerate() {
            let part = (wide >> (i as u32 * DIGIT_BITS) & u128::from(u32::MAX)) as i64;
            *digit += if value.is_sign_negative() { -part } else { part };
        }
        self.pending += 1;
        if self.pending == MOST_PENDING {
            self.carry();
        }
    }

    /// Adds another sum.
    pub(crate) fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        other.carry();
        self.carry();
        for (digit, addend) in self.digits.iter_mut().zip(other.digits) {
            *digit += addend;
        }
        self.carry();
    }

    /// Moves carries on, so that every digit but the last, which keeps the sign, is in [0, 2^32).
    pub(crate) fn carry(&mut self) {
        let mut carry = 0;
        let last = DIGITS - 1;
        for digit in &mut self.digits[..last] {
            let value = *digit + carry;
            *digit = value & i64::from(u32::MAX);
            carry = value >> DIGIT_BITS;
        }
        self.digits[last] += carry;
        self.pending = 0;
    }

    /// The sum, rounded once to the nearest float64, ties to even.
    pub(crate) fn value(&self) -> f64 {
        let mut sum = self.clone();
        sum.carry();
        let is_negative = sum.digits[DIGITS - 1] < 0;
        if is_negative {
            sum.digits.iter_mut().for_each(|digit| *digit = -*digit);
            sum.carry();
        }
        let Some(top) = sum.digits.iter().rposition(|&digit| digit != 0) else { return 0.0 };
        let lowest = top.saturating_sub(2);
        // The three leading digits hold at least 65 bits; one more bit tells whether anything follows.
        let mut leading: u128 = 0;
        for &digit in sum.digits[lowest..=top].iter().rev() {
            leading = leading << DIGIT_BITS | digit as u128;
        }
        let has_more = sum.digits[..lowest].iter().any(|&digit| digit != 0);
        let magnitude = round_scaled(leading, has_more, lowest as i32 * DIGIT_BITS as i32 - 1074);
        if is_negative { -magnitude } else { magnitude }
    }
}

/// `(leading + something below 1 if has_more) * 2^exponent`, rounded once.
fn round_scaled(leading: u128, has_more: bool, exponent: i32) -> f64 {
    let length = 128 - leading.leading_zeros() as i32;
    // Keep 53 bits, fewer where the result is subnormal (its lowest bit is 2^-1074).
    let dropped = (length - 53).max(-1074 - exponent).max(0);
    let mut kept = leading >> dropped;
    let remainder = leading & ((1u128 << dropped) - 1);
    let half = if dropped > 0 { 1u128 << (dropped - 1) } else { 0 };
    let is_above_half = remainder > half || (remainder == half && has_more);
    let is_tie = remainder == half && !has_more;
    if dropped > 0 && (is_above_half || is_tie && kept & 1 == 1) {
        kept += 1;
    }
    // At most 2^53: exact as a float64; scaling by a power of two is exact too, or overflows to infinity.
    libm::scalbn(kept as f64, exponent + dropped)
}
