//! One leaf or row in, one small state out. Each kernel is written once, generic over the instruction set and the
//! element; it knows nothing of threads.

pub(crate) mod gradient;
pub(crate) mod kl;
pub(crate) mod linear;
pub(crate) mod pair;
pub(crate) mod pair_gradient;
pub(crate) mod probe;
pub(crate) mod row_stats;
pub(crate) mod rows;
pub(crate) mod tempered;
