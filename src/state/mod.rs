//! What survives a chunk, a thread, a process: sums of a leaf, of a row, of a corpus. Plain data with `merge` and
//! `finish`; nothing here knows vectors or threads.

pub(crate) mod chunks;
pub(crate) mod exact_sum;
pub(crate) mod kl;
pub(crate) mod leaf;
pub(crate) mod row;
pub(crate) mod top;
pub(crate) mod totals;

pub use chunks::RowStatsState;
pub use totals::{Perplexity, PerplexitySummary};
