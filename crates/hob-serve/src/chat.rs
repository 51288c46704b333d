//! `POST /v1/chat/completions`: body, checks, place in the line, answer. It must not know connections.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hob_engine::{Cancel, Finish, Front, Prompt};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;

use crate::api_error::ApiError;
use crate::openai::{Chat, parse};
use crate::queue::{Job, Refused, Update};
use crate::reply::Head;
use crate::routes::App;
use crate::sse::ChatStream;

pub(crate) async fn completions(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(app, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    demand_json(request.headers())?;
    let (body, permit) = read_body(&app, request).await?;
    let front = app.front.clone();
    let defaults = Arc::clone(&app.defaults);
    // Templates and tokenizers may take a while on a long conversation: not on the threads that serve connections.
    let checked = tokio::task::spawn_blocking(move || {
        let chat = parse(&body, &defaults)?;
        let rendered = render(&front, &chat)?;
        Ok::<_, ApiError>((chat, rendered))
    });
    let (chat, rendered) = checked.await.map_err(|_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "reading the request failed unexpectedly")
    })??;
    drop(permit);
    let (updates, mut incoming) = unbounded_channel();
    let job = Job { rendered, request: chat.request, cancel: Cancel::new(), updates };
    let place = app.queue.push(job).map_err(|refused| match refused {
        Refused::Full { waiting } => ApiError::busy(waiting),
        Refused::Closed => ApiError::stopping(),
    })?;
    let head = Head::new(app.next_serial(), &app.model_name);
    if chat.stream {
        let stream = ChatStream::new(head, chat.include_usage, place, incoming, app.limits.keep_alive);
        return Ok(stream.into_response());
    }
    // Dropped with this future when the client goes, and the work stops.
    let _place = place;
    while let Some(update) = incoming.recv().await {
        if let Update::Done(result) = update {
            let outcome = result?;
            if outcome.finish == Finish::Cancelled {
                break;
            }
            return Ok(Json(head.completion(&outcome)).into_response());
        }
    }
    Err(ApiError::stopping())
}

/// Renders the conversation and makes sure that it fits, before it waits in line.
fn render(front: &Front, chat: &Chat) -> Result<String, ApiError> {
    chat.request.validate(front.vocab())?;
    let rendered = front.render_chat(&chat.messages)?;
    front.tokenize(&Prompt::text(rendered.as_str()))?;
    Ok(rendered)
}

/// A page of another site cannot send this type without asking first, and the guard says no to that.
fn demand_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("Content-Type: expected application/json, found {kind:?}");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

/// All bodies together stay within a budget: the permit is held until the body is gone.
async fn read_body(app: &App, request: Request) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let limit = app.limits.body_bytes;
    let declared =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > limit as u64) {
        return Err(too_large(limit));
    }
    let share = declared.map_or(limit, |n| n as usize).div_ceil(BUDGET_UNIT).max(1);
    let permit =
        Arc::clone(&app.body_budget).try_acquire_many_owned(u32::try_from(share).unwrap_or(u32::MAX));
    let permit = permit.map_err(|_| ApiError::busy(app.queue.load().waiting))?;
    let body = tokio::time::timeout(app.limits.body, collect(request.into_body(), limit)).await;
    let body = body.unwrap_or_else(|_| Err(too_slow(app.limits.body)))?;
    Ok((body, permit))
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut parts = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(part) = parts.next().await {
        let part =
            part.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body broke off: {e}")))?;
        if whole.len() + part.len() > limit {
            return Err(too_large(limit));
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.into())
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body: expected at most {limit} bytes; shorten the conversation");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

fn too_slow(limit: Duration) -> ApiError {
    let message = format!("the body did not arrive within {} s", limit.as_secs_f32());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
}

/// Bytes per permit of the budget.
const BUDGET_UNIT: usize = 1024;

/// Room for four bodies of the largest size.
pub(crate) fn body_budget(limit: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((4 * limit.div_ceil(BUDGET_UNIT)).min(Semaphore::MAX_PERMITS)))
}
