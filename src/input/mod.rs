//! Borrowed, validated views of what a caller lends: logits of any stride, and targets.
//!
//! In: memory and a shape. Out: rows, and leaves of a row as the kernels read them.

mod leaf;
mod logits;
mod targets;
mod top_k;

pub(crate) use leaf::{LEAF, LEAF_BLOCKS, Leaf, LeafScratch};
pub use logits::LogitsView;
pub(crate) use logits::RowView;
#[cfg(feature = "python")]
pub(crate) use logits::{Axis, extent};
pub use targets::{SoftTargets, Targets};
pub use top_k::TopKDistribution;
