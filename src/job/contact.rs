//! Whether a worker may take jobs whose owner did not keep its lease.
//!
//! While the catalog is away nobody can keep a lease. When it is back, all leases have run out, and the owners still record: whoever
//! takes such a job at once breaks a recording that goes on. So a worker waits until every living owner has had its turn. A catalog whose
//! clock was set is like one that was away: leases of its earlier time say nothing.

use std::time::Duration;

use tokio::time::Instant;

/// A longer time between two answers of the catalog is a break: they are asked for every second.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long the catalog has answered this worker without a break.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Contact {
    /// The first and the last answer since the last break.
    answers: Option<Answers>,
}

#[derive(Debug, Clone, Copy)]
struct Answers {
    first: Instant,
    last: Instant,
}

impl Contact {
    /// The catalog has answered.
    pub fn answered(&mut self, now: Instant) {
        let first = self.unbroken(now).map_or(now, |answers| answers.first);
        self.answers = Some(Answers { first, last: now });
    }

    /// The catalog has not answered, or its clock was set.
    pub const fn failed(&mut self) {
        self.answers = None;
    }

    /// Whether the catalog has answered for so long.
    pub fn has_lasted(&self, long: Duration, now: Instant) -> bool {
        self.unbroken(now).is_some_and(|answers| now - answers.first >= long)
    }

    fn unbroken(&self, now: Instant) -> Option<Answers> {
        self.answers.filter(|answers| now - answers.last <= SILENCE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contact_is_counted_from_the_first_answer_since_the_last_break() {
        let begin = Instant::now();
        // Seconds at which the catalog answered (true) or did not; whether contact has lasted for 10 s at the last of them.
        let every_second = |range: std::ops::Range<u64>| range.map(|at| (at, true));
        let cases: [(_, Vec<(u64, bool)>, _); 6] = [
            ("from the start", every_second(0..11).collect(), true),
            ("not long enough", every_second(0..10).collect(), false),
            ("an answer failed", every_second(0..9).chain([(9, false)]).chain(every_second(10..19)).collect(), false),
            ("long after it", every_second(0..9).chain([(9, false)]).chain(every_second(10..21)).collect(), true),
            ("the process stood still", every_second(0..9).chain(every_second(29..38)).collect(), false),
            ("none", Vec::new(), false),
        ];
        for (name, answers, expected) in cases {
            let mut contact = Contact::default();
            let mut now = begin;
            for (at, answered) in answers {
                now = begin + Duration::from_secs(at);
                if answered { contact.answered(now) } else { contact.failed() }
            }
            assert_eq!(contact.has_lasted(Duration::from_secs(10), now), expected, "{name}");
        }
    }
}
