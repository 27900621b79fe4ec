//! What a program that depends on the crate looks like: per-token likelihoods of a row of logits, then a corpus total.
//!
//! Run: `cargo run --release --example nll`

use xentrs::{Error, Isa, LogitsView, Options, Perplexity, Targets, row_stats};

fn main() -> Result<(), Error> {
    let vocab = 50_257;
    // Two positions of a causal model: the second is far surer of its token.
    let logits: Vec<f32> =
        (0..2 * vocab).map(|i| if i == vocab + 11 { 20.0 } else { (i % 97) as f32 / 97.0 }).collect();
    let view = LogitsView::from_slice(&logits, 2, vocab)?;
    let targets = Targets::new([7, 11], vocab, -100)?;
    let stats = row_stats(&view, Some(&targets), &Options::default())?;
    println!("instruction set {}", Isa::current()?);
    for row in 0..view.rows() {
        println!(
            "row {row}: nll {:.6} nats, entropy {:.6} nats, rank {}, {} ties",
            stats.nll[row], stats.entropy[row], stats.rank[row], stats.ties[row]
        );
    }
    let mut totals = Perplexity::default();
    totals.update(&stats);
    let summary = totals.compute();
    println!("perplexity per token {:.3} over {} tokens", summary.perplexity, summary.token_count);
    Ok(())
}
