//! Borrowed, validated views of what a caller lends: logits of any stride, hidden states and heads, and targets.
//!
//! In: memory and a shape. Out: rows, and leaves of a row as the kernels read them.

mod head;
mod leaf;
mod logits;
mod matrix;
mod packed;
mod targets;
mod top_k;

pub(crate) use head::{GROUP, PanelRoom, padded_depth};
pub use head::{Head, Weight};
pub(crate) use leaf::{LEAF, LEAF_BLOCKS, Leaf, LeafScratch};
pub use logits::LogitsView;
pub(crate) use logits::RowView;
#[cfg(feature = "python")]
pub(crate) use logits::{Axis, extent};
pub use matrix::MatrixView;
pub(crate) use packed::HeadOperand;
pub use packed::PackedHead;
pub use targets::{SoftTargets, Targets};
pub use top_k::TopKDistribution;
