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

    /// The targets of all rows.
    pub(super) fn into_columns(self) -> Vec<Option<usize>> {
        self.columns
    }

    /// The target of one row; `None` if the row is ignored.
    pub(crate) fn column(&self, row: usize) -> Option<usize> {
        self.columns[row]
    }
}

/// A target distribution for each row, given by `k` columns and their shares.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTargets {
    columns: Vec<Option<usize>>,
    shares: Vec<f64>,
    k: usize,
    rows: usize,
}

/// A row's shares must sum to 1 within this.
const SHARE_TOLERANCE: f64 = 1e-3;

impl SoftTargets {
    /// Takes ids and shares, `(rows, k)` each; an id equal to `ignore_index` is left out, and a row of nothing else is
    /// ignored. With `normalize` each row is divided by its sum, as the k largest of a distribution need it.
    ///
    /// ```
    /// use xentrs::SoftTargets;
    /// assert!(SoftTargets::new([0, 2], &[0.25, 0.75], (1, 2), 3, -100, false).is_ok());
    /// assert!(SoftTargets::new([0, 2], &[0.25, 0.25], (1, 2), 3, -100, false).is_err());
    /// ```
    ///
    /// # Errors
    /// As [`Targets::new`]; [`Error::Parameter`] for a share that is negative, NaN or infinite;
    /// [`Error::NotNormalized`] for a row whose shares do not sum to 1 within 1e-3, or, to be normalised, sum to 0.
    pub fn new<I>(
        ids: I,
        shares: &[f64],
        (rows, k): (usize, usize),
        vocab: usize,
        ignore_index: i64,
        normalize: bool,
    ) -> Result<Self, Error>
    where
        I: IntoIterator<Item: Into<i128>>,
        I::IntoIter: ExactSizeIterator,
    {
        let columns = Targets::new(ids, vocab, ignore_index)?.columns;
        if columns.len() != shares.len() || columns.len() != rows * k {
            let (left_shape, right_shape) = (vec![shares.len()], vec![columns.len()]);
            return Err(Error::ShapeMismatch { left: "target_probs", left_shape, right: "target_ids", right_shape });
        }
        let mut targets = Self { columns, shares: shares.to_vec(), k, rows };
        for row in 0..rows {
            targets.check(row, normalize)?;
        }
        Ok(targets)
    }

    fn check(&mut self, row: usize, normalize: bool) -> Result<(), Error> {
        if let Some((_, share)) = self.row(row).find(|(_, share)| !(0.0..=f64::MAX).contains(share)) {
            let expected = "finite probabilities, at least 0";
            return Err(Error::Parameter { name: "target_probs", value: format!("{share:?}"), expected });
        }
        let sum: f64 = self.row(row).map(|(_, share)| share).sum();
        if self.row(row).next().is_none() {
            return Ok(());
        }
        if normalize && sum > 0.0 {
            self.shares[row * self.k..(row + 1) * self.k].iter_mut().for_each(|share| *share /= sum);
            return Ok(());
        }
        if (sum - 1.0).abs() <= SHARE_TOLERANCE {
            return Ok(());
        }
        Err(Error::NotNormalized { what: "target_probs", row, sum })
    }

    /// Columns and shares of one row, without those left out.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        let places = row * self.k..(row + 1) * self.k;
        self.columns[places.clone()].iter().zip(&self.shares[places]).filter_map(|(id, share)| Some(((*id)?, *share)))
    }

    /// One column of each row that has any.
    pub(crate) fn first_columns(&self) -> Targets {
        Targets { columns: (0..self.rows).map(|row| self.row(row).next().map(|(column, _)| column)).collect() }
    }
}
