//! Where the state of a recurrent model is kept while a prompt is run, so that a conversation that continues, is edited or
//! is told anew runs no more than what changed. It must not know devices.
//!
//! Such state cannot be cut: what was not kept must be run again from the last place that was. Prompts come back changed in
//! few ways. Their last message is edited or regenerated; a template drops the reasoning of earlier replies, so that
//! they part where the last reply began; another conversation begins with the same instructions. All of these part at an
//! end of a turn, which tokens tell: the end token behind a message. So state is kept behind the prompt's first message
//! and behind its last two, before the last token of a prompt without turns, and at some distance in between.

/// A place this near to the next one, or to where a run begins, is not worth a snapshot and a pass of its own.
const NEAR: usize = 32;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    /// State is kept at every multiple; 0 for models that need none of this.
    stride: usize,
    /// Ends of turns, ascending.
    ends: Vec<usize>,
}

impl Stops {
    /// For a prompt of which the first `from` tokens need not be run. `ends` are the tokens that end a turn.
    pub fn of(stride: usize, prompt: &[u32], from: usize, ends: &[u32]) -> Stops {
        // At least one token is run behind each, so that there are logits.
        let last = prompt.len().saturating_sub(1);
        let turns =
            prompt[..last].iter().zip(1..).filter(|(token, _)| ends.contains(token)).map(|(_, at)| at);
        let turns: Vec<usize> = turns.collect();
        let mut stops: Vec<usize> =
            turns.first().into_iter().chain(turns.iter().rev().take(2)).copied().collect();
        stops.sort_unstable();
        // From behind: of two that are near each other the later one is of more use, but not the last token's own: what
        // follows the last message is the template's.
        let mut kept: Vec<usize> = Vec::new();
        if stops.last().is_none_or(|&stop| last - stop > NEAR) {
            stops.push(last);
        }
        for stop in stops.into_iter().rev() {
            let near = kept.last().is_some_and(|&next| next - stop < NEAR);
            if stop > from && !near && (stop - from >= NEAR || kept.is_empty()) {
                kept.push(stop);
            }
        }
        kept.reverse();
        Stops { stride, ends: kept }
    }

    /// The same for a prompt of which only the first `from` tokens need not be run after all.
    pub fn again(self, prompt: &[u32], from: usize, ends: &[u32]) -> Stops {
        Stops::of(self.stride, prompt, from, ends)
    }

    /// Most rows that may follow `from` positions so that the next place is met.
    pub fn rows_to_next(&self, from: usize) -> usize {
        let multiple = (from / self.stride + 1) * self.stride;
        let end = self.ends.iter().copied().find(|&end| end > from).unwrap_or(usize::MAX);
        multiple.min(end) - from
    }

    /// Whether state is kept after `len` positions.
    pub fn is_at(&self, len: usize) -> bool {
        self.is_end(len) || len.is_multiple_of(self.stride)
    }

    /// Whether somebody is likely to come back to `len`.
    pub fn is_end(&self, len: usize) -> bool {
        self.ends.contains(&len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 9;

    /// A prompt whose turns end behind so many tokens.
    fn prompt(len: usize, turns: &[usize]) -> Vec<u32> {
        (1..=len).map(|at| if turns.contains(&at) { END } else { 1 }).collect()
    }

    fn walk(stride: usize, (len, turns): (usize, &[usize]), from: usize, chunk: usize) -> Vec<usize> {
        let stops = Stops::of(stride, &prompt(len, turns), from, &[END]);
        let (mut at, mut met) = (from, Vec::new());
        while at < len {
            at += stops.rows_to_next(at).min(chunk).min(len - at);
            met.push(at);
        }
        met
    }

    #[test]
    fn a_prompt_without_turns_stops_before_its_last_token() {
        assert_eq!(walk(256, (600, &[]), 0, 512), [256, 512, 599, 600]);
        assert_eq!(walk(256, (513, &[]), 0, 512), [256, 512, 513]);
        assert_eq!(walk(256, (512, &[]), 0, 512), [256, 511, 512]);
        assert_eq!(walk(2048, (700, &[]), 0, 512), [512, 699, 700]);
        assert_eq!(walk(2048, (1, &[]), 0, 512), [1]);
        assert_eq!(walk(2048, (2, &[]), 0, 512), [1, 2]);
    }

    #[test]
    fn turns_are_stops_behind_the_first_and_the_last_two() {
        let turns = [100, 200, 300, 400, 495];
        assert_eq!(walk(2048, (500, &turns), 0, 512), [100, 400, 495, 500]);
        // Only what is run, and nothing close to where that begins.
        assert_eq!(walk(2048, (500, &turns), 399, 512), [495, 500]);
        assert_eq!(walk(2048, (500, &turns), 494, 512), [495, 500]);
        // A short last message does not stop twice.
        assert_eq!(walk(2048, (500, &[100, 480, 495]), 0, 512), [100, 495, 500]);
        // What follows the last message is long: it is the reply's beginning, and a stop of its own.
        assert_eq!(walk(2048, (500, &[100, 300]), 0, 512), [100, 300, 499, 500]);
        // The prompt's last token is always left to run.
        assert_eq!(walk(2048, (500, &[100, 500]), 0, 512), [100, 499, 500]);
    }

    #[test]
    fn a_reply_goes_on_to_the_next_multiple() {
        let stops = Stops::of(256, &prompt(600, &[]), 0, &[END]);
        assert_eq!(stops.rows_to_next(700), 68);
        assert!(stops.is_at(768) && !stops.is_end(768) && stops.is_end(599) && !stops.is_at(600));
    }
}
