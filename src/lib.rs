//! Exact, streaming statistics of language-model logits at the speed of memory.
//!
//! The whole path, in folder order: `input` checks what a caller lends and cuts rows into leaves of 4,096 columns;
//! `plan` chooses instruction set, threads and units from shape and type alone; `run` gives the units to threads;
//! `kernels` read each leaf once, over the vectors of `simd`; `state` merges leaves into rows, rows into totals;
//! `output` names the results. `ops` strings these together, one function per quantity; `reference` is the plain
//! definition that all of it is held to; `bindings` carries it to Python.
//!
//! ```
//! use xentrs::{LogitsView, Options, Targets, row_stats};
//!
//! let logits = [2.0f32, 1.0, 0.0, 0.0, 0.0, 0.0];
//! let view = LogitsView::from_slice(&logits, 2, 3)?;
//! let targets = Targets::new([0, 2], 3, -100)?;
//! let stats = row_stats(&view, Some(&targets), &Options::default())?;
//! assert!((stats.nll[0] - 0.407_605_9).abs() < 1e-6);
//! assert!((stats.entropy[1] - 3f64.ln()).abs() < 1e-7);
//! # Ok::<(), xentrs::Error>(())
//! ```

mod error;
mod input;
mod kernels;
mod ops;
mod output;
mod plan;
pub mod reference;
mod run;
mod simd;
mod state;

#[cfg(feature = "python")]
mod bindings;

pub use error::{ColumnProblem, Error};
pub use input::{Head, LogitsView, MatrixView, PackedHead, SoftTargets, Targets, TopKDistribution, Weight};
pub use ops::{
    DivergenceColumns, ExpectedEmbedding, GradientOptions, Gradients, JointColumns, JsColumns, KlColumns, Likelihood,
    LossColumns, LossOptions, LossTerms, Options, PairTerms, Projection, TemperatureColumns, TemperedColumns,
    TemperedOptions, cross_entropy, divergences, entropy, entropy_gradient, js_divergence, js_gradients, kl_divergence,
    kl_gradients, linear_divergences, linear_expected_embedding, linear_gradients, linear_joint_row_stats,
    linear_kl_divergence, linear_kl_gradients, linear_loss, linear_row_stats, linear_target_logits,
    linear_tempered_row_stats, logsumexp, logsumexp_gradient, loss, loss_gradient, perplexity, read_probe,
    renyi_entropy, row_stats, soft_cross_entropy, temperature_grid, tempered_row_stats, tile_probe,
    top_k_kl_divergence,
};
pub use output::{Flags, Matrix, RowColumns, RowStats};
pub use plan::{Execution, HeadPlan, Plan, Unit};
pub use simd::{Element, Float, Isa};
pub use state::{Perplexity, PerplexitySummary, RowStatsState};
