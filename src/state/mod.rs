//! What survives a chunk, a thread, a process: sums of a leaf, of a row, of a corpus. Plain data with `merge` and
//! `finish`; nothing here knows vectors or threads.

pub(crate) mod chunks;
pub(crate) mod exact_sum;
pub(crate) mod kl;
pub(crate) mod leaf;
pub(crate) mod pair;
pub(crate) mod row;
pub(crate) mod tempered;
pub(crate) mod top;
pub(crate) mod totals;

use crate::error::Error;
use serde::{Serialize, de::DeserializeOwned};

pub use chunks::RowStatsState;
pub use totals::{Perplexity, PerplexitySummary};

/// A state as bytes.
pub(crate) fn save(state: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(state).expect("plain numbers always serialise")
}

/// The state that [`save`] wrote; an error for other bytes.
pub(crate) fn restore<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(bytes) {
        Ok((state, [])) => Ok(state),
        Ok(_) => Err(Error::SavedState { reason: "bytes follow it".to_owned() }),
        Err(error) => Err(Error::SavedState { reason: error.to_string() }),
    }
}
