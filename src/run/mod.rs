//! Units of work over threads, and rows of work over units.
//!
//! Threads come from our own pool, keyed by process id: a pool does not survive `fork`, so a child builds its own and
//! leaves the parent's alone. No lock is held while work runs, and the waiting thread asks now and then whether to stop.

mod both;
mod heads;
mod lent;
mod side;

pub(crate) use both::Both;
pub(crate) use heads::HeadRows;
pub(crate) use lent::LentRows;
pub(crate) use side::{OfSide, SideSource};

use crate::error::Error;
use crate::input::RowView;
use crate::simd::{Element, with_default_control};
use arc_swap::ArcSwapOption;
use rayon::ThreadPool;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Asked by the waiting thread every 50 ms: should the call stop?
pub(crate) type Interrupt<'a> = &'a dyn Fn() -> bool;

/// How often the waiting thread asks.
const PATIENCE: Duration = Duration::from_millis(50);

/// Gives each unit to one of `threads` threads, each with its own scratch. Who gets which unit is left to chance, so
/// a unit's work may depend on nothing but the unit.
pub(crate) fn for_each<T: Send, W>(
    threads: usize,
    units: impl Iterator<Item = T> + Send,
    scratch: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, T) + Sync,
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    if threads == 1 {
        return for_each_here(units, scratch(), work, interrupt);
    }
    let units = Mutex::new(units);
    let stop = AtomicBool::new(false);
    let worker = || {
        with_default_control(|| {
            let mut scratch = scratch();
            while !stop.load(Ordering::Relaxed) {
                // A panic elsewhere poisons the lock between two units, which leaves the iterator sound.
                let next = units.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                let Some(unit) = next else { break };
                work(&mut scratch, unit);
            }
        });
    };
    let (done, all_done) = channel::<()>();
    pool(threads)?.in_place_scope(|scope| {
        for _ in 0..threads {
            let done = done.clone();
            scope.spawn(|_| {
                let _closes_when_dropped = done;
                worker();
            });
        }
        drop(done);
        while let Err(RecvTimeoutError::Timeout) = all_done.recv_timeout(PATIENCE) {
            if interrupt() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    if stop.into_inner() { Err(Error::Interrupted) } else { Ok(()) }
}

fn for_each_here<T, W>(
    units: impl Iterator<Item = T>,
    mut scratch: W,
    work: impl Fn(&mut W, T),
    interrupt: Interrupt<'_>,
) -> Result<(), Error> {
    with_default_control(|| {
        let mut asked = Instant::now();
        for unit in units {
            work(&mut scratch, unit);
            if asked.elapsed() > PATIENCE {
                if interrupt() {
                    return Err(Error::Interrupted);
                }
                asked = Instant::now();
            }
        }
        Ok(())
    })
}

/// A pool of at least `threads` threads, made on first use in this process and kept.
fn pool(threads: usize) -> Result<Arc<ThreadPool>, Error> {
    static CURRENT: ArcSwapOption<(u32, Arc<ThreadPool>)> = ArcSwapOption::const_empty();
    let process = std::process::id();
    let current = CURRENT.load_full();
    if let Some(entry) = &current
        && entry.0 == process
        && entry.1.current_num_threads() >= threads
    {
        return Ok(entry.1.clone());
    }
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("xentrs-{index}"))
        .build()
        .map_err(|error| Error::Threads { count: threads, reason: error.to_string() })?;
    let built = Arc::new(built);
    let replaced = CURRENT.swap(Some(Arc::new((process, built.clone()))));
    for entry in [current, replaced].into_iter().flatten() {
        if entry.0 != process {
            // The threads of a parent process do not exist here; dropping their pool would wait for them.
            std::mem::forget(entry);
        }
    }
    Ok(built)
}

/// Work on rows that can be cut at leaf borders: read, append in column order, write. A row has `SIDES` views: one of
/// logits, or one of each of two models.
pub(crate) trait RowWork<E: Element, const SIDES: usize>: Sync {
    /// Buffers of one thread.
    type Scratch;
    /// What has been read of one row.
    type Partial: Send;
    /// Places for the results of some neighbouring rows.
    type Slots: Send;

    fn scratch(&self) -> Self::Scratch;
    fn partial(&self) -> Self::Partial;
    /// Whether the row is read at all.
    fn reads(&self, _row: usize) -> bool {
        true
    }
    /// The row's target, whose logit `read` is told.
    fn target(&self, _row: usize) -> Option<usize> {
        None
    }
    /// Reads some leaves of a row into what has been read of it. Only these leaves may be touched.
    fn read(
        &self,
        row: RowIn<'_, E, SIDES>,
        leaves: Range<usize>,
        scratch: &mut Self::Scratch,
        partial: &mut Self::Partial,
    );
    fn append(&self, partial: &mut Self::Partial, following: &Self::Partial);
    fn clear(&self, partial: &mut Self::Partial);
    /// Finishes a row into place number `index` of the slots. A row that is not read has an empty partial.
    fn write(&self, row: usize, partial: &Self::Partial, slots: &mut Self::Slots, index: usize);
}

/// A row as `read` gets it.
#[derive(Clone, Copy)]
pub(crate) struct RowIn<'v, E: Element, const SIDES: usize> {
    pub(crate) index: usize,
    pub(crate) views: [RowView<'v, E>; SIDES],
    /// The target's logit on each side.
    pub(crate) target_logits: [Option<E::Compute>; SIDES],
}

/// Where rows come from: lent memory, or products of hidden states and heads.
pub(crate) trait Source<E: Element, const SIDES: usize>: Sync {
    fn rows(&self) -> usize;
    fn vocab(&self) -> usize;
    /// Runs `work` over all rows. `slots` gives the places for so many rows at a time, in row order.
    fn run<W: RowWork<E, SIDES>>(
        &self,
        work: &W,
        slots: impl FnOnce(usize) -> Vec<W::Slots>,
        interrupt: Interrupt<'_>,
    ) -> Result<(), Error>;
    /// The logits of one row of a side, for the message of an error.
    fn logits(&self, side: usize, row: usize) -> Vec<f64>;
}
