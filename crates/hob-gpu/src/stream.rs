//! Work in order: buffers, kernels, recorded dispatches, submits and read-backs. It must not know verbs.
//!
//! Dispatches are recorded into one open pass; wgpu puts barriers where buffers are written. Small arguments travel as
//! immediates, those of variable length (page tables, positions, tokens) and tiny writes in one arena that every submit
//! fills anew. Everything happens in the order of the calls; only [`Stream::wait`] and [`Stream::read`] wait for the
//! device. What is made once (kernels, bind groups, staging) is kept, so that a step that was rehearsed makes nothing on
//! the device.

mod fetch;
mod kernels;
mod mapping;
mod spans;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use hob_compute::{ComputeError, Result, Span};

use crate::context::Context;
pub use fetch::Fetch;
use fetch::Fetches;
use kernels::Kernels;
use spans::{Noted, Spans};
use staging::Ring;

/// Words of immediates a kernel may have: what every backend offers.
pub const IMMEDIATE_WORDS: usize = 32;
/// Words of arguments between two submits; a submit comes earlier when they run out.
const ARGUMENT_WORDS: usize = 1 << 18;
/// Dispatches after which a submit is made where all of them are timed, or some take long: a driver's patience with a submit
/// has an end.
const SUBMIT_EVERY: usize = 96;
/// Dispatches after which a submit is made where the device had nothing to do, so that it starts before all is recorded,
/// until it has `BUSY` of them; and from then on: every submit costs an H100 about 20 us between dispatches.
const OPEN: (usize, usize) = (24, 768);
const BUSY: usize = 160;
/// Staging for arguments and short writes: slots and their bytes.
const SHORT: (usize, usize) = (8, 4 * ARGUMENT_WORDS);
/// Bytes of a write that travels in the arena: a row of a residual stream, not a chunk of them.
const TINY: usize = 64 << 10;
/// Staging for longer writes, made by the first of them.
const LONG: (usize, usize) = (4, 8 << 20);
/// Bytes of one piece of a long read.
const READ_PIECE: usize = 16 << 20;
/// Most buffers of one kernel.
pub const MOST_BINDINGS: usize = 20;

/// Names a device buffer.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(u32);

/// Names a kernel of a stream.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel(u32);

/// What a kernel is specialised by; the same key always means the same text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelKey {
    pub name: &'static str,
    pub params: [u32; 8],
}

/// Whether a kernel writes what is bound.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// Whether indices are checked on the device. Checks hide from a compiler how workgroup memory is aligned.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Bounds {
    Checked,
    /// Only for a kernel whose indices stay inside by its own text.
    Trusted,
}

/// A kernel before it is compiled. Bindings are numbered in order, all in group 0; the entry point is `main`;
/// immediates are one `var<immediate>` struct.
pub struct Source {
    pub wgsl: String,
    pub bindings: Vec<Access>,
}

/// One dispatch.
pub struct Call<'a> {
    pub kernel: Kernel,
    pub bindings: &'a [BufferId],
    pub immediates: &'a [u32],
    pub groups: [u32; 3],
    /// For profiles: the verb, and the bytes it has to move.
    pub verb: &'static str,
    pub bytes: u64,
}

#[derive(PartialEq, Eq, Hash, Clone, Copy)]
struct BindKey {
    kernel: u32,
    buffers: [u32; MOST_BINDINGS],
}

/// What a stream has made and done since it was opened.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels compiled.
    pub kernels: u64,
    /// Buffers made on the device, those for staging and read-back included.
    pub buffers: u64,
    /// Bind groups made.
    pub groups: u64,
    /// Dispatches recorded.
    pub dispatches: u64,
    /// Submits made.
    pub submits: u64,
}

/// See the module.
pub struct Stream {
    pub context: Context,
    buffers: Vec<Option<wgpu::Buffer>>,
    free: Vec<u32>,
    kernels: Kernels,
    groups: HashMap<BindKey, wgpu::BindGroup>,
    arguments: BufferId,
    words: Vec<u32>,
    short: Ring,
    long: Option<Ring>,
    fetches: Fetches,
    open: Option<Open>,
    spans: Option<Spans>,
    counters: Counters,
    /// Dispatches that were submitted, those of them that are known to be done, and those that were when the device was last
    /// known to have nothing to do.
    sent: usize,
    done: usize,
    idle_at: usize,
    /// Set by whoever records what may take milliseconds; until the next submit.
    pub lengthy: bool,
    /// While on, dispatches only make their kernels and bind groups.
    pub rehearsing: bool,
}

