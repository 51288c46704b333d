//! Random operations against a plain model of what a store of chains is.

use std::collections::{HashMap, HashSet};
use std::fs;

use hob_model::disk::DiskStore;
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;

use crate::support::*;

/// Chains stored per identity, and the lengths at which a state was kept.
#[derive(Default)]
struct Model {
    chains: HashMap<u8, Vec<Vec<u32>>>,
    states: HashSet<(u8, Vec<u32>)>,
}

impl Model {
    fn longest(&self, id: u8, tokens: &[u32]) -> usize {
        let same = |chain: &Vec<u32>| chain.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        self.chains.get(&id).into_iter().flatten().map(same).max().unwrap_or(0)
    }

    fn states(&self, id: u8, tokens: &[u32]) -> Vec<usize> {
        (1..=tokens.len()).filter(|&n| self.states.contains(&(id, tokens[..n].to_vec()))).collect()
    }
}

/// A chain that often continues or branches off another: few different tokens, lengths around the multiples of 256.
fn random_chain(rng: &mut Rng, model: &Model, id: u8) -> Vec<u32> {
    let known = model.chains.get(&id).map_or(&[][..], |chains| chains);
    let mut chain = match known.len() {
        0 => Vec::new(),
        count => {
            let base = &known[rng.below(count)];
            base[..rng.below(base.len() + 1)].to_vec()
        }
    };
    let more = [1, 2, 5, 30, 200, 300][rng.below(6)];
    chain.extend((0..=rng.below(more)).map(|_| rng.u32() % 3));
    chain.truncate(900);
    chain
}

fn run(seed: u64, steps: usize, evicts: bool) {
    let folder = TempDir::new("property");
    let mut bench = Bench::new(&folder.join("kv"));
    bench.stride = 5;
    bench.limits.segment_bytes = 20_000;
    if evicts {
        bench.config.budget_bytes = 60_000;
        bench.config.snapshot_budget_bytes = 6_000;
    }
    let mut rng = Rng::new(seed);
    let mut model = Model::default();
    let mut store = bench.open();
    let mut second: Option<DiskStore> = None;
    for step in 0..steps {
        let id = 1 + rng.below(2) as u8;
        let chain = random_chain(&mut rng, &model, id);
        let what = format!("seed {seed} step {step}");
        match rng.below(20) {
            0..8 => {
                let stored = bench.put(&store, &identity(id), &chain);
                assert!(stored || evicts, "{what}");
                if stored {
                    model.chains.entry(id).or_default().push(chain.clone());
                    bench.assert_whole(&store, &identity(id), &chain);
                }
            }
            8..11 => {
                let length = model.longest(id, &chain);
                let state = bench.snapshot(&identity(id), &chain[..length.max(1)]);
                let kept =
                    store.append_snapshot(&identity(id), &chain[..length.max(1)], &state, rng.below(2) == 0);
                let kept = kept.unwrap().refused.is_none();
                assert!(kept == (length > 0) || evicts, "{what}");
                if kept {
                    model.states.insert((id, chain[..length.max(1)].to_vec()));
                }
            }
            11 => store.flush().unwrap(),
            12 => store = bench.open(),
            13 => {
                let _ = fs::remove_file(bench.index());
                store = bench.open();
            }
            14 => bench.time.pass(rng.below(100_000) as u64),
            // Another store on the same folder goes on by itself.
            15 => second = if rng.below(3) == 0 { None } else { Some(bench.open()) },
            16 if second.is_some() => {
                let second = second.as_ref().unwrap();
                second.refresh().unwrap();
                if bench.put(second, &identity(id), &chain) {
                    model.chains.entry(id).or_default().push(chain.clone());
                }
                store.refresh().unwrap();
            }
            17 if evicts => drop(store.trim(rng.below(60_000) as u64).unwrap()),
            _ => {}
        }
        let (found, read) = bench.check(&store, &identity(id), &chain);
        let expected = model.longest(id, &chain);
        let states: Vec<usize> =
            store.find(&identity(id), &chain).snapshots.iter().map(|(n, _)| *n).collect();
        if evicts {
            assert!(found <= expected && read == found, "{what}: found {found} of {expected}");
            let known = model.states(id, &chain);
            assert!(states.iter().all(|length| known.contains(length)), "{what}");
            assert!(
                bench.disk_bytes() <= bench.config.budget_bytes + 25_000,
                "{what}: {}",
                bench.disk_bytes()
            );
        } else {
            assert_eq!((found, read), (expected, expected), "{what}");
            let mut expected = model.states(id, &chain);
            expected.retain(|&length| length <= found);
            let mut states = states;
            states.dedup();
            assert_eq!(states, expected, "{what}");
        }
    }
    assert_eq!(store.verify().unwrap().bad_count, 0);
}

#[test]
fn lookups_agree_with_a_plain_list_of_chains() {
    for seed in 0..6 {
        run(seed, 400, false);
    }
}

#[test]
fn with_eviction_nothing_is_found_that_was_not_stored() {
    for seed in 100..106 {
        run(seed, 400, true);
    }
}
