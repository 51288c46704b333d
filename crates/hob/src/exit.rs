//! Errors at the end of their way: which exit code one means, and its message in one piece. It must not print.

use hob_compute::ComputeError;
use hob_engine::EngineError;
use hob_hub::HubError;
use hob_lab::bench::BenchError;
use hob_lab::eval::EvalError;
use hob_lab::quantize::QuantizeError;
use hob_lab::synth::SynthError;
use hob_model::ModelError;
use hob_plan::PlanError;

pub const OK: i32 = 0;
pub const FAILED: i32 = 1;
pub const USAGE: i32 = 2;
pub const MODEL: i32 = 3;
pub const DOES_NOT_FIT: i32 = 4;
pub const INTERRUPTED: i32 = 130;

/// Wrong usage that clap cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A prompt that the context does not hold, with what would.
#[derive(Debug, thiserror::Error)]
#[error("{source}; {advice}")]
pub struct TooLong {
    pub source: EngineError,
    pub advice: String,
}

/// The exit code of an error: the first cause that has one decides.
pub fn code(error: &anyhow::Error) -> i32 {
    error.chain().find_map(code_of).unwrap_or(FAILED)
}

/// The message of an error and of its causes, each said once: many messages already quote their cause.
pub fn message(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match () {
            () if text.is_empty() => cause,
            () if text.contains(&cause) => text,
            () => format!("{text}: {cause}"),
        }
    })
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<i32> {
    if cause.is::<UsageError>() {
        return Some(USAGE);
    }
    if cause.is::<PlanError>() {
        return Some(DOES_NOT_FIT);
    }
    if cause.is::<hob_files::FileError>() {
        return Some(MODEL);
    }
    if let Some(hub) = cause.downcast_ref::<HubError>() {
        return Some(match hub {
            HubError::Cancelled { .. } => INTERRUPTED,
            HubError::NoHome => FAILED,
            _ => MODEL,
        });
    }
    if let Some(model) = cause.downcast_ref::<ModelError>() {
        return Some(code_of_model(model));
    }
    if let Some(bench) = cause.downcast_ref::<BenchError>() {
        return Some(match bench {
            BenchError::Config { .. } | BenchError::NoDepth { .. } => USAGE,
            BenchError::Model(model) => code_of_model(model),
            BenchError::Compute(compute) => code_of_compute(compute),
            BenchError::Timeline { .. } => FAILED,
        });
    }
    if let Some(eval) = cause.downcast_ref::<EvalError>() {
        return code_of_eval(eval);
    }
    if let Some(synth) = cause.downcast_ref::<SynthError>() {
        return Some(match synth {
            SynthError::Cancelled => INTERRUPTED,
            // Nothing is wrong with a model here: the disk is full, or a name cannot be written to.
            SynthError::File(_) => FAILED,
            SynthError::Architecture { .. } => MODEL,
            SynthError::Model(model) => code_of_model(model),
            _ => USAGE,
        });
    }
    if let Some(quantize) = cause.downcast_ref::<QuantizeError>() {
        return Some(code_of_quantize(quantize));
    }
    match cause.downcast_ref::<EngineError>()? {
        EngineError::PromptTooLong { .. } => Some(DOES_NOT_FIT),
        EngineError::Field { .. } | EngineError::EmptyPrompt => Some(USAGE),
        // A vocabulary or template that hob cannot use.
        EngineError::Text(_) => Some(MODEL),
        EngineError::Model(model) => Some(code_of_model(model)),
        EngineError::Compute(compute) => Some(code_of_compute(compute)),
        _ => None,
    }
}

fn code_of_quantize(error: &QuantizeError) -> i32 {
    match error {
        QuantizeError::Cancelled => INTERRUPTED,
        QuantizeError::TooSmall { .. } => DOES_NOT_FIT,
        QuantizeError::Safetensors { .. }
        | QuantizeError::NothingToDo { .. }
        | QuantizeError::Uneven { .. }
        | QuantizeError::Weights { .. } => MODEL,
        // The model was opened: the disk is full, or a name cannot be written to.
        QuantizeError::File(_) => FAILED,
        _ => USAGE,
    }
}

