//! Results: what a caller gets for each row, and for all rows together.

use crate::error::{Error, try_filled};
use crate::simd::{Element, Float};
use half::{bf16, f16};
use std::ops::{BitOr, BitOrAssign};

/// What is unusual about a row; bits that combine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// A logit is NaN.
    pub const NAN: Self = Self(1);
    /// A logit is plus infinity, none is NaN.
    pub const POSINF: Self = Self(2);
    /// Every logit is minus infinity.
    pub const ALL_NEGINF: Self = Self(4);
    /// The target's logit is minus infinity.
    pub const TARGET_NEGINF: Self = Self(8);
    /// The target is `ignore_index`; the row was not read.
    pub const IGNORED: Self = Self(16);
    /// Of two distributions, p is positive where q is 0.
    pub const SUPPORT: Self = Self(32);
    /// A result was below 0 by less than its error bound and was set to 0.
    pub const CLAMPED: Self = Self(64);
    /// A result is larger than a float64 can be, or a KL larger than the lanes that it is summed in.
    pub const OVERFLOW: Self = Self(128);

    /// The bits, as edge-case tables and result arrays carry them.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether every bit of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// Statistics of one row, in nats, of z = softcap(logits) / temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Log-sum-exp.
    pub lse: f64,
    /// Negative log-likelihood of the target; NaN without one, 0 for an ignored row.
    pub nll: f64,
    /// `-nll`.
    pub log_prob: f64,
    /// Entropy of the softmax.
    pub entropy: f64,
    /// Variance of the log-probability under the softmax.
    pub varentropy: f64,
    /// Largest z.
    pub max_logit: f64,
    /// Log-probability of the largest logit, `-log1p(rest)`: exact where `max_logit - lse` would have cancelled.
    pub max_log_prob: f64,
    /// Largest less second largest z; plus infinity for a vocabulary of one.
    pub margin: f64,
    /// Sum of squared probabilities.
    pub sum_sq_prob: f64,
    /// First column of the largest logit; -1 where it is undefined.
    pub argmax: i64,
    /// 1 + number of logits above the target's; 0 without a target.
    pub rank: i64,
    /// Other columns whose logit equals the target's.
    pub ties: i64,
    /// What is unusual about the row.
    pub flags: Flags,
}

impl RowStats {
    pub(crate) const EMPTY: Self = Self {
        lse: f64::NAN,
        nll: f64::NAN,
        log_prob: f64::NAN,
        entropy: f64::NAN,
        varentropy: f64::NAN,
        max_logit: f64::NAN,
        max_log_prob: f64::NAN,
        margin: f64::NAN,
        sum_sq_prob: f64::NAN,
        argmax: -1,
        rank: 0,
        ties: 0,
        flags: Flags(0),
    };

    /// An ignored row.
    pub(crate) const IGNORED: Self = Self { nll: 0.0, log_prob: 0.0, flags: Flags::IGNORED, ..Self::EMPTY };

    /// A row without a distribution.
    pub(crate) fn undefined(lse: f64, max_logit: f64, flags: Flags) -> Self {
        Self { lse, max_logit, flags, ..Self::EMPTY }
    }
}

