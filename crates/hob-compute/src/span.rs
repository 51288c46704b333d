//! What a device did when, for timelines. It must not know who looks at them.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::Instant;

/// One piece of work of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which of the devices behind one, as in [`crate::Compute::place`]; 0 of a device that is alone.
    pub device: usize,
    /// The verb, as the trait calls it: `linear`.
    pub verb: &'static str,
    /// On what, or in which form: a tensor's name, a kernel. May be empty.
    pub detail: Cow<'static, str>,
    /// When it began, on the clock of [`now_nanos`]; a device with a clock of its own translates as well as it can.
    pub start_nanos: u64,
    /// How long it took.
    pub nanos: u64,
    /// Bytes that it had to move between memory and arithmetic units, were nothing cached: weights, K and V, rows.
    pub bytes: u64,
}

/// Nanoseconds since the first call of this function in the process.
pub fn now_nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}
