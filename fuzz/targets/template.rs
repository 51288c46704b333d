//! Any text as a chat template: refused, or rendered within its budgets.
#![no_main]

use hob_text::{ChatInput, ChatTemplate, Message, TemplateLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let limits = TemplateLimits::default();
    let Ok(template) = ChatTemplate::new(source, &limits) else { return };
    let messages =
        [Message::system("Be brief."), Message::user("Why is the sky blue?"), Message::assistant("")];
    let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let input = ChatInput {
        messages: &messages,
        add_generation_prompt: true,
        bos_token: "<s>",
        eos_token: "</s>",
        tools: Some(&tools),
        extra: serde_json::Map::new(),
    };
    if let Ok(prompt) = template.render(&input) {
        assert!(prompt.len() <= limits.output_bytes, "{} bytes of output", prompt.len());
    }
});
