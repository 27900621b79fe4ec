//! Rows whose vocabulary arrives in chunks, in any order, over any number of states.
//!
//! A leaf that is complete keeps its sums; one held in part keeps its raw columns until a chunk or a merge completes it. So the
//! result has the same bits as one call over whole rows.

use super::leaf::{LeafSums, Peak};
use super::row::RowPartial;
use super::top::TopColumns;
use crate::error::{ColumnProblem, Error, try_filled};
use crate::input::{LEAF, Targets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Statistics of rows in the making. `F` is what the lanes compute in: `f32` for chunks of f32, f16 and bf16, else `f64`.
///
/// ```
/// use xentrs::{Execution, LogitsView, Options, RowStatsState, Targets};
/// let targets = Targets::new([2], 3, -100)?;
/// let mut state = RowStatsState::<f32>::new(1, 3, Some(targets), None, &Options::default())?;
/// state.update(&LogitsView::from_slice(&[0.0f32], 1, 1)?, 2, &Execution::default())?;
/// state.update(&LogitsView::from_slice(&[2.0f32, 1.0], 1, 2)?, 0, &Execution::default())?;
/// assert!((state.compute()?.nll[0] - 2.407_605_9).abs() < 1e-6);
/// # Ok::<(), xentrs::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowStatsState<F> {
    pub(crate) vocab: usize,
    pub(crate) targets: Option<Targets>,
    pub(crate) target_logits: Option<Vec<f64>>,
    pub(crate) inverse_temperature: f64,
    pub(crate) top_k: usize,
    /// Columns that have come, sorted and apart.
    pub(crate) coverage: Vec<Range<usize>>,
    pub(crate) rows: Vec<ChunkedRow<F>>,
}

/// One row of a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChunkedRow<F> {
    pub(crate) complete: BTreeMap<usize, CompleteLeaf>,
    /// Raw columns of leaves held in part; places that have not come are minus infinity.
    pub(crate) partial: BTreeMap<usize, Vec<F>>,
    pub(crate) target_logit: Option<f64>,
    pub(crate) top: TopColumns,
}

/// A leaf that needs no more columns.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct CompleteLeaf {
    pub(crate) sums: LeafSums,
    pub(crate) peak: Peak,
    pub(crate) above: u64,
    pub(crate) equal: u64,
}

impl<F: Copy> RowStatsState<F> {
    pub(crate) fn empty(
        row_count: usize,
        vocab: usize,
        targets: Option<Targets>,
        target_logits: Option<Vec<f64>>,
        inverse_temperature: f64,
        top_k: usize,
    ) -> Result<Self, Error> {
        let (complete, partial) = (BTreeMap::new(), BTreeMap::new());
        let row = ChunkedRow { complete, partial, target_logit: None, top: TopColumns::new(top_k) };
        let rows = try_filled(row_count, row)?;
        Ok(Self { vocab, targets, target_logits, inverse_temperature, top_k, coverage: Vec::new(), rows })
    }

    /// Forgets all columns.
    pub(crate) fn forget(&mut self) {
        self.coverage.clear();
        for row in &mut self.rows {
            row.complete.clear();
            row.partial.clear();
            row.target_logit = None;
            row.top.clear();
        }
    }

    /// Number of rows.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Columns of the whole rows.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Whether the row is counted, or there are no targets at all.
    pub(crate) fn reads(targets: Option<&Targets>, row: usize) -> bool {
        targets.is_none_or(|targets| targets.column(row).is_some())
    }

    /// Notes that columns come; an error, and no change, if some came before or lie outside.
    pub(crate) fn cover(&mut self, columns: Range<usize>) -> Result<(), Error> {
        let Range { start, end } = columns;
        let error = |problem| Error::Columns { problem, start, end, vocab: self.vocab };
        if end > self.vocab {
            return Err(error(ColumnProblem::Outside));
        }
        if self.coverage.iter().any(|known| known.start < end && start < known.end) {
            return Err(error(ColumnProblem::Repeated));
        }
        if start == end {
            return Ok(());
        }
        let place = self.coverage.partition_point(|known| known.start < start);
        self.coverage.insert(place, columns);
        self.coverage.dedup_by(|next, known| {
            let touches = known.end == next.start;
            if touches {
                known.end = next.end;
            }
            touches
        });
        Ok(())
    }

    /// Whether every column of the leaf has come.
    pub(crate) fn covers_leaf(&self, leaf: usize) -> bool {
        let (start, end) = (leaf * LEAF, self.vocab.min((leaf + 1) * LEAF));
        self.coverage.iter().any(|known| known.start <= start && end <= known.end)
    }

    /// The columns of the leaf that have come.
    pub(crate) fn columns_of_leaf(&self, leaf: usize) -> impl Iterator<Item = Range<usize>> {
        let (start, end) = (leaf * LEAF, self.vocab.min((leaf + 1) * LEAF));
        let within = move |known: &Range<usize>| known.start.max(start)..known.end.min(end);
        self.coverage.iter().map(within).filter(|range| range.start < range.end)
    }

    /// An error unless every column has come.
    pub(crate) fn check_complete(&self) -> Result<(), Error> {
        let start = self.coverage.first().filter(|known| known.start == 0).map_or(0, |known| known.end);
        let end = self.coverage.iter().map(|known| known.start).find(|&next| next > start).unwrap_or(self.vocab);
        if start == self.vocab {
            return Ok(());
        }
        Err(Error::Columns { problem: ColumnProblem::Missing, start, end, vocab: self.vocab })
    }

    /// An error unless both states are of the same rows and settings.
    pub(crate) fn check_same_kind(&self, other: &Self) -> Result<(), Error> {
        let mismatch = |field, left: String, right: String| Err(Error::StateMismatch { field, left, right });
        if self.rows.len() != other.rows.len() {
            return mismatch("rows", self.rows.len().to_string(), other.rows.len().to_string());
        }
        if self.vocab != other.vocab {
            return mismatch("vocab", self.vocab.to_string(), other.vocab.to_string());
        }
        if self.inverse_temperature != other.inverse_temperature {
            let temperature = |state: &Self| (1.0 / state.inverse_temperature).to_string();
            return mismatch("temperature", temperature(self), temperature(other));
        }
        if self.top_k != other.top_k {
            return mismatch("top_k", self.top_k.to_string(), other.top_k.to_string());
        }
        if self.targets != other.targets {
            return mismatch("targets", "one set".to_owned(), "another".to_owned());
        }
        // As bits, because the unread logits of ignored rows may be NaN.
        let bits = |state: &Self| {
            let logits = state.target_logits.as_ref();
            logits.map(|logits| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>())
        };
        if bits(self) != bits(other) {
            return mismatch("target_logits", "one set".to_owned(), "another".to_owned());
        }
        Ok(())
    }
}

impl<F> ChunkedRow<F> {
    /// The row as one call would have read it; `knows_rank` if the target's logit was known before the chunks came.
    pub(crate) fn gather(&self, knows_rank: bool) -> RowPartial {
        let mut row = RowPartial::new(self.top.limit());
        for leaf in self.complete.values() {
            row.leaves.push(leaf.sums);
            row.peak = row.peak.merge(leaf.peak);
            if knows_rank {
                row.above += leaf.above;
                row.equal += leaf.equal;
            }
        }
        row.top.merge(&self.top);
        row
    }
}
