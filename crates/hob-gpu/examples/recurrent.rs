//! Measures the gated delta rule (Qwen3.5-35B-A3B's shape) or the selective state space (Nemotron 3 Nano's): decoding of some
//! sequences through all layers, so that states come from memory, prompts in one go, and where the time goes.
//!
//! `recurrent delta|ssm [SECONDS per measurement [ROWS,.. of prompts]]`. `HOB_TEST_ADAPTER` picks the adapter.

mod common;
#[path = "../../hob-compute/tests/common/floats.rs"]
mod floats;
#[path = "../../hob-compute/tests/common/layers.rs"]
mod layers;

use std::collections::BTreeMap;
use std::time::Instant;

use floats::vector;
use hob_compute::{Compute, SlotRows};
use hob_gpu::{Gpu, GpuConfig};
use layers::{Layers, Rule};

const SLOTS: usize = 16;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

struct Bench {
    dev: Gpu,
    layers: Layers,
    count: usize,
}

impl Bench {
    fn all(&mut self, seqs: &[SlotRows]) -> Fallible<()> {
        (0..self.count).try_for_each(|layer| self.layers.run(&mut self.dev, layer, seqs))?;
        Ok(())
    }

    /// Microseconds of a layer; the clocks are warm when the best round is counted.
    fn time(&mut self, seconds: f64, seqs: &[SlotRows]) -> Fallible<f64> {
        let (begin, mut best) = (Instant::now(), f64::INFINITY);
        while begin.elapsed().as_secs_f64() < seconds {
            let start = Instant::now();
            (0..2).try_for_each(|_| self.all(seqs))?;
            self.layers.wait(&mut self.dev)?;
            best = best.min(start.elapsed().as_secs_f64() / (2 * self.count) as f64);
        }
        Ok(best * 1e6)
    }

    /// Microseconds of a layer by kernel.
    fn parts(&mut self, seqs: &[SlotRows]) -> Fallible<String> {
        if !self.dev.profile(true) {
            return Ok("no timestamps".into());
        }
        self.all(seqs)?;
        self.layers.wait(&mut self.dev)?;
        let (mut spans, mut sums) = (Vec::new(), BTreeMap::new());
        self.dev.take_spans(&mut spans);
        for span in &spans {
            *sums.entry(span.detail.to_string()).or_insert(0.0) += span.nanos as f64 / 1e3;
        }
        self.dev.profile(false);
        let one = |(name, us): (&String, &f64)| format!("{name} {:.1}", us / self.count as f64);
        Ok(sums.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

fn main() -> Fallible<()> {
    let mut args = std::env::args().skip(1);
    let rule: Rule = args.next().ok_or("expected delta or ssm")?.parse()?;
    let seconds: f64 = args.next().map_or(Ok(1.5), |s| s.parse())?;
    let prompts: Vec<usize> = match args.next() {
        Some(list) => list.split(',').map(str::parse).collect::<Result<_, _>>()?,
        None => vec![64, 512, 2048, 4096],
    };
    let mut dev = Gpu::open(&GpuConfig { adapter: common::adapter(), ..GpuConfig::default() })?;
    println!("{}", dev.facts().name);
    let most = prompts.iter().copied().max().unwrap_or(64).max(SLOTS);
    // Caches of large devices hold the states of one sequence.
    let count = 2 * rule.layers();
    let layers = Layers::new(&mut dev, rule, [count, SLOTS, most])?;
    let mut bench = Bench { dev, layers, count };
    for sequences in [1, 4, SLOTS] {
        let seqs: Vec<_> = (0..sequences).map(|s| SlotRows::new(s, 1, 100, s)).collect();
        let us = bench.time(seconds, &seqs)?;
        let bytes = (sequences * 2 * 4 * rule.state()) as f64;
        let parts = bench.parts(&seqs)?;
        println!("1 row of {sequences}: {us:.2} us, {:.0} GB/s of state; {parts}", bytes / us / 1e3);
    }
    for rows in prompts {
        let seqs = [SlotRows::new(0, rows, 0, 0)];
        let us = bench.time(seconds, &seqs)?;
        println!("{rows} rows: {us:.1} us, {:.3} a row; {}", us / rows as f64, bench.parts(&seqs)?);
    }
    Ok(())
}
