//! Tokenizers against the reference implementation (fixtures/bpe.py wrote the ids), and what they refuse.
//! Tests of real vocabularies run where HOB_TEST_MODELS names a folder with `SmolLM2-135M-Instruct.Q4_1.gguf`,
//! `qwen3/tokenizer.json` and `llama3/tokenizer.json` (each with tokenizer_config.json).

use std::path::PathBuf;

use hob_files::gguf_write::Writer;
use hob_files::{ModelFile, StrArray};
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;
use hob_text::{
    ChatInput, ChatTemplate, Message, Special, TemplateLimits, TextError, Tokenizer, TokenizerLimits,
};
use serde_json::{Value, json};

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/bpe.json")).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Tokens, types and merges of the fixture with its special tokens at the end.
fn vocabulary(fixture: &Value) -> (Vec<String>, Vec<i32>, Vec<String>) {
    let mut tokens = strings(&fixture["tokens"]);
    let mut types = vec![1; tokens.len()];
    for special in fixture["specials"].as_array().unwrap() {
        tokens.push(special[0].as_str().unwrap().into());
        types.push(if special[1].as_bool().unwrap() { 3 } else { 4 });
    }
    (tokens, types, strings(&fixture["merges"]))
}

/// A GGUF of nothing but this vocabulary; `change` may spoil it.
fn gguf(pre: &str, change: impl FnOnce(&mut Writer)) -> Result<Tokenizer, TextError> {
    gguf_with(pre, change, &TokenizerLimits::default())
}

fn gguf_with(
    pre: &str,
    change: impl FnOnce(&mut Writer),
    limits: &TokenizerLimits,
) -> Result<Tokenizer, TextError> {
    let (tokens, types, merges) = vocabulary(&fixture());
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama");
    writer.set("tokenizer.ggml.model", "gpt2");
    writer.set("tokenizer.ggml.pre", pre);
    writer.set("tokenizer.ggml.tokens", tokens.iter().collect::<StrArray>());
    writer.set("tokenizer.ggml.token_type", types);
    writer.set("tokenizer.ggml.merges", merges.iter().collect::<StrArray>());
    change(&mut writer);
    writer.tensor("output_norm.weight", hob_quant_f32(), &[4]).unwrap();
    let dir = TempDir::new("hob-text");
    let path = dir.join("vocab.gguf");
    writer.save(&path, &[&[0; 16]]).unwrap();
    Tokenizer::from_model_with(&ModelFile::open(&path).unwrap(), limits)
}

fn hob_quant_f32() -> hob_quant::Format {
    hob_quant::Format::F32
}

/// The same vocabulary as a tokenizer.json in the shape of Qwen2's.
fn tokenizer_json() -> Value {
    let fixture = fixture();
    let tokens = strings(&fixture["tokens"]);
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let added = fixture["specials"].as_array().unwrap().iter().enumerate().map(|(index, special)| {
        json!({"id": tokens.len() + index, "content": special[0], "special": special[1], "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    });
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [], "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [tokens.len()], "tokens": ["<|endoftext|>"]}}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": fixture["merges"]},
    })
}

fn from_json(json: &Value) -> Result<Tokenizer, TextError> {
    Tokenizer::from_json_bytes(&serde_json::to_vec(json).unwrap())
}

/// Compares every text of the fixture; returns what differs. `skip` names texts by a property.
fn differences(tokenizer: &Tokenizer, expected: &Value, skip: impl Fn(&str) -> bool) -> Vec<String> {
    let texts = strings(&fixture()["texts"]);
    let mut wrong = Vec::new();
    for (mode, special) in [("parse", Special::Parse), ("plain", Special::Plain)] {
        assert_eq!(expected[mode].as_array().unwrap().len(), texts.len());
        for (index, text) in texts.iter().enumerate().filter(|(_, text)| !skip(text)) {
            let ids: Vec<u32> = serde_json::from_value(expected[mode][index].clone()).unwrap();
            let found = tokenizer.encode(text, special).unwrap();
            if found != ids {
                wrong.push(format!("{mode} {text:?}\n  expected {ids:?}\n  found    {found:?}"));
            }
        }
    }
    wrong
}

#[test]
fn ids_equal_the_reference_for_every_set_of_splitting_rules() {
    let fixture = fixture();
    let rules = fixture["ids"].as_object().unwrap();
    assert_eq!(rules.len(), 5);
    for (pre, expected) in rules {
        let wrong = differences(&gguf(pre, |_| {}).unwrap(), expected, |_| false);
        assert!(wrong.is_empty(), "{pre}: {}", wrong.join("\n"));
    }
    let wrong = differences(&from_json(&tokenizer_json()).unwrap(), &rules["qwen2"], |_| false);
    assert!(wrong.is_empty(), "tokenizer.json: {}", wrong.join("\n"));
}

#[test]
fn the_rules_of_the_fixture_differ_from_each_other() {
    // Otherwise the test above could not tell a wrong set of rules from the right one.
    let fixture = fixture();
    let rules: Vec<_> = fixture["ids"].as_object().unwrap().values().collect();
    for (index, a) in rules.iter().enumerate() {
        assert!(rules[..index].iter().all(|b| a != b));
    }
}

#[test]
fn decoding_gives_the_text_back() {
    for pre in ["smollm", "llama3", "gpt-2", "default"] {
        let tokenizer = gguf(pre, |_| {}).unwrap();
        for text in strings(&fixture()["texts"]) {
            let ids = tokenizer.encode(&text, Special::Plain).unwrap();
            assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "{text:?}");
            assert_eq!(tokenizer.decode(&ids), text);
        }
    }
}

