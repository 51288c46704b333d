//! A seeded generator for test inputs: SplitMix64 (Steele, Lea, Flood 2014), chosen because any language can reproduce
//! its stream from one line. Not for cryptography or sampling. It must not know what the numbers are used for.

/// A deterministic stream of numbers; equal seeds give equal streams on every machine.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// An independent stream, e.g. one per tensor: mixes `label` (FNV-1a) into the seed.
    pub fn for_label(seed: u64, label: &str) -> Self {
        let hash = label.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        Self::new(seed ^ hash)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The next 32 bits (the upper half of [`Rng::u64`]).
    pub fn u32(&mut self) -> u32 {
        (self.u64() >> 32) as u32
    }

    /// Uniform in `0..end`.
    ///
    /// # Panics
    /// If `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        assert!(end > 0, "Rng::below needs a range that is not empty");
        // The multiply-shift map; its bias is below end / 2^64.
        ((u128::from(self.u64()) * end as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-24.
    pub fn f32(&mut self) -> f32 {
        (self.u64() >> 40) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Uniform in `[low, high)`.
    pub fn range_f32(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.f32()
    }

    /// Normal with mean 0 and deviation 1 (Box-Muller; one value per two draws).
    pub fn normal(&mut self) -> f32 {
        // 1 - u is in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * f64::from(1.0 - self.f32()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * f64::from(self.f32())).cos()) as f32
    }

    /// `n` values uniform in `[low, high)`.
    pub fn uniform_vec(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| self.range_f32(low, high)).collect()
    }

    /// `n` normal values with mean 0 and the given deviation.
    pub fn normal_vec(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * deviation).collect()
    }

    /// `n` bytes: the little-endian bytes of successive [`Rng::u64`], the last one cut short.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        self.fill(&mut out);
        out
    }

    /// Fills `out` as [`Rng::bytes`] does.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn stream_is_the_published_splitmix64() {
        // The first outputs of the reference implementation for seed 1234567.
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.u64(), 3_203_168_211_198_807_973);
        assert_eq!(rng.u64(), 9_817_491_932_198_370_423);
    }

    #[test]
    fn bytes_are_the_little_endian_stream_cut_short() {
        let word = Rng::new(9).u64().to_le_bytes();
        assert_eq!(Rng::new(9).bytes(5), word[..5]);
        assert_eq!(Rng::new(9).bytes(16)[..8], word);
    }

    #[test]
    fn labels_give_different_streams_and_equal_labels_equal_ones() {
        assert_ne!(Rng::for_label(1, "a").u64(), Rng::for_label(1, "b").u64());
        assert_ne!(Rng::for_label(1, "a").u64(), Rng::for_label(2, "a").u64());
        assert_eq!(Rng::for_label(1, "a").u64(), Rng::for_label(1, "a").u64());
    }

    #[test]
    fn uniform_and_normal_have_their_moments_and_bounds() {
        let mut rng = Rng::new(3);
        let uniform = rng.uniform_vec(40_000, -1.0, 3.0);
        assert!(uniform.iter().all(|v| (-1.0..3.0).contains(v)));
        let mean = uniform.iter().sum::<f32>() / 40_000.0;
        assert!((mean - 1.0).abs() < 0.02, "uniform mean {mean}");
        let normal = rng.normal_vec(40_000, 2.0);
        let mean = normal.iter().sum::<f32>() / 40_000.0;
        let variance = normal.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 40_000.0;
        assert!(mean.abs() < 0.04, "normal mean {mean}");
        assert!((variance - 4.0).abs() < 0.12, "normal variance {variance}");
    }

    #[test]
    fn below_reaches_every_value_and_nothing_else() {
        let mut rng = Rng::new(4);
        let mut seen = [0; 7];
        for _ in 0..700 {
            seen[rng.below(7)] += 1;
        }
        assert!(seen.iter().all(|&n| n > 50), "{seen:?}");
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Rng::new(5).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
