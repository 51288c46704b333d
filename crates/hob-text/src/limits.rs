//! The limits on untrusted vocabularies and templates: each with its default, its cost and its reason.
//! Plain numbers; the checks stand where the data is read.

/// Limits on a vocabulary, from GGUF metadata or from a tokenizer.json.
#[derive(Debug, Clone)]
pub struct TokenizerLimits {
    /// Tokens, added ones included. Default 1,048,576 (the largest published vocabularies have about 262,144);
    /// a token costs about 150 bytes in the tables.
    pub tokens: usize,
    /// Merge rules. Default 4,194,304 (Llama 3 has 280,147); a rule costs about 20 bytes, 120 while loading.
    pub merges: usize,
    /// Bytes of one token's text. Default 4,096: real ones stay below 512 (runs of spaces).
    pub token_bytes: usize,
    /// Bytes of a tokenizer.json. Default 64 MiB (the largest published are about 34 MB). Its nesting is limited
    /// to 128 by the JSON reader.
    pub json_bytes: u64,
    /// Bytes of one regular expression in a tokenizer.json. Default 2,048; real ones stay below 700.
    pub regex_bytes: usize,
    /// The product of all counted repetitions `{m,n}` of one regular expression. Default 65,536.
    /// Nested counts multiply the compiled size, so this bounds the compiler's memory.
    pub regex_repeats: u64,
}

impl Default for TokenizerLimits {
    fn default() -> Self {
        TokenizerLimits {
            tokens: 1 << 20,
            merges: 1 << 22,
            token_bytes: 4096,
            json_bytes: 64 << 20,
            regex_bytes: 2048,
            regex_repeats: 1 << 16,
        }
    }
}

/// Limits on one rendering of a chat template.
///
/// The defaults keep a hostile template below about 50 ms and 64 MiB. The two that depend on the conversation
/// grow with it, so that long chats never meet them.
#[derive(Debug, Clone)]
pub struct TemplateLimits {
    /// Bytes of template source. Default 65,536; the longest published templates have about 20,000.
    pub source_bytes: usize,
    /// Engine instructions. Default 400,000 (about 20 ms), plus [`TemplateLimits::fuel_per_message`].
    /// A long tool template needs about 300 per message.
    pub fuel: u64,
    /// Extra instructions per message of the conversation. Default 4,000.
    pub fuel_per_message: u64,
    /// Bytes that a rendering may produce in total: output, every intermediate string and list, and every
    /// comparison or search at its cost. Default 12 MiB, plus [`TemplateLimits::work_per_input_byte`].
    pub work_bytes: u64,
    /// Extra work per byte of the conversation (and tools). Default 16: enough for every message to be copied
    /// several times by filters, and for a conversation to be accumulated piecewise.
    pub work_per_input_byte: u64,
    /// Operations that may make a list, map, tuple, namespace or macro. Default 16,384, plus 16 per message, and
    /// at most one per 600 bytes of stack: this bounds how deeply values can be nested, hence the stack needed to
    /// drop them.
    pub containers: u64,
    /// Nesting at which values are compared, printed or converted. Default 64.
    pub depth: usize,
    /// Nested frames (loops, macro calls count 5). Default 250.
    pub recursion: usize,
    /// Nesting of the parsed source. Default 800: a flat chain of operators counts one level per operator.
    pub syntax_depth: usize,
    /// Bytes of the rendered prompt. Default 16 MiB.
    pub output_bytes: usize,
    /// Stack of the thread that parses and renders. Default 32 MiB: a 64 KiB source of nothing but operators
    /// parses within it.
    pub stack_bytes: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        TemplateLimits {
            source_bytes: 64 << 10,
            fuel: 400_000,
            fuel_per_message: 4_000,
            work_bytes: 12 << 20,
            work_per_input_byte: 16,
            containers: 16 << 10,
            depth: 64,
            recursion: 250,
            syntax_depth: 800,
            output_bytes: 16 << 20,
            stack_bytes: 32 << 20,
        }
    }
}
