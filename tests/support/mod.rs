//! What the integration tests share: repeatable random rows, and the error bound.
#![allow(dead_code)] // each test file takes what it needs

use half::{bf16, f16};
use xentrs::{Element, Float};

/// A storage type that a float64 can be rounded to.
pub trait Stored: Element {
    fn round(value: f64) -> Self;
    fn exact(self) -> f64 {
        self.widen().into()
    }
}
impl Stored for f32 {
    fn round(value: f64) -> Self {
        value as f32
    }
}
impl Stored for f64 {
    fn round(value: f64) -> Self {
        value
    }
}
impl Stored for f16 {
    fn round(value: f64) -> Self {
        f16::from_f64(value)
    }
}
impl Stored for bf16 {
    fn round(value: f64) -> Self {
        bf16::from_f64(value)
    }
}

/// xorshift64*: the same rows in every run.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// About normal, with standard deviation `scale`.
    pub fn normal(&mut self, scale: f64) -> f64 {
        ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0) * scale
    }

    pub fn row<E: Stored>(&mut self, vocab: usize, scale: f64) -> Vec<E> {
        (0..vocab).map(|_| E::round(self.normal(scale))).collect()
    }
}

/// The bound on lse of docs/numerics.md: `(2 + ln V) u`, and half an ulp of the value in the compute type. In float64 the
/// totals are no wider than the lanes, so their own additions count: `log2 V` more; and the reference, which is rounded to
/// float64 too, is off by another half ulp.
pub fn lse_bound<E: Element>(vocab: usize, lse: f64) -> f64 {
    let (unit, vocab) = (E::Compute::UNIT_ROUNDOFF, vocab as f64);
    let is_double = unit < 1e-10;
    let (additions, roundings) = if is_double { (vocab.log2(), 2.0) } else { (0.0, 1.0) };
    unit * (2.0 + vocab.ln() + additions) + roundings * unit * lse.abs()
}
