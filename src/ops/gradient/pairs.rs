//! Gradients of divergences of two arrays of logits, and of KL of two heads.

use super::passes::{Call, Rule as HeadRule};
use super::rows::{row_length, rows_of_unit, zero};
use super::{GradientOptions, Gradients, check_lengths};
use crate::error::Error;
use crate::input::{LeafScratch, LogitsView};
use crate::kernels::linear::{Arithmetic, Logits, LogitsBlock};
use crate::kernels::pair_gradient::{DifferentiatePair, MixtureRow, PairGradient, PairGradientRow, Rule};
use crate::ops::kl::check_pair;
use crate::ops::linear::{Projection, check_sides, with_narrow_tiles};
use crate::ops::never;
use crate::plan::{Execution, HeadPlan, Plan};
use crate::run::{Interrupt, for_each};
use crate::simd::tiles::LaneTiles;
use crate::simd::{Element, Isa, with_default_control};
use crate::state::pair::{SCALES, Scales};
use std::ops::Range;
use std::slice::{ChunksExactMut, ChunksMut};

/// The divergences whose gradient is wanted.
#[derive(Clone, Copy, Debug)]
pub struct PairTerms<'l> {
    /// The scales that the divergence returned, four for each row.
    pub scales: &'l [f64],
    /// The derivative of the caller's result by each row's divergence.
    pub upstream: &'l [f64],
    /// Of both sides.
    pub temperature: f64,
}

impl PairTerms<'_> {
    /// A row's gradient, `divergence` what KL has come to.
    fn row(&self, rule: Rule, row: usize, divergence: f64) -> PairGradient {
        let scales = Scales::from_slice(&self.scales[row * SCALES..], 1.0 / self.temperature);
        PairGradient { rule, scales, centres: [divergence; 2], factor: self.upstream[row] / self.temperature }
    }

    fn check(&self, rows: usize) -> Result<(), Error> {
        check_lengths(rows, [("scales", self.scales.len() / SCALES), ("upstream", self.upstream.len())])
    }
}

