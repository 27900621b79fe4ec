//! What logits are stored as, and what they are computed in.

use super::math::{self, Bits};
use super::{Lanes, Simd};
use half::{bf16, f16};

/// A compute type: `f32` or `f64`, with the constants of its approximations (see `simd/math.rs`).
pub trait Float: Copy + PartialOrd + Into<f64> + Send + Sync + Bits + 'static {
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Two.
    const TWO: Self;
    /// Minus infinity, the logit of probability 0.
    const NEG_INFINITY: Self;
    /// Smallest argument of `exp` whose result is not 0: -87.33 for `f32`, -708.39 for `f64`.
    const LOWEST_EXPONENT: Self;
    /// `(b + expm1(-b)) / b^2` on [-0.5, 0.5], highest power first.
    const EXCESS: &'static [Self];
    /// Half the distance from 1 to the next number.
    const UNIT_ROUNDOFF: f64;

    /// `e^x` for `x` in [[`Float::LOWEST_EXPONENT`], 0]; NaN stays NaN. At 0 the result is exactly 1.
    fn exp<L: Lanes<Scalar = Self>>(x: L) -> L;
    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
    /// Whether the value is NaN.
    fn is_nan(self) -> bool;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const TWO: Self = 2.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    const LOWEST_EXPONENT: Self = -87.33;
    // Minimax, largest relative error 0.4 units of 2^-24 before rounding.
    const EXCESS: &'static [Self] =
        &[-0.000_198_769_57, 0.001_398_190_6, -0.008_333_448, 0.041_665_8, -0.166_666_66, 0.5];
    const UNIT_ROUNDOFF: f64 = 5.960_464_477_539_063e-8;

    #[inline(always)]
    fn exp<L: Lanes<Scalar = Self>>(x: L) -> L {
        math::exp_f32(x)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const TWO: Self = 2.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    const LOWEST_EXPONENT: Self = -708.39;
    // Minimax, largest relative error 0.0004 units of 2^-53 before rounding.
    const EXCESS: &'static [Self] = &[
        1.148_406_553_241_008_6e-11,
        -1.612_118_806_954_765_3e-10,
        2.087_682_696_431_197e-9,
        -2.505_191_445_123_045_6e-8,
        2.755_731_886_837_665e-7,
        -2.755_731_951_427_862e-6,
        2.480_158_730_215_053_4e-5,
        -0.000_198_412_698_410_587_55,
        0.001_388_888_888_888_852_3,
        -0.008_333_333_333_333_4,
        0.041_666_666_666_666_664,
        -0.166_666_666_666_666_66,
        0.5,
    ];
    const UNIT_ROUNDOFF: f64 = 1.110_223_024_625_156_5e-16;

    #[inline(always)]
    fn exp<L: Lanes<Scalar = Self>>(x: L) -> L {
        math::exp_f64(x)
    }
    fn from_f64(value: f64) -> Self {
        value
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

/// A storage type of logits: `f32`, `f64`, `half::f16` or `half::bf16`. The first and the halves compute in `f32`
/// lanes, `f64` stays `f64`; every total is `f64`.
pub trait Element: Copy + Send + Sync + 'static {
    /// What its lanes compute in.
    type Compute: Float + Element<Compute = Self::Compute>;
    /// Its vectors on one instruction set.
    type Lanes<S: Simd>: Lanes<Scalar = Self::Compute>;
    /// As numpy and torch call it.
    const NAME: &'static str;
    /// The logit of probability 0, minus infinity.
    const IMPOSSIBLE: Self;

    /// The same value in the compute type.
    fn widen(self) -> Self::Compute;
    /// Sixteen consecutive elements in the compute type.
    ///
    /// # Safety
    /// - `pointer` is readable for sixteen elements; any alignment will do.
    unsafe fn load<S: Simd>(simd: S, pointer: *const Self) -> Self::Lanes<S>;
    /// Every lane `value`.
    fn splat<S: Simd>(simd: S, value: Self::Compute) -> Self::Lanes<S>;
    /// The lanes in float64, where totals are kept.
    fn total<S: Simd>(simd: S, lanes: Self::Lanes<S>) -> S::F64;
}

macro_rules! element {
    ($type:ty, $compute:ty, $lanes:ident, $name:literal, $load:ident, $splat:ident,
     |$value:ident| $widen:expr, |$simd:ident, $vector:ident| $total:expr) => {
        impl Element for $type {
            type Compute = $compute;
            type Lanes<S: Simd> = S::$lanes;
            const NAME: &'static str = $name;
            const IMPOSSIBLE: Self = <$type>::NEG_INFINITY;

            #[inline(always)]
            fn widen(self) -> $compute {
                let $value = self;
                $widen
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, pointer: *const Self) -> S::$lanes {
                // SAFETY: the caller vouches for the memory.
                unsafe { simd.$load(pointer) }
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: $compute) -> S::$lanes {
                simd.$splat(value)
            }
            #[inline(always)]
            fn total<S: Simd>($simd: S, $vector: S::$lanes) -> S::F64 {
                $total
            }
        }
    };
}
element!(f32, f32, F32, "float32", load_f32, splat_f32, |value| value, |simd, lanes| simd.widen(lanes));
element!(f16, f32, F32, "float16", load_f16, splat_f32, |value| value.to_f32(), |simd, lanes| simd.widen(lanes));
element!(bf16, f32, F32, "bfloat16", load_bf16, splat_f32, |value| value.to_f32(), |simd, lanes| simd.widen(lanes));
element!(f64, f64, F64, "float64", load_f64, splat_f64, |value| value, |_simd, lanes| lanes);
