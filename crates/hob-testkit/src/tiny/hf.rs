//! Writes a tiny model as a Hugging Face folder: config.json, tokenizer.json, tokenizer_config.json,
//! generation_config.json and model.safetensors (F32). It must not know models beyond the spec.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use super::{Arch, TinySpec, vocab};

/// A JSON string literal.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn joined(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(",\n")
}

impl TinySpec {
    /// Writes the model into the existing folder `dir`.
    ///
    /// # Errors
    /// Those of writing files.
    pub fn write_hf(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join("config.json"), self.config_json())?;
        fs::write(dir.join("tokenizer.json"), self.tokenizer_json())?;
        fs::write(dir.join("tokenizer_config.json"), self.tokenizer_config_json())?;
        fs::write(
            dir.join("generation_config.json"),
            format!(
                "{{\"bos_token_id\": {}, \"eos_token_id\": [{}, {}]}}\n",
                vocab::BOS,
                vocab::EOS,
                vocab::IM_END
            ),
        )?;
        fs::write(dir.join("model.safetensors"), self.safetensors_bytes())
    }

    /// The weights as the bytes of a safetensors file: the length of the header, the JSON header padded with spaces to
    /// a multiple of 8, the F32 data.
    pub fn safetensors_bytes(&self) -> Vec<u8> {
        let mut data: Vec<u8> = Vec::new();
        let mut entries = vec!["\"__metadata__\":{\"format\":\"pt\"}".to_owned()];
        for tensor in self.tensors() {
            let start = data.len();
            data.extend(self.weights(&tensor).iter().flat_map(|w| w.to_le_bytes()));
            let shape = if tensor.vector {
                tensor.cols.to_string()
            } else {
                format!("{},{}", tensor.rows, tensor.cols)
            };
            entries.push(format!(
                "{}:{{\"dtype\":\"F32\",\"shape\":[{shape}],\"data_offsets\":[{start},{}]}}",
                quoted(&tensor.hf_name),
                data.len()
            ));
        }
        let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header);
        out.extend(data);
        out
    }

    fn config_json(&self) -> String {
        let (class, bias) = match self.arch {
            Arch::Llama => ("LlamaForCausalLM", format!("\"attention_bias\": {}", self.bias)),
            Arch::Qwen2 => ("Qwen2ForCausalLM", "\"use_sliding_window\": false".to_owned()),
        };
        format!(
            r#"{{
  "architectures": ["{class}"],
  "model_type": "{}",
  "hidden_act": "silu",
  "hidden_size": {},
  "intermediate_size": {},
  "num_hidden_layers": {},
  "num_attention_heads": {},
  "num_key_value_heads": {},
  "head_dim": {},
  "max_position_embeddings": {},
  "rms_norm_eps": {:e},
  "rope_theta": {:?},
  "vocab_size": {},
  "tie_word_embeddings": {},
  {bias},
  "bos_token_id": {},
  "eos_token_id": {},
  "torch_dtype": "float32"
}}
"#,
            self.arch.name(),
            self.dim,
            self.ffn,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.ctx,
            self.rms_eps,
            self.rope_base,
            self.vocab,
            self.tied,
            vocab::BOS,
            vocab::EOS,
        )
    }

    fn tokenizer_json(&self) -> String {
        let tokens = vocab::tokens(self.vocab);
        let entries =
            joined(tokens.iter().enumerate().map(|(id, (text, _))| format!("{}: {id}", quoted(text))));
        let merges = joined(vocab::MERGES.iter().map(|(a, b)| format!("[{}, {}]", quoted(a), quoted(b))));
        let added = joined(vocab::SPECIAL.iter().enumerate().map(|(id, text)| {
            format!(
                "{{\"id\": {id}, \"content\": {}, \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \
                 \"normalized\": false, \"special\": true}}",
                quoted(text)
            )
        }));
        format!(
            r#"{{
"version": "1.0",
"truncation": null,
"padding": null,
"added_tokens": [
{added}
],
"normalizer": null,
"pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
"post_processor": {},
"decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
"model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
"end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
"vocab": {{
{entries}
}},
"merges": [
{merges}
]}}
}}
"#,
            self.post_processor(),
        )
    }

    /// Llama puts the first token in front, as its GGUF's `add_bos_token` says; qwen2 does not.
    fn post_processor(&self) -> String {
        if self.arch == Arch::Qwen2 {
            return "null".to_owned();
        }
        let bos = quoted(vocab::SPECIAL[vocab::BOS as usize]);
        let first = format!("{{\"SpecialToken\": {{\"id\": {bos}, \"type_id\": 0}}}}");
        format!(
            "{{\"type\": \"TemplateProcessing\", \
             \"single\": [{first}, {{\"Sequence\": {{\"id\": \"A\", \"type_id\": 0}}}}], \
             \"pair\": [{first}, {{\"Sequence\": {{\"id\": \"A\", \"type_id\": 0}}}}, \
             {{\"Sequence\": {{\"id\": \"B\", \"type_id\": 1}}}}], \
             \"special_tokens\": {{{bos}: {{\"id\": {bos}, \"ids\": [{}], \"tokens\": [{bos}]}}}}}}",
            vocab::BOS
        )
    }

    fn tokenizer_config_json(&self) -> String {
        format!(
            "{{\n\"add_bos_token\": {},\n\"bos_token\": {},\n\"eos_token\": {},\n\"model_max_length\": {},\n\
             \"chat_template\": {}\n}}\n",
            self.arch == Arch::Llama,
            quoted(vocab::SPECIAL[vocab::BOS as usize]),
            quoted(vocab::SPECIAL[vocab::EOS as usize]),
            self.ctx,
            quoted(vocab::CHAT_TEMPLATE)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{TinySpec, quoted};
    use crate::temp::TempDir;

    fn json(text: &str) -> serde_json::Value {
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in\n{text}"))
    }

    #[test]
    fn strings_survive_a_json_parser() {
        for text in ["", "a\"b\\c\n\t\u{1}", "Ġä€😀"] {
            assert_eq!(json(&quoted(text)), text);
        }
    }

    #[test]
    fn every_json_file_parses_and_states_the_spec() {
        for spec in [TinySpec::llama(), TinySpec::qwen2()] {
            let config = json(&spec.config_json());
            assert_eq!(config["model_type"], spec.arch.name());
            assert_eq!(config["num_key_value_heads"], 2);
            assert_eq!(config["rms_norm_eps"].as_f64().map(|v| v as f32), Some(spec.rms_eps));
            assert_eq!(config["rope_theta"].as_f64().map(|v| v as f32), Some(spec.rope_base));
            assert_eq!(config["tie_word_embeddings"], spec.tied);
            let tokenizer = json(&spec.tokenizer_json());
            assert_eq!(tokenizer["model"]["vocab"].as_object().expect("vocab").len(), spec.vocab);
            assert_eq!(tokenizer["model"]["vocab"]["Ġthe"], 266);
            assert_eq!(tokenizer["added_tokens"][3]["content"], "<|im_end|>");
            let config = json(&spec.tokenizer_config_json());
            assert!(config["chat_template"].as_str().expect("template").contains("+ '\\n'"));
        }
    }

    #[test]
    fn safetensors_extents_tile_the_data() {
        let spec = TinySpec::qwen2();
        let bytes = spec.safetensors_bytes();
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        assert!(header_bytes.is_multiple_of(8));
        let header = json(str::from_utf8(&bytes[8..8 + header_bytes]).expect("UTF-8"));
        let mut end = 0;
        for tensor in spec.tensors() {
            let entry = &header[&tensor.hf_name];
            let offset = |i: usize| entry["data_offsets"][i].as_u64().expect("an offset") as usize;
            assert_eq!(offset(0), end, "{}", tensor.hf_name);
            end = offset(1);
            assert_eq!(end - offset(0), 4 * tensor.rows * tensor.cols);
            assert_eq!(entry["shape"].as_array().expect("shape").len(), if tensor.vector { 1 } else { 2 });
            let first = 8 + header_bytes + offset(0);
            let found = f32::from_le_bytes(bytes[first..first + 4].try_into().expect("4 bytes"));
            assert_eq!(found, spec.weights(&tensor)[0]);
        }
        assert_eq!(bytes.len(), 8 + header_bytes + end);
    }

    #[test]
    fn the_folder_holds_five_files() {
        let dir = TempDir::new("tiny-hf");
        TinySpec::llama().write_hf(dir.path()).expect("writable");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 5);
    }
}
