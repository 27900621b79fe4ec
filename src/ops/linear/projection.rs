//! Hidden states and a head, and the class of products that makes logits of them.

use crate::error::Error;
use crate::input::{Head, MatrixView};
use crate::kernels::linear::{Affine, Arithmetic, HeadLogits, Logits};
use crate::ops::check_positive;
use crate::plan::{Execution, HeadPlan};
use crate::run::{HeadRows, Source};
use crate::simd::tiles::{LaneTiles, Tiles};
use crate::simd::{Element, Float, Isa};
use half::bf16;

/// Runs the body with `$product` as the products in float32 or in tiles of bfloat16.
macro_rules! with_narrow_tiles {
    ($projection:expr, $isa:expr, |$product:ident| $body:expr) => {{
        macro_rules! run {
            ($tiles:expr) => {{
                let $product = $projection.product($tiles, $isa);
                $body
            }};
        }
        match if $projection.takes_bf16() { $isa.bf16_tiles() } else { None } {
            #[cfg(test)]
            Some($crate::simd::Bf16Tiles::Plain(tiles)) => run!(tiles),
            #[cfg(target_arch = "x86_64")]
            Some($crate::simd::Bf16Tiles::Avx512Bf16(tiles)) => run!(tiles),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Some($crate::simd::Bf16Tiles::Amx(tiles)) => run!(tiles),
            None => run!($crate::simd::tiles::LaneTiles::<f32>::new($isa)),
        }
    }};
}

/// The same, or in float64 where an operand is.
macro_rules! with_tiles {
    ($projection:expr, $isa:expr, |$product:ident| $body:expr) => {
        if $projection.is_wide() {
            let $product = $projection.product($crate::simd::tiles::LaneTiles::<f64>::new($isa), $isa);
            $body
        } else {
            with_narrow_tiles!($projection, $isa, |$product| $body)
        }
    };
}
pub(in crate::ops) use {with_narrow_tiles, with_tiles};

/// Runs the body with `$source` as the rows of one or two projections, in float64 if one of them is.
macro_rules! with_source {
    ([$($side:expr),+], $execution:expr, |$source:ident, $plan:ident| $body:expr) => {{
        let sides = [$($side),+];
        let (rows, vocab) = (sides[0].rows(), sides[0].vocab());
        let width = sides.iter().map(|side| side.hidden.width()).max().unwrap_or(0);
        let $plan = HeadPlan::new(rows, width, vocab, $execution)?;
        let (plan, isa) = ($plan, $plan.isa);
        if sides.iter().any(|side| side.is_wide()) {
            let made = sides.map(|side| side.wide(isa));
            let $source = &HeadRows { plan, sides: made.each_ref().map(|side| &**side), rows, vocab };
            $body
        } else {
            let made = sides.map(|side| side.narrow(isa));
            let $source = &HeadRows { plan, sides: made.each_ref().map(|side| &**side), rows, vocab };
            $body
        }
    }};
}

pub(in crate::ops) use with_source;

/// Hidden states and the head that makes logits of them:
/// z = softcap(logit_scale * (hidden . weight + bias)), softcap(a) = cap tanh(a / cap).
///
/// ```
/// use xentrs::{Head, LogitsView, Projection, Weight, linear_row_stats, Options, Targets};
/// let hidden = LogitsView::from_slice(&[1.0f32, 2.0], 1, 2)?.into();
/// let weight = LogitsView::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 0.0, 0.0], 3, 2)?.into();
/// let projection = Projection::new(hidden, Head::new(Weight::Rows(weight), None)?)?;
/// let targets = Targets::new([1], 3, -100)?;
/// let stats = linear_row_stats(&projection, Some(&targets), &Options::default())?;
/// assert!((stats.nll[0] - 0.407_605_9).abs() < 1e-6);
/// # Ok::<(), xentrs::Error>(())
/// ```
#[derive(Clone)]
pub struct Projection<'a> {
    pub(in crate::ops) hidden: MatrixView<'a>,
    pub(in crate::ops) head: Head<'a>,
    pub(in crate::ops) logit_scale: f64,
    pub(in crate::ops) softcap: Option<f64>,
}

