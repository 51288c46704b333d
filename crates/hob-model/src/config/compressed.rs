//! Compressed attention and hyper-connections (DeepSeek V4): their sizes, and the keys that files have for them.

use hob_compute::{CompressShape, HyperMix};
use serde_json::Value as Json;

use super::keys::{Key, Keys};
use super::rope::named_rope;
use super::{Config, LayerConfig, Mixer, RopeConfig, RopeScaling, size};
use crate::arch::Entry;
use crate::{ModelError, Result};

/// A layer's compressed attention.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CompressedConfig {
    /// Dimensions that queries are made from.
    pub q_rank: usize,
    /// Groups of heads whose outputs are projected apart, and dimensions of each projection.
    pub groups: usize,
    pub out_rank: usize,
    /// What it attends to beyond its window.
    pub entries: Option<EntryConfig>,
}

/// The entries of a layer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct EntryConfig {
    /// Positions of a block, and so of an entry.
    pub ratio: usize,
    /// Who selects among entries, which overlap then; all are attended to where nobody does.
    pub index: Option<IndexConfig>,
}

impl EntryConfig {
    /// Positions of an entry where an indexer selects among them, and where all are attended to.
    pub const SPARSE: usize = 4;
    pub const HEAVY: usize = 128;
}

/// An indexer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    pub heads: usize,
    pub dim: usize,
    /// Entries that it selects.
    pub top_k: usize,
}

impl CompressedConfig {
    /// Multiply-accumulates of attention of the row at `position`.
    pub(super) fn mixing_macs(&self, layer: &LayerConfig, position: usize) -> usize {
        let (mut keys, mut scored) = (layer.visible(position), 0);
        if let Some(EntryConfig { ratio, index }) = self.entries {
            let far = (position + 1) / ratio.max(1);
            keys += index.map_or(far, |i| i.top_k.min(far));
            scored = index.map_or(0, |i| i.heads * i.dim * far);
        }
        2 * layer.heads * layer.head_dim * keys + scored
    }

    pub(super) fn check(
        &self,
        layer: &LayerConfig,
        rotary: usize,
        key: &impl Fn(&str) -> String,
    ) -> Result<()> {
        size(&key("q_lora_rank"), self.q_rank)?;
        size(&key("o_lora_rank"), self.out_rank)?;
        size(&key("o_groups * o_lora_rank"), self.groups.saturating_mul(self.out_rank))?;
        if !layer.heads.is_multiple_of(self.groups) {
            let expected = format!("a divisor of the {} query heads", layer.heads);
            return Err(ModelError::config(key("o_groups"), expected, self.groups));
        }
        if layer.kv_heads != 1 {
            return Err(ModelError::config(key("kv_heads"), "1", layer.kv_heads));
        }
        if layer.window.is_none() {
            return Err(ModelError::config(key("sliding_window"), "a window", "none"));
        }
        let Some(EntryConfig { ratio, index }) = self.entries else { return Ok(()) };
        size(&key("compress_ratio"), ratio)?;
        let Some(IndexConfig { heads, dim, top_k }) = index else { return Ok(()) };
        size(&key("index_n_heads"), heads)?;
        size(&key("index_topk"), top_k)?;
        size(&key("index_n_heads * index_head_dim"), heads.saturating_mul(dim))?;
        if dim < rotary {
            let expected = format!("at least the {rotary} rotated dimensions");
            return Err(ModelError::config(key("index_head_dim"), expected, dim));
        }
        for (name, dim) in [("index_head_dim", dim), ("head_dim", layer.head_dim)] {
            if dim > CompressShape::MAX_DIM {
                let expected = format!("at most {}", CompressShape::MAX_DIM);
                return Err(ModelError::config(key(name), expected, dim));
            }
        }
        Ok(())
    }
}

/// A residual stream of several (hyper-connections).
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct StreamConfig {
    pub count: usize,
    /// Divisions of the mixing matrix's columns.
    pub iterations: usize,
    pub eps: f32,
}

impl StreamConfig {
    /// Of a model of width `dim`.
    pub(super) fn check(&self, dim: usize) -> Result<()> {
        let (most, eps) = (HyperMix::MAX_STREAMS, self.eps);
        let good = (1..=most).contains(&self.count) && (1..=1000).contains(&self.iterations);
        if !(good && eps.is_finite() && eps >= 0.0) {
            let expected = format!("1..={most} streams, 1..=1000 iterations and an epsilon from 0");
            return Err(ModelError::config("hyper-connections", expected, format!("{self:?}")));
        }
        size("streams * dim", self.count.saturating_mul(dim))
    }
}

