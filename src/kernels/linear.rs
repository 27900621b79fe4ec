//! Logits that never all exist: those of a block of rows and one leaf, from hidden states and a head.
//!
//! In: hidden states `(rows, width)`, a head `(vocab, width)`. Out: one leaf of each row's logits at a time, as the other kernels
//! read them: `softcap(logit_scale * (hidden . weight + bias))`, before the temperature.

use super::rows::{CapLogit, CapLogits};
use crate::input::{GROUP, Head, HeadOperand, LEAF, MatrixView, PanelRoom, RowView};
use crate::simd::lent::BLOCK;
use crate::simd::tiles::{PANEL, Product, Tiles};
use crate::simd::{Element, Float, Isa};
use std::ops::Range;

/// Elements from one row of a leaf to the next: a leaf and one panel, so that rows do not share sets of the cache.
const STRIDE: usize = LEAF + PANEL;

/// Hidden states and a head that give rows of logits, whatever they are multiplied with.
pub trait Logits<F>: Sync {
    /// Room for the logits of up to `rows` rows.
    fn block(&self, rows: usize) -> Box<dyn LogitsBlock<F> + '_>;
}

/// The rows that one thread works on.
pub trait LogitsBlock<F>: Send {
    /// Takes the hidden states of these rows.
    fn load(&mut self, rows: &[usize]);
    /// One logit of each row, with the bits that it has in its leaf.
    fn targets(&mut self, columns: &[Option<usize>]) -> Vec<Option<F>>;
    /// Makes the logits of these columns, at most a leaf, from a multiple of sixteen on.
    fn multiply(&mut self, columns: Range<usize>);
    /// What `multiply` made of the row number `place`: whole blocks, the columns past the vocabulary minus infinity.
    fn leaf(&self, place: usize) -> &[F];
    /// The same, to be changed.
    fn leaf_mut(&mut self, place: usize) -> &mut [F];
}

/// What follows a product: bias, factor and soft cap, in the type of the logits.
pub(crate) struct Affine<F> {
    logit_scale: F,
    bias: Option<Vec<F>>,
    softcap: Option<f64>,
}

impl<F: Float> Affine<F> {
    pub(crate) fn new(logit_scale: f64, bias: Option<&[f64]>, softcap: Option<f64>) -> Self {
        let bias = bias.map(|bias| bias.iter().map(|&value| F::from_f64(value)).collect());
        Self { logit_scale: F::from_f64(logit_scale), bias, softcap }
    }
}

/// One class of products.
pub(crate) struct HeadLogits<'a, T: Tiles> {
    pub(crate) tiles: T,
    pub(crate) isa: Isa,
    pub(crate) hidden: &'a MatrixView<'a>,
    pub(crate) head: &'a Head<'a>,
    pub(crate) affine: Affine<T::Sum>,
}

impl<T: Tiles<Operand: HeadOperand, Sum: Arithmetic>> Logits<T::Sum> for HeadLogits<'_, T> {
    fn block(&self, rows: usize) -> Box<dyn LogitsBlock<T::Sum> + '_> {
        Box::new(HeadBlock::new(self, rows))
    }
}

pub(crate) struct HeadBlock<'p, 'a, T: Tiles> {
    product: &'p HeadLogits<'a, T>,
    left: Vec<T::Operand>,
    rows: usize,
    room: PanelRoom<T::Operand>,
    /// Columns of the leaf that `sums` hold.
    columns: usize,
    sums: Vec<T::Sum>,
}

impl<'p, 'a, T: Tiles<Operand: HeadOperand, Sum: Arithmetic>> HeadBlock<'p, 'a, T> {
    pub(crate) fn new(product: &'p HeadLogits<'a, T>, rows: usize) -> Self {
        let room = PanelRoom::new(product.head.width());
        let left = vec![room.rows[0]; rows * room.depth];
        Self { product, left, rows: 0, room, columns: 0, sums: vec![T::Sum::ZERO; rows * STRIDE] }
    }

    /// Makes the logits of these columns. `packed` holds their panels, where somebody has packed them.
    pub(crate) fn multiply_with(&mut self, columns: Range<usize>, packed: Option<&[T::Operand]>) {
        let (product, depth, start) = (self.product, self.room.depth, columns.start);
        self.columns = columns.len();
        for first in (0..self.columns).step_by(GROUP) {
            let rows = GROUP.min(self.columns - first);
            let panels = rows.div_ceil(PANEL);
            product.tiles.multiply(Product {
                left: &self.left,
                left_stride: depth,
                rows: self.rows,
                right: match packed {
                    Some(panels) => &panels[first * depth..],
                    None => product.head.panels(product.isa, start + first, rows, &mut self.room),
                },
                panels,
                depth,
                right_stride: PANEL * depth,
                sums: &mut self.sums[first..],
                stride: STRIDE,
                adds: false,
            });
        }
        let padded = self.columns.next_multiple_of(BLOCK);
        for leaf in self.sums.chunks_mut(STRIDE).take(self.rows) {
            product.affine.apply(start, &mut leaf[..self.columns]);
            if let Some(cap) = product.affine.softcap {
                product.isa.run(CapLogits { logits: &mut leaf[..padded], cap });
            }
            leaf[self.columns..padded].fill(T::Sum::NEG_INFINITY);
        }
    }
}

impl<T: Tiles<Operand: HeadOperand, Sum: Arithmetic>> LogitsBlock<T::Sum> for HeadBlock<'_, '_, T> {
    fn load(&mut self, rows: &[usize]) {
        let (depth, hidden) = (self.room.depth, self.product.hidden);
        let width = hidden.width();
        for (&row, target) in rows.iter().zip(self.left.chunks_exact_mut(depth)) {
            hidden.copy_row(row, &mut target[..width]);
        }
        self.rows = rows.len();
    }

