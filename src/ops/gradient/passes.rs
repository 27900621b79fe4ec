//! The passes of a gradient over the vocabulary: rows, then columns, for some columns at a time. A [`Rule`] says what is
//! differentiated.

use super::{GradientOptions, Gradients};
use crate::error::{Error, try_filled};
use crate::input::{GROUP, HeadOperand, padded_depth};
use crate::kernels::gradient::{Round, Transpose};
use crate::kernels::linear::{Arithmetic, HeadBlock, HeadLogits, LogitsBlock};
use crate::output::{Matrix, RowMut};
use crate::plan::HeadPlan;
use crate::run::{self, Interrupt};
use crate::simd::lent::BLOCK;
use crate::simd::tiles::{PANEL, Product, Tiles, pack_columns, pack_rows};
use crate::simd::{Element, Float};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// Columns of the vocabulary that are worked on at a time; their derivatives for all rows are kept meanwhile.
const COLUMNS: usize = 2 * BLOCK;

/// What is differentiated: rows of a head's logits in, derivatives by these logits out.
pub(super) trait Rule<F>: Sync {
    /// The rows that have a gradient; it is 0 elsewhere.
    fn counted(&self) -> Vec<usize>;
    /// What a row's derivatives are multiplied with.
    fn factor(&self, row: usize) -> f64;
    /// Room for another model's logits of so many rows, if the derivatives need them.
    fn other(&self, _rows: usize) -> Option<Box<dyn LogitsBlock<F> + '_>> {
        None
    }
    /// Whole blocks of a row's logits become derivatives; padding 0.
    fn differentiate(&self, row: usize, logits: &mut [F], others: Option<&[F]>, columns: Range<usize>);
}

/// Everything that stays the same over the vocabulary.
pub(super) struct Call<'c, 'a, T: Tiles> {
    product: &'c HeadLogits<'a, T>,
    rule: &'c dyn Rule<T::Sum>,
    options: &'c GradientOptions,
    plan: HeadPlan,
    logit_scale: f64,
    /// Which row of the weights a column is.
    order: Option<&'c [usize]>,
    /// The counted rows, and how many a block takes: both follow from the shape alone.
    counted: Vec<usize>,
    block_rows: usize,
    /// Numbers of one row of sums: whole panels.
    stride: usize,
    /// Numbers of one row of operands.
    depth: usize,
    scratch: Mutex<Vec<RowScratch<'c, 'a, T>>>,
}

/// The rows of one class.
type Blocks<T> = Vec<RowBlock<<T as Tiles>::Operand, <T as Tiles>::Sum>>;

/// Some rows, and what belongs to them alone.
struct RowBlock<O, F> {
    rows: Vec<usize>,
    /// `(rows, stride)` sums of the hidden states' gradient.
    hidden_sums: Vec<F>,
    /// The hidden states as panels, their rows the depth.
    hidden_panels: Vec<O>,
    /// `(COLUMNS, block_rows)` derivatives of the columns that are worked on.
    derivatives: Vec<O>,
    /// Sums of these over the rows.
    column_sums: Vec<f64>,
    /// The groups of columns with a derivative that counts.
    groups: Vec<usize>,
}

/// Buffers for work on rows.
struct RowScratch<'p, 'a, T: Tiles> {
    block: HeadBlock<'p, 'a, T>,
    other: Option<Box<dyn LogitsBlock<T::Sum> + 'p>>,
    /// `(rows, COLUMNS)` derivatives.
    operands: Vec<T::Operand>,
}

/// The weights of the columns that are worked on, packed once for all blocks of rows.
struct Weights<O> {
    /// `(COLUMNS, depth)`, as they lie.
    rows: Vec<O>,
    /// Panels whose columns are the vocabulary's, for logits.
    row_panels: Vec<O>,
    /// Panels whose depth is the vocabulary, for the gradient of the hidden states.
    column_panels: Vec<O>,
}

/// A group of rows as they lie, and the place of their panels.
type Lying<'w, O> = (&'w mut [O], &'w mut [O]);