#[test]
fn special_tokens_in_prompts_and_in_plain_text() {
    let tokenizer = gguf("llama3", |writer| {
        writer.set("tokenizer.ggml.bos_token_id", 605u32);
    })
    .unwrap();
    let start = tokenizer.id_of("<|im_start|>").unwrap();
    assert_eq!(tokenizer.token_text(start), Some("<|im_start|>"));
    assert!(tokenizer.is_special(start));
    assert!(tokenizer.add_bos(), "llama3 vocabularies start with bos unless the file says otherwise");
    assert_eq!(tokenizer.encode_prompt("<|im_start|>").unwrap(), [605, start]);
    assert_eq!(
        tokenizer.encode_prompt("<|endoftext|>x").unwrap()[..1],
        [605],
        "a template's own bos is not doubled"
    );
    assert_ne!(tokenizer.encode_prompt("<|endoftext|>x").unwrap()[1], 605);
    // User-defined tokens are text: matched in both modes, shown.
    let call = tokenizer.id_of("<tool_call>").unwrap();
    assert!(!tokenizer.is_special(call));
    assert_eq!(tokenizer.encode("<tool_call>", Special::Plain).unwrap(), [call]);
    assert_eq!(tokenizer.decode(&[start, call, start]), "<tool_call>");
    // No bos where the file says so, whatever the family.
    let tokenizer = gguf("llama3", |writer| {
        writer.set("tokenizer.ggml.bos_token_id", 605u32).set("tokenizer.ggml.add_bos_token", false);
    })
    .unwrap();
    assert_eq!(tokenizer.encode_prompt("<|im_start|>").unwrap(), [start]);
}

#[test]
fn plain_text_never_becomes_a_control_token_even_through_merges() {
    // "Hello" is an ordinary piece that this vocabulary declares a control token.
    let hello = 604;
    let control = |writer: &mut Writer| {
        let (_, mut types, _) = vocabulary(&fixture());
        types[hello] = 3;
        writer.set("tokenizer.ggml.token_type", types);
    };
    let tokenizer = gguf("llama3", control).unwrap();
    assert_eq!(tokenizer.token_text(hello as u32), Some("Hello"));
    assert_eq!(tokenizer.encode("Hello", Special::Parse).unwrap(), [hello as u32]);
    let plain = tokenizer.encode("Hello", Special::Plain).unwrap();
    assert!(!plain.contains(&(hello as u32)));
    assert_eq!(tokenizer.decode(&plain), "Hello");
}

#[test]
fn end_tokens_are_named_ids_and_well_known_texts() {
    let tokenizer = gguf("qwen2", |_| {}).unwrap();
    let ids = |texts: &[&str]| texts.iter().map(|text| tokenizer.id_of(text).unwrap()).collect::<Vec<_>>();
    assert_eq!(tokenizer.end_tokens(), ids(&["<|endoftext|>", "<|im_end|>"]));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (None, None, false));
    let tokenizer = gguf("qwen2", |writer| {
        writer.set("tokenizer.ggml.eos_token_id", 7u32).set("tokenizer.ggml.eot_token_id", 606u32);
    })
    .unwrap();
    assert_eq!(tokenizer.end_tokens(), [7, 605, 606, 607]);
    // In the harmony format <|end|> only closes a channel.
    let harmony = |writer: &mut Writer| {
        let (mut tokens, mut types, _) = vocabulary(&fixture());
        tokens.extend(["<|end|>", "<|return|>", "<|call|>"].map(String::from));
        types.extend([3; 3]);
        writer.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
    };
    let tokenizer = gguf("qwen2", harmony).unwrap();
    let end = tokenizer.id_of("<|end|>").unwrap();
    assert!(!tokenizer.end_tokens().contains(&end));
    assert!(tokenizer.end_tokens().contains(&(end + 1)) && tokenizer.end_tokens().contains(&(end + 2)));
}