/// Defines the columns of a result and the places that one unit writes, once for every field of [`RowStats`].
macro_rules! row_columns {
    ($($name:ident: $type:ty = $missing:expr),+ $(,)?) => {
        /// Statistics of many rows, a column for each field of [`RowStats`]. Columns that a call does not compute are empty.
        #[derive(Clone, Debug, Default)]
        pub struct RowColumns {
            $(
                #[doc = concat!("See [`RowStats::", stringify!($name), "`].")]
                pub $name: Vec<$type>,
            )+
            /// See [`RowStats::flags`].
            pub flags: Vec<u8>,
            /// Log-probabilities of the `top_k` largest logits, `(rows, top_k)`.
            pub top_log_probs: Vec<f64>,
            /// Their columns, largest first, the lower column first on equal logits; -1 where undefined.
            pub top_ids: Vec<i64>,
            /// Columns of the two above.
            pub top_k: usize,
            /// Rows with a target that is not ignored.
            pub token_count: u64,
            /// Instruction set or tile class, see [`Isa`](crate::Isa); empty from a state.
            pub isa: &'static str,
        }

        /// The places of some neighbouring rows.
        pub(crate) struct RowSlots<'a> {
            $($name: &'a mut [$type],)+
            flags: &'a mut [u8],
            pub(crate) top_log_probs: &'a mut [f64],
            pub(crate) top_ids: &'a mut [i64],
        }

        impl RowColumns {
            /// Room for all columns, or without `all` for the likelihood's.
            pub(crate) fn allocate(rows: usize, all: bool, top_k: usize) -> Result<Self, Error> {
                let kept = |name: &str| if all || matches!(name, "lse" | "nll" | "max_logit" | "max_log_prob") { rows } else { 0 };
                let top = rows.saturating_mul(top_k);
                Ok(Self {
                    $($name: try_filled(kept(stringify!($name)), $missing)?,)+
                    flags: try_filled(rows, 0)?,
                    top_log_probs: try_filled(top, f64::NAN)?,
                    top_ids: try_filled(top, -1)?,
                    top_k,
                    token_count: 0,
                    isa: "",
                })
            }

            /// The places of `size` rows at a time, in row order.
            pub(crate) fn slots(&mut self, size: usize) -> Vec<RowSlots<'_>> {
                let units = self.flags.len().div_ceil(size);
                let mut flags = self.flags.chunks_mut(size);
                let mut top_log_probs = self.top_log_probs.chunks_mut((size * self.top_k).max(1));
                let mut top_ids = self.top_ids.chunks_mut((size * self.top_k).max(1));
                $(let mut $name = self.$name.chunks_mut(size);)+
                let next_slots = |_| RowSlots {
                    $($name: $name.next().unwrap_or_default(),)+
                    flags: flags.next().unwrap_or_default(),
                    top_log_probs: top_log_probs.next().unwrap_or_default(),
                    top_ids: top_ids.next().unwrap_or_default(),
                };
                (0..units).map(next_slots).collect()
            }
        }

        impl RowSlots<'_> {
            /// Writes one row, but for its largest logits.
            pub(crate) fn write(&mut self, index: usize, stats: &RowStats) {
                $(
                    if let Some(place) = self.$name.get_mut(index) {
                        *place = stats.$name;
                    }
                )+
                self.flags[index] = stats.flags.bits();
            }
        }
    };
}
row_columns! {
    lse: f64 = f64::NAN,
    nll: f64 = f64::NAN,
    log_prob: f64 = f64::NAN,
    entropy: f64 = f64::NAN,
    varentropy: f64 = f64::NAN,
    max_logit: f64 = f64::NAN,
    max_log_prob: f64 = f64::NAN,
    margin: f64 = f64::NAN,
    sum_sq_prob: f64 = f64::NAN,
    argmax: i64 = -1,
    rank: i64 = 0,
    ties: i64 = 0,
}

/// Rows of numbers that a call returns, in a storage type of the caller's.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "a variant for each storage type")]
pub enum Matrix {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// One row of a [`Matrix`] to be written.
pub(crate) enum RowMut<'m> {
    F32(&'m mut [f32]),
    F64(&'m mut [f64]),
    F16(&'m mut [f16]),
    Bf16(&'m mut [bf16]),
}

impl Matrix {
    /// Zeros of the storage type of that name.
    pub(crate) fn zeros(element: &str, count: usize) -> Result<Self, Error> {
        Ok(match element {
            f64::NAME => Self::F64(try_filled(count, 0.0)?),
            f16::NAME => Self::F16(try_filled(count, f16::ZERO)?),
            bf16::NAME => Self::Bf16(try_filled(count, bf16::ZERO)?),
            _ => Self::F32(try_filled(count, 0.0)?),
        })
    }

    /// The rows, `width` numbers each.
    pub(crate) fn rows_mut(&mut self, width: usize) -> Vec<RowMut<'_>> {
        let width = width.max(1);
        match self {
            Self::F32(numbers) => numbers.chunks_mut(width).map(RowMut::F32).collect(),
            Self::F64(numbers) => numbers.chunks_mut(width).map(RowMut::F64).collect(),
            Self::F16(numbers) => numbers.chunks_mut(width).map(RowMut::F16).collect(),
            Self::Bf16(numbers) => numbers.chunks_mut(width).map(RowMut::Bf16).collect(),
        }
    }
}

impl RowMut<'_> {
    /// Writes the row, each number rounded once.
    pub(crate) fn write<F: Float>(&mut self, sums: &[F]) {
        fn narrowed<E: Element, F: Float>(target: &mut [E], sums: &[F]) {
            for (place, &sum) in target.iter_mut().zip(sums) {
                *place = E::narrow(E::Compute::from_f64(sum.into()));
            }
        }
        match self {
            Self::F32(target) => narrowed(target, sums),
            Self::F64(target) => narrowed(target, sums),
            Self::F16(target) => narrowed(target, sums),
            Self::Bf16(target) => narrowed(target, sums),
        }
    }
}
