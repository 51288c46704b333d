//! Attention of many rows, and of few in contexts within a page, against the oracle, and both against f64 over the values
//! that pages hold.

mod common;

use common::floats::vector;
use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::reference::attention::seen;
use hob_compute::*;
use hob_gpu::Gpu;
use hob_quant::{KvFormat, decode_kv, hadamard};

/// An attention, and how sequences lie in its batch.
#[derive(Clone, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    k: KvFormat,
    v: KvFormat,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    /// Position of the first row, and rows.
    seqs: &'static [(usize, usize)],
    exact: bool,
    /// What queries are multiplied by: louder ones make maxima grow.
    loud: f32,
}

const F16: Case = Case {
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    k: KvFormat::F16,
    v: KvFormat::F16,
    window: None,
    softcap: None,
    sinks: false,
    seqs: &[(0, 40)],
    exact: false,
    loud: 1.0,
};

impl Case {
    fn spec(&self) -> PageSpec {
        PageSpec {
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            k: self.k,
            v: self.v,
            first: false,
            latent: None,
        }
    }

    /// Pools of a device: of page 0 where it has its own, and of the others, with room for all.
    fn pools(&self, dev: &mut dyn Compute) -> [Pool; 2] {
        let spec = self.spec();
        let pages: usize = self.seqs.iter().map(|&(p, n)| (p + n).div_ceil(PAGE_POSITIONS)).sum();
        let rest = dev.alloc_pages(&spec, pages + 1).unwrap();
        let first = match spec.has_first() {
            true => dev.alloc_pages(&spec.of_page(0), self.seqs.len()).unwrap(),
            false => rest,
        };
        [first, rest]
    }

    /// Pages of every sequence, in an order that is not that of the pool.
    fn tables(&self, [first, rest]: [Pool; 2]) -> Vec<Vec<Page>> {
        let mut next = self.seqs.iter().map(|&(p, n)| (p + n).div_ceil(PAGE_POSITIONS)).sum::<usize>() as u32;
        let of = |(s, &(position, rows)): (usize, &(usize, usize))| {
            let pages = (0..(position + rows).div_ceil(PAGE_POSITIONS)).map(|index| {
                next -= 1;
                match self.spec().of_page(index).first {
                    true => Page { pool: first, index: s as u32 },
                    false => Page { pool: rest, index: next + 1 },
                }
            });
            pages.collect()
        };
        self.seqs.iter().enumerate().map(of).collect()
    }

    fn rows(&self) -> usize {
        self.seqs.iter().map(|s| s.1).sum()
    }

    /// The batch's sequences; pages that nobody needs are released.
    fn attend(
        &self,
        dev: &mut dyn Compute,
        tables: &[Vec<Page>],
        q: &[f32],
        sinks: Option<Weight>,
    ) -> Vec<f32> {
        let width = self.heads * self.head_dim;
        let (x, out) = (buffer(dev, self.rows(), width, q), dev.alloc(self.rows(), width).unwrap());
        let mut tables = tables.to_vec();
        let mut row = 0;
        for (table, &(position, rows)) in tables.iter_mut().zip(self.seqs) {
            let first = SeqRows { row, rows, position, pages: &[] }.first_page(self.window);
            table[..first].fill(Page::RELEASED);
            row += rows;
        }
        let mut seqs = Vec::new();
        for (pages, &(position, rows)) in tables.iter().zip(self.seqs) {
            let row = seqs.last().map_or(0, |s: &SeqRows| s.row + s.rows);
            seqs.push(SeqRows { row, rows, position, pages });
        }
        dev.attend(&Attend {
            q: x,
            out,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            softcap: self.softcap,
            sinks,
            seqs: &seqs,
        })
        .unwrap_or_else(|e| panic!("{self:?}: {e}"));
        contents(dev, out, self.rows() * width)
    }

    /// The oracle with K and V of all positions, and the bytes of every page.
    fn remembered(&self, oracle: &mut dyn Compute, tables: &[Vec<Page>]) -> Vec<Vec<Vec<u8>>> {
        let width = self.kv_heads * self.head_dim;
        let mut images = Vec::new();
        for (s, (pages, &(position, rows))) in tables.iter().zip(self.seqs).enumerate() {
            let total = position + rows;
            let [k, v] = [3, 5].map(|seed| values(seed + 7 * s as u64, total * width));
            let (k, v) = (buffer(oracle, total, width, &k), buffer(oracle, total, width, &v));
            let seqs = [SeqRows { row: 0, rows: total, position: 0, pages }];
            oracle.append_kv(&AppendKv { k, v, seqs: &seqs }).unwrap();
            let image = |page: &Page| {
                let mut bytes = Vec::new();
                oracle.read_positions(*page, 0..PAGE_POSITIONS, &mut bytes).unwrap();
                bytes
            };
            images.push(pages.iter().map(image).collect());
        }
        images
    }