#[test]
fn side_files_of_a_folder_name_the_special_tokens() {
    let dir = TempDir::new("hob-text-folder");
    let write = |name: &str, value: Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
    write("config.json", json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}));
    write("tokenizer.json", tokenizer_json());
    write(
        "tokenizer_config.json",
        json!({"bos_token": null, "eos_token": {"content": "<|im_end|>"}, "add_bos_token": false,
               "chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}),
    );
    write("generation_config.json", json!({"eos_token_id": [606, 9]}));
    let header = json!({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).to_string();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.as_bytes());
    weights.extend([0; 4]);
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
    let tokenizer = Tokenizer::from_model(&ModelFile::open(dir.path()).unwrap()).unwrap();
    let im_end = tokenizer.id_of("<|im_end|>").unwrap();
    assert_eq!(tokenizer.eos(), Some(im_end));
    assert_eq!(tokenizer.end_tokens(), [9, 605, 606, im_end]);
    assert_eq!(tokenizer.chat_template(), Some("plain"));
    assert_eq!(tokenizer.bos(), Some(605), "from the post-processor");
    assert!(!tokenizer.add_bos(), "tokenizer_config.json says no");
    // On its own, the post-processor decides.
    let tokenizer = Tokenizer::from_json(&dir.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [605]);
}

#[test]
fn a_missing_template_falls_back_to_chatml_or_says_raw() {
    let limits = TemplateLimits::default();
    let messages = [Message::user("hi")];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..Default::default() };
    let template = ChatTemplate::for_tokenizer(&gguf("qwen2", |_| {}).unwrap(), &limits).unwrap();
    assert_eq!(template.render(&input).unwrap(), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let own = gguf("qwen2", |writer| {
        writer.set("tokenizer.chat_template", "{{ messages[0].content }}!");
    });
    let template = ChatTemplate::for_tokenizer(&own.unwrap(), &limits).unwrap();
    assert_eq!(template.render(&input).unwrap(), "hi!");
    let base = gguf("qwen2", |writer| {
        let (mut tokens, types, _) = vocabulary(&fixture());
        let im_start = tokens.iter().position(|text| text == "<|im_start|>").unwrap();
        tokens[im_start] = "<|other|>".into();
        writer.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
    });
    let error = ChatTemplate::for_tokenizer(&base.unwrap(), &limits).unwrap_err().to_string();
    assert!(error.contains("--raw"), "{error}");
}

#[test]
fn families_without_a_template_get_their_own_and_base_models_none() {
    let limits = TemplateLimits::default();
    let messages =
        [Message::system("S"), Message::user("hi"), Message::assistant("yo"), Message::user("more")];
    let input = ChatInput {
        messages: &messages,
        add_generation_prompt: true,
        eos_token: "</s>",
        ..Default::default()
    };
    let with = |specials: &'static [&str], name: &'static str| {
        gguf("llama3", move |writer| {
            let (mut tokens, mut types, _) = vocabulary(&fixture());
            let im_start = tokens.iter().position(|text| text == "<|im_start|>").unwrap();
            tokens[im_start] = "<|other|>".into();
            tokens.extend(specials.iter().map(|text| (*text).to_owned()));
            types.extend(vec![3; specials.len()]);
            writer.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
            writer.set("general.name", name);
        })
        .unwrap()
    };
    for (specials, expected) in [
        (
            &["<start_of_turn>", "<end_of_turn>"][..],
            "<start_of_turn>user\nS\n\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n\
             <start_of_turn>user\nmore<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nmore<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            &["<|user|>", "<|assistant|>", "<|end|>"],
            "<|system|>\nS<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\nyo<|end|>\n<|user|>\nmore<|end|>\n<|assistant|>\n",
        ),
        (
            &["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
            "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n\
             <|start_of_role|>user<|end_of_role|>hi<|end_of_text|>\n\
             <|start_of_role|>assistant<|end_of_role|>yo<|end_of_text|>\n\
             <|start_of_role|>user<|end_of_role|>more<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        ),
        (&["[INST]", "[/INST]"], "[INST]S\n\nhi[/INST]yo</s>[INST]more[/INST]"),
    ] {
        let tuned = ChatTemplate::for_tokenizer(&with(specials, "Some 3B Instruct"), &limits).unwrap();
        assert_eq!(tuned.render(&input).unwrap(), expected);
        let base = ChatTemplate::for_tokenizer(&with(specials, "Some 3B italic"), &limits);
        assert!(matches!(base, Err(TextError::NoTemplate)), "{specials:?}");
    }
}

/// A SentencePiece vocabulary of fixtures/spm.json.
fn spm(prefix: bool, change: impl FnOnce(&mut Writer)) -> Result<Tokenizer, TextError> {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/spm.json")).unwrap();
    let numbers = |name: &str| fixture[name].as_array().unwrap().clone();
    gguf_with(
        "default",
        |writer| {
            writer.set("tokenizer.ggml.model", "llama");
            writer.set("tokenizer.ggml.tokens", strings(&fixture["tokens"]));
            let types: Vec<i32> = numbers("types").iter().map(|n| n.as_i64().unwrap() as i32).collect();
            let scores: Vec<f32> = numbers("scores").iter().map(|n| n.as_f64().unwrap() as f32).collect();
            writer.set("tokenizer.ggml.token_type", types).set("tokenizer.ggml.scores", scores);
            writer.set("tokenizer.ggml.add_space_prefix", prefix);
            change(writer);
        },
        &TokenizerLimits::default(),
    )
}

#[test]
fn sentencepiece_ids_equal_the_reference() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/spm.json")).unwrap();
    let texts = strings(&fixture["texts"]);
    for (name, prefix) in [("prefix", true), ("plain", false)] {
        let tokenizer = spm(prefix, |_| {}).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(1), Some(2), true));
        for (mode, special) in [("parse", Special::Parse), ("plain", Special::Plain)] {
            for (index, text) in texts.iter().enumerate() {
                let expected: Vec<u32> =
                    serde_json::from_value(fixture["ids"][name][mode][index].clone()).unwrap();
                let found = tokenizer.encode(text, special).unwrap();
                assert_eq!(found, expected, "{name} {mode} {text:?}");
                // With a prefix, every user-defined token is followed by a space that was not there.
                if special == Special::Plain && !text.contains('▁') && !prefix {
                    assert_eq!(&tokenizer.decode(&found), text);
                }
            }
        }
        for text in ["Hello", " two", "日本 Grüße 😀", ""] {
            let ids = tokenizer.encode(text, Special::Plain).unwrap();
            assert_eq!(tokenizer.decode(&ids), text, "the space in front comes and goes");
        }
    }
}

