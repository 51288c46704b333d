//! What ran when: timestamps around every dispatch, for profiles. It must not know who looks at them.

use std::collections::VecDeque;

use hob_compute::{Result, Span, now_nanos};

use super::fetch::{Fetch, Fetches};
use super::mapping;
use crate::context::Context;

/// Timestamps of one submit: one before and one after each dispatch.
const STAMPS: usize = 2 * super::SUBMIT_EVERY;
/// Submits whose timestamps are on their way at most.
const UNDER_WAY: usize = 32;

/// A dispatch that has its timestamps, without its time.
#[derive(Copy, Clone)]
pub(super) struct Noted {
    pub verb: &'static str,
    pub kernel: &'static str,
    pub bytes: u64,
}

/// Timestamps of a stream that is profiled.
pub(super) struct Spans {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    /// Nanoseconds of a tick.
    period: f64,
    /// A tick, and the host's clock at about that moment.
    origin: (u64, u64),
    /// Dispatches since the last submit.
    noted: Vec<Noted>,
    under_way: VecDeque<(Fetch, Vec<Noted>)>,
    /// Read, and not yet taken.
    read: Vec<Span>,
}

impl Spans {
    /// Starts the clock, for which it waits until the device has nothing to do.
    pub fn new(context: &Context, fetches: &mut Fetches) -> Result<Spans> {
        let queries = context.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: STAMPS as u32,
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = mapping::buffer(context, "timestamps", 8 * STAMPS as u64, usage, false)?;
        let mut spans = Spans {
            queries,
            resolved,
            period: f64::from(context.queue.get_timestamp_period()),
            origin: (0, 0),
            noted: Vec::with_capacity(STAMPS / 2),
            under_way: VecDeque::new(),
            read: Vec::new(),
        };
        context.poll(wgpu::PollType::wait_indefinitely())?;
        let (mut encoder, from) = (context.device.create_command_encoder(&Default::default()), now_nanos());
        let mut pass = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
        spans.before(&mut pass);
        spans.after(&mut pass, Noted { verb: "", kernel: "", bytes: 0 });
        drop(pass);
        if let Some(fetch) = spans.resolve(context, fetches, &mut encoder)? {
            let index = context.queue.submit([encoder.finish()]);
            fetches.submitted(&fetch, index);
            spans.noted.clear();
            let mut stamps = [0u64; 2];
            fetches.wait(context, fetch, bytemuck::cast_slice_mut(&mut stamps))?;
            spans.origin = (stamps[1], from.midpoint(now_nanos()));
        }
        Ok(spans)
    }

    /// Stamps the time before the next dispatch of a pass.
    pub fn before(&self, pass: &mut wgpu::ComputePass) {
        pass.write_timestamp(&self.queries, 2 * self.noted.len() as u32);
    }

    /// Stamps the time after it.
    pub fn after(&mut self, pass: &mut wgpu::ComputePass, noted: Noted) {
        pass.write_timestamp(&self.queries, 2 * self.noted.len() as u32 + 1);
        self.noted.push(noted);
    }

    /// Records the way of the timestamps to the host, at the end of what is submitted.
    pub fn resolve(
        &mut self,
        context: &Context,
        fetches: &mut Fetches,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<Option<Fetch>> {
        if self.noted.is_empty() {
            return Ok(None);
        }
        if self.under_way.len() >= UNDER_WAY {
            self.read_oldest(context, fetches)?;
        }
        let (count, bytes) = (2 * self.noted.len() as u32, 16 * self.noted.len());
        let (fetch, target) = fetches.take(context, bytes)?;
        encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, target, 0, bytes as u64);
        Ok(Some(fetch))
    }

    /// What was resolved has been submitted.
    pub fn submitted(&mut self, fetch: Fetch) {
        let noted = std::mem::replace(&mut self.noted, Vec::with_capacity(STAMPS / 2));
        self.under_way.push_back((fetch, noted));
    }

    fn read_oldest(&mut self, context: &Context, fetches: &mut Fetches) -> Result<()> {
        let Some((fetch, noted)) = self.under_way.pop_front() else { return Ok(()) };
        let mut stamps = vec![0u64; 2 * noted.len()];
        fetches.wait(context, fetch, bytemuck::cast_slice_mut(&mut stamps))?;
        let (tick, host) = self.origin;
        let nanos = |from: u64, to: u64| to.wrapping_sub(from) as i64 as f64 * self.period;
        for (stamps, noted) in stamps.chunks_exact(2).zip(noted) {
            self.read.push(Span {
                device: 0,
                verb: noted.verb,
                detail: noted.kernel.into(),
                start_nanos: (host as f64 + nanos(tick, stamps[0])).max(0.0) as u64,
                nanos: nanos(stamps[0], stamps[1]).max(0.0) as u64,
                bytes: noted.bytes,
            });
        }
        Ok(())
    }

    /// Waits for all timestamps that were submitted and appends their spans.
    pub fn take(&mut self, context: &Context, fetches: &mut Fetches, out: &mut Vec<Span>) -> Result<()> {
        let mut result = Ok(());
        while !self.under_way.is_empty() && result.is_ok() {
            result = self.read_oldest(context, fetches);
        }
        out.append(&mut self.read);
        result
    }

    /// Gives up what nobody took.
    pub fn forget(self, fetches: &mut Fetches) {
        self.under_way.into_iter().for_each(|(fetch, _)| fetches.forget(fetch));
    }
}
