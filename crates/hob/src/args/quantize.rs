//! Flags of `hob quantize` and of the lab's tool beside it.

use std::path::PathBuf;

use clap::Args;
use hob_plan::units::Size;

#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Model: a name from `hob list` or a .gguf file; best one of F16 or BF16 weights (`help` lists types and recipes)
    pub model: String,
    /// File to write [default: the model's name with what was asked for, in this folder]
    #[arg(short, long, value_name = "FILE.gguf")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub goal: GoalArgs,
    /// Type of the head, or of the embedding that is the head, too [default: at least q6_k, or q8_0 where rows are no
    /// multiple of 256; with a budget what pays]
    #[arg(long, value_name = "TYPE")]
    pub head: Option<String>,
    /// Threads to encode with [default: one per usable core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// Replace a file of that name
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is wanted of the file; exactly one.
#[derive(Debug, Args)]
#[group(required = false, multiple = false)]
pub struct GoalArgs {
    /// All matrices of one type, such as q4_k or iq4_xs
    #[arg(long, value_name = "TYPE")]
    pub format: Option<String>,
    /// At most so many bits a weight, all tensors together, given to the tensors where they buy most
    #[arg(long, value_name = "BITS", allow_negative_numbers = true)]
    pub bpw: Option<f64>,
    /// The best file of at most this size, such as 6GiB, or 50% of the model's
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub fit: Option<Size>,
    /// A fixed rule from tensors to types, such as q4_k_m
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
}

#[derive(Debug, Args)]
pub struct DitherArgs {
    /// Quantized model: a name from `hob list` or a .gguf file
    pub model: String,
    /// File to write; one of that name is replaced when the new one is whole
    #[arg(short, long, value_name = "FILE.gguf")]
    pub output: PathBuf,
    /// Seed of the noise; the same seed gives the same file
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}
