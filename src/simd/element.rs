//! What logits are stored as, and what they are computed in.

use super::lent::BLOCK_VECTORS;
use super::math::{self, Bits};
use super::{LANES, Lanes, Simd};
use half::slice::HalfFloatSliceExt;
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
    /// `(ln 2 - H(a)) / a^2` in powers of a^2 up to 1, H as in `math::jensen`, highest power first.
    const JENSEN: &'static [Self];
    /// `atanh(u) / u` in powers of u^2 up to 0.0243, highest power first.
    const ATANH: &'static [Self];
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
    // Largest relative errors 6e-10 and 3e-10 before rounding.
    const JENSEN: &'static [Self] =
        &[-1.474_056_5e-6, 1.868_231_4e-5, -0.000_184_190_36, 0.001_736_048_5, -0.015_624_994, 0.125];
    const ATANH: &'static [Self] = &[0.148_408_44, 0.199_914_98, 0.333_333_76, 1.0];
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
    // Largest relative errors 3e-21 and 8e-24 before rounding.
    const JENSEN: &'static [Self] = &[
        1.206_634_514_825_135_8e-13,
        -1.970_862_752_811_453_5e-12,
        2.162_715_720_560_334_8e-11,
        -2.162_023_211_311_787_2e-10,
        2.125_415_346_089_807e-9,
        -2.082_572_172_438_911e-8,
        2.035_856_077_229_914_4e-7,
        -1.983_552_861_303_737_5e-6,
        1.922_123_015_697_524_3e-5,
        -0.000_184_461_805_555_402_65,
        0.001_736_111_111_111_104,
        -0.015_625,
        0.125,
    ];
    const ATANH: &'static [Self] = &[
        0.058_805_051_435_642_956,
        0.058_497_979_679_357_666,
        0.066_676_069_854_192_75,
        0.076_922_913_498_659,
        0.090_909_092_663_102_72,
        0.111_111_111_099_665_47,
        0.142_857_142_857_185_73,
        0.199_999_999_999_999_93,
        0.333_333_333_333_333_3,
        1.0,
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
    /// The nearest element.
    fn narrow(value: Self::Compute) -> Self;
    /// The nearest element of each; both slices have one length.
    fn narrow_all(values: &[Self::Compute], elements: &mut [Self]);
    /// Sixteen consecutive elements in the compute type.
    ///
    /// # Safety
    /// - `pointer` is readable for sixteen elements; any alignment will do.
    unsafe fn load<S: Simd>(simd: S, pointer: *const Self) -> Self::Lanes<S>;
    /// The largest of [`BLOCK`](super::lent::BLOCK) consecutive elements, lane by lane: lane `i` is that of columns `i`, `i + 16`, ... In a
    /// block with NaN it may be any.
    ///
    /// # Safety
    /// - `pointer` is readable for [`BLOCK`](super::lent::BLOCK) elements; any alignment will do.
    unsafe fn max_of_block<S: Simd>(simd: S, pointer: *const Self) -> Self::Lanes<S>;
    /// Every lane `value`.
    fn splat<S: Simd>(simd: S, value: Self::Compute) -> Self::Lanes<S>;
    /// Lanes of the compute type, as they are.
    fn from_compute<S: Simd>(simd: S, lanes: <Self::Compute as Element>::Lanes<S>) -> Self::Lanes<S>;
    /// The lanes in float64, where totals are kept.
    fn total<S: Simd>(simd: S, lanes: Self::Lanes<S>) -> S::F64;
}

/// [`Element::max_of_block`] of types whose vectors come as they are. NaN does not count.
///
/// # Safety
/// - `pointer` is readable for [`BLOCK`](super::lent::BLOCK) elements.
#[inline(always)]
unsafe fn max_of_vectors<S: Simd, E: Element>(simd: S, pointer: *const E) -> E::Lanes<S> {
    // Four chains, as one would wait for each maximum in turn.
    let mut chains = [E::splat(simd, E::Compute::NEG_INFINITY); 4];
    for index in 0..BLOCK_VECTORS {
        // SAFETY: the caller vouches for the memory.
        let vector = unsafe { E::load(simd, pointer.add(index * LANES)) };
        chains[index % 4] = vector.max(chains[index % 4]);
    }
    chains[0].max(chains[1]).max(chains[2].max(chains[3]))
}

macro_rules! element {
    ($type:ty, $compute:ty, $lanes:ident, $name:literal, $load:ident, $max:path, $splat:ident,
     |$value:ident| $widen:expr, $narrow:expr, |$values:ident, $elements:ident| $narrow_all:expr,
     |$simd:ident, $vector:ident| $total:expr) => {
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
            fn narrow(value: $compute) -> Self {
                $narrow(value)
            }
            #[inline(always)]
            fn narrow_all($values: &[$compute], $elements: &mut [Self]) {
                $narrow_all
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, pointer: *const Self) -> S::$lanes {
                // SAFETY: the caller vouches for the memory.
                unsafe { simd.$load(pointer) }
            }
            #[inline(always)]
            unsafe fn max_of_block<S: Simd>(simd: S, pointer: *const Self) -> S::$lanes {
                // SAFETY: the caller vouches for the memory.
                unsafe { $max(simd, pointer) }
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: $compute) -> S::$lanes {
                simd.$splat(value)
            }
            #[inline(always)]
            fn from_compute<S: Simd>(_simd: S, lanes: S::$lanes) -> S::$lanes {
                lanes
            }
            #[inline(always)]
            fn total<S: Simd>($simd: S, $vector: S::$lanes) -> S::F64 {
                $total
            }
        }
    };
}
element!(
    f32,
    f32,
    F32,
    "float32",
    load_f32,
    max_of_vectors,
    splat_f32,
    |value| value,
    std::convert::identity,
    |values, elements| elements.copy_from_slice(values),
    |simd, lanes| simd.widen(lanes)
);
element!(
    f16,
    f32,
    F32,
    "float16",
    load_f16,
    S::max_f16,
    splat_f32,
    |value| value.to_f32(),
    f16::from_f32,
    |values, elements| elements.convert_from_f32_slice(values),
    |simd, lanes| simd.widen(lanes)
);
element!(
    bf16,
    f32,
    F32,
    "bfloat16",
    load_bf16,
    S::max_bf16,
    splat_f32,
    |value| value.to_f32(),
    bf16::from_f32,
    |values, elements| elements.convert_from_f32_slice(values),
    |simd, lanes| simd.widen(lanes)
);
element!(
    f64,
    f64,
    F64,
    "float64",
    load_f64,
    max_of_vectors,
    splat_f64,
    |value| value,
    std::convert::identity,
    |values, elements| elements.copy_from_slice(values),
    |_simd, lanes| lanes
);
