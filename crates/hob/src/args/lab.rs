//! Flags of the lab's tools for the KV cache.

use std::path::PathBuf;

use clap::Args;
use hob_plan::KvWish;
use hob_plan::units::Size;

/// Model, text and machine of a tool that looks at one model's KV cache.
#[derive(Debug, Args)]
pub struct KvSubjectArgs {
    /// Model: a name from `hob list`, a .gguf file, a folder with safetensors, or hf:OWNER/REPO[@REV][:FILE or TYPE]
    pub model: String,
    /// File with the text (UTF-8; - is stdin)
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Threads to compute with [default: one per usable core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// Most memory to use, such as 8G, 512M or 50%
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub ram: Option<Size>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct KvArgs {
    #[command(flatten)]
    pub subject: KvSubjectArgs,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    pub ctx: usize,
    /// Most windows [default: the whole text]
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Positions of each window that are compared, its last: they see the most cached rows
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub score: usize,
    /// Formats to compare with f16: auto, one for both sides, or K/V
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = KvWish::parse,
        default_value = "q8,q4,asym4,bf16,q8/q4,q4/q8,auto"
    )]
    pub kv: Vec<KvWish>,
    /// Keep activations in f32, and K and V in floats that went through each format's codec (slower): what a format costs
    /// when nothing else rounds
    #[arg(long)]
    pub exact: bool,
    /// Let auto pick 4 bits for models of at least so many million weights
    #[arg(long, value_name = "MILLIONS")]
    pub least_weights: Option<u64>,
    /// The measured noise of every layer too
    #[arg(short, long)]
    pub verbose: bool,
}

#[derive(Debug, Args)]
pub struct NeedleArgs {
    #[command(flatten)]
    pub subject: KvSubjectArgs,
    /// Tokens of the prompts, one column of the table for each
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "2048")]
    pub ctx: Vec<usize>,
    /// Percent of the text before the hidden fact, one row for each
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "0,25,50,75,100")]
    pub depths: Vec<f64>,
    /// KV formats, one table for each: auto, one for both sides, or K/V
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = KvWish::parse,
        default_value = "f16,auto"
    )]
    pub kv: Vec<KvWish>,
    /// Facts in each cell
    #[arg(short, long, value_name = "N", default_value_t = 2)]
    pub repeat: usize,
    /// Seed of places and numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Ask in the model's chat template, instead of beginning the hidden sentence again
    #[arg(long)]
    pub question: bool,
}
