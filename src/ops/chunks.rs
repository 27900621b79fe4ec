//! Vocabulary in chunks: the operations of [`RowStatsState`].

use super::linear::{MadeOf, Projection};
use super::{Options, never};
use crate::error::Error;
use crate::input::{LEAF, Leaf, LeafScratch, LogitsView, RowView, Targets};
use crate::kernels::linear::LogitsBlock;
use crate::kernels::rows::{Scan, scan_leaf_whole};
use crate::output::{RowColumns, RowStats};
use crate::plan::{Execution, HeadPlan, Plan};
use crate::run::{self, Interrupt};
use crate::simd::lent::BLOCK;
use crate::simd::with_default_control;
use crate::simd::{Element, Float, Isa, Job, Simd};
use crate::state::chunks::{ChunkedRow, CompleteLeaf};
use crate::state::top::TopColumns;
use crate::state::{self, RowStatsState};
use serde::{Serialize, de::DeserializeOwned};

impl<F: Float + Element<Compute = F>> RowStatsState<F> {
    /// A state of `row_count` rows that no column has come for. `target_logits` are the targets' logits, which rank and ties
    /// need: without them both are 0.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a setting out of range or a soft cap, which chunks do not take; [`Error::ShapeMismatch`]
    /// if there is not one target, or target logit, for each row; [`Error::OutOfMemory`].
    pub fn new(
        row_count: usize,
        vocab: usize,
        targets: Option<Targets>,
        target_logits: Option<Vec<f64>>,
        options: &Options,
    ) -> Result<Self, Error> {
        let inverse_temperature = options.checked(vocab)?;
        if let Some(softcap) = options.softcap {
            let expected = "none for a state; cap the logits before";
            return Err(Error::Parameter { name: "softcap", value: softcap.to_string(), expected });
        }
        let lengths =
            [("targets", targets.as_ref().map(Targets::rows)), ("target_logits", target_logits.as_ref().map(Vec::len))];
        for (left, length) in lengths {
            if let Some(length) = length.filter(|&length| length != row_count) {
                let (left_shape, right_shape) = (vec![length], vec![row_count]);
                return Err(Error::ShapeMismatch { left, left_shape, right: "the rows", right_shape });
            }
        }
        Self::empty(row_count, vocab, targets, target_logits, inverse_temperature, options.top_k)
    }

    /// Takes the columns from `start_column` on, `(rows, columns)`.
    ///
    /// # Errors
    /// [`Error::Columns`] if some came before or lie outside the vocabulary, [`Error::ShapeMismatch`] for another number of
    /// rows; the state is then as before. [`Error::Threads`]; the state is then empty.
    pub fn update<E: Element<Compute = F>>(
        &mut self,
        chunk: &LogitsView<'_, E>,
        start_column: usize,
        execution: &Execution,
    ) -> Result<(), Error> {
        self.update_with(chunk, start_column, execution, &never)
    }

