//! A text with drafts in between, on any device: what is accepted, and the state behind it, must be bit for bit what a run
//! gives that never saw the others. Included by the tests of every device.

use hob_compute::*;

use super::vector;

/// What is run.
#[derive(Copy, Clone, Debug)]
pub enum Kind {
    Conv { form: ConvForm, channels: usize, taps: usize },
    Delta(DeltaShape),
    Ssm(SsmShape),
}

/// What happens next.
#[derive(Copy, Clone, Debug)]
pub enum Round {
    /// Rows are held, of which the first so many turn out to be right.
    Hold { rows: usize, accepted: usize },
    /// Rows that are right.
    Now(usize),
    /// The state is wanted.
    CatchUp,
}

/// Rounds that begin at position 0, cross a chunk's edge while held, take all, some or none, and go on with few and many
/// final rows.
pub const ROUNDS: [Round; 15] = [
    Round::Hold { rows: 2, accepted: 1 },
    Round::Hold { rows: 3, accepted: 0 },
    Round::Hold { rows: 1, accepted: 1 },
    Round::Now(1),
    Round::Hold { rows: 8, accepted: 5 },
    Round::Now(20),
    Round::Hold { rows: 16, accepted: 16 },
    Round::CatchUp,
    Round::Hold { rows: 9, accepted: 9 },
    Round::Now(30),
    Round::Hold { rows: 8, accepted: 0 },
    Round::Now(2),
    Round::Hold { rows: 4, accepted: 2 },
    Round::Hold { rows: 5, accepted: 1 },
    Round::CatchUp,
];

const SLOTS: usize = 3;
const HELD: usize = 16;
const MOST: usize = 40;

/// Seeded values within -1..1.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A layer on a device; slots begin with anything.
struct Layer {
    kind: Kind,
    weights: Vec<Weight>,
    inputs: Vec<(Buf, usize)>,
    memory: Memory,
    out: (Buf, usize),
}

impl Kind {
    fn recurrence(self) -> Recurrence {
        match self {
            Kind::Conv { channels, taps, .. } => Recurrence::Conv { channels, taps },
            Kind::Delta(shape) => Recurrence::Delta(shape),
            Kind::Ssm(shape) => Recurrence::Ssm(shape),
        }
    }

    /// Widths of the inputs and of the output.
    fn widths(self) -> (Vec<usize>, usize) {
        match self {
            Kind::Conv { form: ConvForm::Gated, channels, .. } => (vec![3 * channels], channels),
            Kind::Conv { channels, .. } => (vec![channels], channels),
            Kind::Delta(s) => (vec![s.channels(), s.width(), s.value_heads, s.value_heads], s.width()),
            Kind::Ssm(s) => (vec![s.channels(), s.width(), s.heads], s.width()),
        }
    }

    fn vectors(self) -> Vec<Vec<f32>> {
        match self {
            Kind::Conv { channels, taps, .. } => vec![values(1, channels * taps)],
            Kind::Delta(s) => {
                let rates = (0..s.value_heads).map(|h| -0.02 - 0.7 * h as f32).collect();
                vec![rates, values(2, s.value_heads), values(3, s.value_dim)]
            }
            Kind::Ssm(s) => {
                let rates = (0..s.heads).map(|h| -0.1 - 0.7 * h as f32).collect();
                vec![rates, values(2, s.heads), values(3, s.heads), values(4, s.width())]
            }
        }
    }
}

impl Layer {
    fn new(dev: &mut dyn Compute, kind: Kind) -> Layer {
        let (inputs, out) = kind.widths();
        let (state, record) = (kind.recurrence().state(), kind.recurrence().record());
        let mut filled = |width: usize| {
            let buf = dev.alloc(SLOTS, width).expect("room");
            dev.upload(buf, 0, &values(9, SLOTS * width)).expect("it fits");
            buf
        };
        let memory = Memory { state: filled(state), records: Some(filled(HELD * record)) };
        let mut room = |width: usize| (dev.alloc(MOST, width).expect("room"), width);
        let (inputs, out) = (inputs.into_iter().map(&mut room).collect(), room(out));
        let weights = kind.vectors().into_iter().map(|v| vector(dev, &v)).collect();
        Layer { kind, weights, inputs, memory, out }
    }

