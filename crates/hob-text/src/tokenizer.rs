//! The public face of a vocabulary: text to ids and back, special tokens, end tokens. Where it came from is the
//! business of `gguf.rs` and `json.rs`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hob_files::{FileKind, ModelFile};

use crate::assemble::{Parts, Specials};
use crate::detokenizer::Detokenizer;
use crate::encoder::Encoder;
use crate::error::{Result, TextError};
use crate::limits::TokenizerLimits;
use crate::vocab::Kind;
use crate::{gguf, json};

/// What to do with the texts of special tokens (`<|im_start|>` and the like) in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// They become the tokens: for prompts that a template wrote.
    Parse,
    /// They are text like any other: for what people typed. No special token can come out.
    Plain,
}

/// A vocabulary and its encoder. Cheap to clone; may be used from several threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: Encoder,
    specials: Specials,
    ends: Vec<u32>,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// The tokenizer of a model: from the metadata of a GGUF file, or from tokenizer.json (with
    /// tokenizer_config.json, generation_config.json and chat_template.jinja) beside safetensors.
    pub fn from_model(file: &ModelFile) -> Result<Tokenizer> {
        Tokenizer::from_model_with(file, &TokenizerLimits::default())
    }

    /// As [`Tokenizer::from_model`] with other limits.
    pub fn from_model_with(file: &ModelFile, limits: &TokenizerLimits) -> Result<Tokenizer> {
        match file.kind() {
            FileKind::Gguf => {
                let metadata = file.metadata();
                Tokenizer::build(gguf::parts(metadata, limits)?, gguf::chat_template(metadata)?, limits)
            }
            FileKind::Safetensors => {
                let path = file.tokenizer_json().ok_or_else(|| TextError::NoTokenizer {
                    path: file.path().display().to_string(),
                    expected: "tokenizer.json beside the weights",
                })?;
                let side = json::SideFiles {
                    tokenizer_config: file.json("tokenizer_config.json"),
                    generation_config: file.json("generation_config.json"),
                    chat_template: file.text("chat_template.jinja"),
                };
                let bytes = json::read(&path, limits)?;
                json::load(&bytes, &side, limits)
            }
        }
    }

    /// A tokenizer.json on its own: no chat template, and the special ids that its post-processor names.
    pub fn from_json(path: &Path) -> Result<Tokenizer> {
        let limits = TokenizerLimits::default();
        json::load(&json::read(path, &limits)?, &json::SideFiles::default(), &limits)
    }

    /// As [`Tokenizer::from_json`] from memory. Any bytes are safe to pass: what is not a usable tokenizer is an
    /// error (this is the fuzzer's entry).
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Tokenizer> {
        json::load(bytes, &json::SideFiles::default(), &TokenizerLimits::default())
    }

    pub(crate) fn build<S: AsRef<str>>(
        parts: Parts<S>,
        chat_template: Option<String>,
        limits: &TokenizerLimits,
    ) -> Result<Tokenizer> {
        let (encoder, specials, ends) = parts.assemble(limits)?;
        Ok(Tokenizer { inner: Arc::new(Inner { encoder, specials, ends, chat_template }) })
    }

    /// Ids of `text`, without a begin-of-sequence token.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        self.inner.encoder.encode(text, special == Special::Parse, &mut ids)?;
        Ok(ids)
    }

    /// Ids of a prompt: special texts become tokens, and the begin-of-sequence token comes first if the model
    /// wants one (and the text does not already start with it).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let bos = self.bos().filter(|_| self.add_bos());
        ids.extend(bos);
        self.inner.encoder.encode(text, true, &mut ids)?;
        if bos.is_some() && ids.get(1).copied() == bos {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Number of tokens. A model may have more rows than this (padding).
    pub fn vocab_size(&self) -> usize {
        self.inner.encoder.vocab.len()
    }

    /// The bytes a token stands for (its own text for added tokens); empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.inner.encoder.vocab.raw(id)
    }

    /// A token's text as the vocabulary writes it (`Ġhello`).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.inner.encoder.vocab.text(id)
    }

    /// The token with exactly this text as the vocabulary writes it.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.inner.encoder.id_of(text)
    }

    /// The begin-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.inner.specials.bos
    }

    /// The end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.inner.specials.eos
    }

    /// Whether prompts start with [`Tokenizer::bos`].
    pub fn add_bos(&self) -> bool {
        self.inner.specials.add_bos && self.inner.specials.bos.is_some()
    }

    /// Tokens that end an answer, ascending: what the file names and the well-known ends of a turn.
    pub fn end_tokens(&self) -> &[u32] {
        &self.inner.ends
    }

    /// Whether the token is structure rather than text: never shown, never made from plain text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.encoder.vocab.kind(id).is_some_and(Kind::is_special)
    }

    /// Something about the file's vocabulary that its user should know, in one sentence.
    pub fn warning(&self) -> Option<&str> {
        self.inner.encoder.warning.as_deref()
    }

    /// Whether the file says that its model was tuned for conversation (in its name; no key is reserved for it).
    pub fn is_tuned_for_chat(&self) -> bool {
        self.inner.encoder.tuned_for_chat
    }

    /// The source of the model's own chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.inner.chat_template.as_deref()
    }

    /// A fresh detokenizer for one stream of tokens.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }

    /// The text of many tokens at once; control tokens give nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = self.detokenizer();
        let mut text = String::new();
        ids.iter().for_each(|&id| detokenizer.push_into(id, &mut text));
        text + &detokenizer.finish()
    }

    pub(crate) fn longest_token_bytes(&self) -> usize {
        self.inner.encoder.vocab.longest()
    }

    pub(crate) fn strips_leading_space(&self) -> bool {
        self.inner.encoder.strip_leading_space
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.vocab_size())
            .field("bos", &self.bos())
            .field("end_tokens", &self.end_tokens())
            .finish_non_exhaustive()
    }
}
