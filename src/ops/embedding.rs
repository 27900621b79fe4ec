//! The expected embedding: the rows of the head weighted by the softmax of its logits, in the same pass as the logits.

use super::linear::{Projection, with_narrow_tiles, with_tiles};
use super::{check_positive, never};
use crate::error::{Error, try_filled};
use crate::input::HeadOperand;
use crate::kernels::gradient::{Split, Weigh};
use crate::kernels::linear::{Arithmetic, HeadBlock, HeadLogits, LogitsBlock};
use crate::plan::{Execution, HeadPlan};
use crate::run::{self, Interrupt};
use crate::simd::lent::BLOCK;
use crate::simd::tiles::{Operand, PANEL, Product, Tiles, pack_columns};
use crate::simd::{Element, Float};
use std::ops::Range;

/// Columns of the vocabulary that are weighed at a time, around their own largest logit.
const COLUMNS: usize = 2 * BLOCK;

/// Softmax-weighted sums over a head.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpectedEmbedding {
    /// sum_v p_v weight_v, `(rows, width)`: for a plain head the gradient of lse with respect to the hidden state.
    pub embedding: Vec<f64>,
    /// Log-sum-exp of each row.
    pub lse: Vec<f64>,
}

/// sum_v p_v weight_v of each row, p the softmax of its logits at a temperature. Products of bfloat16 take p as the sum of
/// two bfloat16, so that it keeps 16 bits.
///
/// # Errors
/// As [`linear_row_stats`](crate::linear_row_stats); [`Error::EmptyVocabulary`].
pub fn linear_expected_embedding(
    projection: &Projection<'_>,
    temperature: f64,
    execution: &Execution,
) -> Result<ExpectedEmbedding, Error> {
    linear_expected_embedding_with(projection, temperature, execution, &never)
}

pub(crate) fn linear_expected_embedding_with(
    projection: &Projection<'_>,
    temperature: f64,
    execution: &Execution,
    interrupt: Interrupt<'_>,
) -> Result<ExpectedEmbedding, Error> {
    check_positive("temperature", temperature)?;
    if projection.vocab() == 0 {
        return Err(Error::EmptyVocabulary { operation: "an expected embedding" });
    }
    let (rows, width) = (projection.rows(), projection.hidden.width());
    let plan = HeadPlan::new(rows, width, projection.vocab(), execution)?;
    // A row's sums are folded leaf after leaf by one thread, so few rows are shared out in smaller blocks.
    let block_rows = plan.rows.min(rows.div_ceil(plan.threads)).max(1);
    let mut found =
        ExpectedEmbedding { embedding: try_filled(rows.saturating_mul(width), 0.0)?, lse: try_filled(rows, 0.0)? };
    with_tiles!(projection, plan.isa, |product| {
        let scratch = || Scratch::new(&product, block_rows);
        let work = |scratch: &mut Scratch<'_, '_, _>, (unit, (places, lse)): (usize, (&mut [f64], &mut [f64]))| {
            scratch.run(unit * block_rows, 1.0 / temperature, places, lse);
        };
        let places = found.embedding.chunks_mut((block_rows * width).max(1));
        // Without a width there are rows and no places.
        let places = places.map(Some).chain(std::iter::repeat_with(|| None)).map(Option::unwrap_or_default);
        let units = places.zip(found.lse.chunks_mut(block_rows)).enumerate();
        run::for_each(plan.threads, units, scratch, work, interrupt)?;
    });
    Ok(found)
}

/// Buffers of one thread, for a block of rows.
struct Scratch<'p, 'a, T: Tiles> {
    product: &'p HeadLogits<'a, T>,
    block: HeadBlock<'p, 'a, T>,
    /// `(rows, COLUMNS)` weights e^d as operands, and what they are too small by.
    operands: [Vec<T::Operand>; 2],
    /// The head's rows, as they lie and as panels.
    weights: Vec<T::Operand>,
    panels: Vec<T::Operand>,
    /// `(rows, stride)` sums over the columns that are weighed.
    sums: Vec<T::Sum>,
    stride: usize,
    /// Of each row: the largest logit so far and the sum of e^d around it.
    masses: Vec<(f64, f64)>,
}