/// What is recorded and not yet submitted.
struct Open {
    /// Ends where a copy is recorded.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
    dispatches: usize,
}

impl Stream {
    /// # Errors
    /// What the device says.
    pub fn new(context: Context) -> Result<Stream> {
        let mut stream = Stream {
            short: Ring::new(&context, SHORT.0, SHORT.1)?,
            context,
            buffers: Vec::new(),
            free: Vec::new(),
            kernels: Kernels::default(),
            groups: HashMap::new(),
            arguments: BufferId(0),
            words: Vec::with_capacity(ARGUMENT_WORDS),
            long: None,
            fetches: Fetches::default(),
            open: None,
            spans: None,
            counters: Counters { buffers: SHORT.0 as u64, ..Counters::default() },
            sent: 0,
            done: 0,
            idle_at: 0,
            lengthy: false,
            rehearsing: false,
        };
        stream.arguments = stream.buffer("arguments", 4 * ARGUMENT_WORDS as u64)?;
        Ok(stream)
    }

    /// A zeroed storage buffer of at least `bytes` bytes.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] when the device has no room, [`ComputeError::Lost`].
    pub fn buffer(&mut self, what: &str, bytes: u64) -> Result<BufferId> {
        let size = bytes.max(4).next_multiple_of(256);
        let limit = self.context.facts.binding_bytes.min(self.context.facts.buffer_bytes);
        if size > limit {
            let problem = format!("{what} needs {bytes} bytes in one piece, the most here is {limit}");
            return Err(self.context.problem(problem));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = mapping::buffer(&self.context, what, size, usage, false)?;
        self.counters.buffers += 1;
        let id = self.free.pop().unwrap_or(self.buffers.len() as u32);
        if id as usize == self.buffers.len() {
            self.buffers.push(None);
        }
        self.buffers[id as usize] = Some(buffer);
        Ok(BufferId(id))
    }

    /// Frees a buffer; what was recorded with it still runs.
    pub fn release(&mut self, id: BufferId) {
        if self.buffers[id.0 as usize].take().is_some() {
            self.groups.retain(|key, _| !key.buffers.contains(&id.0));
            self.free.push(id.0);
        }
    }

    /// Bytes of a buffer.
    pub fn bytes(&self, id: BufferId) -> u64 {
        self.raw(id).size()
    }

    fn raw(&self, id: BufferId) -> &wgpu::Buffer {
        self.buffers[id.0 as usize].as_ref().expect("a buffer is used only while its owner lives")
    }

    /// The buffer that [`Stream::arguments`] fills; bind it for reading.
    pub fn argument_buffer(&self) -> BufferId {
        self.arguments
    }

    /// Puts words into the arena; gives where they start, in words. They last until the next submit: take them for one
    /// dispatch directly before it.
    ///
    /// # Errors
    /// More words than the arena holds.
    pub fn arguments(&mut self, words: &[u32]) -> Result<u32> {
        if words.len() > ARGUMENT_WORDS {
            let expected = format!("at most {ARGUMENT_WORDS} words");
            return Err(ComputeError::shape("arguments", expected, words.len()));
        }
        if self.words.len() + words.len() > ARGUMENT_WORDS {
            self.flush()?;
        }
        let at = self.words.len() as u32;
        self.words.extend_from_slice(words);
        Ok(at)
    }

    /// The kernel of a key, compiled when first asked for.
    ///
    /// # Errors
    /// [`ComputeError::Device`] with the compiler's message.
    pub fn kernel(&mut self, key: KernelKey, source: impl FnOnce() -> Source) -> Result<Kernel> {
        self.kernel_with(key, Bounds::Checked, source)
    }

    /// As [`Stream::kernel`], with or without bounds checks.
    ///
    /// # Errors
    /// [`ComputeError::Device`] with the compiler's message.
    pub fn kernel_with(
        &mut self,
        key: KernelKey,
        bounds: Bounds,
        source: impl FnOnce() -> Source,
    ) -> Result<Kernel> {
        if let Some(kernel) = self.kernels.find(&key) {
            return Ok(kernel);
        }
        let kernel = self.kernels.add(&self.context, key, &source(), bounds)?;
        self.counters.kernels += 1;
        Ok(kernel)
    }

    /// The text of every kernel that was compiled.
    #[cfg(test)]
    pub fn texts(&self) -> &[(KernelKey, String)] {
        &self.kernels.texts
    }

    /// The bind group of a call, made when first asked for.
    fn group(&mut self, call: &Call) -> BindKey {
        let mut key = BindKey { kernel: call.kernel.0, buffers: [u32::MAX; MOST_BINDINGS] };
        key.buffers.iter_mut().zip(call.bindings).for_each(|(to, from)| *to = from.0);
        if !self.groups.contains_key(&key) {
            let compiled = self.kernels.get(call.kernel);
            let entry = |(i, id): (usize, &BufferId)| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: self.raw(*id).as_entire_binding(),
            };
            let entries: Vec<_> = call.bindings.iter().enumerate().map(entry).collect();
            let group = self.context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(compiled.key.name),
                layout: &compiled.layout,
                entries: &entries,
            });
            self.groups.insert(key, group);
            self.counters.groups += 1;
        }
        key
    }

    /// Records a dispatch.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    ///
    /// # Panics
    /// When bindings or immediates are not those of the kernel, which is a mistake in the program.
    pub fn dispatch(&mut self, call: &Call) -> Result<()> {
        let kernels::Compiled { key, bindings, .. } = self.kernels.get(call.kernel);
        assert_eq!(*bindings, call.bindings.len(), "{}: bindings of another kernel", key.name);
        assert!(call.immediates.len() <= IMMEDIATE_WORDS, "{}: too many immediates", key.name);
        if self.open.is_none() {
            self.context.check()?;
        }
        let key = self.group(call);
        if self.rehearsing || call.groups.contains(&0) {
            return self.context.check();
        }
        if self.sent == self.done && self.open.as_ref().is_none_or(|open| open.dispatches == 0) {
            self.idle_at = self.sent;
        }
        let most = self.most_open();
        let open = self.open.get_or_insert_with(|| Open::new(&self.context.device));
        let pass = open.pass();
        if let Some(spans) = &self.spans {
            spans.before(pass);
        }
        let compiled = self.kernels.get(call.kernel);
        pass.set_pipeline(&compiled.pipeline);
        pass.set_bind_group(0, &self.groups[&key], &[]);
        if !call.immediates.is_empty() {
            pass.set_immediates(0, bytemuck::cast_slice(call.immediates));
        }
        let [x, y, z] = call.groups;
        pass.dispatch_workgroups(x, y, z);
        if let Some(spans) = &mut self.spans {
            spans.after(pass, Noted { verb: call.verb, kernel: compiled.key.name, bytes: call.bytes });
        }
        open.dispatches += 1;
        let full = open.dispatches >= most;
        self.counters.dispatches += 1;
        if full { self.flush() } else { Ok(()) }
    }

    /// Dispatches after which a submit is made.
    fn most_open(&self) -> usize {
        match self.spans {
            Some(_) => SUBMIT_EVERY,
            None if self.lengthy => SUBMIT_EVERY,
            None if self.sent - self.idle_at < BUSY => OPEN.0,
            None => OPEN.1,
        }
    }

    /// Records a copy of bytes between two different buffers; offsets and length are multiples of 4.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    pub fn copy(&mut self, from: (BufferId, u64), to: (BufferId, u64), bytes: u64) -> Result<()> {
        if self.rehearsing || bytes == 0 {
            return Ok(());
        }
        self.context.check()?;
        let buffer = |id: BufferId| self.buffers[id.0 as usize].as_ref().expect("its owner lives");
        let (source, target) = (buffer(from.0), buffer(to.0));
        let open = self.open.get_or_insert_with(|| Open::new(&self.context.device));
        open.encoder().copy_buffer_to_buffer(source, from.1, target, to.1, bytes);
        Ok(())
    }

    /// Hands everything recorded to the device, in order, and goes on.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    pub fn flush(&mut self) -> Result<()> {
        self.submit().map(|_| ())
    }

    /// Hands over what is recorded; gives the name of the submit where there was anything.
    fn submit(&mut self) -> Result<Option<wgpu::SubmissionIndex>> {
        // Without a dispatch nobody reads the arguments (rehearsal).
        let words = if self.open.is_some() { self.words.len() } else { 0 };
        let arguments = match words {
            0 => Ok(None),
            _ => self.send_arguments().map(Some),
        };
        self.words.clear();
        let arguments = arguments?;
        self.context.check()?;
        let Some(mut open) = self.open.take() else { return Ok(None) };
        let stamps = match &mut self.spans {
            Some(spans) => spans.resolve(&self.context, &mut self.fetches, open.encoder())?,
            None => None,
        };
        let Open { pass, encoder, dispatches } = open;
        drop(pass);
        self.sent += dispatches;
        self.lengthy = false;
        let index = self.context.queue.submit(arguments.into_iter().chain([encoder.finish()]));
        self.short.submitted(&index);
        if let Some(long) = &mut self.long {
            long.submitted(&index);
        }
        if let (Some(spans), Some(stamps)) = (&mut self.spans, stamps) {
            self.fetches.submitted(&stamps, index.clone());
            spans.submitted(stamps);
        }
        self.counters.submits += 1;
        self.context.check()?;
        Ok(Some(index))
    }

    /// The copy of the arguments, which runs before what is recorded.
    fn send_arguments(&mut self) -> Result<wgpu::CommandBuffer> {
        let bytes = bytemuck::cast_slice(&self.words);
        let staging = self.short.fill(&self.context, bytes)?;
        let arena = self.buffers[self.arguments.0 as usize].as_ref().expect("the stream owns it");
        let mut encoder = self.context.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(staging, 0, arena, 0, bytes.len() as u64);
        Ok(encoder.finish())
    }

    /// Writes bytes at an offset (both multiples of 4) once everything recorded before has run. Does not wait; long
    /// writes run beside the caller's making of the next bytes, so write as much at once as is at hand.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    pub fn write(&mut self, to: BufferId, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return self.context.check();
        }
        if bytes.len() <= TINY {
            return self.write_tiny(to, offset, bytes);
        }
        let is_long = bytes.len() > SHORT.1;
        if is_long && self.long.is_none() {
            self.long = Some(Ring::new(&self.context, LONG.0, LONG.1)?);
            self.counters.buffers += LONG.0 as u64;
        }
        let mut at = offset;
        for piece in bytes.chunks(if is_long { LONG.1 } else { SHORT.1 }) {
            let ring = if is_long { self.long.as_mut().expect("just made") } else { &mut self.short };
            let staging = ring.fill(&self.context, piece)?;
            let target = self.buffers[to.0 as usize].as_ref().expect("its owner lives");
            let open = self.open.get_or_insert_with(|| Open::new(&self.context.device));
            open.encoder().copy_buffer_to_buffer(staging, 0, target, at, piece.len() as u64);
            if is_long || ring.wants_submit() {
                self.flush()?;
            }
            at += piece.len() as u64;
        }
        self.context.check()
    }

    /// A write whose bytes go along with the arguments, and so need no staging of their own.
    fn write_tiny(&mut self, to: BufferId, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.words.len() + bytes.len() / 4 > ARGUMENT_WORDS {
            self.flush()?;
        }
        let at = 4 * self.words.len() as u64;
        self.words.extend(bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<u32>));
        let buffer = |id: BufferId| self.buffers[id.0 as usize].as_ref().expect("its owner lives");
        let (arena, target) = (buffer(self.arguments), buffer(to));
        let open = self.open.get_or_insert_with(|| Open::new(&self.context.device));
        open.encoder().copy_buffer_to_buffer(arena, at, target, offset, bytes.len() as u64);
        self.context.check()
    }

    /// Waits for everything recorded and reads bytes from an offset; offset and length are multiples of 4.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    pub fn read(&mut self, from: BufferId, offset: u64, out: &mut [u8]) -> Result<()> {
        // The next piece travels while this one is copied out.
        let mut under_way = None;
        let mut at = offset;
        for piece in out.chunks_mut(READ_PIECE) {
            let fetch = self.fetch(from, at, piece.len());
            at += piece.len() as u64;
            if let Some((fetch, piece)) = under_way.take() {
                self.wait(fetch, piece)?;
            }
            under_way = Some((fetch?, piece));
        }
        under_way.map_or(Ok(()), |(fetch, piece)| self.wait(fetch, piece))
    }

    /// Submits what is recorded and starts a read-back of `bytes` bytes as they are then; offset and length are multiples
    /// of 4. Many may be under way, each with a buffer of its own, and be waited for in any order.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    pub fn fetch(&mut self, from: BufferId, offset: u64, bytes: usize) -> Result<Fetch> {
        self.fetch_all(&[(from, offset, bytes)])
    }

    /// As [`Stream::fetch`] for several parts, which arrive one behind the other, in one submit.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    pub fn fetch_all(&mut self, parts: &[(BufferId, u64, usize)]) -> Result<Fetch> {
        self.context.check()?;
        let made = self.fetches.made;
        let bytes = parts.iter().map(|part| part.2).sum();
        let (mut fetch, target) = self.fetches.take(&self.context, bytes)?;
        let open = self.open.get_or_insert_with(|| Open::new(&self.context.device));
        let mut at = 0;
        for &(from, offset, bytes) in parts {
            let source = self.buffers[from.0 as usize].as_ref().expect("its owner lives");
            open.encoder().copy_buffer_to_buffer(source, offset, target, at, bytes as u64);
            at += bytes as u64;
        }
        self.counters.buffers += self.fetches.made - made;
        match self.submit() {
            Ok(index) => {
                self.fetches.submitted(&fetch, index.expect("the copy was recorded"));
                fetch.sent = self.sent;
                Ok(fetch)
            }
            Err(e) => {
                self.fetches.forget(fetch);
                Err(e)
            }
        }
    }

    /// Waits for a read-back, and for nothing submitted after it. `out` has [`Fetch::bytes`] bytes.
    ///
    /// # Errors
    /// What went wrong on the device since the last call.
    pub fn wait(&mut self, fetch: Fetch, out: &mut [u8]) -> Result<()> {
        // Whether it ends well or not: nothing before it is worth waiting for.
        self.done = self.done.max(fetch.sent);
        self.fetches.wait(&self.context, fetch, out)
    }

    /// Gives up a read-back that nobody waits for.
    pub fn forget(&mut self, fetch: Fetch) {
        self.fetches.forget(fetch);
    }

    /// Starts or ends noting when dispatches run. Gives false where the device cannot tell, or is lost.
    pub fn profile(&mut self, on: bool) -> bool {
        if on == self.spans.is_some() {
            return on;
        }
        if let Some(spans) = self.spans.take() {
            spans.forget(&mut self.fetches);
        }
        if on && self.context.tier().timestamps && self.flush().is_ok() {
            self.spans = Spans::new(&self.context, &mut self.fetches).ok();
        }
        self.spans.is_some()
    }

    /// Appends the spans of what has been submitted since the last call; waits for it.
    pub fn take_spans(&mut self, out: &mut Vec<Span>) {
        if let Some(spans) = &mut self.spans {
            // A lost device says so at the next call that can fail; what was read until then stays.
            let _ = spans.take(&self.context, &mut self.fetches, out);
        }
    }

    /// What was made and done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

impl Open {
    fn new(device: &wgpu::Device) -> Open {
        let encoder = device.create_command_encoder(&Default::default());
        Open { pass: None, encoder, dispatches: 0 }
    }

    /// The pass that dispatches go to.
    fn pass(&mut self) -> &mut wgpu::ComputePass<'static> {
        let encoder = &mut self.encoder;
        self.pass.get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime())
    }

    /// The encoder, outside of a pass.
    fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        &mut self.encoder
    }
}