/// Gives every layer its compressed attention, and the model its streams and rotary tables: that of layers with a window
/// only, then that of the others.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn compressed(keys: &Keys, entry: &Entry, config: &mut Config) -> Result<()> {
    const WINDOW: Key = Key { gguf: "attention.sliding_window", hf: "sliding_window" };
    const Q_RANK: Key = Key { gguf: "attention.q_lora_rank", hf: "q_lora_rank" };
    const GROUPS: Key = Key { gguf: "attention.output_group_count", hf: "o_groups" };
    const OUT_RANK: Key = Key { gguf: "attention.output_lora_rank", hf: "o_lora_rank" };
    const HEADS: Key = Key { gguf: "attention.indexer.head_count", hf: "index_n_heads" };
    const DIM: Key = Key { gguf: "attention.indexer.key_length", hf: "index_head_dim" };
    const TOP: Key = Key { gguf: "attention.indexer.top_k", hf: "index_topk" };
    const SPARSE: usize = EntryConfig::SPARSE;
    const HEAVY: usize = EntryConfig::HEAVY;
    let need = |key| keys.need(key, keys.usize(key)?);
    ropes(keys, entry, config)?;
    config.streams = Some(streams(keys)?);
    let ratios = ratios(keys, config)?;
    let window = need(WINDOW)?;
    let (q_rank, groups, out_rank) = (need(Q_RANK)?, need(GROUPS)?, need(OUT_RANK)?);
    for (layer, (key, ratio)) in config.layers.iter_mut().zip(ratios) {
        let index = match ratio {
            SPARSE => Some(IndexConfig { heads: need(HEADS)?, dim: need(DIM)?, top_k: need(TOP)? }),
            _ => None,
        };
        let entries = match ratio {
            0 => None,
            SPARSE | HEAVY => Some(EntryConfig { ratio, index }),
            other => return Err(ModelError::config(key, format!("0, {SPARSE} or {HEAVY}"), other)),
        };
        layer.mixer = Mixer::Compressed(CompressedConfig { q_rank, groups, out_rank, entries });
        (layer.window, layer.rope) = (Some(window), Some(usize::from(entries.is_some())));
    }
    Ok(())
}

fn ropes(keys: &Keys, entry: &Entry, config: &mut Config) -> Result<()> {
    const BASE: Key = Key { gguf: "attention.compress_rope_freq_base", hf: "compress_rope_theta" };
    let given = config.ropes[0].clone();
    let head_dim = config.layers[0].head_dim;
    let stretched = match named_rope(keys, entry, head_dim, "rope_parameters.compress")? {
        Some(rope) => rope,
        None => RopeConfig { base: keys.need(BASE, keys.f64(BASE)?)?, ..given.clone() },
    };
    let plain = RopeConfig { scaling: RopeScaling::None, magnitude: 1.0, ..given };
    config.ropes = vec![plain, RopeConfig { magnitude: 1.0, ..stretched }];
    Ok(())
}

fn streams(keys: &Keys) -> Result<StreamConfig> {
    const COUNT: Key = Key { gguf: "hyper_connection.count", hf: "hc_mult" };
    const ITERATIONS: Key = Key { gguf: "hyper_connection.sinkhorn_iterations", hf: "hc_sinkhorn_iters" };
    const EPS: Key = Key { gguf: "hyper_connection.epsilon", hf: "hc_eps" };
    Ok(StreamConfig {
        count: keys.need(COUNT, keys.usize(COUNT)?)?,
        iterations: keys.need(ITERATIONS, keys.usize(ITERATIONS)?)?,
        eps: keys.need(EPS, keys.f64(EPS)?)? as f32,
    })
}

/// Positions of an entry, of every layer, and the key that says so.
fn ratios(keys: &Keys, config: &Config) -> Result<Vec<(String, usize)>> {
    const RATIOS: Key = Key { gguf: "attention.compress_ratios", hf: "compress_ratios" };
    const TYPES: &str = "layer_types";
    let count = config.layers.len();
    // The lists may count the blocks that predict further tokens.
    let listed =
        keys.per_layer(RATIOS, count).or_else(|_| keys.per_layer(RATIOS, count + config.drafting))?;
    let kinds = keys.json(TYPES).and_then(Json::as_array).filter(|kinds| kinds.len() >= count);
    let ratio = |kind: &Json| match kind.as_str() {
        Some("sliding_attention") => Ok(0),
        Some("compressed_sparse_attention") => Ok(EntryConfig::SPARSE),
        Some("heavily_compressed_attention") => Ok(EntryConfig::HEAVY),
        _ => {
            let expected = "sliding_, compressed_sparse_ or heavily_compressed_attention";
            Err(ModelError::config(TYPES, expected, kind))
        }
    };
    let kinds =
        kinds.map(|kinds| kinds[..count].iter().map(ratio).collect::<Result<Vec<_>>>()).transpose()?;
    match (listed, kinds) {
        (Some(list), kinds) => {
            let kinds = kinds.unwrap_or_else(|| list.clone());
            if let Some(layer) = (0..count).find(|&i| list[i] != kinds[i]) {
                let expected = format!("what {TYPES} says of layer {layer}: {}", kinds[layer]);
                return Err(ModelError::config(keys.spell(RATIOS), expected, list[layer]));
            }
            Ok(list.into_iter().map(|ratio| (keys.spell(RATIOS), ratio)).collect())
        }
        (None, Some(kinds)) => Ok(kinds.into_iter().map(|ratio| (TYPES.to_string(), ratio)).collect()),
        (None, None) => Err(ModelError::config(RATIOS.hf, format!("a list of {count} ratios"), "nothing")),
    }
}
