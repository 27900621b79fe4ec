//! Targets: one class id for each row, copied and then checked, so that no later write can bring in an id unseen.

use crate::error::Error;
use serde::{Deserialize, Serialize};

/// Checked class ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    columns: Vec<Option<usize>>,
}

impl Targets {
    /// Takes ids, each in `[0, vocab)` or equal to `ignore_index`.
    ///
    /// ```
    /// let targets = xentrs::Targets::new([1, -100], 3, -100)?;
    /// assert_eq!(targets.token_count(), 1);
    /// assert!(xentrs::Targets::new([3], 3, -100).is_err());
    /// # Ok::<(), xentrs::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Target`] for the first id outside; [`Error::EmptyVocabulary`] if there is no id to choose from;
    /// [`Error::OutOfMemory`].
    pub fn new<I>(ids: I, vocab: usize, ignore_index: i64) -> Result<Self, Error>
    where
        I: IntoIterator<Item: Into<i128>>,
        I::IntoIter: ExactSizeIterator,
    {
        let ids = ids.into_iter();
        let mut columns = crate::error::try_filled(ids.len(), None)?;
        for (row, (id, column)) in ids.zip(&mut columns).enumerate() {
            let target: i128 = id.into();
            if target == i128::from(ignore_index) {
                continue;
            }
            if vocab == 0 {
                return Err(Error::EmptyVocabulary { operation: "a target" });
            }
            let inside = usize::try_from(target).ok().filter(|&id| id < vocab);
            *column = Some(inside.ok_or(Error::Target { row, target, vocab })?);
        }
        Ok(Self { columns })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.columns.len()
    }

    /// Rows that are counted, which are those not ignored.
    pub fn token_count(&self) -> u64 {
        self.columns.iter().flatten().count() as u64
    }

    /// The target of one row; `None` if the row is ignored.
    pub(crate) fn column(&self, row: usize) -> Option<usize> {
        self.columns[row]
    }
}
