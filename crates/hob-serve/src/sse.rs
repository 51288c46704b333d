//! A chat reply as server-sent events. Dropping the stream gives up its place, which stops the work.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hob_engine::{Finish, Outcome};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_stream::Stream;

use crate::api_error::ApiError;
use crate::queue::{Place, Update};
use crate::reply::Head;

/// See the module.
pub(crate) struct ChatStream {
    head: Head,
    include_usage: bool,
    place: Place,
    updates: UnboundedReceiver<Update>,
    keep_alive: Interval,
    prefill: Option<(usize, usize)>,
    opened: bool,
    ended: bool,
    /// Lines made but not yet taken.
    ready: VecDeque<Bytes>,
}

impl ChatStream {
    pub fn new(
        head: Head,
        include_usage: bool,
        place: Place,
        updates: UnboundedReceiver<Update>,
        keep_alive: Duration,
    ) -> Self {
        // A tick of zero length would be refused.
        let period = keep_alive.max(Duration::from_millis(1));
        let mut keep_alive = interval_at(Instant::now() + period, period);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ChatStream {
            head,
            include_usage,
            place,
            updates,
            keep_alive,
            prefill: None,
            opened: false,
            ended: false,
            ready: VecDeque::new(),
        }
    }

    pub fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        (headers, Body::from_stream(self)).into_response()
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Prefill { ready, of } => self.prefill = Some((ready, of)),
            Update::Text(text) => {
                self.open();
                let chunk = self.head.chunk(json!({"content": text}), None);
                self.chunk(chunk);
            }
            Update::Done(Ok(outcome)) => self.close(&outcome),
            Update::Done(Err(error)) => self.fail(&ApiError::from(error)),
        }
    }

    /// The role comes first, once.
    fn open(&mut self) {
        if !self.opened {
            self.opened = true;
            let chunk = self.head.chunk(json!({"role": "assistant", "content": ""}), None);
            self.chunk(chunk);
        }
    }

    fn close(&mut self, outcome: &Outcome) {
        if outcome.finish == Finish::Cancelled {
            // The client is here, so it was the server that stopped.
            return self.fail(&ApiError::stopping());
        }
        self.open();
        let chunk = self.head.chunk(json!({}), Some(outcome.finish));
        self.chunk(chunk);
        if self.include_usage {
            let chunk = self.head.usage_chunk(&outcome.figures);
            self.event(&chunk);
        }
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.ended = true;
    }

    fn fail(&mut self, error: &ApiError) {
        self.event(&error.body());
        self.ended = true;
    }

    fn chunk(&mut self, mut chunk: Value) {
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        self.event(&chunk);
    }

    fn event(&mut self, data: &Value) {
        // JSON has no raw line breaks, so one line holds it.
        self.ready.push_back(Bytes::from(format!("data: {data}\n\n")));
    }

    /// A comment: clients skip it, people see why nothing comes.
    fn comment(&mut self) {
        let text = match (self.place.ahead(), self.prefill) {
            (Some(ahead), _) => format!(": waiting, {ahead} ahead\n\n"),
            (None, Some((ready, of))) if !self.opened => format!(": prefill {ready}/{of}\n\n"),
            _ => ": working\n\n".to_owned(),
        };
        self.ready.push_back(Bytes::from(text));
    }
}

impl Stream for ChatStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                this.keep_alive.reset();
                return Poll::Ready(Some(Ok(bytes)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match this.updates.poll_recv(cx) {
                Poll::Ready(Some(update)) => this.take(update),
                // The job was dropped unserved.
                Poll::Ready(None) => this.fail(&ApiError::stopping()),
                Poll::Pending => match this.keep_alive.poll_tick(cx) {
                    Poll::Ready(_) => this.comment(),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}
