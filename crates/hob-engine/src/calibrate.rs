//! Measuring how KV formats would disturb a model: a short built-in prompt, and one forward pass over it. It must not know
//! which disturbance is acceptable, nor where the figures are kept.

use std::sync::Arc;
use std::time::Instant;

use hob_files::ModelFile;
use hob_model::noise::{self, LayerNoise};
use hob_model::{Layout, Model, ModelInfo, Placement};
use hob_text::{ChatInput, ChatTemplate, Message, Special, TemplateLimits, Tokenizer};

use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::runtime::Runtime;

/// Tokens of the calibration prompt, where the model's context holds as many.
pub const CALIBRATION_TOKENS: usize = 384;

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    pub tokens: usize,
    /// Of the forward pass with its figures; loading not counted.
    pub seconds: f64,
    /// Layers with K and V, ascending.
    pub layers: Vec<LayerNoise>,
}

/// Loads `file` with a small f16 cache, measures, and unloads it again. `progress(done, total)` counts bytes loaded.
///
/// # Errors
/// What the file, tokenizer, model or device say.
pub fn calibrate(
    runtime: &Arc<Runtime>,
    file: &Arc<ModelFile>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Calibration> {
    let (tokenizer, placement) = (Tokenizer::from_model(file)?, Placement::default());
    let (model, calibration) = load_and_measure(runtime, file, (&tokenizer, &placement), progress)?;
    model.unload(&mut **runtime.device())?;
    Ok(calibration)
}

/// The model under the layout it was measured with.
fn load_and_measure(
    runtime: &Arc<Runtime>,
    file: &Arc<ModelFile>,
    (tokenizer, placement): (&Tokenizer, &Placement),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Model, Calibration)> {
    let tokens = calibration_tokens(tokenizer, ModelInfo::read(file)?.config.ctx_train)?;
    let (placement, chunk_rows) = (placement.clone(), tokens.len());
    let layout = Layout { placement, chunk_rows, ..Layout::new(tokens.len()) };
    let mut device = runtime.device();
    let mut model = Model::load(Arc::clone(file), &mut **device, &layout, progress)?;
    let start = Instant::now();
    match noise::measure(&mut model, &mut **device, &tokens) {
        Ok(layers) => {
            let seconds = start.elapsed().as_secs_f64();
            Ok((model, Calibration { tokens: tokens.len(), seconds, layers }))
        }
        Err(error) => {
            // The first error is the one worth telling.
            let _ = model.unload(&mut **device);
            Err(error.into())
        }
    }
}

/// As [`Engine::load`] for a model that was never measured: loads the weights once, measures, and takes the layout that
/// `decide` chooses from what was found; weights lie as `placement` says, which that layout keeps.
///
/// # Errors
/// What the file, tokenizer, model or device say, and what `decide` says. Nothing stays loaded then.
pub fn load_measured<E: From<EngineError>>(
    runtime: &Arc<Runtime>,
    file: &Arc<ModelFile>,
    placement: &Placement,
    progress: &mut dyn FnMut(u64, u64),
    decide: impl FnOnce(&Calibration) -> std::result::Result<Layout, E>,
) -> std::result::Result<Engine, E> {
    let tokenizer = Tokenizer::from_model(file).map_err(EngineError::from)?;
    let (mut model, calibration) = load_and_measure(runtime, file, (&tokenizer, placement), progress)?;
    let laid = decide(&calibration).and_then(|layout| {
        Ok(model.relayout(&mut **runtime.device(), &layout).map_err(EngineError::from)?)
    });
    match laid {
        Ok(()) => Ok(Engine::with_model(runtime, tokenizer, model)),
        Err(error) => {
            // The first error is the one worth telling.
            let _ = model.unload(&mut **runtime.device());
            Err(error)
        }
    }
}

/// The calibration prompt: prose, some code, and a turn of a chat where the model has a template for one; at most `most`
/// tokens.
///
/// # Errors
/// What the tokenizer says.
pub fn calibration_tokens(tokenizer: &Tokenizer, most: usize) -> hob_text::Result<Vec<u32>> {
    let wanted = CALIBRATION_TOKENS.min(most.max(1));
    let chat = chat(tokenizer)?;
    let mut tokens = tokenizer.encode_prompt(TEXT)?;
    // A coarse vocabulary may need the prose again; a fine one has too much of it.
    let prose = wanted.saturating_sub(chat.len()).max(1);
    while tokens.len() < prose {
        let again = tokenizer.encode(TEXT, Special::Plain)?;
        if again.is_empty() {
            break;
        }
        tokens.extend(again);
    }
    tokens.truncate(prose);
    tokens.extend(chat);
    tokens.truncate(wanted);
    Ok(tokens)
}

/// One turn in the model's own form; nothing where it has none.
fn chat(tokenizer: &Tokenizer) -> hob_text::Result<Vec<u32>> {
    let Ok(template) = ChatTemplate::for_tokenizer(tokenizer, &TemplateLimits::default()) else {
        return Ok(Vec::new());
    };
    let messages = [Message::user(QUESTION), Message::assistant(ANSWER)];
    // No begin-of-sequence token: the turn stands behind the prose.
    let input = ChatInput { messages: &messages, ..ChatInput::default() };
    match template.render(&input) {
        Ok(text) => tokenizer.encode(&text, Special::Parse),
        Err(_) => Ok(Vec::new()),
    }
}

const QUESTION: &str = "My bread comes out flat. What should I change first?";

const ANSWER: &str = "Most likely the dough did not rise long enough. Let it stand in a warm place until it has doubled, \
which may take two hours in winter; if that does not help, try fresh yeast.";

const TEXT: &str = "The harbour lies on the north side of the bay, where the hills keep the worst of the wind away. In \
1874 the town built a stone pier of some 210 metres, and for thirty years the ships that carried slate and timber left \
from it nearly every day. When the railway came, trade moved inland; the pier was left to the fishermen, to gulls, and \
to children who learned to swim beside it. An old man named Peter Holm kept the light at its end. He wrote down the \
weather three times a day, and his books, forty-one of them, are still in the library: pressure, temperature, the \
direction of the wind, and now and then a remark such as \"fog till noon\" or \"two seals\". Last spring a student \
typed all of it into a table and drew a curve through the years. The water has become warmer by 1.3 degrees, mostly \
since 1990.\n\nHow is such a mean computed? One adds the values and divides by their number:\n\ndef mean(values):\n    \
total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n\nThat is all, but the \
order of the sum matters when the values are many and small, because every addition rounds. A careful program therefore \
adds neighbours first, then pairs of pairs, and so on. The result differs only in the last digits; nobody at the harbour \
would notice. What they did notice is that the herring now come two weeks earlier, that the ice stays away, and that the \
visitors, who once arrived in July, sit on the warm stones of the pier in May.";