    pub(crate) fn update_with<E: Element<Compute = F>>(
        &mut self,
        chunk: &LogitsView<'_, E>,
        start_column: usize,
        execution: &Execution,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error> {
        if chunk.rows() != self.row_count() {
            let (left_shape, right_shape) = (vec![chunk.rows()], vec![self.row_count()]);
            return Err(Error::ShapeMismatch { left: "logits_chunk", left_shape, right: "the state", right_shape });
        }
        let plan = Plan::new(chunk.rows(), chunk.vocab(), execution)?;
        let end_column = start_column.saturating_add(chunk.vocab());
        self.cover(start_column..end_column)?;
        if chunk.vocab() == 0 {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.rows);
        let update = ChunkUpdate { state: &*self, isa: plan.isa };
        let leaves = start_column / LEAF..end_column.div_ceil(LEAF);
        let work = |scratch: &mut LeafScratch<E>, (index, row): (usize, &mut ChunkedRow<F>)| {
            for leaf in leaves.clone() {
                update.take_columns(index, row, leaf, chunk.row(index), start_column, scratch);
            }
        };
        let result = run::for_each(plan.threads, rows.iter_mut().enumerate(), LeafScratch::new, work, interrupt);
        self.rows = rows;
        if result.is_err() {
            // Half a chunk has come: better nothing, which `compute` tells, than a wrong result.
            self.forget();
        }
        result
    }

    /// Takes the columns that a shard of a head makes, those from `start_column` on: the rows of its weights are
    /// neighbouring columns of the vocabulary.
    ///
    /// # Errors
    /// As [`RowStatsState::update`]; [`Error::StateMismatch`] for float64 in a state of float32.
    pub fn update_linear(
        &mut self,
        shard: &Projection<'_>,
        start_column: usize,
        execution: &Execution,
    ) -> Result<(), Error>
    where
        F: MadeOf,
    {
        self.update_linear_with(shard, start_column, execution, &never)
    }

    pub(crate) fn update_linear_with(
        &mut self,
        shard: &Projection<'_>,
        start_column: usize,
        execution: &Execution,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error>
    where
        F: MadeOf,
    {
        if shard.rows() != self.row_count() {
            let (left_shape, right_shape) = (vec![shard.rows()], vec![self.row_count()]);
            return Err(Error::ShapeMismatch { left: "hidden", left_shape, right: "the state", right_shape });
        }
        let plan = HeadPlan::new(shard.rows(), shard.hidden.width(), shard.vocab(), execution)?;
        let logits = F::logits(shard, plan.isa)?;
        let end_column = start_column.saturating_add(shard.vocab());
        self.cover(start_column..end_column)?;
        let mut rows = std::mem::take(&mut self.rows);
        let update = ChunkUpdate { state: &*self, isa: plan.isa };
        let scratch = || (logits.block(plan.rows), LeafScratch::new());
        let work = |(block, scratch): &mut (Box<dyn LogitsBlock<F> + '_>, LeafScratch<F>),
                    (unit, rows): (usize, &mut [ChunkedRow<F>])| {
            let indices: Vec<usize> = (unit * plan.rows..).take(rows.len()).collect();
            block.load(&indices);
            for leaf in start_column / LEAF..end_column.div_ceil(LEAF) {
                let (first, last) = (start_column.max(leaf * LEAF), end_column.min((leaf + 1) * LEAF));
                block.multiply(first - start_column..last - start_column);
                for (place, row) in rows.iter_mut().enumerate() {
                    let chunk = RowView::window(block.leaf(place), 0, last - first);
                    update.take_columns(indices[place], row, leaf, chunk, first, scratch);
                }
            }
        };
        let units = rows.chunks_mut(plan.rows).enumerate();
        let result = run::for_each(plan.threads, units, scratch, work, interrupt);
        self.rows = rows;
        if result.is_err() {
            self.forget();
        }
        result
    }

    /// Takes the columns of another state of the same rows, vocabulary, targets and settings.
    ///
    /// # Errors
    /// [`Error::StateMismatch`] if the states are not of one kind, [`Error::Columns`] if a column came in both; this state is
    /// then as before.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        self.check_same_kind(other)?;
        let known = self.coverage.clone();
        for columns in &other.coverage {
            if let Err(error) = self.cover(columns.clone()) {
                self.coverage = known;
                return Err(error);
            }
        }
        let isa = Isa::current()?;
        let mut rows = std::mem::take(&mut self.rows);
        let update = ChunkUpdate { state: &*self, isa };
        with_default_control(|| {
            for (index, (row, from)) in rows.iter_mut().zip(&other.rows).enumerate() {
                update.merge_row(index, row, from, other);
            }
        });
        self.rows = rows;
        Ok(())
    }

    /// The statistics, as one call over the whole rows gives them.
    ///
    /// # Errors
    /// [`Error::Columns`] if some never came, [`Error::OutOfMemory`].
    pub fn compute(&self) -> Result<RowColumns, Error> {
        self.check_complete()?;
        with_default_control(|| self.finish())
    }

    fn finish(&self) -> Result<RowColumns, Error> {
        let mut columns = RowColumns::allocate(self.row_count(), true, self.top_k)?;
        for (index, (row, mut slots)) in self.rows.iter().zip(columns.slots(1)).enumerate() {
            if !Self::reads(self.targets.as_ref(), index) {
                slots.write(0, &RowStats::IGNORED);
                continue;
            }
            let whole = row.gather(self.target_logits.is_some());
            let mut stats = whole.finish(row.target_logit, self.inverse_temperature);
            if self.target_logits.is_none() {
                (stats.rank, stats.ties) = (0, 0);
            }
            slots.write(0, &stats);
            whole.write_top(&stats, self.inverse_temperature, slots.top_log_probs, slots.top_ids);
        }
        columns.token_count = self.targets.as_ref().map_or(0, Targets::token_count);
        Ok(columns)
    }

    /// The state as bytes.
    pub fn to_bytes(&self) -> Vec<u8>
    where
        F: Serialize,
    {
        state::save(self)
    }

    /// The state that [`RowStatsState::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::SavedState`] for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error>
    where
        F: DeserializeOwned,
    {
        state::restore(bytes)
    }
}

/// What the rows of a state share while columns come in.
struct ChunkUpdate<'s, F> {
    /// Without its rows.
    state: &'s RowStatsState<F>,
    isa: Isa,
}

impl<F: Float + Element<Compute = F>> ChunkUpdate<'_, F> {
    /// Takes what a chunk holds of one leaf of one row.
    fn take_columns<E: Element<Compute = F>>(
        &self,
        index: usize,
        row: &mut ChunkedRow<F>,
        leaf: usize,
        chunk: RowView<'_, E>,
        chunk_start: usize,
        scratch: &mut LeafScratch<E>,
    ) {
        if !RowStatsState::<F>::reads(self.state.targets.as_ref(), index) {
            return;
        }
        let leaf_start = leaf * LEAF;
        let leaf_columns = LEAF.min(self.state.vocab - leaf_start);
        let start = leaf_start.max(chunk_start);
        let end = (leaf_start + leaf_columns).min(chunk_start + chunk.vocab());
        if end - start == leaf_columns {
            let columns = chunk.columns(start - chunk_start, leaf_columns, &mut scratch.columns);
            return self.complete(index, row, leaf, &columns);
        }
        let held = row.partial.entry(leaf).or_insert_with(|| vec![F::NEG_INFINITY; leaf_columns]);
        for (place, column) in held[start - leaf_start..end - leaf_start].iter_mut().zip(start - chunk_start..) {
            *place = chunk.logit(column).widen();
        }
        self.complete_if_covered(index, row, leaf);
    }