    /// Runs rows of the texts `seed`, one value for each input at each position.
    fn run(&self, dev: &mut dyn Compute, rows: &[(u64, usize)], seqs: &[SlotRows]) -> Vec<Vec<f32>> {
        for (which, &(buf, width)) in self.inputs.iter().enumerate() {
            let row = |&(text, at): &(u64, usize)| values(1000 * text + 10 * at as u64 + which as u64, width);
            let data: Vec<f32> = rows.iter().flat_map(row).collect();
            dev.upload(buf, 0, &data).expect("it fits");
        }
        let (memory, (out, width), input) = (self.memory, self.out, |i: usize| self.inputs[i].0);
        match self.kind {
            Kind::Conv { form, .. } => {
                let (x, taps, bias) = (input(0), self.weights[0], None);
                dev.short_conv(&ShortConv { form, x, taps, bias, memory, seqs, out })
            }
            Kind::Ssm(shape) => dev.ssm_scan(&SsmScan {
                shape,
                xbc: input(0),
                z: input(1),
                dt: input(2),
                rate: self.weights[0],
                bias: self.weights[1],
                skip: self.weights[2],
                norm: self.weights[3],
                eps: 1e-6,
                limit: [0.0, f32::INFINITY],
                memory,
                seqs,
                out,
            }),
            Kind::Delta(shape) => dev.delta_net(&DeltaNet {
                shape,
                qkv: input(0),
                z: input(1),
                beta: input(2),
                decay: input(3),
                rate: self.weights[0],
                bias: self.weights[1],
                norm: self.weights[2],
                eps: 1e-6,
                memory,
                seqs,
                out,
            }),
        }
        .expect("it runs");
        let mut all = vec![0f32; rows.len() * width];
        dev.download(out, 0, &mut all).expect("it is there");
        all.chunks(width).map(<[f32]>::to_vec).collect()
    }

    fn states(&self, dev: &mut dyn Compute) -> Vec<f32> {
        let mut all = vec![0f32; 2 * self.kind.recurrence().state()];
        dev.download(self.memory.state, 0, &mut all).expect("it is there");
        all
    }
}

/// Never saw a draft: outputs of every position, those of the company, and both states.
fn plain(dev: &mut dyn Compute, kind: Kind) -> Vec<Vec<f32>> {
    let layer = Layer::new(dev, kind);
    let (mut at, mut all, mut company) = (0, Vec::new(), Vec::new());
    for (turn, round) in ROUNDS.into_iter().enumerate() {
        let calls = match round {
            Round::Hold { accepted, .. } => vec![1; accepted],
            Round::Now(rows) => vec![rows],
            Round::CatchUp => continue,
        };
        for rows in calls {
            let text: Vec<_> = (at..at + rows).map(|at| (1, at)).collect();
            all.extend(layer.run(dev, &text, &[SlotRows::new(0, rows, at, 1)]));
            at += rows;
        }
        company.extend(layer.run(dev, &[(3, turn)], &[SlotRows::new(0, 1, 100 + turn, 0)]));
    }
    all.extend(company);
    all.push(layer.states(dev));
    all
}

/// The same with drafts, beside a sequence that has none.
fn drafted(dev: &mut dyn Compute, kind: Kind) -> Vec<Vec<f32>> {
    let layer = Layer::new(dev, kind);
    let (mut at, mut before, mut all, mut company) = (0, 0, Vec::new(), Vec::new());
    for (turn, round) in ROUNDS.into_iter().enumerate() {
        let (rows, right, commit) = match round {
            Round::Hold { rows, accepted } => (rows, accepted, Commit::Hold),
            Round::Now(rows) => (rows, rows, Commit::Now),
            Round::CatchUp => {
                let seqs = &[SlotRows { accepted: before, ..SlotRows::new(0, 0, at, 1) }];
                let recurrence = kind.recurrence();
                dev.catch_up(&CatchUp { recurrence, memory: layer.memory, seqs }).expect("it runs");
                before = 0;
                continue;
            }
        };
        // Rows that turn out wrong are those of another text.
        let row = |i: usize| if i < right { (1, at + i) } else { (2, at + i) };
        let text: Vec<_> = std::iter::once((3, turn)).chain((0..rows).map(row)).collect();
        let drafts = SlotRows { accepted: before, commit, ..SlotRows::new(1, rows, at, 1) };
        let out = layer.run(dev, &text, &[SlotRows::new(0, 1, 100 + turn, 0), drafts]);
        company.push(out[0].clone());
        all.extend_from_slice(&out[1..=right]);
        at += right;
        before = if commit == Commit::Hold { right } else { 0 };
    }
    all.extend(company);
    all.push(layer.states(dev));
    all
}

