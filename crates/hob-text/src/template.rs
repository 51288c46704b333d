//! Chat templates: Jinja as Hugging Face runs it, under budgets. A template comes with the model and is as
//! untrusted as it; it gets a thread with a big stack, a limit on instructions and a meter on everything it makes
//! (`meter.rs`), because the engine (minijinja) by itself bounds neither memory nor stack.
//! Must not know vocabularies beyond the two that choose the fallback.

mod family;
mod filters;
mod globals;
mod json_values;
mod lists;
mod meter;
mod namespace;
mod ops;
mod rewrite;
mod strings;
mod values;

use minijinja::machinery::{self, CodeGenerator};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, UndefinedBehavior, Value};

use crate::chat::ChatInput;
use crate::error::{Result, TextError};
use crate::limits::TemplateLimits;
use crate::tokenizer::Tokenizer;

pub use family::CHATML;

/// No source is longer, whatever the limits say: what the stack and the engine's 16-bit counters were tested with.
const MAX_SOURCE_BYTES: usize = 64 << 10;

/// A checked chat template. Rendering may be called from several threads.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    limits: TemplateLimits,
}

impl ChatTemplate {
    /// Checks the source: size, syntax, nesting, statements.
    pub fn new(source: &str, limits: &TemplateLimits) -> Result<ChatTemplate> {
        let limit = limits.source_bytes.min(MAX_SOURCE_BYTES);
        if source.len() > limit {
            let what = format!("the source has {} bytes, the limit is {limit}", source.len());
            return Err(TextError::Budget { what, field: "source_bytes" });
        }
        let template = ChatTemplate { source: plain_generation(source), limits: limits.clone() };
        template.on_own_stack(|| template.compile(|_, _| Ok(())))?;
        Ok(template)
    }

    /// The model's own template; without one that of its family (`family.rs`); else an error that suggests `--raw`.
    pub fn for_tokenizer(tokenizer: &Tokenizer, limits: &TemplateLimits) -> Result<ChatTemplate> {
        let source = tokenizer.chat_template().or_else(|| family::fallback(tokenizer));
        ChatTemplate::new(source.ok_or(TextError::NoTemplate)?, limits)
    }

    /// The prompt for a conversation, to be encoded with [`crate::Special::Parse`].
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        self.on_own_stack(|| self.render_here(input))
    }

    fn on_own_stack<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("template".into());
            let failed = |error| TextError::Template(format!("cannot start a thread to render it: {error}"));
            let thread =
                builder.stack_size(self.limits.stack_bytes).spawn_scoped(scope, work).map_err(failed)?;
            let panicked = || TextError::Template("rendering it made a library panic".into());
            thread.join().unwrap_or_else(|_| Err(panicked()))
        })
    }

    fn render_here(&self, input: &ChatInput) -> Result<String> {
        let bytes = input_bytes(input);
        let messages = input.messages.len() as u64;
        meter::start(&self.limits, bytes, messages);
        let fuel = self.limits.fuel.saturating_add(messages.saturating_mul(self.limits.fuel_per_message));
        let rendered = context(input).map_err(|error| self.explain(error, fuel)).and_then(|root| {
            self.compile(|instructions, blocks| {
                let env = environment(&self.limits, fuel);
                let mut prompt = String::new();
                let mut out = machinery::make_string_output(&mut prompt);
                let result = machinery::eval(&env, instructions, root, blocks, &mut out, AutoEscape::None);
                let result = result.map(|_| ()).map_err(|error| self.explain(error, fuel));
                drop(out);
                result.map(|()| prompt)
            })
        });
        // What stopped the rendering is more precise than the engine's "stopped".
        match meter::finish() {
            Some(reason) => Err(reason),
            None => rendered.and_then(|prompt| self.check_output(prompt)),
        }
    }

    fn check_output(&self, prompt: String) -> Result<String> {
        match prompt.len() > self.limits.output_bytes {
            true => {
                let what = format!(
                    "the prompt has {} bytes, the limit is {}",
                    prompt.len(),
                    self.limits.output_bytes
                );
                Err(TextError::Budget { what, field: "output_bytes" })
            }
            false => Ok(prompt),
        }
    }

    /// Parses, rewrites and compiles, and hands the code on: it borrows the source, which is why it is not kept.
    /// Doing so again for each prompt takes well below a millisecond.
    fn compile<T>(&self, run: impl FnOnce(&Code<'_>, &Blocks<'_>) -> Result<T>) -> Result<T> {
        let explain = |error| self.explain(error, 0);
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build().map_err(explain)?;
        let parsed = machinery::parse(&self.source, "chat_template", syntax).map_err(explain)?;
        let rewritten = rewrite::template(&parsed, self.limits.syntax_depth).map_err(explain)?;
        drop(parsed);
        let mut generator = CodeGenerator::new("chat_template", &self.source);
        generator.compile_stmt(&rewritten);
        let (instructions, blocks) = generator.finish();
        run(&instructions, &blocks)
    }

    /// The engine's error in this crate's words.
    fn explain(&self, error: Error, fuel: u64) -> TextError {
        let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
        match error.kind() {
            ErrorKind::OutOfFuel => {
                let what = format!("{line}more than {fuel} instructions were run");
                TextError::Budget { what, field: "fuel" }
            }
            _ if error.detail() == Some("recursion limit exceeded") => {
                let what = format!("{line}loops and macros are nested deeper than {}", self.limits.recursion);
                TextError::Budget { what, field: "recursion" }
            }
            kind => TextError::Template(match error.detail() {
                Some(detail) => format!("{line}{kind}: {detail}"),
                None => format!("{line}{kind}"),
            }),
        }
    }
}