impl<'p, 'a, T: Tiles<Operand: HeadOperand, Sum: Arithmetic>> Scratch<'p, 'a, T> {
    fn new(product: &'p HeadLogits<'a, T>, rows: usize) -> Self {
        let zero = T::Operand::narrow(T::Sum::ZERO);
        let stride = product.head.width().next_multiple_of(PANEL).max(PANEL);
        Self {
            product,
            block: HeadBlock::new(product, rows),
            operands: [vec![zero; rows * COLUMNS], vec![zero; rows * COLUMNS]],
            weights: vec![zero; COLUMNS * stride],
            panels: vec![zero; COLUMNS * stride],
            sums: vec![T::Sum::ZERO; rows * stride],
            stride,
            masses: Vec::new(),
        }
    }

    /// The rows from `first` on, into their places.
    fn run(&mut self, first: usize, inverse_temperature: f64, places: &mut [f64], lse: &mut [f64]) {
        let (vocab, width) = (self.product.head.vocab(), self.product.head.width());
        let rows: Vec<usize> = (first..first + lse.len()).collect();
        self.block.load(&rows);
        self.masses.clear();
        self.masses.resize(rows.len(), (f64::NEG_INFINITY, 0.0));
        for start in (0..vocab).step_by(COLUMNS) {
            let columns = start..vocab.min(start + COLUMNS);
            self.block.multiply(columns.clone());
            let found: Vec<(f64, f64)> =
                (0..rows.len()).map(|place| self.weigh(place, &columns, inverse_temperature)).collect();
            self.multiply(rows.len(), columns);
            for (place, (max, mass)) in found.into_iter().enumerate() {
                let sums = &self.sums[place * self.stride..][..width];
                let embedding = &mut places[place * width..(place + 1) * width];
                fold(&mut self.masses[place], (max, mass), inverse_temperature, embedding, sums);
            }
        }
        for (place, (&(max, mass), lse)) in self.masses.iter().zip(lse).enumerate() {
            *lse = max * inverse_temperature + libm::log(mass);
            places[place * width..(place + 1) * width].iter_mut().for_each(|sum| *sum /= mass);
        }
    }

    /// Turns a row's logits into weights e^d, as operands; the largest logit and the sum of the weights.
    fn weigh(&mut self, place: usize, columns: &Range<usize>, inverse_temperature: f64) -> (f64, f64) {
        let isa = self.product.isa;
        let logits = self.block.leaf_mut(place);
        let found = isa.run(Weigh { logits, inverse_temperature });
        let [high, low] = &mut self.operands;
        let width = columns.len().next_multiple_of(BLOCK);
        let places = place * COLUMNS..place * COLUMNS + width;
        let weights = &self.block.leaf(place)[..width];
        isa.run(Split { weights, high: &mut high[places.clone()], low: &mut low[places] });
        found
    }

    /// Weights times rows of the head.
    fn multiply(&mut self, rows: usize, columns: Range<usize>) {
        let (head, stride, depth) = (self.product.head, self.stride, columns.len().next_multiple_of(BLOCK));
        let width = head.width();
        for (i, target) in self.weights.chunks_mut(stride).take(depth).enumerate() {
            if columns.start + i < columns.end {
                head.copy_row(columns.start + i, &mut target[..width]);
            } else {
                target.fill(T::Operand::narrow(T::Sum::ZERO));
            }
        }
        let panels = &mut self.panels[..depth * stride];
        pack_columns(self.product.isa, &self.weights[..depth * stride], stride, stride, panels);
        for (index, left) in self.operands.iter().enumerate().take(T::Operand::PAIR) {
            let adds = index > 0;
            let (sums, right, panels) = (&mut self.sums[..], &panels[..], stride / PANEL);
            self.product.tiles.multiply(Product {
                left,
                left_stride: COLUMNS,
                rows,
                right,
                panels,
                depth,
                right_stride: PANEL * depth,
                sums,
                stride,
                adds,
            });
        }
    }
}

/// Adds sums around one largest logit to those around another.
fn fold<F: Float>(total: &mut (f64, f64), part: (f64, f64), scale: f64, embedding: &mut [f64], sums: &[F]) {
    let max = total.0.max(part.0);
    let share = |of: f64| if of == max { 1.0 } else { libm::exp((of - max) * scale) };
    let (old, new) = (share(total.0), share(part.0));
    *total = (max, total.1 * old + part.1 * new);
    for (place, &sum) in embedding.iter_mut().zip(sums) {
        let sum: f64 = sum.into();
        *place = *place * old + sum * new;
    }
}