    fn targets(&mut self, columns: &[Option<usize>]) -> Vec<Option<T::Sum>> {
        let (product, depth) = (self.product, self.room.depth);
        let width = product.hidden.width();
        let mut logits = Vec::with_capacity(columns.len());
        let mut sums = [T::Sum::ZERO; PANEL * PANEL];
        // Sixteen rows times the weights of their sixteen targets: the diagonal.
        for (group, columns) in columns.chunks(PANEL).enumerate() {
            for (column, target) in columns.iter().zip(self.room.rows.chunks_mut(depth)) {
                product.head.copy_row(column.unwrap_or(0), &mut target[..width]);
            }
            product.tiles.multiply(Product {
                left: &self.left[group * PANEL * depth..],
                left_stride: depth,
                rows: columns.len(),
                right: self.room.pack(product.isa, 1),
                panels: 1,
                depth,
                right_stride: PANEL * depth,
                sums: &mut sums,
                stride: PANEL,
                adds: false,
            });
            let diagonal = sums.iter().step_by(PANEL + 1);
            let affine = &product.affine;
            logits.extend(columns.iter().zip(diagonal).map(|(column, sum)| {
                let column = (*column)?;
                let bias = affine.bias.as_ref().map(|bias| bias[column]);
                let logit = Arithmetic::affine(*sum, bias, affine.logit_scale);
                Some(affine.softcap.map_or(logit, |cap| product.isa.run(CapLogit { logit, cap })))
            }));
        }
        logits
    }

    fn multiply(&mut self, columns: Range<usize>) {
        self.multiply_with(columns, None);
    }

    fn leaf(&self, place: usize) -> &[T::Sum] {
        &self.sums[place * STRIDE..][..self.columns.next_multiple_of(BLOCK)]
    }

    fn leaf_mut(&mut self, place: usize) -> &mut [T::Sum] {
        &mut self.sums[place * STRIDE..][..self.columns.next_multiple_of(BLOCK)]
    }
}

/// What the bias and the factor need of a compute type.
pub trait Arithmetic: Float + Element<Compute = Self> {
    /// `(sum + bias) * scale`, each rounded.
    fn affine(sum: Self, bias: Option<Self>, scale: Self) -> Self;
    /// `value - other`.
    fn less(value: Self, other: Self) -> Self;
    /// Whether it lies between -bound and bound.
    fn is_below(value: Self, bound: Self) -> bool;
}
impl Arithmetic for f32 {
    fn affine(sum: f32, bias: Option<f32>, scale: f32) -> f32 {
        bias.map_or(sum, |bias| sum + bias) * scale
    }
    fn less(value: f32, other: f32) -> f32 {
        value - other
    }
    fn is_below(value: f32, bound: f32) -> bool {
        value.abs() < bound
    }
}
impl Arithmetic for f64 {
    fn affine(sum: f64, bias: Option<f64>, scale: f64) -> f64 {
        bias.map_or(sum, |bias| sum + bias) * scale
    }
    fn less(value: f64, other: f64) -> f64 {
        value - other
    }
    fn is_below(value: f64, bound: f64) -> bool {
        value.abs() < bound
    }
}

impl<F: Arithmetic> Affine<F> {
    /// Changes the logits of neighbouring columns from `start` on.
    fn apply(&self, start: usize, logits: &mut [F]) {
        match &self.bias {
            Some(bias) => {
                for (logit, bias) in logits.iter_mut().zip(&bias[start..]) {
                    *logit = F::affine(*logit, Some(*bias), self.logit_scale);
                }
            }
            None if self.logit_scale == F::ONE => {}
            None => logits.iter_mut().for_each(|logit| *logit = F::affine(*logit, None, self.logit_scale)),
        }
    }
}

/// The columns of leaf number `index`.
pub(crate) fn leaf_columns(index: usize, vocab: usize) -> Range<usize> {
    index * LEAF..vocab.min((index + 1) * LEAF)
}

/// One or two models' rows of logits, for kernels that read so many.
pub(crate) struct Blocks<'p, F, const SIDES: usize>([Box<dyn LogitsBlock<F> + 'p>; SIDES]);

impl<'p, F: Arithmetic, const SIDES: usize> Blocks<'p, F, SIDES> {
    pub(crate) fn new(sides: &[&'p dyn Logits<F>; SIDES], rows: usize) -> Self {
        Self(sides.map(|side| side.block(rows)))
    }

    pub(crate) fn load(&mut self, rows: &[usize]) {
        self.0.iter_mut().for_each(|side| side.load(rows));
    }

    /// Target logits of each side.
    pub(crate) fn targets(&mut self, columns: &[Option<usize>]) -> [Vec<Option<F>>; SIDES] {
        let has_targets = columns.iter().any(Option::is_some);
        let sides = self.0.each_mut();
        sides.map(|side| if has_targets { side.targets(columns) } else { vec![None; columns.len()] })
    }

    pub(crate) fn multiply(&mut self, index: usize, vocab: usize) {
        self.0.iter_mut().for_each(|side| side.multiply(leaf_columns(index, vocab)));
    }

    /// Leaf number `index` of a row, which `multiply` made, as a row of `vocab` columns.
    pub(crate) fn views(&self, place: usize, index: usize, vocab: usize) -> [RowView<'_, F>; SIDES] {
        std::array::from_fn(|side| RowView::window(self.0[side].leaf(place), index, vocab))
    }
}