#[test]
fn byte_tokens_split_over_steps_never_show_half_a_character() {
    let tokenizer = spm(false, |_| {}).unwrap();
    let ids = tokenizer.encode("a\u{10ffff}ꙮb", Special::Plain).unwrap();
    assert!(ids.len() >= 9, "the rare characters are spelled in bytes: {ids:?}");
    let mut detokenizer = tokenizer.detokenizer();
    let steps: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    assert_eq!(steps.concat(), "a\u{10ffff}ꙮb");
    assert_eq!(steps.iter().filter(|step| step.is_empty()).count(), 3 + 2, "{steps:?}");
    // A byte that leads nowhere is shown as such, once the stream ends.
    let lone = tokenizer.id_of("<0xE3>").unwrap();
    assert_eq!(tokenizer.decode(&[lone]), "\u{fffd}");
    assert_eq!(tokenizer.decode(&[lone, lone]), "\u{fffd}\u{fffd}");
}

/// llama.cpp issue 25969: the text of a byte token was read as a number and used as an index.
#[test]
fn issue_25969_texts_of_byte_tokens_are_no_numbers() {
    for text in ["<0x-1>", "<0x+1>", "<0x 1>", "<0xGG>", "<0x1>", "<0x100>", "<0x>"] {
        let tokenizer = spm(false, |writer| {
            let fixture: Value = serde_json::from_str(include_str!("fixtures/spm.json")).unwrap();
            let mut tokens = strings(&fixture["tokens"]);
            let at = tokens.iter().position(|token| token == "<0x41>").unwrap();
            tokens[at] = text.to_owned();
            writer.set("tokenizer.ggml.tokens", tokens);
        })
        .unwrap();
        let id = (0..600).find(|&id| tokenizer.token_text(id) == Some(text)).unwrap();
        assert_eq!(tokenizer.token_bytes(id), text.as_bytes(), "{text} stands for itself");
        tokenizer.encode("A\u{1}", Special::Parse).unwrap();
    }
}

/// CVE-2025-49847 (llama.cpp): a token's length, cast to a signed number, passed a check and was copied.
#[test]
fn cve_2025_49847_long_tokens_are_refused() {
    let error = spm(false, |writer| {
        let fixture: Value = serde_json::from_str(include_str!("fixtures/spm.json")).unwrap();
        let mut tokens = strings(&fixture["tokens"]);
        tokens[300] = "x".repeat(70_000);
        writer.set("tokenizer.ggml.tokens", tokens);
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("TokenizerLimits::token_bytes") && error.contains("70000"), "{error}");
}

#[test]
fn damaged_sentencepiece_vocabularies_are_errors() {
    let error = |change: fn(&mut Writer)| spm(false, change).unwrap_err().to_string();
    assert!(
        error(|w| {
            w.set("tokenizer.ggml.scores", vec![0.5f32]);
        })
        .contains("1 scores")
    );
    assert!(
        error(|w| {
            w.set("tokenizer.ggml.scores", vec![1i32]);
        })
        .contains("tokenizer.ggml.scores")
    );
    assert!(
        error(|w| {
            w.set("tokenizer.ggml.scores", vec![f32::NAN; 1088]);
        })
        .contains("not a number")
    );
    assert!(
        error(|w| {
            w.set("tokenizer.ggml.unknown_token_id", 70_000u32);
        })
        .contains("unknown-token id is 70000")
    );
    assert!(
        error(|w| {
            w.set("tokenizer.ggml.add_space_prefix", 1u32);
        })
        .contains("add_space_prefix")
    );
}

#[test]
fn a_file_that_names_no_rules_gets_the_default_ones_and_says_so() {
    let fixture = fixture();
    let (tokens, types, merges) = vocabulary(&fixture);
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("tokenizer.ggml.model", "gpt2");
    writer.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
    writer.set("tokenizer.ggml.merges", merges);
    writer.tensor("output_norm.weight", hob_quant_f32(), &[4]).unwrap();
    let dir = TempDir::new("hob-text-no-pre");
    let path = dir.join("vocab.gguf");
    writer.save(&path, &[&[0; 16]]).unwrap();
    let tokenizer = Tokenizer::from_model(&ModelFile::open(&path).unwrap()).unwrap();
    assert!(tokenizer.warning().unwrap().contains("tokenizer.ggml.pre is missing"));
    let wrong = differences(&tokenizer, &fixture["ids"]["default"], |_| false);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(gguf("default", |_| {}).unwrap().warning().is_none());
}

/// A Unigram tokenizer.json in T5's form; the ids follow from the scores by hand.
#[test]
fn unigram_tokenizer_json_takes_the_best_sum() {
    let json = json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "</s>", "special": true},
                         {"id": 9, "content": "<extra>", "special": false}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": ""},
                       {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["▁", -2.0], ["a", -3.0],
                  ["b", -3.0], ["ab", -4.0], ["▁a", -3.5], ["ba", -9.0], ["▁ab", -9.5]]},
    });
    let tokenizer = from_json(&json).unwrap();
    // "▁ab": ▁ + ab = -6, ▁a + b = -6.5, ▁ab = -9.5.
    assert_eq!(tokenizer.encode("ab", Special::Plain).unwrap(), [2, 5]);
    assert_eq!(tokenizer.encode("a ba", Special::Plain).unwrap(), [6, 2, 4, 3]);
    assert_eq!(tokenizer.encode("a日本b", Special::Plain).unwrap(), [6, 0, 4]);
    assert_eq!(tokenizer.encode("a</s>", Special::Parse).unwrap(), [6, 1]);
    assert!(!tokenizer.encode("a</s>", Special::Plain).unwrap().contains(&1));
    assert_eq!(tokenizer.encode("<extra>", Special::Plain).unwrap(), [9]);
    assert_eq!(tokenizer.decode(&[6, 4, 2, 5]), "ab ab");
    let mut bad = json.clone();
    bad["model"]["vocab"][3][1] = json!("x");
    assert!(from_json(&bad).is_err());
    bad = json.clone();
    bad["model"]["unk_id"] = json!(70);
    assert!(from_json(&bad).unwrap_err().to_string().contains("unknown-token id is 70"));
}

