//! Reading the body of a chat request: known fields into [`Fields`], everything else skipped without being kept.
//!
//! The reader remembers which field it was in, so that an error can name it. It must not know ranges or defaults.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

/// Most messages of a conversation, parts of a content, entries of a bias: bounds what a body may unfold to.
pub(crate) const MAX_ITEMS: usize = 10_000;

/// The fields of `POST /v1/chat/completions` that hob knows; `null` counts as absent.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub messages: Option<Few<MessageIn>>,
    pub model: Option<String>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub max_tokens: Option<u64>,
    pub max_completion_tokens: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub typical_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repeat_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub repeat_last_n: Option<u64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub logit_bias: Option<Biases>,
    pub seed: Option<Seed>,
    pub stop: Option<Stop>,
    pub n: Option<u64>,
    pub ignore_eos: Option<bool>,
    pub logprobs: Option<bool>,
    pub response_format: Option<ResponseFormat>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MessageIn {
    pub role: String,
    #[serde(default)]
    pub content: Option<Content>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ResponseFormat {
    #[serde(rename = "type")]
    pub kind: String,
}

/// A message's content.
#[derive(Debug)]
pub(crate) enum Content {
    Text(String),
    Parts(Few<Part>),
}

/// One part of a content; what is not text is only named.
#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub text: Option<String>,
}

/// At most [`MAX_ITEMS`] items.
#[derive(Debug)]
pub(crate) struct Few<T>(pub Vec<T>);

/// One stop string or several.
#[derive(Debug)]
pub(crate) struct Stop(pub Vec<String>);

/// Any 64-bit integer; negative ones by their two's complement.
#[derive(Debug)]
pub(crate) struct Seed(pub u64);

/// `{"token id": bias}`
#[derive(Debug)]
pub(crate) struct Biases(pub Vec<(u32, f64)>);

/// What is wrong with a body, and in which field.
#[derive(Debug)]
pub(crate) struct Malformed {
    pub field: Option<&'static str>,
    pub message: String,
}

/// Reads a body.
pub(crate) fn read(body: &[u8]) -> Result<Fields, Malformed> {
    let mut fields = Fields::default();
    let mut field = None;
    let mut json = serde_json::Deserializer::from_slice(body);
    let read =
        Reader { fields: &mut fields, field: &mut field }.deserialize(&mut json).and_then(|()| json.end());
    match read {
        Ok(()) => Ok(fields),
        Err(e) => Err(Malformed { field, message: e.to_string() }),
    }
}

struct Reader<'a> {
    fields: &'a mut Fields,
    field: &'a mut Option<&'static str>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

/// Reads the value of whichever known field the key names.
macro_rules! read_known {
    ($key:expr, $map:expr, $reader:expr, [$($name:ident),* $(,)?]) => {
        match $key {
            $(stringify!($name) => {
                *$reader.field = Some(stringify!($name));
                $reader.fields.$name = $map.next_value()?;
            })*
            _ => { $map.next_value::<IgnoredAny>()?; }
        }
    };
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object with the fields of a chat request")
    }
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            read_known!(
                key.as_str(),
                map,
                self,
                [
                    messages,
                    model,
                    stream,
                    stream_options,
                    max_tokens,
                    max_completion_tokens,
                    temperature,
                    top_p,
                    top_k,
                    typical_p,
                    min_p,
                    repeat_penalty,
                    repetition_penalty,
                    repeat_last_n,
                    frequency_penalty,
                    presence_penalty,
                    logit_bias,
                    seed,
                    stop,
                    n,
                    ignore_eos,
                    logprobs,
                    response_format,
                ]
            );
            *self.field = None;
        }
        Ok(())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_seq(FewVisitor(PhantomData)).map(Few)
    }
}

struct FewVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FewVisitor<T> {
    type Value = Vec<T>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {MAX_ITEMS} items")
    }
    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Vec<T>, S::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            if items.len() == MAX_ITEMS {
                return Err(S::Error::custom(format!("expected at most {MAX_ITEMS} items")));
            }
            items.push(item);
        }
        Ok(items)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an array of parts of type text")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }
    fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
        Ok(Content::Text(text))
    }
    fn visit_seq<S: SeqAccess<'de>>(self, seq: S) -> Result<Content, S::Error> {
        FewVisitor(PhantomData).visit_seq(seq).map(|parts| Content::Parts(Few(parts)))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(ContentVisitor)
    }
}

struct StopVisitor;

impl<'de> Visitor<'de> for StopVisitor {
    type Value = Stop;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an array of strings")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Stop, E> {
        Ok(Stop(vec![text.to_owned()]))
    }
    fn visit_seq<S: SeqAccess<'de>>(self, seq: S) -> Result<Stop, S::Error> {
        FewVisitor(PhantomData).visit_seq(seq).map(Stop)
    }
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(StopVisitor)
    }
}

struct SeedVisitor;

impl Visitor<'_> for SeedVisitor {
    type Value = Seed;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer of 64 bits")
    }
    fn visit_u64<E: de::Error>(self, seed: u64) -> Result<Seed, E> {
        Ok(Seed(seed))
    }
    fn visit_i64<E: de::Error>(self, seed: i64) -> Result<Seed, E> {
        Ok(Seed(seed as u64))
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(SeedVisitor)
    }
}

struct BiasVisitor;

impl<'de> Visitor<'de> for BiasVisitor {
    type Value = Biases;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from token ids to numbers")
    }
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Biases, M::Error> {
        let mut biases = Vec::new();
        while let Some((token, bias)) = map.next_entry::<String, f64>()? {
            if biases.len() == MAX_ITEMS {
                return Err(M::Error::custom(format!("expected at most {MAX_ITEMS} entries")));
            }
            let id = token
                .parse()
                .map_err(|_| M::Error::custom(format!("expected a token id, found \"{token}\"")))?;
            biases.push((id, bias));
        }
        Ok(Biases(biases))
    }
}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(BiasVisitor)
    }
}