    fn merge_row(&self, index: usize, row: &mut ChunkedRow<F>, from: &ChunkedRow<F>, other: &RowStatsState<F>) {
        row.complete.extend(&from.complete);
        row.top.merge(&from.top);
        row.target_logit = row.target_logit.or(from.target_logit);
        for (&leaf, columns) in &from.partial {
            let held = row.partial.entry(leaf).or_insert_with(|| vec![F::NEG_INFINITY; columns.len()]);
            for range in other.columns_of_leaf(leaf) {
                let range = range.start - leaf * LEAF..range.end - leaf * LEAF;
                held[range.clone()].copy_from_slice(&columns[range]);
            }
            self.complete_if_covered(index, row, leaf);
        }
    }

    fn complete_if_covered(&self, index: usize, row: &mut ChunkedRow<F>, leaf: usize) {
        if !self.state.covers_leaf(leaf) {
            return;
        }
        let Some(mut columns) = row.partial.remove(&leaf) else { return };
        let count = columns.len();
        columns.resize(count.next_multiple_of(BLOCK), F::NEG_INFINITY);
        self.complete(index, row, leaf, &Leaf::from_padded(&columns, count));
    }

    fn complete<E: Element<Compute = F>>(
        &self,
        index: usize,
        row: &mut ChunkedRow<F>,
        leaf: usize,
        columns: &Leaf<'_, E>,
    ) {
        let target = self.state.targets.as_ref().and_then(|targets| targets.column(index));
        if let Some(column) = target.filter(|column| column / LEAF == leaf) {
            row.target_logit = Some(columns.logit(column % LEAF).widen().into());
        }
        let target_logits = self.state.target_logits.as_ref();
        let target_logit = target_logits.filter(|_| target.is_some()).map(|logits| F::from_f64(logits[index]));
        let scan = Scan { inverse_temperature: self.state.inverse_temperature, softcap: None, all: true };
        let top = TopColumns::new(self.state.top_k);
        let (complete, top) = self.isa.run(CompleteColumns { columns, scan, target_logit, leaf, top });
        row.complete.insert(leaf, complete);
        row.top.merge(&top);
    }
}

/// Reads one whole leaf.
struct CompleteColumns<'j, 'a, E: Element> {
    columns: &'j Leaf<'a, E>,
    scan: Scan,
    target_logit: Option<E::Compute>,
    leaf: usize,
    top: TopColumns,
}

impl<E: Element> Job for CompleteColumns<'_, '_, E> {
    type Output = (CompleteLeaf, TopColumns);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let start = (self.leaf * LEAF) as u64;
        let row = scan_leaf_whole(simd, self.columns, &self.scan, self.target_logit, start, self.top);
        let complete = CompleteLeaf { sums: row.leaves[0], peak: row.peak, above: row.above, equal: row.equal };
        (complete, row.top)
    }
}
