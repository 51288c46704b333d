//! A checked vocabulary at work: text between added tokens to ids. Whatever the algorithm, plain text never becomes a
//! control token. Knows nothing of files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{AddedVocabulary, Model, OffsetReferential, OffsetType, PreTokenizer, Token};

use crate::assemble::Pieces;
use crate::error::{Result, TextError};
use crate::normalizer::Normal;
use crate::spm::Spm;
use crate::unigram::Unigram;
use crate::vocab::{Kind, Vocab, spell_bytes};

pub(crate) struct Encoder {
    pub(crate) vocab: Vocab,
    pub(crate) algorithm: Algorithm,
    pub(crate) normalizer: Option<Normal>,
    pub(crate) pieces: Pieces,
    /// Matches every added token.
    pub(crate) added: AddedVocabulary,
    /// Matches only those that are not special.
    pub(crate) added_plain: AddedVocabulary,
    pub(crate) strip_leading_space: bool,
    pub(crate) warning: Option<String>,
    pub(crate) tuned_for_chat: bool,
}

pub(crate) enum Algorithm {
    Merges(Box<BPE>),
    Scores(Spm),
    Unigram(Unigram),
}

fn failed(error: tokenizers::Error) -> TextError {
    TextError::Encode(error.to_string())
}

impl Encoder {
    /// The id of a token's text as it stands in the vocabulary.
    pub(crate) fn id_of(&self, text: &str) -> Option<u32> {
        let bytes =
            || (0..self.vocab.len() as u32).find(|&id| self.is_byte(id) && self.vocab.text(id) == Some(text));
        Lookup { vocab: &self.vocab, algorithm: &self.algorithm }.id_of(text).or_else(bytes)
    }

    fn is_byte(&self, id: u32) -> bool {
        self.vocab.kind(id) == Some(Kind::Byte)
    }

    /// Appends the ids of `text`; `special` says whether the texts of special tokens become these tokens.
    pub(crate) fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<()> {
        let added = if special { &self.added } else { &self.added_plain };
        let mut pieces = added.extract_and_normalize(self.normalizer.as_ref(), text);
        if let Pieces::Component(Some(pre_tokenizer)) = &self.pieces {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        for (text, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => self.encode_piece(text, ids)?,
            }
        }
        Ok(())
    }

    /// A piece between added tokens.
    fn encode_piece(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.pieces {
            Pieces::Component(_) => self.join(text, ids),
            Pieces::Bytes(splitter) => {
                let mut spelled = String::new();
                splitter.split(text, &mut |piece| {
                    spelled.clear();
                    spell_bytes(piece.as_bytes(), &mut spelled);
                    self.join(&spelled, ids)
                })
            }
            Pieces::Lines(splitter) => {
                let text = text.replace(' ', "▁");
                splitter.split(&text, &mut |piece| match piece
                    .starts_with('\n')
                    .then(|| self.text_token(piece))
                    .flatten()
                {
                    Some(id) => {
                        ids.push(id);
                        Ok(())
                    }
                    None => self.join(piece, ids),
                })
            }
            Pieces::Escaped { add_space_prefix } => {
                let mut escaped = String::with_capacity(text.len() + text.len() / 3 + 3);
                if *add_space_prefix {
                    escaped.push('▁');
                }
                let mut words = text.split(' ');
                escaped.extend(words.next());
                for word in words {
                    escaped.push('▁');
                    escaped.push_str(word);
                }
                self.join(&escaped, ids)
            }
            Pieces::Prepared(preparation) => self.join(&preparation.apply(text), ids),
        }
    }

    /// Characters to tokens.
    fn join(&self, piece: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.algorithm {
            Algorithm::Merges(bpe) => {
                let start = ids.len();
                ids.extend(bpe.tokenize(piece).map_err(failed)?.iter().map(|token| token.id));
                if ids[start..].iter().any(|&id| self.is_control(id)) {
                    ids.truncate(start);
                    return self.spell_out(bpe, piece, ids);
                }
                Ok(())
            }
            Algorithm::Scores(spm) => spm.encode(&self.vocab, piece, ids),
            Algorithm::Unigram(unigram) => unigram.encode(&self.vocab, piece, ids),
        }
    }

    /// The tokens of a piece one character at a time: for the rare piece whose merges would give a control
    /// token, which text must never become.
    fn spell_out(&self, bpe: &BPE, piece: &str, ids: &mut Vec<u32>) -> Result<()> {
        for c in piece.chars() {
            let start = ids.len();
            let tokens = bpe.tokenize(c.encode_utf8(&mut [0; 4])).map_err(failed)?;
            ids.extend(tokens.iter().map(|token| token.id));
            if ids[start..].iter().any(|&id| self.is_control(id)) {
                return Err(TextError::Encode(format!("the character {c:?} exists only as a control token")));
            }
        }
        Ok(())
    }

    fn text_token(&self, text: &str) -> Option<u32> {
        self.id_of(text).filter(|&id| !self.is_control(id))
    }

    fn is_control(&self, id: u32) -> bool {
        self.vocab.kind(id) == Some(Kind::Control)
    }
}

/// What the `tokenizers` crate asks of a model when it indexes added tokens: ids by text, nothing else.
pub(crate) struct Lookup<'a> {
    pub(crate) vocab: &'a Vocab,
    pub(crate) algorithm: &'a Algorithm,
}

impl Lookup<'_> {
    fn id_of(&self, text: &str) -> Option<u32> {
        self.vocab.added(text).or_else(|| match self.algorithm {
            Algorithm::Merges(bpe) => bpe.token_to_id(text),
            Algorithm::Scores(spm) => spm.id_of(self.vocab, text),
            Algorithm::Unigram(unigram) => unigram.id_of(self.vocab, text),
        })
    }
}

impl Model for Lookup<'_> {
    type Trainer = BpeTrainer;

    fn tokenize(&self, _: &str) -> tokenizers::Result<Vec<Token>> {
        Err("a lookup does not encode".into())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.id_of(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.vocab.text(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        HashMap::new()
    }

    fn get_vocab_size(&self) -> usize {
        self.vocab.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("a lookup is not saved".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
