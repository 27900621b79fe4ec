//! Special values by their bits, rows that they are put into, and targets of these rows.

use crate::support::{Random, Stored};
use half::{bf16, f16};
use xentrs::{LogitsView, Targets};

/// A storage type by its bits.
pub trait Format: Stored {
    const BITS: u32;
    const MANTISSA_BITS: u32;
    fn from_raw(bits: u64) -> Self;
}
macro_rules! format {
    ($type:ty, $bits:ty, $mantissa_bits:literal) => {
        impl Format for $type {
            const BITS: u32 = <$bits>::BITS;
            const MANTISSA_BITS: u32 = $mantissa_bits;
            fn from_raw(bits: u64) -> Self {
                Self::from_bits(bits as $bits)
            }
        }
    };
}
format!(f32, u32, 23);
format!(f64, u64, 52);
format!(f16, u16, 10);
format!(bf16, u16, 7);

/// What a value makes of its row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Nan,
    PosInf,
    /// Minus infinity and every finite value: the row still has a distribution.
    Defined,
}

/// The bits of plus infinity, and of the sign.
pub fn infinity_and_sign<E: Format>() -> (u64, u64) {
    let sign = 1 << (E::BITS - 1);
    (sign - (1 << E::MANTISSA_BITS), sign)
}

/// Quiet and signalling NaNs of both signs, both infinities, both extremes, the smallest subnormal, minus zero.
pub fn specials<E: Format>() -> Vec<(Kind, E)> {
    let (infinity, sign) = infinity_and_sign::<E>();
    let quiet = 1 << (E::MANTISSA_BITS - 1);
    let payloads = [quiet, quiet + 1, 1, quiet - 1, 2 * quiet - 1];
    let mut all: Vec<_> = payloads.iter().map(|payload| (Kind::Nan, infinity + payload)).collect();
    all.extend(payloads.iter().map(|payload| (Kind::Nan, sign + infinity + payload)));
    all.push((Kind::PosInf, infinity));
    let defined = [sign + infinity, infinity - 1, sign + infinity - 1, 1, sign];
    all.extend(defined.map(|bits| (Kind::Defined, bits)));
    all.into_iter().map(|(kind, bits)| (kind, E::from_raw(bits))).collect()
}

/// Every NaN of a 16-bit type; of a wider one each bit of the payload alone, and each low byte, quiet and signalling.
pub fn nans<E: Format>() -> Vec<E> {
    let (infinity, sign) = infinity_and_sign::<E>();
    let quiet = 1 << (E::MANTISSA_BITS - 1);
    let payloads: Vec<u64> = if E::BITS == 16 {
        (1..2 * quiet).collect()
    } else {
        (1..256).flat_map(|low| [low, quiet + low]).chain((0..E::MANTISSA_BITS).map(|bit| 1 << bit)).collect()
    };
    payloads.iter().flat_map(|payload| [infinity + payload, sign + infinity + payload]).map(E::from_raw).collect()
}

/// Rows among which every odd one has a place for a special value; its neighbours on both sides have none.
pub struct Sample<E> {
    pub plain: Vec<E>,
    pub vocab: usize,
    pub places: Vec<usize>,
}

impl<E: Format> Sample<E> {
    pub fn new(vocab: usize, places: &[usize], seed: u64) -> Self {
        let mut random = Random(seed);
        let mut plain = Vec::new();
        for row in 0..2 * places.len() + 1 {
            let one = (0..vocab).map(|_| random.normal(3.0));
            // In every other pair of rows nothing is above 0, so that a zero or a subnormal is the largest logit.
            let is_low = row / 2 % 2 == 1;
            plain.extend(one.map(|logit| E::round(if is_low { -logit.abs() } else { logit })));
        }
        Self { plain, vocab, places: places.to_vec() }
    }

    pub fn narrow(seed: u64) -> Self {
        Self::new(257, &(0..257).collect::<Vec<_>>(), seed)
    }

    /// Two leaves, the second of 257 columns.
    pub fn wide(seed: u64) -> Self {
        Self::new(4_353, &[0, 255, 256, 1_000, 2_049, 4_094, 4_095, 4_096, 4_097, 4_352], seed)
    }

    pub fn rows(&self) -> usize {
        2 * self.places.len() + 1
    }

    pub fn with(&self, value: Option<E>) -> Vec<E> {
        let mut logits = self.plain.clone();
        for (index, &place) in self.places.iter().enumerate() {
            let column = &mut logits[(2 * index + 1) * self.vocab + place];
            *column = value.unwrap_or(*column);
        }
        logits
    }

    pub fn exact_row(&self, logits: &[E], row: usize) -> Vec<f64> {
        logits[row * self.vocab..][..self.vocab].iter().map(|logit| logit.exact()).collect()
    }

    pub fn view<'l>(&self, logits: &'l [E]) -> LogitsView<'l, E> {
        LogitsView::from_slice(logits, self.rows(), self.vocab).unwrap()
    }
}

/// Where the targets of the special rows are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    NoTargets,
    AtThePlace,
    Elsewhere,
    Ignored,
}

impl Aim {
    pub fn target(self, vocab: usize, place: usize) -> Option<usize> {
        match self {
            Self::AtThePlace => Some(place),
            Self::Elsewhere => Some((place + vocab / 2) % vocab),
            Self::NoTargets | Self::Ignored => None,
        }
    }

    pub fn targets<E: Format>(self, sample: &Sample<E>) -> Option<Targets> {
        let special = |row: usize| self.target(sample.vocab, sample.places[row / 2]).map_or(-100, |id| id as i64);
        let ids = (0..sample.rows()).map(|row| if row % 2 == 1 { special(row) } else { (row % sample.vocab) as i64 });
        (self != Self::NoTargets).then(|| Targets::new(ids, sample.vocab, -100).unwrap())
    }
}
