//! A stream's subscription, as far as it has come. Pure.
//!
//! Subscribing takes several requests, and the room goes on meanwhile: the stream goes and comes back, the router ends the
//! subscription, the connection is lost. So each attempt has a number, and a loss that no stream's subscription fits is
//! kept while attempts are under way: one of them may bring back what is lost already.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::capture::peer::PeerKey;
use crate::router::SubscriptionId;

/// A subscription that failed is tried again after this.
pub(super) const RESUBSCRIBE: Duration = Duration::from_millis(500);

/// Names an attempt within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt(u64);

/// What an attempt made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Live {
    pub subscription: SubscriptionId,
    pub peer: PeerKey,
    /// The mids of its tracks at the publisher.
    pub tracks: Vec<String>,
}

/// The subscription of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// There is none. One is tried at this moment, if at all.
    None { retry: Option<Instant> },
    /// It is being made.
    Pending(Attempt),
    /// Media flows.
    Live(Live),
}

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its stream is subscribed to.
    Live,
    /// Its stream is tried again.
    Failed { unused: Option<Live> },
    /// Its stream is gone, or has another attempt.
    Stale { unused: Option<Live> },
}

/// The attempts of a session.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    last: u64,
    under_way: usize,
    lost_subscriptions: HashSet<SubscriptionId>,
    lost_peers: HashSet<PeerKey>,
}

impl Attempts {
    /// An attempt begins for a stream.
    pub fn begin(&mut self, link: &mut Link) -> Attempt {
        self.last += 1;
        self.under_way += 1;
        *link = Link::Pending(Attempt(self.last));
        Attempt(self.last)
    }

    /// The router ended a subscription that no stream has.
    pub fn subscription_lost(&mut self, subscription: SubscriptionId) {
        if self.under_way > 0 {
            self.lost_subscriptions.insert(subscription);
        }
    }

    /// A connection that no stream has is dead.
    pub fn peer_lost(&mut self, peer: PeerKey) {
        if self.under_way > 0 {
            self.lost_peers.insert(peer);
        }
    }

    /// An attempt has ended, with what it `made` unless it failed. `link` is its stream's, if that is still there.
    pub fn end(&mut self, attempt: Attempt, made: Option<Live>, link: Option<&mut Link>, now: Instant) -> Ended {
        let lost = made.as_ref().is_some_and(|live| {
            self.lost_subscriptions.contains(&live.subscription) || self.lost_peers.contains(&live.peer)
        });
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.lost_subscriptions.clear();
            self.lost_peers.clear();
        }
        match (link.filter(|link| **link == Link::Pending(attempt)), made) {
            (Some(link), Some(live)) if !lost => {
                *link = Link::Live(live);
                Ended::Live
            }
            (Some(link), unused) => {
                *link = Link::None { retry: Some(now + RESUBSCRIBE) };
                Ended::Failed { unused }
            }
            (None, unused) => Ended::Stale { unused },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Link = Link::None { retry: None };

    fn live(n: u64) -> Live {
        Live { subscription: SubscriptionId(n), peer: PeerKey(n), tracks: vec!["0".to_owned()] }
    }

    fn again(now: Instant) -> Link {
        Link::None { retry: Some(now + RESUBSCRIBE) }
    }

    #[test]
    fn an_attempt_that_succeeds_is_live_and_one_that_fails_is_tried_again() {
        let (mut attempts, mut link, now) = (Attempts::default(), NONE, Instant::now());
        let first = attempts.begin(&mut link);
        assert_eq!(link, Link::Pending(first));
        assert_eq!(attempts.end(first, None, Some(&mut link), now), Ended::Failed { unused: None });
        assert_eq!(link, again(now));
        let second = attempts.begin(&mut link);
        assert_eq!(attempts.end(second, Some(live(1)), Some(&mut link), now), Ended::Live);
        assert_eq!(link, Link::Live(live(1)));
    }

    #[test]
    fn of_a_stream_that_went_and_came_back_only_the_attempt_since_counts() {
        let (mut attempts, mut link, now) = (Attempts::default(), NONE, Instant::now());
        let old = attempts.begin(&mut link);
        // It went; it came back, and is subscribed to anew, before the old attempt has ended.
        link = NONE;
        let new = attempts.begin(&mut link);
        let ended = attempts.end(old, Some(live(1)), Some(&mut link), now);
        assert_eq!((ended, &link), (Ended::Stale { unused: Some(live(1)) }, &Link::Pending(new)));
        assert_eq!(attempts.end(new, Some(live(2)), Some(&mut link), now), Ended::Live);
        let late = attempts.begin(&mut NONE.clone());
        assert_eq!(attempts.end(late, None, Some(&mut link), now), Ended::Stale { unused: None });
        assert_eq!(link, Link::Live(live(2)));
        let gone = attempts.begin(&mut NONE.clone());
        assert_eq!(attempts.end(gone, Some(live(3)), None, now), Ended::Stale { unused: Some(live(3)) });
    }

    #[test]
    fn what_was_lost_before_its_attempt_ended_is_not_live() {
        type Loss = fn(&mut Attempts, u64);
        let subscription: Loss = |attempts, n| attempts.subscription_lost(SubscriptionId(n));
        let peer: Loss = |attempts, n| attempts.peer_lost(PeerKey(n));
        for loss in [subscription, peer] {
            let (mut attempts, mut link, mut other, now) = (Attempts::default(), NONE, NONE, Instant::now());
            let (attempt, beside) = (attempts.begin(&mut link), attempts.begin(&mut other));
            loss(&mut attempts, 1);
            assert_eq!(attempts.end(beside, Some(live(2)), Some(&mut other), now), Ended::Live);
            let ended = attempts.end(attempt, Some(live(1)), Some(&mut link), now);
            assert_eq!((ended, &link), (Ended::Failed { unused: Some(live(1)) }, &again(now)));
        }
    }

    #[test]
    fn losses_are_kept_only_while_attempts_are_under_way() {
        let (mut attempts, mut link, now) = (Attempts::default(), NONE, Instant::now());
        attempts.peer_lost(PeerKey(1));
        let attempt = attempts.begin(&mut link);
        attempts.peer_lost(PeerKey(2));
        attempts.end(attempt, None, Some(&mut link), now);
        assert!(attempts.lost_peers.is_empty() && attempts.lost_subscriptions.is_empty());
    }
}
