//! Prompts with a hidden fact: the text's tokens up to the depth, the fact, more of the text, and the beginning of the
//! sentence that must be ended. It must not know models.

use hob_text::{ChatInput, ChatTemplate, Message, Special, TemplateLimits, TextError, Tokenizer};

use super::{ANSWER_TOKENS, Task};
use crate::eval::EvalError;
use crate::synth::mix;

/// Tokens within which the end of a sentence is looked for, so that a fact does not fall into the middle of one.
const SENTENCE: usize = 64;

const PLACES: [&str; 12] = [
    "Lisbon", "Oslo", "Quito", "Nairobi", "Kyoto", "Perth", "Toronto", "Havana", "Dublin", "Prague", "Lima",
    "Cairo",
];

/// One prompt, and what must come next.
pub(super) struct Prompt {
    pub tokens: Vec<u32>,
    pub answer: Vec<u32>,
    pub place: &'static str,
    pub number: String,
}

/// Makes prompts of one text.
pub(super) struct Prompts<'a> {
    tokenizer: &'a Tokenizer,
    text: Vec<u32>,
    /// Where a sentence of the text has just ended.
    ends: Vec<usize>,
    /// What stands before the text and, for a question, what the template puts behind it.
    head: Vec<u32>,
    template: Option<ChatTemplate>,
}

/// Stands in a rendered turn where the text goes; nothing that a template would change.
const TEXT_MARK: &str = "@@text@@";

impl<'a> Prompts<'a> {
    /// # Errors
    /// [`EvalError::TooShort`] for fewer tokens than `ctx`; a question to a model without a chat template.
    pub fn new(tokenizer: &'a Tokenizer, text: &str, task: Task, ctx: usize) -> Result<Self, EvalError> {
        let text = tokenizer.encode(text, Special::Plain)?;
        if text.len() < ctx {
            return Err(EvalError::TooShort { found: text.len(), needed: ctx });
        }
        let full_stop = |&id: &u32| tokenizer.token_bytes(id).last() == Some(&b'.');
        let ends = text.iter().enumerate().filter(|(_, id)| full_stop(id)).map(|(i, _)| i + 1).collect();
        let template = match task {
            Task::Copy => None,
            Task::Question => Some(ChatTemplate::for_tokenizer(tokenizer, &TemplateLimits::default())?),
        };
        let mut prompts = Self { tokenizer, text, ends, head: Vec::new(), template };
        prompts.head = match &prompts.template {
            None => tokenizer.bos().filter(|_| tokenizer.add_bos()).into_iter().collect(),
            Some(_) => tokenizer.encode_prompt(&prompts.turn(PLACES[0])?.0)?,
        };
        Ok(prompts)
    }

    /// A prompt of at most `ctx` tokens with its answer, whose fact `seed` chooses; `depth` percent of the text stand
    /// before the fact.
    ///
    /// # Errors
    /// What the tokenizer or template say; [`EvalError::TooShort`] when the context cannot hold fact and question.
    pub fn make(&self, (ctx, depth): (usize, f64), seed: u64) -> Result<Prompt, EvalError> {
        let random = mix(seed ^ 0x6e65_6564_6c65);
        let place = PLACES[(random % PLACES.len() as u64) as usize];
        let number = (10_000 + (random >> 32) % 90_000).to_string();
        let begun = format!("The secret number of {place} is");
        let fact = self.tokenizer.encode(&format!(" {begun} {number}."), Special::Plain)?;
        let tail = match &self.template {
            None => self.tokenizer.encode(&format!("\n\n{begun}"), Special::Plain)?,
            Some(_) => self.tokenizer.encode(&format!("{}{begun}", self.turn(place)?.1), Special::Parse)?,
        };
        let answer = self.answer(&begun, &number)?;
        let around = self.head.len() + fact.len() + tail.len() + answer.len();
        let room = ctx.checked_sub(around).ok_or(EvalError::TooShort { found: ctx, needed: around })?;
        let at = self.sentence_end((room as f64 * depth / 100.0).round() as usize, room);
        let parts = [&self.head, &self.text[..at], &fact, &self.text[at..room], &tail];
        Ok(Prompt { tokens: parts.concat(), answer, place, number })
    }

