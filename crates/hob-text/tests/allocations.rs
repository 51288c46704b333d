//! The detokenizer allocates nothing once it is made and the output has room. One test: allocations of this thread
//! are counted.

use hob_files::gguf_write::Writer;
use hob_files::{ModelFile, StrArray};
use hob_testkit::alloc::{CountingAllocator, measure_thread};
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;
use hob_text::Tokenizer;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn pushing_tokens_allocates_nothing() {
    let fixture: serde_json::Value = serde_json::from_str(include_str!("fixtures/bpe.json")).unwrap();
    let strings = |key: &str| -> StrArray {
        fixture[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
    };
    let mut writer = Writer::new();
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "gpt-2");
    writer.set("tokenizer.ggml.tokens", strings("tokens")).set("tokenizer.ggml.merges", strings("merges"));
    writer.tensor("output_norm.weight", hob_quant::Format::F32, &[4]).unwrap();
    let dir = TempDir::new("hob-text-allocations");
    writer.save(&dir.join("vocab.gguf"), &[&[0; 16]]).unwrap();
    let tokenizer = Tokenizer::from_model(&ModelFile::open(dir.join("vocab.gguf")).unwrap()).unwrap();

    let mut detokenizer = tokenizer.detokenizer();
    let mut out = String::with_capacity(1 << 20);
    let mut rng = Rng::new(5);
    let (_, usage) = measure_thread(|| {
        for _ in 0..20_000 {
            detokenizer.push_into(rng.below(tokenizer.vocab_size()) as u32, &mut out);
        }
    });
    assert!(out.len() > 20_000);
    assert_eq!(usage.allocations, 0);
}
