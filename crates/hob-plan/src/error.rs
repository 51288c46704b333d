//! One error enum: what was wanted, what there is, and the way out.

use std::path::PathBuf;

use crate::units::{show_bytes, show_count};

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    #[error("--threads 0: at least one thread is needed (this machine has {available})")]
    NoThreads { available: usize },
    #[error("--ctx 0: a context of at least one token is needed (the model was trained for {})", show_count(*trained as u64))]
    NoContext { trained: usize },
    #[error(
        "a context of {} tokens is beyond the {} this model was trained for; use --ctx {trained} or less",
        show_count(*asked as u64), show_count(*trained as u64)
    )]
    ContextBeyondTraining { asked: usize, trained: usize },
    #[error(
        "a context of {} tokens needs {} with {kv} KV, but {} may be used ({source_of_limit}); at most {} tokens fit: \
         use --ctx {fits}{}, a smaller model, or more memory (--ram)",
        show_count(*asked as u64), show_bytes(*needs_bytes), show_bytes(*limit_bytes), show_count(*fits as u64),
        way_out(*asked, *fits, others)
    )]
    ContextDoesNotFit {
        asked: usize,
        fits: usize,
        needs_bytes: u64,
        limit_bytes: u64,
        source_of_limit: String,
        /// As `--kv` spells it.
        kv: String,
        /// The most tokens that other formats hold, best format first.
        others: Vec<(String, usize)>,
    },
    #[error(
        "the model needs {} even with a context of {} tokens, but {} may be used ({source_of_limit}); \
         choose a smaller model or quantization, close other programs, or allow more with --ram",
        show_bytes(*needs_bytes), show_count(*ctx_tokens as u64), show_bytes(*limit_bytes)
    )]
    ModelDoesNotFit { needs_bytes: u64, ctx_tokens: usize, limit_bytes: u64, source_of_limit: String },
    #[error(
        "{layers} layers need {} on the GPU, but {} may be used ({source_of_limit}); {fits} fit: use --gpu {fits} or \
         --gpu auto, a shorter --ctx, or a smaller --kv",
        show_bytes(*needs_bytes), show_bytes(*limit_bytes)
    )]
    GpuDoesNotFit { layers: usize, fits: usize, needs_bytes: u64, limit_bytes: u64, source_of_limit: String },
    #[error("a GPU was asked for, and there is none to use: {why}; leave --gpu out, or use --gpu off")]
    NoGpu { why: String },
    #[error("--experts-on disk: reading experts from disk while generating is not built yet; use cpu or gpu")]
    ExpertsOnDisk,
    #[error("the run could not be added to {}: {problem}", path.display())]
    History { path: PathBuf, problem: String },
    #[error("the measured KV noise could not be kept in {}: {problem}", path.display())]
    KvNoise { path: PathBuf, problem: String },
}

/// Which `--kv` would hold `asked` tokens, or how far the smallest gets.
fn way_out(asked: usize, fits: usize, others: &[(String, usize)]) -> String {
    if let Some((kv, _)) = others.iter().find(|(_, most)| *most >= asked) {
        return format!(", or --kv {kv}, which holds all {}", show_count(asked as u64));
    }
    match others.iter().filter(|(_, most)| *most > fits).max_by_key(|(_, most)| *most) {
        Some((kv, most)) => format!(", or --kv {kv} --ctx {most}"),
        None => String::new(),
    }
}