    /// The tokens that continue `begun` with the number, as the fact itself is split.
    fn answer(&self, begun: &str, number: &str) -> Result<Vec<u32>, EvalError> {
        let whole = self.tokenizer.encode(&format!("{begun} {number}"), Special::Plain)?;
        let before = self.tokenizer.encode(begun, Special::Plain)?;
        let mut answer = match whole.strip_prefix(before.as_slice()) {
            Some(rest) if !rest.is_empty() => rest.to_vec(),
            _ => self.tokenizer.encode(&format!(" {number}"), Special::Plain)?,
        };
        answer.truncate(ANSWER_TOKENS);
        Ok(answer)
    }

    /// The end of a sentence near token `at`, or `at` itself; at most `most`.
    fn sentence_end(&self, at: usize, most: usize) -> usize {
        let next = self.ends.partition_point(|&end| end < at);
        let near = |end: &&usize| **end <= most && end.abs_diff(at) <= SENTENCE;
        let found = self.ends.get(next).filter(near).or_else(|| self.ends[..next].last().filter(near));
        found.copied().unwrap_or(at).min(most)
    }

    /// A question in the model's template: what stands before the text and what stands behind it.
    fn turn(&self, place: &str) -> Result<(String, String), EvalError> {
        let Some(template) = &self.template else { return Ok(Default::default()) };
        let question = format!(
            "{TEXT_MARK}\n\nOne sentence of the text above does not belong there. What is the secret number of {place}?"
        );
        let messages = [Message::user(question)];
        let special = |id: Option<u32>| id.and_then(|id| self.tokenizer.token_text(id)).unwrap_or("");
        let input = ChatInput {
            messages: &messages,
            add_generation_prompt: true,
            bos_token: special(self.tokenizer.bos()),
            eos_token: special(self.tokenizer.eos()),
            ..ChatInput::default()
        };
        let rendered = template.render(&input)?;
        match rendered.split_once(TEXT_MARK) {
            Some((before, behind)) => Ok((before.to_string(), behind.to_string())),
            None => Err(TextError::NoTemplate.into()),
        }
    }

    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_testkit::temp::TempDir;
    use hob_testkit::tiny::{TinySpec, f32_encode};

    fn tokenizer(dir: &TempDir) -> Tokenizer {
        let path = dir.join("tiny.gguf");
        TinySpec::llama().write_gguf(&path, &f32_encode).expect("written");
        let file = hob_files::ModelFile::open(&path).expect("opens");
        Tokenizer::from_model(&file).expect("a tokenizer")
    }

    const TEXT: &str = "One sentence ends here. Another one is a little longer than that. ";

    #[test]
    fn a_prompt_holds_one_fact_at_its_depth_and_ends_where_its_number_must_come() {
        let dir = TempDir::new("needle-prompt");
        let tokenizer = tokenizer(&dir);
        let prompts = Prompts::new(&tokenizer, &TEXT.repeat(40), Task::Copy, 900).expect("long enough");
        for (depth, low, high) in [(0.0, 0.0, 0.1), (30.0, 0.2, 0.4), (100.0, 0.8, 1.0)] {
            let prompt = prompts.make((900, depth), 5).expect("fits");
            assert!(prompt.tokens.len() + prompt.answer.len() <= 900);
            let text = tokenizer.decode(&prompt.tokens);
            let fact = format!("The secret number of {} is {}.", prompt.place, prompt.number);
            assert_eq!(text.matches(&fact).count(), 1, "{text}");
            assert!(text.ends_with(&format!("\n\nThe secret number of {} is", prompt.place)), "{text}");
            assert_eq!(tokenizer.decode(&prompt.answer).trim(), prompt.number);
            let at = text.find(&fact).expect("there") as f64 / text.len() as f64;
            assert!((low..=high).contains(&at), "{depth} %: {at}");
            // The fact does not fall into a sentence.
            let before = text[..text.find(&fact).expect("there")].trim_end();
            assert!(before.is_empty() || before.ends_with('.') || depth == 0.0, "{before}");
        }
    }

    #[test]
    fn seeds_choose_places_and_numbers() {
        let dir = TempDir::new("needle-seeds");
        let tokenizer = tokenizer(&dir);
        let prompts = Prompts::new(&tokenizer, &TEXT.repeat(40), Task::Copy, 500).expect("long enough");
        let number = |seed| prompts.make((500, 50.0), seed).expect("fits").number;
        assert_eq!(number(1), number(1));
        assert_ne!(number(1), number(2));
        assert!(prompts.make((20, 50.0), 1).is_err(), "no room for the fact");
        assert!(Prompts::new(&tokenizer, TEXT, Task::Copy, 500).is_err(), "a text shorter than the context");
    }
}
