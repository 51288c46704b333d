//! From one layer's queries, keys and values to its noise: what attention gives with the exact rows, and what it gives with
//! rows that went through a format's encoder. It must not know devices.

use hob_compute::{BLOCK_POSITIONS, math};
use hob_quant::KvFormat;

use super::rounded::stored;
use super::{FormatNoise, LayerNoise, MEASURED};

/// Query rows looked at, evenly spread behind the first block; all of their heads count.
const QUERIES: usize = 12;

/// One layer's rows of one sequence, from position 0 on.
pub(super) struct Seen<'a> {
    /// `[rows, heads * head_dim]`
    pub q: &'a [f32],
    /// `[rows, kv_heads * head_dim]`
    pub k: &'a [f32],
    /// `[rows, kv_heads * head_dim]`
    pub v: &'a [f32],
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
}

/// The noise of layer `layer`.
pub(super) fn figures(layer: usize, seen: &Seen) -> LayerNoise {
    let formats: Vec<KvFormat> = MEASURED.into_iter().filter(|f| f.fits(seen.head_dim)).collect();
    let mut sums = vec![Sums::default(); formats.len()];
    let (mut q_norm, mut k_norm) = (Vec::new(), Vec::new());
    for head in 0..seen.kv_heads {
        let (q, k) = (seen.query_norm(head), seen.key_norm(head));
        q_norm.push(q);
        k_norm.push(k);
        let [keys, values] = [seen.k, seen.v].map(|rows| seen.gather(rows, head));
        for (&format, sums) in formats.iter().zip(&mut sums) {
            let stored = [&keys, &values].map(|rows| seen.stored(format, rows));
            let k_error = sums.rows(seen, [&keys, &values], [&stored[0], &stored[1]]);
            let factor = f64::from(seen.scale) / (seen.head_dim as f64).sqrt();
            sums.predicted += (factor * f64::from(q) * f64::from(k) * k_error).powi(2);
            for query in seen.queries(head) {
                sums.query(seen, query, [&keys, &values], [&stored[0], &stored[1]]);
            }
        }
    }
    let of = |(&format, sums): (&KvFormat, &Sums)| sums.noise(format, seen.kv_heads);
    LayerNoise {
        layer,
        heads: seen.heads,
        kv_heads: seen.kv_heads,
        head_dim: seen.head_dim,
        scale: seen.scale,
        softcap: seen.softcap,
        window: seen.window,
        q_norm,
        k_norm,
        formats: formats.iter().zip(&sums).map(of).collect(),
    }
}

impl Seen<'_> {
    /// Positions that stay f16 whatever the format: errors are counted behind them, as they are in long contexts.
    fn first(&self) -> usize {
        if self.rows > 2 * BLOCK_POSITIONS { BLOCK_POSITIONS } else { 0 }
    }

    /// `[rows, head_dim]` of KV head `head`.
    fn gather(&self, rows: &[f32], head: usize) -> Vec<f32> {
        let width = self.kv_heads * self.head_dim;
        let of = |row: &[f32]| row[head * self.head_dim..][..self.head_dim].to_vec();
        rows.chunks_exact(width).flat_map(of).collect()
    }

    /// What a cache of `format` gives back of `rows`, `[rows, head_dim]`.
    fn stored(&self, format: KvFormat, rows: &[f32]) -> Vec<f32> {
        let mut out = rows.to_vec();
        stored(format, self.head_dim, &mut out[self.first() * self.head_dim..]);
        out
    }

    /// Root mean square length of the queries that read KV head `head`.
    fn query_norm(&self, head: usize) -> f32 {
        let group = self.heads / self.kv_heads * self.head_dim;
        let of = |row: &[f32]| squares(&row[head * group..][..group]);
        let rows = self.q.chunks_exact(self.heads * self.head_dim).skip(self.first());
        let sum: f64 = rows.map(of).sum();
        let count = (self.rows - self.first()) * (self.heads / self.kv_heads);
        (sum / count as f64).sqrt() as f32
    }

    fn key_norm(&self, head: usize) -> f32 {
        let width = self.kv_heads * self.head_dim;
        let of = |row: &[f32]| squares(&row[head * self.head_dim..][..self.head_dim]);
        let sum: f64 = self.k.chunks_exact(width).skip(self.first()).map(of).sum();
        (sum / (self.rows - self.first()) as f64).sqrt() as f32
    }

    /// The looked-at queries that read KV head `head`, each with its position.
    fn queries(&self, head: usize) -> impl Iterator<Item = (usize, &[f32])> {
        let group = self.heads / self.kv_heads;
        let (first, behind) = (self.first(), self.rows - self.first());
        let count = QUERIES.min(behind);
        let rows = (1..=count).map(move |i| first + i * behind / count - 1);
        rows.flat_map(move |row| {
            let heads = head * group..(head + 1) * group;
            heads.map(move |h| (row, &self.q[(row * self.heads + h) * self.head_dim..][..self.head_dim]))
        })
    }

    /// Logits of a query at `position` over the positions it sees, from `from` on.
    fn logits(&self, query: &[f32], keys: &[f32], from: usize, position: usize) -> Vec<f32> {
        let keys = keys[from * self.head_dim..(position + 1) * self.head_dim].chunks_exact(self.head_dim);
        let score = |key: &[f32]| {
            let x = dot(query, key) * self.scale;
            self.softcap.map_or(x, |cap| math::tanh(x / cap) * cap)
        };
        keys.map(score).collect()
    }
}

