//! The routes and what their handlers share. It must not know connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use hob_engine::Front;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::api_error::ApiError;
use crate::chat;
use crate::guard::{self, Guard};
use crate::openai::Defaults;
use crate::options::{Limits, ServeOptions};
use crate::queue::Queue;

/// What handlers share.
pub(crate) struct App {
    pub front: Front,
    pub queue: Arc<Queue>,
    pub model_name: String,
    pub defaults: Arc<Defaults>,
    pub limits: Limits,
    pub body_budget: Arc<Semaphore>,
    serial: AtomicU64,
}

impl App {
    pub fn new(front: Front, queue: Arc<Queue>, options: &ServeOptions) -> Arc<Self> {
        let defaults = Defaults { sampling: options.sampling.clone(), max_tokens: options.max_tokens };
        Arc::new(App {
            front,
            queue,
            model_name: options.model_name.clone(),
            defaults: Arc::new(defaults),
            limits: options.limits.clone(),
            body_budget: chat::body_budget(options.limits.body_bytes),
            serial: AtomicU64::new(0),
        })
    }

    pub fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }
}

/// All routes behind the guard.
pub(crate) fn router(app: Arc<App>, options: &ServeOptions) -> Router {
    let hosts = options.hosts.iter().map(|h| h.trim_end_matches('.').to_ascii_lowercase()).collect();
    let guard = Arc::new(Guard { api_key: options.api_key.clone(), hosts });
    Router::new()
        .route("/", get(root))
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat::completions))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(app)
}

async fn root(State(app): State<Arc<App>>) -> String {
    format!("hob serves {}: POST /v1/chat/completions, GET /v1/models, GET /health\n", app.model_name)
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let load = app.queue.load();
    Json(json!({"status": "ok", "model": app.model_name, "running": load.running, "waiting": load.waiting}))
        .into_response()
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let model = json!({
        "id": app.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "hob",
        "context_length": app.front.ctx_tokens(),
    });
    Json(json!({"object": "list", "data": [model]})).into_response()
}

async fn not_found(uri: Uri) -> ApiError {
    let message = format!("{} does not exist here; see GET /", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}; see GET /", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}
