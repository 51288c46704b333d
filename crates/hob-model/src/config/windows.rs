//! Which layers slide, and how far they see. It must not know how attention uses a window.
//!
//! config.json: `sliding_window` with `layer_types` (transformers 5), `sliding_window_pattern` (every n-th layer sees all
//! positions) or a rule of the architecture. GGUF: `attention.sliding_window`, and a flag per layer or a number in
//! `attention.sliding_window_pattern` where the converter wrote one.

use serde_json::Value as Json;

use super::keys::{Key, Keys};
use super::{Config, Mixer};
use crate::{ModelError, Result};

const WINDOW: Key = Key { gguf: "attention.sliding_window", hf: "sliding_window" };
const PATTERN: Key = Key { gguf: "attention.sliding_window_pattern", hf: "sliding_window_pattern" };

/// Gives sliding layers their window; `slides` is the architecture's rule where the file does not say which these are.
/// No window, or one of 0, means that all layers see all positions.
///
/// # Errors
/// [`ModelError::Config`] naming the key.
pub(crate) fn windows(keys: &Keys, config: &mut Config, slides: impl Fn(usize) -> bool) -> Result<()> {
    let Some(window) = keys.usize(WINDOW)?.filter(|&w| w > 0) else { return Ok(()) };
    let count = config.layers.len();
    let sliding = match (layer_types(keys, count)?, keys.flags(PATTERN, count)?) {
        (Some(flags), _) | (None, Some(flags)) => flags,
        (None, None) => match keys.usize(PATTERN)? {
            Some(every) => (0..count).map(|i| every == 0 || (i + 1) % every != 0).collect(),
            None => (0..count).map(slides).collect(),
        },
    };
    for (layer, slides) in config.layers.iter_mut().zip(sliding) {
        layer.window = slides.then_some(window);
    }
    Ok(())
}

/// The rule of Qwen2 and Qwen3: if `use_sliding_window`, layers from `max_window_layers` on slide. GGUF files of theirs
/// do not carry windows.
///
/// # Errors
/// As [`windows`].
pub(crate) fn upper_windows(keys: &Keys, config: &mut Config) -> Result<()> {
    const USE: Key = Key { gguf: "use_sliding_window", hf: "use_sliding_window" };
    const FIRST: Key = Key { gguf: "max_window_layers", hf: "max_window_layers" };
    if !keys.bool(USE)?.unwrap_or(false) {
        return Ok(());
    }
    keys.need(WINDOW, keys.usize(WINDOW)?)?;
    let first = keys.need(FIRST, keys.usize(FIRST)?)?;
    windows(keys, config, |i| i >= first)
}

/// What `layer_types` says must be what is computed, also where the architecture has no reason to look at it.
///
/// # Errors
/// [`ModelError::Config`] for a kind of layer that is not computed.
pub(crate) fn check_kinds(keys: &Keys, config: &Config) -> Result<()> {
    if config.layers.iter().any(|layer| layer.mixer != Mixer::Attention) {
        // Architectures with other layers have read the list.
        return Ok(());
    }
    let Some(sliding) = layer_types(keys, config.layers.len())? else { return Ok(()) };
    let wrong =
        config.layers.iter().zip(sliding).position(|(layer, slides)| slides && layer.window.is_none());
    match wrong {
        Some(layer) => {
            let expected = format!("full_attention in layer {layer}, which has no window");
            Err(ModelError::config("layer_types", expected, "sliding_attention"))
        }
        None => Ok(()),
    }
}

/// Which layers of config.json's `layer_types` slide.
fn layer_types(keys: &Keys, count: usize) -> Result<Option<Vec<bool>>> {
    let Some(Json::Array(list)) = keys.json("layer_types") else { return Ok(None) };
    if list.len() != count {
        let expected = format!("one value per layer, {count}");
        return Err(ModelError::config("layer_types", expected, list.len()));
    }
    let slides = |kind: &Json| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(ModelError::config("layer_types", "full_attention or sliding_attention", kind)),
    };
    list.iter().map(slides).collect::<Result<_>>().map(Some)
}