    /// K and V of every position of a sequence as pages hold them: `[position][kv_head][side][head_dim]`.
    fn decoded(&self, images: &[Vec<u8>], total: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for position in 0..total {
            let spec = self.spec().of_page(position / PAGE_POSITIONS);
            let (image, at) = (&images[position / PAGE_POSITIONS], position % PAGE_POSITIONS);
            for head in 0..self.kv_heads {
                if self.exact {
                    let start = 8 * self.head_dim * (at * self.kv_heads + head);
                    let bytes = &image[start..start + 8 * self.head_dim];
                    out.extend(bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())));
                    continue;
                }
                let mut start = spec.image_at(at, head);
                let sides = [spec.k_format(at / BLOCK_POSITIONS), spec.v_format(at / BLOCK_POSITIONS)];
                for (format, side) in sides.into_iter().zip([spec.k, spec.v]) {
                    let bytes = format.vector_bytes(self.head_dim);
                    let mut x = vec![0f32; self.head_dim];
                    decode_kv(format, &image[start..start + bytes], &mut x);
                    if side.is_rotated() {
                        hadamard(&mut x);
                    }
                    out.extend(x);
                    start += bytes;
                }
            }
        }
        out
    }

    /// The same attention in f64.
    fn precise(&self, images: &[Vec<Vec<u8>>], q: &[f32], sinks: &[f32]) -> Vec<f32> {
        let (d, mut out, mut row) = (self.head_dim, Vec::new(), 0);
        for (images, &(position, rows)) in images.iter().zip(self.seqs) {
            let held = self.decoded(images, position + rows);
            for r in 0..rows {
                for head in 0..self.heads {
                    let kv = head / (self.heads / self.kv_heads);
                    let at = |p: usize, side: usize| &held[((p * self.kv_heads + kv) * 2 + side) * d..][..d];
                    let q = &q[((row + r) * self.heads + head) * d..][..d];
                    let seen = seen(position + r, self.window);
                    let scores: Vec<f64> = seen
                        .clone()
                        .map(|p| {
                            let dot: f64 =
                                q.iter().zip(at(p, 0)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                            let score = dot / (d as f64).sqrt();
                            self.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                        })
                        .collect();
                    let sink = sinks.get(head).map(|&s| f64::from(s));
                    let m = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
                    let sum: f64 = scores.iter().copied().chain(sink).map(|s| (s - m).exp()).sum();
                    let mut acc = vec![0f64; d];
                    for (p, s) in seen.zip(&scores) {
                        let w = (s - m).exp() / sum;
                        acc.iter_mut().zip(at(p, 1)).for_each(|(a, &v)| *a += w * f64::from(v));
                    }
                    out.extend(acc.iter().map(|&x| x as f32));
                }
            }
            row += rows;
        }
        out
    }

    /// What the device makes of the same pages.
    fn found(&self, dev: &mut Gpu, images: &[Vec<Vec<u8>>], q: &[f32], logits: &[f32]) -> Vec<f32> {
        let pools = self.pools(dev);
        let tables = self.tables(pools);
        for ((pages, images), &(position, rows)) in tables.iter().zip(images).zip(self.seqs) {
            for (index, (page, image)) in pages.iter().zip(images).enumerate() {
                let mut image = image.clone();
                let used = (position + rows - index * PAGE_POSITIONS).min(PAGE_POSITIONS);
                if !self.spec().has_first() {
                    // What nobody has written is no number: it must not matter.
                    let start = image.len() / PAGE_POSITIONS * used;
                    image[start..].fill(0xff);
                }
                dev.write_positions(*page, 0..PAGE_POSITIONS, &image).unwrap();
            }
        }
        let weight = self.sinks.then(|| vector(dev, logits));
        self.attend(dev, &tables, q, weight)
    }

    /// Whether all contexts lie within a page and all rows are few: products of f32 then, whatever K and V are stored as.
    fn is_short(&self) -> bool {
        self.seqs.iter().all(|&(position, rows)| rows <= 16 && position + rows <= PAGE_POSITIONS)
    }

    /// On every tier.
    fn check(&self) {
        let mut oracle = reference(self.exact);
        let q: Vec<f32> =
            values(1, self.rows() * self.heads * self.head_dim).iter().map(|x| x * self.loud).collect();
        let pools = self.pools(&mut oracle);
        let tables = self.tables(pools);
        let images = self.remembered(&mut oracle, &tables);
        let logits: Vec<f32> = if self.sinks { values(2, self.heads) } else { Vec::new() };
        let weight = self.sinks.then(|| vector(&mut oracle, &logits));
        let expected = self.attend(&mut oracle, &tables, &q, weight);
        let precise = self.precise(&images, &q, &logits);
        let oracle = distance(&precise, &expected);
        for off in TIERS {
            let Some(mut dev) = gpu(self.exact, off) else { return };
            let found = self.found(&mut dev, &images, &q, &logits);
            let device = distance(&precise, &found);
            // Cooperative matrices multiply queries and weights as f16.
            let most = if self.exact || self.is_short() { 2e-5 } else { oracle + 5e-3 };
            println!("{oracle:.2e} {device:.2e} without '{off}': {self:?}");
            assert!(device <= most, "{device:e} from f64, the oracle {oracle:e}, without '{off}': {self:?}");
        }
    }
}