impl<'a> Projection<'a> {
    /// Hidden states `(rows, width)` and a head `(vocab, width)`, no factor and no soft cap.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the widths differ.
    pub fn new(hidden: MatrixView<'a>, head: Head<'a>) -> Result<Self, Error> {
        if hidden.width() != head.width() {
            let (left_shape, right_shape) = (vec![hidden.rows(), hidden.width()], vec![hidden.rows(), head.width()]);
            return Err(Error::ShapeMismatch {
                left: "hidden",
                left_shape,
                right: "a head of that width",
                right_shape,
            });
        }
        Ok(Self { hidden, head, logit_scale: 1.0, softcap: None })
    }

    /// With a factor, as Cohere and Granite have it, and a soft cap, as Gemma 2 has it.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a factor that is 0 or not finite, or a soft cap out of range.
    pub fn scaled(self, logit_scale: f64, softcap: Option<f64>) -> Result<Self, Error> {
        if check_positive("logit_scale", logit_scale.abs()).is_err() {
            let (name, value) = ("logit_scale", format!("{logit_scale:?}"));
            return Err(Error::Parameter { name, value, expected: "a number of either sign from 1e-30 to 1e30" });
        }
        softcap.map_or(Ok(()), |cap| check_positive("softcap", cap))?;
        Ok(Self { logit_scale, softcap, ..self })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.hidden.rows()
    }

    /// Columns of the logits.
    pub fn vocab(&self) -> usize {
        self.head.vocab()
    }

    /// Whether an operand is float64, and with it all arithmetic.
    pub(in crate::ops) fn is_wide(&self) -> bool {
        [self.hidden.element(), self.head.element()].contains(&f64::NAME)
    }

    /// What the products are made with, see [`Isa::head_name`].
    pub fn isa(&self, execution: &Execution) -> Result<&'static str, Error> {
        let isa = execution.isa()?;
        Ok(if self.takes_bf16() { isa.head_name() } else { isa.name() })
    }

    /// Whether both operands are bfloat16, which alone go to tiles of bfloat16.
    pub(in crate::ops) fn takes_bf16(&self) -> bool {
        self.hidden.element() == bf16::NAME && self.head.element() == bf16::NAME
    }

    /// The same hidden states with the rows of the head in another order.
    pub(in crate::ops) fn with_order(&self, order: &[usize]) -> Self {
        Self { head: self.head.reordered(order), ..self.clone() }
    }

    /// All logits of one other row of hidden states.
    pub(in crate::ops) fn logits_of(&self, hidden: MatrixView<'_>, execution: &Execution) -> Result<Vec<f64>, Error> {
        let other = Projection { hidden, ..self.clone() };
        with_source!([&other], execution, |source, _plan| Ok(source.logits(0, 0)))
    }

    /// Products in float32 or in tiles of bfloat16.
    pub(in crate::ops) fn narrow(&self, isa: Isa) -> Box<dyn Logits<f32> + '_> {
        with_narrow_tiles!(self, isa, |product| Box::new(product))
    }

    /// Products in float64.
    pub(in crate::ops) fn wide(&self, isa: Isa) -> Box<dyn Logits<f64> + '_> {
        Box::new(self.product(LaneTiles::<f64>::new(isa), isa))
    }

    pub(in crate::ops) fn product<T: Tiles<Sum: Float>>(&self, tiles: T, isa: Isa) -> HeadLogits<'_, T> {
        let affine = Affine::new(self.logit_scale, self.head.bias(), self.softcap);
        HeadLogits { tiles, isa, hidden: &self.hidden, head: &self.head, affine }
    }
}

/// A compute type that logits are made in.
pub trait MadeOf: Arithmetic {
    /// The logits of a projection.
    #[doc(hidden)]
    fn logits<'p>(projection: &'p Projection<'_>, isa: Isa) -> Result<Box<dyn Logits<Self> + 'p>, Error>;
}

impl MadeOf for f32 {
    fn logits<'p>(projection: &'p Projection<'_>, isa: Isa) -> Result<Box<dyn Logits<f32> + 'p>, Error> {
        if projection.is_wide() {
            let (left, right) = ("float32".to_owned(), "float64".to_owned());
            return Err(Error::StateMismatch { field: "precision", left, right });
        }
        Ok(projection.narrow(isa))
    }
}

impl MadeOf for f64 {
    fn logits<'p>(projection: &'p Projection<'_>, isa: Isa) -> Result<Box<dyn Logits<f64> + 'p>, Error> {
        Ok(projection.wide(isa))
    }
}