/// A megabyte of anything is encoded in linear time; the watch only stops a run that would never end.
#[test]
fn hostile_texts_of_a_megabyte_are_encoded() {
    const MIB: usize = 1 << 20;
    const SOME: usize = 1 << 16;
    let mixed = ["a", " ", "\n", "1", "é", "日", "!", "\t", "'s"].iter().cycle().take(MIB / 2);
    let texts = [
        "a".repeat(MIB),
        format!("{}x", " ".repeat(MIB)),
        mixed.copied().collect(),
        " ".repeat(SOME),
        "\n".repeat(SOME),
        "1".repeat(SOME),
        "!".repeat(SOME),
        "A".repeat(SOME),
        "é".repeat(SOME),
        "日".repeat(SOME),
        " \n".repeat(SOME),
        "a ".repeat(SOME),
    ];
    for pre in
        ["llama3", "gpt-4o", "deepseek-llm", "deepseek-v3", "jais-2", "superbpe", "tiny_aya", "kimi-k2"]
    {
        let tokenizer = gguf(pre, |_| {}).unwrap();
        for text in &texts {
            let ids = tokenizer.encode(text, Special::Plain).unwrap();
            assert!(tokenizer.decode(&ids) == *text, "{pre}");
        }
    }
    let tokenizer = spm(false, |_| {}).unwrap();
    for text in &texts {
        let ids = tokenizer.encode(text, Special::Plain).unwrap();
        assert!(tokenizer.decode(&ids) == *text, "SentencePiece");
    }
}

type Change = Box<dyn FnOnce(&mut Writer)>;

fn change(spoil: impl FnOnce(&mut Writer) -> &mut Writer + 'static) -> Change {
    Box::new(|writer| {
        spoil(writer);
    })
}

