//! Why the server did not start or stopped. Errors of single requests are answers, see `api_error`.

use std::net::SocketAddr;

pub type Result<T> = std::result::Result<T, ServeError>;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "refusing to listen on {addr} without an API key: anybody who reaches it could use the model; set an API key, or listen on 127.0.0.1"
    )]
    KeyRequired { addr: SocketAddr },
    #[error("the API key: expected 1 to 1024 visible ASCII characters, found {found}")]
    Key { found: &'static str },
    #[error("{field}: expected {expected}, found {found}")]
    Option { field: &'static str, expected: String, found: String },
    #[error("cannot listen on {addr}: {source}; choose another port, or stop the program that uses it")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Engine(#[from] hob_engine::EngineError),
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
    #[error("the engine's thread ended unexpectedly; the server cannot go on")]
    EngineLost,
}