fn code_of_eval(error: &EvalError) -> Option<i32> {
    match error {
        EvalError::Config { .. } | EvalError::TooShort { .. } => Some(USAGE),
        EvalError::Tokenizers { .. } | EvalError::NotANumber { .. } => Some(MODEL),
        EvalError::File(_) | EvalError::Text(_) => Some(MODEL),
        EvalError::Stopped => Some(INTERRUPTED),
        EvalError::Spill(_) => Some(FAILED),
        EvalError::Model(model) => Some(code_of_model(model)),
        EvalError::Compute(compute) => Some(code_of_compute(compute)),
    }
}

fn code_of_compute(error: &ComputeError) -> i32 {
    if matches!(error, ComputeError::Memory { .. }) { DOES_NOT_FIT } else { FAILED }
}

fn code_of_model(error: &ModelError) -> i32 {
    match error {
        ModelError::ContextOverflow { .. } => DOES_NOT_FIT,
        ModelError::Compute(compute) => code_of_compute(compute),
        ModelError::File(_)
        | ModelError::UnknownArchitecture { .. }
        | ModelError::Config { .. }
        | ModelError::MissingTensor { .. }
        | ModelError::TensorShape { .. }
        | ModelError::TensorFormat { .. }
        | ModelError::Tensor { .. } => MODEL,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, Error};

    #[test]
    fn a_cause_that_the_message_quotes_is_not_said_twice() {
        let cause = std::io::Error::other("the file is cut short");
        let quoting = Error::from(cause).context("/tmp/x.gguf: the file is cut short");
        assert_eq!(message(&quoting), "/tmp/x.gguf: the file is cut short");
        let other = Error::from(std::io::Error::other("no space")).context("while writing");
        assert_eq!(message(&other), "while writing: no space");
    }

    #[test]
    fn every_kind_of_failure_has_its_code() {
        let no_memory = || ComputeError::Memory { what: "KV".into(), bytes: 1 };
        let no_model = HubError::NotInstalled { name: "x".into() };
        let long = EngineError::PromptTooLong { prompt_tokens: 2, ctx_tokens: 1 };
        let field = EngineError::Field { field: "top_p", expected: "1".into(), found: "2".into() };
        let full = PlanError::ContextBeyondTraining { asked: 2, trained: 1 };
        let depth = BenchError::NoDepth { depths: vec![1], ctx_tokens: 1, needed: 1 };
        for (error, want) in [
            (Error::from(UsageError("x".into())), USAGE),
            (Error::from(no_model), MODEL),
            (Error::from(HubError::NoHome), FAILED),
            (Error::from(HubError::Cancelled { name: "x".into(), kept_bytes: 0 }), INTERRUPTED),
            (Error::from(full), DOES_NOT_FIT),
            (Error::from(long), DOES_NOT_FIT),
            (Error::from(field), USAGE),
            (Error::from(EngineError::from(ModelError::from(no_memory()))), DOES_NOT_FIT),
            (Error::from(EngineError::from(no_memory())), DOES_NOT_FIT),
            (Error::from(BenchError::from(ModelError::from(no_memory()))), DOES_NOT_FIT),
            (Error::from(depth), USAGE),
            (Error::from(EvalError::TooShort { found: 1, needed: 2 }), USAGE),
            (Error::from(EvalError::Stopped), INTERRUPTED),
            (Error::from(EvalError::from(no_memory())), DOES_NOT_FIT),
            (Error::from(SynthError::Cancelled), INTERRUPTED),
            (Error::from(QuantizeError::Cancelled), INTERRUPTED),
            (Error::from(QuantizeError::Bits { wanted: 0.0 }), USAGE),
            (Error::from(SynthError::Syntax { text: "x".into() }), USAGE),
            (Error::from(std::io::Error::other("x")), FAILED),
        ] {
            let text = format!("{error:#}");
            assert_eq!(code(&error), want, "{text}");
            assert_eq!(
                code(&Err::<(), _>(error).context("while testing").expect_err("an error")),
                want,
                "{text}"
            );
        }
    }
}