/// The gradient of sum_n upstream_n KL(p||q)_n with respect to the logits of either side that has a place.
///
/// `divergence` and the scales are what [`kl_divergence`](crate::kl_divergence) returned. A row without a divergence has NaN.
///
/// # Errors
/// [`Error::ShapeMismatch`] if there is not one of each for each row; [`Error::BufferLength`] for a place of another size; as
/// [`kl_divergence`](crate::kl_divergence).
pub fn kl_gradients<E: Element>(
    sides: [&LogitsView<'_, E>; 2],
    divergence: &[f64],
    terms: &PairTerms<'_>,
    outs: [Option<&mut [E]>; 2],
    execution: &Execution,
) -> Result<(), Error> {
    kl_gradients_with(sides, divergence, terms, outs, execution, &never)
}

pub(crate) fn kl_gradients_with<E: Element>(
    sides: [&LogitsView<'_, E>; 2],
    divergence: &[f64],
    terms: &PairTerms<'_>,
    outs: [Option<&mut [E]>; 2],
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    check_lengths(sides[0].rows(), [("divergence", divergence.len())])?;
    let gradient = |_: Isa, _: &mut Scratch<E>, row: usize| terms.row(Rule::Kl, row, divergence[row]);
    write_pairs(sides, terms, gradient, outs, execution, interrupt)
}

/// The gradient of sum_n upstream_n JS_n with respect to the logits of either side that has a place. Rows are read twice:
/// first for KL(p||m) and KL(q||m), m the mean of p and q.
///
/// # Errors
/// As [`kl_gradients`].
pub fn js_gradients<E: Element>(
    sides: [&LogitsView<'_, E>; 2],
    terms: &PairTerms<'_>,
    outs: [Option<&mut [E]>; 2],
    execution: &Execution,
) -> Result<(), Error> {
    js_gradients_with(sides, terms, outs, execution, &never)
}

pub(crate) fn js_gradients_with<E: Element>(
    sides: [&LogitsView<'_, E>; 2],
    terms: &PairTerms<'_>,
    outs: [Option<&mut [E]>; 2],
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    let gradient = |isa: Isa, scratch: &mut Scratch<E>, row: usize| {
        let rows = sides.map(|side| side.row(row));
        let gradient = terms.row(Rule::Jensen, row, 0.0);
        let centres = isa.run(MixtureRow { gradient: &gradient, rows, scratch });
        PairGradient { centres, ..gradient }
    };
    write_pairs(sides, terms, gradient, outs, execution, interrupt)
}

/// Buffers of one thread.
type Scratch<E> = [LeafScratch<E>; 2];

/// Writes each row's gradients.
fn write_pairs<E: Element>(
    sides: [&LogitsView<'_, E>; 2],
    terms: &PairTerms<'_>,
    gradient: impl Fn(Isa, &mut Scratch<E>, usize) -> PairGradient + Sync,
    outs: [Option<&mut [E]>; 2],
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    check_pair(sides[0], sides[1], terms.temperature)?;
    let (rows, vocab) = (sides[0].rows(), sides[0].vocab());
    terms.check(rows)?;
    let plan = Plan::new(rows, vocab, execution)?;
    let size = rows_of_unit(&plan);
    let mut places = Vec::new();
    for out in outs {
        let columns = out.as_ref().map_or(Ok(1), |out| row_length(sides[0], out))?;
        places.push(out.map(|out| Places { columns, units: out.chunks_mut(size * columns) }));
    }
    let [mut p_places, mut q_places] = [places.remove(0), places.remove(0)];
    let units = (0..rows.div_ceil(size)).map(|unit| (unit, [next_unit(&mut p_places), next_unit(&mut q_places)]));
    let work = |scratch: &mut Scratch<E>, (unit, mut outs): (usize, [Option<ChunksExactMut<'_, E>>; 2])| {
        for row in unit * size..rows.min((unit + 1) * size) {
            let outs = outs.each_mut().map(|out| {
                let (out, padding) = out.as_mut()?.next()?.split_at_mut(vocab);
                padding.fill(zero());
                Some(out)
            });
            let gradient = &gradient(plan.isa, scratch, row);
            let rows = sides.map(|side| side.row(row));
            plan.isa.run(PairGradientRow { gradient, rows, scratch, outs });
        }
    };
    let scratch = || [LeafScratch::new(), LeafScratch::new()];
    with_default_control(|| for_each(plan.threads, units, scratch, work, interrupt))
}

/// The places of one side's gradient: units of rows of `columns` numbers.
struct Places<'o, E> {
    columns: usize,
    units: ChunksMut<'o, E>,
}

/// The rows of the next unit.
fn next_unit<'o, E>(places: &mut Option<Places<'o, E>>) -> Option<ChunksExactMut<'o, E>> {
    let Places { columns, units } = places.as_mut()?;
    Some(units.next()?.chunks_exact_mut(*columns))
}

/// The gradients of sum_n upstream_n KL(p||q)_n of two heads, as [`linear_kl_divergence`](crate::linear_kl_divergence) defines
/// it, with respect to hidden states, weights and bias of p and of q.
///
/// # Errors
/// As [`kl_gradients`], and [`linear_kl_divergence`](crate::linear_kl_divergence).
pub fn linear_kl_gradients(
    sides: [&Projection<'_>; 2],
    divergence: &[f64],
    terms: &PairTerms<'_>,
    options: [GradientOptions; 2],
    execution: &Execution,
) -> Result<[Gradients; 2], Error> {
    linear_kl_gradients_with(sides, divergence, terms, options, execution, &never)
}

pub(crate) fn linear_kl_gradients_with(
    sides: [&Projection<'_>; 2],
    divergence: &[f64],
    terms: &PairTerms<'_>,
    options: [GradientOptions; 2],
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<[Gradients; 2], Error> {
    check_sides(sides[0], sides[1], terms.temperature)?;
    terms.check(sides[0].rows())?;
    check_lengths(sides[0].rows(), [("divergence", divergence.len())])?;
    let of_side = |is_q: usize| {
        let (mine, other) = (sides[is_q], sides[1 - is_q]);
        let options = &options[is_q];
        if !(options.hidden || options.weight || options.bias) {
            return Ok(Gradients::default());
        }
        let width = mine.hidden.width().max(other.hidden.width());
        let plan = HeadPlan::new(mine.rows(), width, mine.vocab(), execution)?;
        let (isa, is_q, softcap) = (plan.isa, is_q == 1, mine.softcap);
        with_default_control(|| {
            if mine.is_wide() || other.is_wide() {
                let rule = KlRule { terms, divergence, other: other.wide(isa), is_q, isa, softcap };
                let product = mine.product(LaneTiles::<f64>::new(isa), isa);
                Call::new(&product, &rule, options, plan, mine.logit_scale, None).run(interrupt)
            } else {
                let rule = KlRule { terms, divergence, other: other.narrow(isa), is_q, isa, softcap };
                with_narrow_tiles!(mine, isa, |product| {
                    Call::new(&product, &rule, options, plan, mine.logit_scale, None).run(interrupt)
                })
            }
        })
    };
    Ok([of_side(0)?, of_side(1)?])
}

/// KL of two heads, for the logits of one of them.
struct KlRule<'l, F> {
    terms: &'l PairTerms<'l>,
    divergence: &'l [f64],
    other: Box<dyn Logits<F> + 'l>,
    is_q: bool,
    isa: Isa,
    softcap: Option<f64>,
}

impl<F: Arithmetic> HeadRule<F> for KlRule<'_, F> {
    fn counted(&self) -> Vec<usize> {
        (0..self.divergence.len()).collect()
    }

    /// The pair's derivatives have theirs already.
    fn factor(&self, _row: usize) -> f64 {
        1.0
    }

    fn other(&self, rows: usize) -> Option<Box<dyn LogitsBlock<F> + '_>> {
        Some(self.other.block(rows))
    }

    fn differentiate(&self, row: usize, logits: &mut [F], others: Option<&[F]>, columns: Range<usize>) {
        let others = others.expect("the rule has asked for the other side's logits");
        let gradient = &self.terms.row(Rule::Kl, row, self.divergence[row]);
        let (is_q, softcap, columns) = (self.is_q, self.softcap, columns.len());
        self.isa.run(DifferentiatePair { gradient, is_q, softcap, logits, others, columns });
    }
}
