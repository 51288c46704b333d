//! What a request came to: text, tokens, why it ended, and what was measured. It must not know how it was run.

/// Why a reply ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop string appeared.
    Stop,
    /// The model sampled an end token.
    EndToken,
    /// `max_tokens` were sampled.
    Length,
    /// The context is full.
    Context,
    /// The cancel flag was set.
    Cancelled,
}

/// One finished reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Everything that was emitted, in one piece.
    pub text: String,
    /// The sampled tokens, without the end token.
    pub tokens: Vec<u32>,
    pub finish: Finish,
    /// The seed of the draws; with it the same request gives the same tokens.
    pub seed: u64,
    pub figures: Figures,
}

/// What was measured. Times are wall time and include the company in the batch.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub prompt_tokens: usize,
    /// Prompt tokens whose state was still in memory.
    pub reused_tokens: usize,
    /// Prompt tokens whose state came from disk.
    pub restored_tokens: usize,
    /// Time taken by restoring.
    pub restore_micros: u64,
    /// What restoring was expected to take, from the bytes and the measured rate; 0 if the disk had nothing.
    pub restore_estimate_micros: u64,
    /// What running those tokens was expected to take instead.
    pub recompute_estimate_micros: u64,
    /// From the first step to the first sampled token.
    pub prefill_micros: u64,
    /// Sampled tokens, without the end token.
    pub generated_tokens: usize,
    /// Steps after the first sampled token.
    pub decode_steps: usize,
    /// From the first sampled token to the last.
    pub decode_micros: u64,
    /// From submission to the first sampled token.
    pub first_token_micros: u64,
    /// Bytes (weights and KV) that the decode steps had to read, were each alone in its batch.
    pub decode_bytes: u64,
}

impl Figures {
    /// Prompt tokens that were not run: from memory and from disk.
    pub fn cached_tokens(&self) -> usize {
        self.reused_tokens + self.restored_tokens
    }

    /// Prompt tokens run per second of prefill; `None` before anything was measured.
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        rate(self.prompt_tokens.saturating_sub(self.cached_tokens()) as f64, self.prefill_micros)
    }

    /// Decode steps per second; `None` when there was none.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        rate(self.decode_steps as f64, self.decode_micros)
    }

    /// Bytes read per second of decode, in GB/s (1e9); to be held against the measured read bandwidth.
    pub fn decode_gb_per_second(&self) -> Option<f64> {
        rate(self.decode_bytes as f64, self.decode_micros).map(|b| b / 1e9)
    }
}

fn rate(count: f64, micros: u64) -> Option<f64> {
    (count > 0.0 && micros > 0).then(|| count * 1e6 / micros as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_the_counts() {
        let f = Figures {
            prompt_tokens: 110,
            reused_tokens: 6,
            restored_tokens: 4,
            prefill_micros: 500_000,
            generated_tokens: 21,
            decode_steps: 20,
            decode_micros: 2_000_000,
            first_token_micros: 600_000,
            decode_bytes: 8_000_000_000,
            ..Figures::default()
        };
        assert_eq!(f.prefill_tokens_per_second(), Some(200.0));
        assert_eq!(f.decode_tokens_per_second(), Some(10.0));
        assert_eq!(f.decode_gb_per_second(), Some(4.0));
        assert_eq!(Figures::default().prefill_tokens_per_second(), None);
        assert_eq!(Figures { decode_steps: 3, ..Figures::default() }.decode_tokens_per_second(), None);
    }
}