#[test]
fn a_bad_vocabulary_is_an_error_that_names_what_is_wrong() {
    let (tokens, types, merges) = vocabulary(&fixture());
    let with_tokens = |spoil: fn(&mut Vec<String>)| {
        let mut tokens = tokens.clone();
        spoil(&mut tokens);
        change(move |w| w.set("tokenizer.ggml.tokens", tokens))
    };
    let with_merge = |rule: &str| {
        let mut merges = merges.clone();
        merges.push(rule.into());
        change(move |w| w.set("tokenizer.ggml.merges", merges))
    };
    let with_types = |spoil: fn(&mut Vec<i32>)| {
        let mut types = types.clone();
        spoil(&mut types);
        change(move |w| w.set("tokenizer.ggml.token_type", types))
    };
    let cases: Vec<(&str, Change, &[&str])> = vec![
        (
            "qwen2",
            change(|w| w.set("tokenizer.ggml.model", "bert")),
            &["tokenizer.ggml.model", "bert", "gpt2"],
        ),
        (
            "no-such-rules",
            change(|w| w),
            &["tokenizer.ggml.pre", "no-such-rules", "default, gpt-2", "llama-bpe"],
        ),
        ("qwen2", change(|w| w.set("tokenizer.ggml.pre", 3u32)), &["tokenizer.ggml.pre", "string"]),
        ("qwen2", change(|w| w.set("tokenizer.ggml.tokens", vec![1u32, 2])), &["tokenizer.ggml.tokens"]),
        ("qwen2", change(|w| w.set("tokenizer.ggml.tokens", Vec::<String>::new())), &["no tokens"]),
        ("qwen2", with_tokens(|tokens| tokens[9] = tokens[3].clone()), &["tokens 3 and 9"]),
        ("qwen2", with_tokens(|tokens| drop(tokens.pop())), &["609 tokens", "610 token types"]),
        ("qwen2", with_tokens(|tokens| tokens[300] = "\u{1f600}gone".into()), &["merge", "not a token"]),
        ("qwen2", with_merge("zz qq"), &["merge", "zz"]),
        ("qwen2", with_merge("one"), &["tokenizer.ggml.merges[348]", "one"]),
        ("qwen2", with_merge("one "), &["tokenizer.ggml.merges[348]"]),
        ("qwen2", with_merge(""), &["tokenizer.ggml.merges[348]"]),
        ("qwen2", with_types(|types| types[5] = 9), &["token_type[5] is 9"]),
        ("qwen2", with_types(|types| types[5] = -1), &["token_type[5] is -1"]),
        (
            "qwen2",
            change(|w| w.set("tokenizer.ggml.eos_token_id", 70_000u32)),
            &["end-of-sequence", "70000", "610"],
        ),
        ("qwen2", change(|w| w.set("tokenizer.ggml.bos_token_id", -1i32)), &["bos_token_id"]),
        ("qwen2", change(|w| w.set("tokenizer.ggml.eot_token_id", u64::MAX)), &["eot_token_id"]),
        ("qwen2", change(|w| w.set("tokenizer.ggml.add_bos_token", "yes")), &["add_bos_token"]),
        ("qwen2", change(|w| w.set("tokenizer.chat_template", 1u8)), &["tokenizer.chat_template"]),
    ];
    for (pre, change, parts) in cases {
        let error = gguf(pre, change).expect_err(parts[0]).to_string();
        for part in parts {
            assert!(error.contains(part), "\"{part}\" is not in: {error}");
        }
    }
    for (limits, field) in [
        (TokenizerLimits { tokens: 609, ..Default::default() }, "tokens"),
        (TokenizerLimits { merges: 347, ..Default::default() }, "merges"),
        (TokenizerLimits { token_bytes: 12, ..Default::default() }, "token_bytes"),
    ] {
        match gguf_with("qwen2", |_| {}, &limits) {
            Err(TextError::TooLarge { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn padding_with_empty_tokens_and_absent_types_is_accepted() {
    let tokenizer = gguf("qwen2", |writer| {
        let (mut tokens, mut types, _) = vocabulary(&fixture());
        tokens.extend([String::new(), String::new()]);
        types.extend([5; 2]);
        writer.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
    });
    assert_eq!(tokenizer.unwrap().vocab_size(), 612);
}

#[test]
fn a_bad_tokenizer_json_is_an_error_that_names_what_is_wrong() {
    let spoiled = |pointer: &str, value: Value| {
        let mut json = tokenizer_json();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { &mut json } else { json.pointer_mut(parent).unwrap() };
        match parent {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            parent => parent[key] = value,
        }
        json
    };
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let deep =
        (0..80).fold(json!({"type": "NFC"}), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}));
    for (json, part) in [
        (spoiled("/model/type", json!("Unigram")), "Unigram"),
        (spoiled("/model/dropout", json!(0.1)), "dropout"),
        (spoiled("/model/continuing_subword_prefix", json!("##")), "continuing_subword_prefix"),
        (spoiled("/model/vocab", json!([["a", 0.5]])), "not a map"),
        (spoiled("/model/vocab/zz", json!(4_000_000_000u32)), "TokenizerLimits::tokens"),
        (spoiled("/model/vocab/zz", json!(-1)), "-1"),
        (spoiled("/model/vocab/zz", json!(3)), "id 3 is both"),
        (spoiled("/model/merges/3", json!("a b c")), "a b c"),
        (spoiled("/model/merges/3", json!(["a"])), "fewer than two"),
        (spoiled("/model/unk_token", json!("<nope>")), "<nope>"),
        (spoiled("/added_tokens/0/id", json!(3)), "id 3 is both"),
        (spoiled("/added_tokens/0/id", json!(700)), "not a token"),
        (spoiled("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "*"})), "base64"),
        (
            spoiled("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
            "character map",
        ),
        (
            spoiled(
                "/normalizer",
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(99)}),
            ),
            "content",
        ),
        (spoiled("/normalizer", deep), "recursion limit"),
        (spoiled("/pre_tokenizer", json!({"type": "BertPreTokenizer"})), "BertPreTokenizer"),
        (spoiled("/pre_tokenizer", split("(a+)+")), "for ever"),
        (spoiled("/pre_tokenizer", split("a{9999}{9999}")), "regex_repeats"),
        (spoiled("/pre_tokenizer", split(&"a".repeat(3000))), "regex_bytes"),
        (spoiled("/pre_tokenizer", split("(")), "pre_tokenizer"),
        (spoiled("/decoder", json!({"type": "WordPiece"})), "WordPiece"),
        (json!({"model": {}}), "decoder"),
        (json!([]), "tokenizer.json"),
    ] {
        let error = match from_json(&json) {
            Err(error) => error.to_string(),
            // Moving an added token leaves its old id without a text; nothing else may be accepted.
            Ok(_) if part == "not a token" => continue,
            Ok(_) => panic!("accepted; expected an error about {part}"),
        };
        assert!(error.contains(part) || part == "not a token", "\"{part}\" is not in: {error}");
    }
    assert!(Tokenizer::from_json_bytes(b"").is_err());
    assert!(Tokenizer::from_json_bytes(&[b'['; 100_000]).is_err());
}

/// Random damage to a valid tokenizer.json: an error or a tokenizer that encodes without panicking.
#[test]
fn damaged_tokenizer_json_never_panics() {
    let rounds = std::env::var("HOB_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(150);
    let valid = serde_json::to_vec(&tokenizer_json()).unwrap();
    let text = String::from_utf8(valid.clone()).unwrap();
    // Most of the file is vocabulary; the interesting damage is outside.
    let (vocab, merges) = (text.find("\"vocab\"").unwrap(), text.rfind("\"merges\"").unwrap());
    let texts = strings(&fixture()["texts"]);
    let snippets = [
        "null",
        "true",
        "-1",
        "1e99",
        "\"\"",
        "[]",
        "{}",
        "\"a\":1,",
        "{\"type\":\"Lowercase\"}",
        "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
        "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\",\"split\":true}",
        "{\"type\":\"Digits\",\"individual_digits\":true}",
        "{\"type\":\"Prepend\",\"prepend\":\"x\"}",
        "{\"type\":\"NFKD\"}",
        "\"lstrip\":true,",
        "\"rstrip\":true,",
        "\"single_word\":true,",
        "\"normalized\":true,",
    ];
    let mut rng = Rng::new(11);
    for _ in 0..rounds {
        let mut bytes = valid.clone();
        for _ in 0..1 + rng.below(3) {
            let at = match rng.below(4) {
                0 => rng.below(bytes.len()),
                1 => (merges + rng.below(60)).min(bytes.len() - 1),
                _ => rng.below(vocab),
            };
            match rng.below(4) {
                0 => bytes[at] = rng.below(256) as u8,
                1 => drop(bytes.drain(at..(at + rng.below(20)).min(bytes.len()))),
                2 => {
                    let snippet = snippets[rng.below(snippets.len())];
                    bytes.splice(at..at, snippet.bytes());
                }
                _ => {
                    // Replace a whole value: from a colon to the next comma.
                    let from = at + bytes[at..].iter().position(|&byte| byte == b':').unwrap_or(0) + 1;
                    let to = bytes[from.min(bytes.len())..]
                        .iter()
                        .position(|&byte| byte == b',')
                        .map_or(from, |n| from + n);
                    if to <= bytes.len() && from <= to {
                        let snippet = snippets[rng.below(snippets.len())];
                        bytes.splice(from..to, snippet.bytes());
                    }
                }
            }
        }
        if let Err(TextError::Json(error)) = Tokenizer::from_json_bytes(&bytes).map(|tokenizer| {
            for text in &texts {
                for special in [Special::Parse, Special::Plain] {
                    if let Ok(ids) = tokenizer.encode(text, special) {
                        tokenizer.decode(&ids);
                    }
                }
            }
        }) {
            assert!(!error.contains("panic"), "{error}");
        }
    }
}

#[test]
fn the_detokenizer_never_emits_half_a_character() {
    let tokenizer = gguf("qwen2", |_| {}).unwrap();
    // Each byte has a token of its own here; the alphabet comes first.
    let byte_id = |byte: u8| (0..256).find(|&id| tokenizer.token_bytes(id) == [byte]).unwrap();
    let family = "a👩‍👩‍👧é日";
    let mut detokenizer = tokenizer.detokenizer();
    let mut shown = String::new();
    for byte in family.bytes() {
        let piece = detokenizer.push(byte_id(byte));
        assert!(piece.chars().count() <= 1 && !piece.contains('\u{FFFD}'), "{piece:?}");
        shown += &piece;
    }
    assert_eq!((shown.as_str(), detokenizer.finish().as_str()), (family, ""));

    // Invalid bytes are shown as soon as they are certain, not before.
    let steps: [(u8, &str); 9] = [
        (0xF0, ""),
        (0x9F, ""),
        (0x98, ""),
        (b'x', "\u{FFFD}x"),
        (0xFF, "\u{FFFD}"),
        (0xC3, ""),
        (0xC3, "\u{FFFD}"),
        (0xA9, "é"),
        (0xE2, ""),
    ];
    for (byte, expected) in steps {
        assert_eq!(detokenizer.push(byte_id(byte)), expected, "{byte:#x}");
    }
    // A control token shows nothing and does not tear a character apart.
    assert_eq!(detokenizer.push(tokenizer.id_of("<|im_end|>").unwrap()), "");
    assert_eq!(detokenizer.push(byte_id(0x82)), "");
    assert_eq!(detokenizer.push(byte_id(0xAC)), "€");
    assert_eq!(detokenizer.push(1_000_000), "", "padding rows of a model");
    assert_eq!(detokenizer.push(byte_id(0xE2)), "");
    assert_eq!((detokenizer.finish().as_str(), detokenizer.finish().as_str()), ("\u{FFFD}", ""));
}

#[test]
fn any_stream_of_tokens_reads_like_the_lossy_text_of_its_bytes() {
    let tokenizer = gguf("qwen2", |_| {}).unwrap();
    let mut rng = Rng::new(3);
    for _ in 0..2_000 {
        let ids: Vec<u32> =
            (0..rng.below(12)).map(|_| rng.below(tokenizer.vocab_size() + 2) as u32).collect();
        let bytes: Vec<u8> = ids
            .iter()
            .filter(|&&id| !tokenizer.is_special(id))
            .flat_map(|&id| tokenizer.token_bytes(id))
            .copied()
            .collect();
        assert_eq!(tokenizer.decode(&ids), String::from_utf8_lossy(&bytes), "{ids:?}");
    }
}

#[test]
fn very_long_pieces_do_not_explode() {
    let tokenizer = gguf("qwen2", |_| {}).unwrap();
    for piece in ["a", " ", "\n", "1", "é", "!", " \n", "'s"] {
        let text = piece.repeat(100_000);
        let ids = tokenizer.encode(&text, Special::Plain).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn metaspace_vocabularies_decode_spaces_and_bytes() {
    let texts = ["<unk>", "<s>", "</s>", "<0xE2>", "<0x82>", "<0xAC>", "▁", "▁h", "h", "i", "▁hi", "hi"];
    let vocab: serde_json::Map<_, _> =
        texts.iter().enumerate().map(|(id, text)| (text.to_string(), json!(id))).collect();
    let special =
        |id: u32| json!({"id": id, "content": texts[id as usize], "special": true, "normalized": false});
    let json = json!({
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": ["▁ h", "▁h i", "h i"]},
    });
    let tokenizer = from_json(&json).unwrap();
    assert_eq!(tokenizer.encode("hi hi", Special::Plain).unwrap(), [10, 10]);
    assert_eq!(tokenizer.decode(&[10, 10]), "hi hi");
    assert_eq!(tokenizer.encode("hi€", Special::Plain).unwrap(), [10, 3, 4, 5]);
    assert_eq!(tokenizer.decode(&[10, 3, 4, 5]), "hi€");
    assert_eq!(tokenizer.token_bytes(3), [0xE2]);
    assert_eq!(
        tokenizer.encode("hiz", Special::Plain).unwrap(),
        [10, 0],
        "what has no bytes either is unknown"
    );
}

/// The folder of real models, or a line that says why a test does nothing.
fn real(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("HOB_TEST_MODELS") else {
        println!("skipped: HOB_TEST_MODELS is not set");
        return None;
    };
    let path = PathBuf::from(folder).join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn real_smollm2_equals_llama_cpp() {
    let Some(path) = real("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let file = ModelFile::open(&path).unwrap();
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::from_model(&file).unwrap();
    println!("loaded {} tokens in {:?}", tokenizer.vocab_size(), start.elapsed());
    let wrong = differences(&tokenizer, &fixture()["real"]["smollm2"], |_| false);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(tokenizer.end_tokens(), [0, 2]);
    let template = ChatTemplate::for_tokenizer(&tokenizer, &TemplateLimits::default()).unwrap();
    let messages = [Message::user("Why is the sky blue?")];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..Default::default() };
    assert_eq!(
        template.render(&input).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn real_tokenizer_json_equals_the_reference_also_through_gguf() {
    for (name, pre) in [("qwen3", "qwen2"), ("llama3", "llama-bpe")] {
        let Some(path) = real(&format!("{name}/tokenizer.json")) else { return };
        let expected = &fixture()["real"][name];
        let start = std::time::Instant::now();
        let tokenizer = Tokenizer::from_json(&path).unwrap();
        println!("{name}: loaded {} tokens from JSON in {:?}", tokenizer.vocab_size(), start.elapsed());
        let wrong = differences(&tokenizer, expected, |_| false);
        assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));

        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut tokens = vec![String::new(); tokenizer.vocab_size()];
        let mut types = vec![1; tokens.len()];
        for (text, id) in json["model"]["vocab"].as_object().unwrap() {
            tokens[id.as_u64().unwrap() as usize] = text.clone();
        }
        for added in json["added_tokens"].as_array().unwrap() {
            let id = added["id"].as_u64().unwrap() as usize;
            tokens[id] = added["content"].as_str().unwrap().into();
            types[id] = if added["special"].as_bool().unwrap() { 3 } else { 4 };
        }
        let merge = |merge: &Value| match merge.as_array() {
            Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => merge.as_str().unwrap().to_owned(),
        };
        let merges: Vec<_> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
        let mut start = std::time::Instant::now();
        let tokenizer = gguf(pre, |writer| {
            writer.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
            writer.set("tokenizer.ggml.merges", merges);
            start = std::time::Instant::now();
        });
        println!("{name}: wrote, opened and loaded the GGUF in {:?}", start.elapsed());
        let wrong = differences(&tokenizer.unwrap(), expected, |_| false);
        assert!(wrong.is_empty(), "{name} as GGUF: {}", wrong.join("\n"));
    }
}

#[test]
fn real_templates_render() {
    for (name, opening) in [
        ("qwen3", "<|im_start|>user\nhi<|im_end|>\n"),
        ("llama3", "<|begin_of_text|><|start_header_id|>user"),
    ] {
        let Some(path) = real(&format!("{name}/tokenizer_config.json")) else { return };
        let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let template =
            ChatTemplate::new(config["chat_template"].as_str().unwrap(), &TemplateLimits::default()).unwrap();
        let messages =
            [Message::user("hi"), Message::assistant("<think>\nx\n</think>\n\nyo"), Message::user("again")];
        let input = ChatInput {
            messages: &messages,
            add_generation_prompt: true,
            bos_token: "<|begin_of_text|>",
            ..Default::default()
        };
        let start = std::time::Instant::now();
        let prompt = template.render(&input).unwrap();
        println!("{name}: {} bytes in {:?}", prompt.len(), start.elapsed());
        assert!(prompt.starts_with(opening), "{prompt}");
        assert!(name != "qwen3" || !prompt.contains("<think>"), "{prompt}");
    }
}

#[test]
fn one_tokenizer_serves_several_threads() {
    let tokenizer = gguf("qwen2", |_| {}).unwrap();
    let texts = strings(&fixture()["texts"]);
    let expected: Vec<_> = texts.iter().map(|text| tokenizer.encode(text, Special::Parse).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (text, expected) in texts.iter().zip(&expected) {
                    assert_eq!(&tokenizer.encode(text, Special::Parse).unwrap(), expected);
                }
            });
        }
    });
}
