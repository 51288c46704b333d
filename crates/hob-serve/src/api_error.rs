//! An error as an answer, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hob_engine::EngineError;
use serde_json::{Value, json};

/// What a client is told when its request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// 400, naming the field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// The server is going away.
    pub fn stopping() -> Self {
        let message = "the server is shutting down; try again later";
        ApiError { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// Everybody is waiting already.
    pub fn busy(waiting: usize) -> Self {
        let message = format!("one reply is being made and {waiting} requests wait already; try again later");
        let code = Some("rate_limit_exceeded");
        ApiError { retry_after: Some(5), code, ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            s if s.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<EngineError> for ApiError {
    fn from(e: EngineError) -> Self {
        let message = e.to_string();
        match e {
            EngineError::Field { field, .. } => {
                Self::field(field.split(' ').next().unwrap_or(field), message)
            }
            EngineError::PromptTooLong { .. } => {
                ApiError { code: Some("context_length_exceeded"), ..Self::field("messages", message) }
            }
            e if e.is_request() => Self::field("messages", message),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_errors_become_answers() {
        let status = |e: EngineError| {
            let error = ApiError::from(e);
            (error.status.as_u16(), error.param.clone().unwrap_or_default(), error.kind())
        };
        let field = |field| EngineError::Field { field, expected: "a".into(), found: "b".into() };
        let bad = |param: &str| (400, param.to_owned(), "invalid_request_error");
        assert_eq!(status(field("top_p")), bad("top_p"));
        assert_eq!(status(field("stop (entries)")), bad("stop"));
        assert_eq!(status(EngineError::PromptTooLong { prompt_tokens: 9, ctx_tokens: 8 }), bad("messages"));
        assert_eq!(status(EngineError::EmptyPrompt), bad("messages"));
        let broken = (500, String::new(), "server_error");
        assert_eq!(status(EngineError::Panic("x".into())), broken);
        assert_eq!(status(EngineError::NotFinite { position: 1 }), broken);
    }
}
