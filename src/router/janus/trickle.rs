//! Candidates that Janus sends after its offer, one by one (`full_trickle = true`), by the handle of their subscription. Pure.
//!
//! Janus begins to gather when it makes the offer, so most candidates come before the offer does. They wait until somebody takes them.

use std::collections::BTreeMap;

use crate::router::CandidateSink;

/// Candidates of one handle that are kept or passed on; Janus has a few for each of its addresses.
const CANDIDATES_MAX: usize = 64;

#[derive(Default)]
struct Trickled {
    waiting: Vec<String>,
    sink: Option<CandidateSink>,
    count: usize,
}

/// The candidates of all handles.
#[derive(Default)]
pub(super) struct Trickle(BTreeMap<u64, Trickled>);

impl Trickle {
    /// Candidates of this handle are kept from now on.
    pub fn open(&mut self, handle: u64) {
        self.0.entry(handle).or_default();
    }

    /// The handle has ended.
    pub fn close(&mut self, handle: u64) {
        self.0.remove(&handle);
    }

    /// A candidate came. Returns who takes it at once, if there is somebody.
    pub fn came(&mut self, handle: u64, candidate: &str) -> Option<CandidateSink> {
        let trickled = self.0.get_mut(&handle).filter(|trickled| trickled.count < CANDIDATES_MAX)?;
        trickled.count += 1;
        if trickled.sink.is_none() {
            trickled.waiting.push(candidate.to_owned());
        }
        trickled.sink.clone()
    }

    /// From now on `sink` takes the candidates of a handle. Returns those that came before.
    pub fn take(&mut self, handle: u64, sink: &CandidateSink) -> Vec<String> {
        let Some(trickled) = self.0.get_mut(&handle) else { return Vec::new() };
        trickled.sink = Some(CandidateSink::clone(sink));
        std::mem::take(&mut trickled.waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn candidates_wait_for_who_takes_them_and_are_few() {
        let mut trickle = Trickle::default();
        let sink: CandidateSink = Arc::new(|_| ());
        assert!(trickle.came(1, "of nobody").is_none());
        trickle.open(1);
        assert!(trickle.came(1, "a").is_none() && trickle.came(1, "b").is_none());
        assert_eq!(trickle.take(1, &sink), ["a", "b"]);
        assert_eq!(trickle.take(2, &sink), Vec::<String>::new());
        let taken = (0..1000).filter(|_| trickle.came(1, "c").is_some()).count();
        assert_eq!(taken, CANDIDATES_MAX - 2);
        trickle.close(1);
        trickle.open(1);
        for _ in 0..1000 {
            assert!(trickle.came(1, "d").is_none());
        }
        assert_eq!(trickle.take(1, &sink).len(), CANDIDATES_MAX);
    }
}
