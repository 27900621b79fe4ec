//! What the machine's multiply units can do: the limit that arithmetic sets to the head.

use crate::error::Error;
use crate::plan::{Execution, HeadPlan};
use crate::run;
use crate::simd::tiles::{LaneTiles, PANEL, Product, Tiles};
use crate::simd::{Bf16Tiles, Element, Float};
use std::time::{Duration, Instant};

/// Products of one measurement by one thread.
const REPEATS: usize = 64;
/// How long a thread multiplies.
const TIME: Duration = Duration::from_millis(200);

/// Products of the head's own kernel on operands that stay in the first-level cache, in 10^9 multiplications and additions a
/// second over all threads: of bfloat16 in the tiles that the head takes for it, or of float32.
///
/// # Errors
/// As [`HeadPlan::new`].
pub fn tile_probe(bf16: bool, execution: &Execution) -> Result<f64, Error> {
    let plan = HeadPlan::new(1 << 20, 1 << 10, 1 << 10, execution)?;
    let mut rates = vec![0.0; plan.threads];
    let measure = |_: &mut (), rate: &mut f64| {
        *rate = match if bf16 { plan.isa.bf16_tiles() } else { None } {
            #[cfg(test)]
            Some(Bf16Tiles::Plain(tiles)) => gigaflops(tiles),
            #[cfg(target_arch = "x86_64")]
            Some(Bf16Tiles::Avx512Bf16(tiles)) => gigaflops(tiles),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Some(Bf16Tiles::Amx(tiles)) => gigaflops(tiles),
            None => gigaflops(LaneTiles::<f32>::new(plan.isa)),
        };
    };
    run::for_each(plan.threads, rates.iter_mut(), || (), measure, &super::never)?;
    Ok(rates.iter().sum())
}

/// Rows and panels of an AMX block and of several blocks in lanes; 64 terms, as many as a chain has.
fn gigaflops<T: Tiles>(tiles: T) -> f64 {
    const ROWS: usize = 96;
    const PANELS: usize = 4;
    const DEPTH: usize = 64;
    let one = T::Operand::narrow(T::Sum::ONE);
    let (left, right) = (vec![one; ROWS * DEPTH], vec![one; PANELS * PANEL * DEPTH]);
    let mut sums = vec![T::Sum::ZERO; ROWS * PANELS * PANEL];
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        for _ in 0..REPEATS {
            tiles.multiply(Product {
                left: &left,
                left_stride: DEPTH,
                rows: ROWS,
                right: &right,
                panels: PANELS,
                depth: DEPTH,
                right_stride: PANEL * DEPTH,
                sums: &mut sums,
                stride: PANELS * PANEL,
                adds: false,
            });
        }
        count += REPEATS;
    }
    std::hint::black_box(&sums);
    (2 * ROWS * PANELS * PANEL * DEPTH * count) as f64 / start.elapsed().as_secs_f64() / 1e9
}