/// Sums over rows, queries and KV heads.
#[derive(Clone, Default)]
struct Sums {
    predicted: f64,
    k: f64,
    k_error: f64,
    v: f64,
    v_error: f64,
    /// Of the variance of logit errors.
    measured: f64,
    kl: f64,
    queries: usize,
    out: f64,
    k_out: f64,
    v_out: f64,
}

impl Sums {
    /// Adds the errors of stored rows; gives the relative one of K.
    fn rows(&mut self, seen: &Seen, [k, v]: [&[f32]; 2], [k2, v2]: [&[f32]; 2]) -> f64 {
        let behind = seen.first() * seen.head_dim;
        let (k_squares, k_error) = (squares(&k[behind..]), distance(&k[behind..], &k2[behind..]));
        self.k += k_squares;
        self.k_error += k_error;
        self.v += squares(&v[behind..]);
        self.v_error += distance(&v[behind..], &v2[behind..]);
        ratio(k_error, k_squares)
    }

    /// Adds what one query makes of exact and of stored rows.
    fn query(
        &mut self,
        seen: &Seen,
        (position, q): (usize, &[f32]),
        [k, v]: [&[f32]; 2],
        [k2, v2]: [&[f32]; 2],
    ) {
        let from = seen.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let logits = [k, k2].map(|keys| seen.logits(q, keys, from, position));
        let packed = seen.first().saturating_sub(from).min(logits[0].len());
        let errors = logits[1][packed..].iter().zip(&logits[0][packed..]).map(|(b, a)| f64::from(b - a));
        self.measured += variance(errors);
        let [p, p2] = logits.map(softmax);
        self.kl += p.iter().zip(&p2).map(|(&a, &b)| divergence(a, b)).sum::<f64>();
        let values = |rows: &'_ [f32], p: &[f32]| mix(p, &rows[from * seen.head_dim..], seen.head_dim);
        let exact = values(v, &p);
        self.out += squares(&exact);
        self.k_out += distance(&exact, &values(v, &p2));
        self.v_out += distance(&exact, &values(v2, &p));
        self.queries += 1;
    }

    fn noise(&self, format: KvFormat, kv_heads: usize) -> FormatNoise {
        let mean = |sum: f64| sum / self.queries.max(1) as f64;
        FormatNoise {
            format,
            k_error: ratio(self.k_error, self.k) as f32,
            v_error: ratio(self.v_error, self.v) as f32,
            predicted: (self.predicted / kv_heads as f64).sqrt() as f32,
            measured: mean(self.measured).sqrt() as f32,
            attention_kl: mean(self.kl) as f32,
            k_output: ratio(self.k_out, self.out) as f32,
            v_output: ratio(self.v_out, self.out) as f32,
        }
    }
}

/// Root of an error's share; nothing of nothing is no error.
fn ratio(error: f64, of: f64) -> f64 {
    if error == 0.0 { 0.0 } else { (error / of).sqrt() }
}

fn squares(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// Mean square distance from the mean.
fn variance(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0f64);
    for v in values {
        sum += v;
        squares += v * v;
        count += 1.0;
    }
    let mean = sum / count.max(1.0);
    (squares / count.max(1.0) - mean * mean).max(0.0)
}

/// One position's share of KL(a||b).
fn divergence(a: f32, b: f32) -> f64 {
    if a > 0.0 { f64::from(a) * (f64::from(a) / f64::from(b.max(f32::MIN_POSITIVE))).ln() } else { 0.0 }
}

fn softmax(mut logits: Vec<f32>) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|l| *l = (*l - most).exp());
    let sum: f64 = logits.iter().map(|&p| f64::from(p)).sum();
    let inverse = (1.0 / sum) as f32;
    logits.iter_mut().for_each(|p| *p *= inverse);
    logits
}