/// Both on one device.
pub fn leave_no_trace(what: &str, kind: Kind, dev: &mut dyn Compute) {
    let (expected, found) = (plain(dev, kind), drafted(dev, kind));
    assert_eq!(expected.len(), found.len());
    for (row, (expected, found)) in expected.iter().zip(&found).enumerate() {
        let differ = expected.iter().zip(found).position(|(e, f)| e.to_bits() != f.to_bits());
        assert_eq!(differ, None, "{what}, {kind:?}: row {row} of {}", found.len());
        assert!(found.iter().all(|x| x.is_finite()), "{what}, {kind:?}");
    }
}

pub fn kinds() -> Vec<Kind> {
    let delta = |key_heads, value_heads, key_dim, value_dim, sharing| {
        Kind::Delta(DeltaShape { key_heads, value_heads, key_dim, value_dim, sharing })
    };
    vec![
        Kind::Conv { form: ConvForm::Gated, channels: 70, taps: 3 },
        Kind::Conv { form: ConvForm::Silu, channels: 32, taps: 4 },
        Kind::Conv { form: ConvForm::Silu, channels: 16, taps: 20 },
        delta(1, 2, 64, 64, KeyHeads::Grouped),
        delta(2, 4, 32, 16, KeyHeads::Tiled),
        Kind::Ssm(SsmShape { heads: 4, head_dim: 64, state_dim: 32, groups: 2 }),
    ]
}

/// What cannot be held is refused and named.
pub fn refusals(dev: &mut dyn Compute) {
    let kind = kinds()[4];
    let mut layer = Layer::new(dev, kind);
    let recurrence = kind.recurrence();
    let hold = |rows| SlotRows { commit: Commit::Hold, ..SlotRows::new(0, rows, 50, 1) };
    let accept = |accepted, position| SlotRows { accepted, ..SlotRows::new(0, 0, position, 1) };
    let catch_up = |dev: &mut dyn Compute, memory, seq| {
        let refused = dev.catch_up(&CatchUp { recurrence, memory, seqs: &[seq] });
        refused.expect_err("it cannot be").to_string()
    };
    assert!(catch_up(dev, layer.memory, accept(17, 50)).contains("at most 16 accepted rows"));
    assert!(catch_up(dev, layer.memory, accept(3, 2)).contains("all before position 2"));
    assert!(catch_up(dev, layer.memory, hold(1)).contains("without rows"));
    layer.memory.records = None;
    assert!(catch_up(dev, layer.memory, accept(1, 50)).contains("at most 0 accepted rows"));
    layer.memory.records = Some(layer.memory.state);
    assert!(catch_up(dev, layer.memory, accept(1, 50)).contains("one buffer in two roles"));
    let narrow = dev.alloc(SLOTS, recurrence.record() + 1).expect("room");
    layer.memory.records = Some(narrow);
    assert!(catch_up(dev, layer.memory, accept(1, 50)).contains("records of whole rows"));
    let Kind::Delta(shape) = kind else { unreachable!("a delta rule was chosen") };
    for (records, rows) in [(None, 1), (Some(2), 3)] {
        let records = records.map(|held| dev.alloc(SLOTS, held * recurrence.record()).expect("room"));
        let (weight, input) = (|i: usize| layer.weights[i], |i: usize| layer.inputs[i].0);
        let refused = dev.delta_net(&DeltaNet {
            shape,
            qkv: input(0),
            z: input(1),
            beta: input(2),
            decay: input(3),
            rate: weight(0),
            bias: weight(1),
            norm: weight(2),
            eps: 1e-6,
            memory: Memory { records, ..layer.memory },
            seqs: &[hold(rows)],
            out: layer.out.0,
        });
        let error = refused.expect_err("no room for records").to_string();
        assert!(error.contains(&format!("at most {} rows to hold", rows - 1)), "{error}");
    }
}