impl<'c, 'a, T: Tiles<Operand: HeadOperand, Sum: Arithmetic>> Call<'c, 'a, T> {
    pub(super) fn new(
        product: &'c HeadLogits<'a, T>,
        rule: &'c dyn Rule<T::Sum>,
        options: &'c GradientOptions,
        plan: HeadPlan,
        logit_scale: f64,
        order: Option<&'c [usize]>,
    ) -> Self {
        let counted = rule.counted();
        let block_rows = (counted.len() / 4).clamp(32, 128).next_multiple_of(32);
        let stride = product.head.width().next_multiple_of(PANEL).max(PANEL);
        let depth = padded_depth::<T::Operand>(product.head.width());
        let scratch = Mutex::default();
        Self { product, rule, options, plan, logit_scale, order, counted, block_rows, stride, depth, scratch }
    }

    /// All gradients that are wanted.
    pub(super) fn run(&self, interrupt: Interrupt<'_>) -> Result<Gradients, Error> {
        let (hidden, head) = (self.product.hidden, self.product.head);
        let (width, vocab) = (hidden.width(), head.vocab());
        let zeros = |wanted: bool, element: &str, rows: usize| {
            wanted.then(|| Matrix::zeros(element, rows.saturating_mul(width))).transpose()
        };
        let mut gradients = Gradients {
            hidden: zeros(self.options.hidden, hidden.element(), hidden.rows())?,
            weight: zeros(self.options.weight, head.element(), vocab)?,
            bias: self.options.bias.then(|| try_filled(vocab, 0.0)).transpose()?,
        };
        let mut weight_rows: Vec<Option<RowMut<'_>>> = match &mut gradients.weight {
            Some(matrix) => matrix.rows_mut(width).into_iter().map(Some).collect(),
            None => Vec::new(),
        };
        let mut blocks = self.blocks(interrupt)?;
        let mut weights = self.weights()?;
        for start in (0..vocab).step_by(COLUMNS) {
            let columns = start..vocab.min(start + COLUMNS);
            self.pack_weights(&mut weights, columns.clone(), interrupt)?;
            self.read_columns(&mut blocks, &weights, columns.clone(), interrupt)?;
            let place = |column: usize| self.order.map_or(column, |order| order[column]);
            if !weight_rows.is_empty() {
                let take = |column| weight_rows[place(column)].take().expect("a column comes once");
                self.write_weights(&blocks, columns.clone().map(take).collect(), interrupt)?;
            }
            if let Some(bias) = &mut gradients.bias {
                for column in columns {
                    bias[place(column)] = blocks.iter().fold(0.0, |sum, block| sum + block.column_sums[column - start]);
                }
            }
        }
        drop(weight_rows);
        if let Some(matrix) = &mut gradients.hidden {
            let mut rows = matrix.rows_mut(width);
            for block in blocks.iter().filter(|_| width > 0) {
                let sums = block.hidden_sums.chunks(self.stride);
                block.rows.iter().zip(sums).for_each(|(&row, sums)| rows[row].write(&sums[..width]));
            }
        }
        Ok(gradients)
    }

    /// The counted rows, with their hidden states packed for the weights' gradient.
    fn blocks(&self, interrupt: Interrupt<'_>) -> Result<Blocks<T>, Error> {
        let zero = T::Operand::narrow(T::Sum::ZERO);
        let width = self.product.head.width();
        let mut blocks = Vec::new();
        for rows in self.counted.chunks(self.block_rows) {
            let room = |wanted: bool, count: usize| if wanted { count } else { 0 };
            blocks.push(RowBlock {
                rows: rows.to_vec(),
                hidden_sums: try_filled(room(self.options.hidden, rows.len() * self.stride), T::Sum::ZERO)?,
                hidden_panels: try_filled(room(self.options.weight, self.block_rows * self.stride), zero)?,
                derivatives: try_filled(room(self.options.weight, self.block_rows * COLUMNS), zero)?,
                column_sums: vec![0.0; COLUMNS],
                groups: Vec::new(),
            });
        }
        if self.options.weight && width > 0 {
            let pack = |hidden: &mut Vec<T::Operand>, block: &mut RowBlock<T::Operand, T::Sum>| {
                for (&row, target) in block.rows.iter().zip(hidden.chunks_mut(width)) {
                    self.product.hidden.copy_row(row, target);
                }
                let rows = &hidden[..block.rows.len() * width];
                pack_columns(self.plan.isa, rows, width, width, &mut block.hidden_panels);
            };
            let rows = || vec![zero; self.block_rows * width];
            run::for_each(self.plan.threads, blocks.iter_mut(), rows, pack, interrupt)?;
        }
        Ok(blocks)
    }

    fn weights(&self) -> Result<Weights<T::Operand>, Error> {
        let zero = T::Operand::narrow(T::Sum::ZERO);
        Ok(Weights {
            rows: try_filled(COLUMNS * self.depth, zero)?,
            row_panels: try_filled(COLUMNS * self.depth, zero)?,
            column_panels: try_filled(if self.options.hidden { COLUMNS * self.stride } else { 0 }, zero)?,
        })
    }

    /// Packs the weights of these columns both ways.
    fn pack_weights(
        &self,
        weights: &mut Weights<T::Operand>,
        columns: Range<usize>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        let (isa, depth, width) = (self.plan.isa, self.depth, self.product.head.width());
        let group = GROUP * depth;
        let pack_group = |_: &mut (), (index, (rows, panels)): (usize, Lying<'_, T::Operand>)| {
            for (i, row) in rows.chunks_mut(depth).enumerate() {
                let column = columns.start + index * GROUP + i;
                if column < columns.end {
                    self.product.head.copy_row(column, &mut row[..width]);
                } else {
                    row.fill(T::Operand::narrow(T::Sum::ZERO));
                }
            }
            for (rows, panel) in rows.chunks(PANEL * depth).zip(panels.chunks_mut(PANEL * depth)) {
                pack_rows(isa, rows, depth, depth, panel);
            }
        };
        let units = weights.rows.chunks_mut(group).zip(weights.row_panels.chunks_mut(group)).enumerate();
        run::for_each(self.plan.threads, units, || (), pack_group, interrupt)?;
        let rows = &weights.rows;
        let pack_panels = |_: &mut (), (index, panels): (usize, &mut [T::Operand])| {
            let first = index * GROUP;
            pack_columns(isa, &rows[first..], depth, GROUP.min(self.stride - first).min(depth - first), panels);
        };
        let units = weights.column_panels.chunks_mut(GROUP * COLUMNS).enumerate();
        run::for_each(self.plan.threads, units, || (), pack_panels, interrupt)
    }

    /// Every block's derivatives of these columns, and their part of the hidden states' gradient.
    fn read_columns(
        &self,
        blocks: &mut [RowBlock<T::Operand, T::Sum>],
        weights: &Weights<T::Operand>,
        columns: Range<usize>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        let work = |_: &mut (), block: &mut RowBlock<T::Operand, T::Sum>| {
            let mut scratch = self.take_scratch();
            scratch.block.load(&block.rows);
            scratch.block.multiply_with(columns.clone(), Some(&weights.row_panels));
            if let Some(other) = &mut scratch.other {
                other.load(&block.rows);
                other.multiply(columns.clone());
            }
            self.differentiate(&mut scratch, block, columns.clone());
            if self.options.hidden {
                self.add_to_hidden(&scratch, block, weights);
            }
            self.free_scratch().push(scratch);
        };
        run::for_each(self.plan.threads, blocks.iter_mut(), || (), work, interrupt)
    }

    /// Buffers are made once for each thread and used for all columns.
    fn take_scratch(&self) -> RowScratch<'c, 'a, T> {
        let zero = T::Operand::narrow(T::Sum::ZERO);
        let free = self.free_scratch().pop();
        free.unwrap_or_else(|| RowScratch {
            block: HeadBlock::new(self.product, self.block_rows),
            other: self.rule.other(self.block_rows),
            operands: vec![zero; self.block_rows * COLUMNS],
        })
    }

    fn free_scratch(&self) -> MutexGuard<'_, Vec<RowScratch<'c, 'a, T>>> {
        self.scratch.lock().expect("the lock is held only to take and give back")
    }

    /// Turns the block's logits into derivatives, by rows for the hidden states and by columns for the weights.
    fn differentiate(
        &self,
        scratch: &mut RowScratch<'c, 'a, T>,
        block: &mut RowBlock<T::Operand, T::Sum>,
        columns: Range<usize>,
    ) {
        let isa = self.plan.isa;
        for (place, &row) in block.rows.iter().enumerate() {
            let others = scratch.other.as_ref().map(|other| other.leaf(place));
            self.rule.differentiate(row, scratch.block.leaf_mut(place), others, columns.clone());
        }
        let counts = |group: &usize| {
            let eps = T::Sum::from_f64(self.options.filter_eps.unwrap_or(0.0));
            let is_small = |value: &T::Sum| T::Sum::is_below(*value, eps);
            let places = group * GROUP..(group + 1) * GROUP;
            self.options.filter_eps.is_none()
                || (0..block.rows.len()).any(|place| !scratch.block.leaf(place)[places.clone()].iter().all(is_small))
        };
        block.groups = (0..columns.len().div_ceil(GROUP)).filter(counts).collect();
        block.column_sums.fill(0.0);
        for (place, &row) in block.rows.iter().enumerate() {
            let (derivatives, factor) = (scratch.block.leaf(place), self.factor(row));
            for group in &block.groups {
                isa.run(Round {
                    factor,
                    derivatives: &derivatives[group * GROUP..][..GROUP],
                    operands: &mut scratch.operands[place * COLUMNS + group * GROUP..][..GROUP],
                    column_sums: &mut block.column_sums[group * GROUP..][..GROUP],
                });
            }
        }
        if self.options.weight {
            for group in &block.groups {
                let target = &mut block.derivatives[group * GROUP * self.block_rows..][..GROUP * self.block_rows];
                let source = &scratch.operands[group * GROUP..];
                isa.run(Transpose { source, stride: COLUMNS, rows: block.rows.len(), target, columns: GROUP });
            }
        }
    }

    /// What a derivative is multiplied with: the rule's factor, and the derivative of a logit by the product.
    fn factor(&self, row: usize) -> f64 {
        self.rule.factor(row) * self.logit_scale
    }

    /// Adds derivatives times weights to the block's rows, neighbouring groups at a time.
    fn add_to_hidden(
        &self,
        scratch: &RowScratch<'c, 'a, T>,
        block: &mut RowBlock<T::Operand, T::Sum>,
        weights: &Weights<T::Operand>,
    ) {
        for groups in block.groups.chunk_by(|group, next| group + 1 == *next) {
            let first = groups[0] * GROUP;
            self.product.tiles.multiply(Product {
                left: &scratch.operands[first..],
                left_stride: COLUMNS,
                rows: block.rows.len(),
                right: &weights.column_panels[first * PANEL..],
                right_stride: COLUMNS * PANEL,
                panels: self.stride / PANEL,
                depth: groups.len() * GROUP,
                sums: &mut block.hidden_sums,
                stride: self.stride,
                adds: true,
            });
        }
    }

    /// Derivatives times hidden states, for each group of columns over all blocks of rows in turn.
    fn write_weights(
        &self,
        blocks: &[RowBlock<T::Operand, T::Sum>],
        mut rows: Vec<RowMut<'_>>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        let (stride, width) = (self.stride, self.product.head.width());
        let work = |sums: &mut Vec<T::Sum>, (group, rows): (usize, &mut [RowMut<'_>])| {
            sums.fill(T::Sum::ZERO);
            // A few panels over all blocks at a time: their sums stay in the first-level cache.
            for first in (0..stride).step_by(GROUP) {
                for block in blocks.iter().filter(|block| block.groups.contains(&group)) {
                    self.product.tiles.multiply(Product {
                        left: &block.derivatives[group * GROUP * self.block_rows..],
                        left_stride: self.block_rows,
                        rows: rows.len(),
                        right: &block.hidden_panels[first * self.block_rows..],
                        right_stride: PANEL * self.block_rows,
                        panels: GROUP.min(stride - first) / PANEL,
                        depth: self.block_rows,
                        sums: &mut sums[first..],
                        stride,
                        adds: true,
                    });
                }
            }
            rows.iter_mut().zip(sums.chunks(stride)).for_each(|(row, sums)| row.write(&sums[..width]));
        };
        let sums = || vec![T::Sum::ZERO; GROUP * stride];
        run::for_each(self.plan.threads, rows.chunks_mut(GROUP).enumerate(), sums, work, interrupt)
    }
}