/// Sum of the rows of `values`, `[>= p.len(), width]`, by weights `p`.
fn mix(p: &[f32], values: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0f32; width];
    for (&p, row) in p.iter().zip(values.chunks_exact(width)) {
        out.iter_mut().zip(row).for_each(|(o, v)| *o += p * v);
    }
    out
}

/// In 16 lanes, so that a compiler uses vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (chunks_a, chunks_b) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut lanes = [0f32; 16];
    for (a, b) in chunks_a.0.iter().zip(chunks_b.0) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = chunks_a.1.iter().zip(chunks_b.1).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_testkit::rng::Rng;

    const ROWS: usize = 200;
    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const DIM: usize = 64;

    struct Rows {
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
    }

    fn rows() -> Rows {
        let mut rng = Rng::new(11);
        let mut values = |n: usize| rng.normal_vec(n, 1.0);
        let q = values(ROWS * HEADS * DIM);
        Rows { q, k: values(ROWS * KV_HEADS * DIM), v: values(ROWS * KV_HEADS * DIM) }
    }

    fn seen(rows: &Rows) -> Seen<'_> {
        Seen {
            q: &rows.q,
            k: &rows.k,
            v: &rows.v,
            rows: ROWS,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: DIM,
            scale: 0.125,
            softcap: None,
            window: None,
        }
    }

    fn noise(seen: &Seen, format: KvFormat) -> FormatNoise {
        *figures(0, seen).of(format).expect("measured")
    }

    #[test]
    fn the_prediction_is_what_random_rows_show() {
        let rows = rows();
        for format in MEASURED {
            let n = noise(&seen(&rows), format);
            let ratio = n.measured / n.predicted;
            assert!((0.8..1.25).contains(&ratio), "{format}: {ratio}");
            // Small noise costs weights that are spread out sigma^2 / 2, less what the exact first block takes.
            let kl = n.measured * n.measured / 2.0;
            assert!((0.3 * kl..1.1 * kl).contains(&n.attention_kl), "{format}: {} of {kl}", n.attention_kl);
        }
    }

    #[test]
    fn noise_grows_with_the_scale_and_shrinks_with_bits() {
        let rows = rows();
        let (one, four) = (seen(&rows), Seen { scale: 0.5, ..seen(&rows) });
        let (a, b) = (noise(&one, KvFormat::Q4), noise(&four, KvFormat::Q4));
        assert!(
            (b.predicted / a.predicted - 4.0).abs() < 1e-3 && (b.measured / a.measured - 4.0).abs() < 1e-2
        );
        assert_eq!((a.k_error, a.v_error), (b.k_error, b.v_error));
        let eight = noise(&one, KvFormat::Q8);
        assert!(eight.predicted * 10.0 < a.predicted && eight.v_output * 10.0 < a.v_output);
        assert!(eight.attention_kl * 50.0 < a.attention_kl);
    }

    #[test]
    fn the_first_block_and_a_window_are_what_attention_sees() {
        let mut rows = rows();
        // An outlier where everything stays f16 must not count as an error of a format.
        let before = noise(&seen(&rows), KvFormat::Q4);
        rows.k[3] = 1e4;
        rows.v[5] = -1e4;
        let after = noise(&Seen { window: Some(32), ..seen(&rows) }, KvFormat::Q4);
        assert_eq!(
            (before.k_error, before.v_error, before.predicted),
            (after.k_error, after.v_error, after.predicted)
        );
        assert!(after.v_output < 2.0 * before.v_output.max(0.05), "{}", after.v_output);
    }

    #[test]
    fn rows_of_zeros_and_odd_dimensions_give_no_nonsense() {
        let zeros = Rows {
            q: vec![0.0; ROWS * HEADS * DIM],
            k: vec![0.0; ROWS * KV_HEADS * DIM],
            v: vec![0.0; ROWS * KV_HEADS * DIM],
        };
        for format in MEASURED {
            let n = noise(&seen(&zeros), format);
            let all = [n.k_error, n.v_error, n.predicted, n.measured, n.attention_kl, n.k_output, n.v_output];
            assert_eq!(all, [0.0; 7], "{format}");
        }
        let rows = rows();
        // The same numbers read as heads of 16: none of the formats fits.
        let odd = Seen { heads: 16, kv_heads: 8, head_dim: 16, ..seen(&rows) };
        let found = figures(7, &odd);
        assert!(found.formats.is_empty() && found.layer == 7 && found.q_norm.len() == 8);
    }
}
