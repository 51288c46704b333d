//! A vocabulary of any size that every program reads: the 256 bytes in GPT-2's alphabet, merges for the commonest
//! letters, made-up words up to the size, and the three tokens of ChatML. It must not know models.

use hob_files::StrArray;
use hob_files::gguf_write::Writer;

/// Token kinds of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Control tokens, last in the vocabulary.
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Smallest vocabulary: every byte and the control tokens.
pub const LEAST: usize = 256 + SPECIALS.len();

/// Letters whose pairs merge, commonest first.
const LETTERS: &str = "etaoinshrdlucmfwygpbvkxqjz";
/// A space in GPT-2's alphabet.
const SPACE: char = '\u{120}';

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                        + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
                        {{ '<|im_start|>assistant\n' }}{% endif %}";

/// Adds the keys of a vocabulary of `size` tokens, split as the rules `pre` say.
pub(super) fn write_keys(writer: &mut Writer, size: usize, pre: &str) {
    let (tokens, merges) = vocabulary(size);
    let specials = size - SPECIALS.len();
    let kind = |id| if id < specials { NORMAL } else { CONTROL };
    let [endoftext, _, im_end] = [0, 1, 2].map(|i| (specials + i) as u32);
    writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", pre)
        .set("tokenizer.ggml.token_type", (0..size).map(kind).collect::<Vec<i32>>())
        .set("tokenizer.ggml.tokens", tokens.iter().collect::<StrArray>())
        .set("tokenizer.ggml.merges", merges.iter().collect::<StrArray>())
        .set("tokenizer.ggml.bos_token_id", endoftext)
        .set("tokenizer.ggml.eos_token_id", im_end)
        .set("tokenizer.ggml.padding_token_id", endoftext)
        .set("tokenizer.ggml.add_bos_token", false)
        .set("tokenizer.chat_template", TEMPLATE);
}

/// Texts by id, and merge rules. At least [`LEAST`] tokens.
fn vocabulary(size: usize) -> (Vec<String>, Vec<String>) {
    let plain = size.max(LEAST) - SPECIALS.len();
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| spell(byte).to_string()).collect();
    let mut merges = Vec::new();
    let second = LETTERS.chars().flat_map(|b| LETTERS.chars().map(move |a| (a, b)));
    for (a, b) in LETTERS.chars().map(|letter| (SPACE, letter)).chain(second) {
        if tokens.len() == plain {
            break;
        }
        tokens.push(format!("{a}{b}"));
        merges.push(format!("{a} {b}"));
    }
    let missing = plain - tokens.len();
    tokens.extend((0..missing).map(word));
    tokens.extend(SPECIALS.map(str::to_string));
    (tokens, merges)
}

/// The made-up word of this number, longer than any merged token: at least three syllables behind a space.
fn word(mut number: usize) -> String {
    const FIRST: &[u8] = b"bcdfghjklmnpqrstvwxz";
    const SECOND: &[u8] = b"aeiou";
    let mut word = SPACE.to_string();
    let mut syllables = 0;
    while number > 0 || syllables < 3 {
        let (first, second) = (number % FIRST.len(), number / FIRST.len() % SECOND.len());
        word.push(char::from(FIRST[first]));
        word.push(char::from(SECOND[second]));
        number /= FIRST.len() * SECOND.len();
        syllables += 1;
    }
    word
}

/// The character that stands for a byte in GPT-2's alphabet: printable Latin-1 for itself, the others from U+0100 on.
fn spell(byte: u8) -> char {
    let stands = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if stands(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !stands(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(SPACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tokens_are_distinct_and_merges_name_tokens() {
        for size in [LEAST, 320, 1000, 49_152, 262_144] {
            let (tokens, merges) = vocabulary(size);
            assert_eq!(tokens.len(), size);
            let set: HashSet<&str> = tokens.iter().map(String::as_str).collect();
            assert_eq!(set.len(), size, "{size}");
            for merge in &merges {
                let (a, b) = merge.split_once(' ').expect("two texts");
                assert!(set.contains(a) && set.contains(b) && set.contains(format!("{a}{b}").as_str()));
            }
            assert_eq!(tokens[size - 1], "<|im_end|>");
        }
        assert_eq!(spell(b' '), SPACE);
        assert_eq!((spell(b'A'), spell(0), spell(0xAD)), ('A', '\u{100}', '\u{143}'));
    }
}
