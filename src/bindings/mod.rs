//! The extension module `xentrs._xentrs`: extract, detach, run, wrap. Python's own checks of kind and shape stand in
//! `xentrs/adapters`; here memory is borrowed, the lock is released and errors become exceptions.

mod arrays;
mod call;
mod errors;
mod functions;
mod gradients;
mod linear;
mod losses;
mod pairs;
mod states;

use pyo3::prelude::*;

#[pymodule]
mod _xentrs {
    #[pymodule_export]
    use super::functions::{available_isas, head_isa, isa, num_threads, panic_for_tests, read_probe, row_stats};
    #[pymodule_export]
    use super::gradients::{
        entropy_gradient, js_gradients, kl_gradients, linear_kl_gradients, logsumexp_gradient, loss_gradient,
    };
    #[pymodule_export]
    use super::linear::{
        PackedHead, linear_expected_embedding, linear_gradients, linear_kl_divergence, linear_loss, linear_row_stats,
        linear_target_logits, tile_probe,
    };
    #[pymodule_export]
    use super::losses::{loss, renyi_entropy, soft_cross_entropy, temperature_grid};
    #[pymodule_export]
    use super::pairs::{
        divergences, js_divergence, kl_divergence, linear_divergences, linear_joint_row_stats, top_k_kl_divergence,
    };
    #[pymodule_export]
    use super::states::{Perplexity, RowStatsState};
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
