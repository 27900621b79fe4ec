//! The k largest logits of a row, with their columns.

use serde::{Deserialize, Serialize};

/// Up to `limit` columns, largest logit first; on equal logits the lower column first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopColumns {
    limit: usize,
    entries: Vec<(f64, u64)>,
}

impl TopColumns {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, entries: Vec::new() }
    }

    /// Forgets all columns, keeps the room.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.limit
    }

    /// A later column must be larger than this to enter a full list.
    pub(crate) fn threshold(&self) -> f64 {
        if self.is_full() { self.entries.last().map_or(f64::INFINITY, |entry| entry.0) } else { f64::NEG_INFINITY }
    }

    /// Takes the column if it belongs to the list.
    pub(crate) fn offer(&mut self, logit: f64, column: u64) {
        let ranks_before = |entry: &(f64, u64)| entry.0 > logit || (entry.0 == logit && entry.1 < column);
        let place = self.entries.partition_point(ranks_before);
        if place < self.limit {
            if self.is_full() {
                self.entries.pop();
            }
            self.entries.insert(place, (logit, column));
        }
    }

    /// Takes all columns of another list.
    pub(crate) fn merge(&mut self, other: &Self) {
        for &(logit, column) in &other.entries {
            self.offer(logit, column);
        }
    }

    pub(crate) fn entries(&self) -> &[(f64, u64)] {
        &self.entries
    }
}