#[test]
fn chunks_start_anywhere_and_share_a_batch() {
    let all: [&[(usize, usize)]; 3] = [&[(0, 17)], &[(63, 66)], &[(250, 20), (0, 130), (511, 18)]];
    all.into_iter().for_each(|seqs| Case { seqs, ..F16 }.check());
}

#[test]
fn every_format_is_read_also_where_the_first_block_is_f16() {
    for (k, v) in [
        (KvFormat::Bf16, KvFormat::Bf16),
        (KvFormat::Q8, KvFormat::Q8),
        (KvFormat::Q4, KvFormat::Q4),
        (KvFormat::Asym4, KvFormat::Asym4),
        (KvFormat::Q8, KvFormat::F16),
        (KvFormat::F16, KvFormat::Q4),
    ] {
        Case { k, v, seqs: &[(280, 20), (30, 50)], ..F16 }.check();
    }
}

#[test]
fn windows_end_inside_blocks_and_leave_released_pages_alone() {
    for window in [1, 20, 64, 100, 1000] {
        Case { window: Some(window), seqs: &[(600, 40), (0, 70)], ..F16 }.check();
    }
    Case { window: Some(77), k: KvFormat::Q4, v: KvFormat::Q8, seqs: &[(600, 40)], ..F16 }.check();
}

#[test]
fn caps_sinks_and_growing_maxima_follow_the_oracle() {
    let seqs = &[(100, 40)];
    Case { softcap: Some(2.0), loud: 4.0, seqs, ..F16 }.check();
    Case { sinks: true, seqs, ..F16 }.check();
    Case { sinks: true, softcap: Some(30.0), window: Some(50), loud: 20.0, seqs, ..F16 }.check();
}

#[test]
fn heads_of_every_size_and_group_fit() {
    for (head_dim, group) in [(8, 1), (80, 5), (96, 3), (128, 8), (256, 16)] {
        Case { head_dim, heads: 2 * group, seqs: &[(70, 19)], ..F16 }.check();
    }
    Case { head_dim: 96, heads: 6, k: KvFormat::Q8, v: KvFormat::Q4, seqs: &[(70, 19)], ..F16 }.check();
    Case { head_dim: 256, heads: 2, k: KvFormat::Q4, v: KvFormat::Asym4, seqs: &[(70, 19)], ..F16 }.check();
}

#[test]
fn an_exact_device_stays_within_f32() {
    for (head_dim, k) in [(64, KvFormat::F16), (80, KvFormat::F16), (128, KvFormat::Q4)] {
        let case = Case { head_dim, k, v: k, exact: true, sinks: true, seqs: &[(250, 20), (3, 40)], ..F16 };
        case.check();
        Case { window: Some(90), softcap: Some(5.0), loud: 5.0, ..case }.check();
    }
}

#[test]
fn few_rows_of_contexts_within_a_page_stay_within_f32() {
    let seqs: &[(usize, usize)] = &[(0, 1), (255, 1), (60, 7)];
    for (k, v) in [
        (KvFormat::F16, KvFormat::Bf16),
        (KvFormat::Bf16, KvFormat::Q8),
        (KvFormat::Q8, KvFormat::Q4),
        (KvFormat::Q4, KvFormat::Asym4),
        (KvFormat::Asym4, KvFormat::F16),
    ] {
        Case { k, v, seqs, ..F16 }.check();
    }
    for (head_dim, group) in [(8, 1), (80, 5), (128, 3), (256, 2)] {
        Case { head_dim, heads: 2 * group, seqs: &[(199, 2)], ..F16 }.check();
    }
    let packed = Case { head_dim: 96, heads: 6, k: KvFormat::Q8, v: KvFormat::Q4, seqs: &[(199, 3)], ..F16 };
    Case { window: Some(77), sinks: true, ..packed.clone() }.check();
    Case { window: Some(1), softcap: Some(30.0), loud: 20.0, ..packed }.check();
}