type Code<'a> = machinery::Instructions<'a>;
type Blocks<'a> = std::collections::BTreeMap<&'a str, Code<'a>>;

/// Nothing of the engine's own library: every filter, test and function is metered or harmless.
fn environment(limits: &TemplateLimits, fuel: u64) -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_debug(false);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(limits.recursion);
    env.set_formatter(|out, _, value| emit(out, value));
    env.set_unknown_method_callback(strings::method);
    ops::register(&mut env);
    filters::register(&mut env);
    globals::register(&mut env);
    env
}

/// Writes what `{{ }}` shows, charged, into the prompt or a captured block.
fn emit(out: &mut Output, value: &Value) -> std::result::Result<(), Error> {
    let written = |result: std::fmt::Result| result.map_err(|_| Error::from(ErrorKind::WriteFailure));
    match (value.as_str(), value.kind()) {
        (Some(text), _) => {
            meter::charge(text.len())?;
            written(out.write_str(text))
        }
        (_, ValueKind::Undefined) => Ok(()),
        _ => {
            let mut text = values::Text::default();
            values::push_str(&mut text, value)?;
            written(out.write_str(&text.into_string()))
        }
    }
}

/// The variables of the template.
fn context(input: &ChatInput) -> std::result::Result<Value, Error> {
    let depth = meter::depth();
    let message = |message: &crate::chat::Message| {
        let mut pairs = vec![
            (Value::from("role"), Value::from(message.role.as_str())),
            (Value::from("content"), Value::from(message.content.as_str())),
        ];
        for (name, value) in &message.extra {
            pairs.push((Value::from(name.as_str()), json_values::from_json(value, depth)?));
        }
        Ok(Value::from_pairs(pairs))
    };
    let mut root = Vec::new();
    for (name, value) in &input.extra {
        root.push((name.as_str(), json_values::from_json(value, depth)?));
    }
    let messages = input.messages.iter().map(message).collect::<std::result::Result<Vec<_>, Error>>()?;
    root.push(("messages", Value::from(messages)));
    root.push(("add_generation_prompt", Value::from(input.add_generation_prompt)));
    root.push(("bos_token", Value::from(input.bos_token)));
    root.push(("eos_token", Value::from(input.eos_token)));
    let tools = input.tools.map_or(Ok(Value::from(())), |tools| json_values::from_json(tools, depth))?;
    root.push(("tools", tools));
    if !input.extra.contains_key("documents") {
        root.push(("documents", Value::from(())));
    }
    Ok(Value::from_pairs(root))
}

/// Bytes of the conversation, to scale the budgets.
fn input_bytes(input: &ChatInput) -> u64 {
    let extra = |entries: &serde_json::Map<String, serde_json::Value>| -> u64 {
        entries.iter().map(|(name, value)| name.len() as u64 + json_values::json_bytes(value)).sum()
    };
    let messages: u64 = input
        .messages
        .iter()
        .map(|message| (message.role.len() + message.content.len()) as u64 + extra(&message.extra))
        .sum();
    messages + extra(&input.extra) + input.tools.map_or(0, json_values::json_bytes)
}

/// Hugging Face's `{% generation %}` marks the assistant's tokens for training; for a prompt it is a plain block.
/// The engine does not know the tag, so it becomes `{% if true %}` with the same white-space marks.
fn plain_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        for (word, statement) in [("generation", "if true"), ("endgeneration", "endif")] {
            let Some(after) = name.strip_prefix(word) else { continue };
            if after.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(&tag[..tag.len() - name.len()]);
                out.push_str(statement);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}
