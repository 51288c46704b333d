//! Templates for files that bring none, written by us in each family's published format. ChatML is taken wherever
//! its tokens are; the other families only for files that say they were tuned for conversation, because base models
//! have the same tokens in their vocabularies and would answer nonsense. Knows texts of tokens, nothing else.

use crate::tokenizer::Tokenizer;

/// ChatML: Qwen, SmolLM, LFM2 and many others.
pub const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const LLAMA3: &str = "{% for message in messages %}\
    {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

/// There is no system turn: its text stands in front of the first question.
const GEMMA: &str = "{% set ns = namespace(system='') %}\
    {% for message in messages %}\
    {% if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}\
    {% else %}\
    {{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}\
    {{ (ns.system if message.role == 'user' else '') + message.content + '<end_of_turn>\n' }}\
    {% if message.role == 'user' %}{% set ns.system = '' %}{% endif %}\
    {% endif %}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

const PHI: &str = "{% for message in messages %}\
    {{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

const GRANITE: &str = "{% for message in messages %}\
    {{ '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + '<|end_of_text|>\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}";

/// There is no system turn: its text stands in front of the next question.
const MISTRAL: &str = "{% set ns = namespace(system='') %}\
    {% for message in messages %}\
    {% if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}\
    {% elif message.role == 'assistant' %}{{ message.content + eos_token }}\
    {% else %}{{ '[INST]' + ns.system + message.content + '[/INST]' }}{% set ns.system = '' %}\
    {% endif %}\
    {% endfor %}";

/// A family: the special tokens that it is known by, and its template.
const FAMILIES: &[(&[&str], &str)] = &[
    (&["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], LLAMA3),
    (&["<start_of_turn>", "<end_of_turn>"], GEMMA),
    (&["<|user|>", "<|assistant|>", "<|end|>"], PHI),
    (&["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"], GRANITE),
    (&["[INST]", "[/INST]"], MISTRAL),
];

/// The template for a vocabulary whose file has none; `None` for what is probably a base model.
pub(super) fn fallback(tokenizer: &Tokenizer) -> Option<&'static str> {
    let has = |text: &&str| tokenizer.id_of(text).is_some_and(|id| tokenizer.is_special(id));
    if ["<|im_start|>", "<|im_end|>"].iter().all(has) {
        return Some(CHATML);
    }
    let found = FAMILIES.iter().find(|(tokens, _)| tokens.iter().all(has));
    found.filter(|_| tokenizer.is_tuned_for_chat()).map(|(_, template)| *template)
}
