//! The budget of the parsers: every quantity that a file declares about itself and that costs us memory or time.
//! It must not know the formats; the parsers name the field that stopped them.

/// Limits on untrusted files. A file over a limit is refused with an error that names the field, the value found and
/// the limit. The defaults admit every published model known to the authors with room to spare; raise a field and
/// open with [`crate::ModelFile::open_with`] if a file of yours does not fit.
///
/// Independently of these numbers no parser reserves memory for more elements than the bytes left in the file can
/// hold, so a short file can never cost much whatever it claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// GGUF: bytes before the tensor data. Default 256 MiB; cost: up to four times that in memory, usually once.
    /// The largest vocabularies in use (262,144 tokens) take 16 MB.
    pub gguf_header_bytes: u64,
    /// Safetensors: bytes of one JSON header, and of the shard index. Default 100,000,000, the format's own cap;
    /// cost: up to four times that in memory.
    pub safetensors_header_bytes: u64,
    /// Tensors in all shards together. Default 1,048,576; cost: about 150 bytes each. A mixture of 384 experts stored
    /// one tensor per expert, with scales, over 61 layers has 140,000.
    pub tensors: u64,
    /// GGUF: metadata keys. Default 16,384; cost: about 100 bytes each plus the value. Published files have under 100.
    pub metadata_keys: u64,
    /// GGUF: bytes of one metadata key. Default 1,024; the format allows 65,535 and uses under 100.
    pub key_bytes: u64,
    /// Bytes of one tensor name. Default 256; GGUF writers keep to 64, safetensors names reach about 130.
    pub name_bytes: u64,
    /// GGUF: bytes of one string value. Default 64 MiB; cost: a copy. Some files embed a whole tokenizer.json.
    pub string_bytes: u64,
    /// GGUF: elements of one array. Default 16,777,216; cost: the elements' own size, plus 4 bytes per string.
    /// The largest arrays in use are merge lists of about 500,000 strings.
    pub array_len: u64,
    /// GGUF: arrays within arrays. Default 2 (a matrix); the parser recurses once per level. Writers use 1.
    pub array_depth: u32,
    /// GGUF: `general.alignment` in bytes. Default 65,536, the largest page size in use; cost: padding only.
    pub alignment_bytes: u32,
    /// GGUF: dimensions of one tensor. Default 4, as in ggml.
    pub gguf_dims: u32,
    /// Safetensors: dimensions of one tensor. Default 8; language models use up to 4, vision convolutions 5.
    pub safetensors_dims: usize,
    /// Files that make up one model. Default 1,024; cost: one open file each. The largest published model has 163.
    pub shards: u64,
    /// Bytes of one JSON companion (`config.json`, `tokenizer_config.json`, ...). Default 8 MiB; the largest known is
    /// 1.2 MB.
    pub json_bytes: u64,
    /// Values (numbers, strings, keys, brackets) in one JSON companion. Default 250,000; cost: about 80 bytes each, so
    /// that 8 MiB of `[0,0,0,...]` cannot become 300 MB.
    pub json_values: u64,
    /// Nesting of one JSON document. Default 64; the parser recurses once per level. Known files stay under 12.
    pub json_depth: u32,
    /// Bytes of one text companion (`chat_template.jinja`). Default 1 MiB; the largest known is 20 KB.
    pub text_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            gguf_header_bytes: 256 << 20,
            safetensors_header_bytes: 100_000_000,
            tensors: 1 << 20,
            metadata_keys: 1 << 14,
            key_bytes: 1 << 10,
            name_bytes: 256,
            string_bytes: 64 << 20,
            array_len: 1 << 24,
            array_depth: 2,
            alignment_bytes: 1 << 16,
            gguf_dims: 4,
            safetensors_dims: 8,
            shards: 1 << 10,
            json_bytes: 8 << 20,
            json_values: 250_000,
            json_depth: 64,
            text_bytes: 1 << 20,
        }
    }
}
