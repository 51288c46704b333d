//! Any bytes as a tokenizer.json: refused, or a tokenizer that encodes and decodes without a panic.
#![no_main]

use hob_text::{Special, Tokenizer};
use libfuzzer_sys::{Corpus, fuzz_target};

const TEXT: &str = "Hello, w\u{f6}rld!  12345 \u{1f980}\n<|end|> a\0b";

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(tokenizer) = Tokenizer::from_json_bytes(bytes) else { return Corpus::Keep };
    for special in [Special::Parse, Special::Plain] {
        let Ok(ids) = tokenizer.encode(TEXT, special) else { continue };
        let mut detokenizer = tokenizer.detokenizer();
        for id in ids {
            assert!((id as usize) < tokenizer.vocab_size(), "id {id} is outside the vocabulary");
            detokenizer.push(id);
        }
        detokenizer.finish();
    }
    Corpus::Keep
});
