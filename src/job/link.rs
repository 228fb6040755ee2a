//! A stream's subscription, as far as it has come. Pure.
//!
//! A subscription takes several requests, and the room changes meanwhile. The stream may leave and return, the router may end the
//! subscription, the connection may break. Therefore:
//! - A subscription has one attempt at a time. Its result is used only if the stream still waits for it.
//! - While attempts are under way, losses that match no live subscription are remembered: an attempt may return a subscription
//!   that is already lost.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::router::SubscriptionId;
use crate::webrtc::PeerKey;

/// A subscription that failed is tried again after this.
pub(super) const RESUBSCRIBE: Duration = Duration::from_millis(500);

/// Which subscription of which stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LinkKey {
    /// The stream's id at the router.
    pub router_id: String,
    pub slot: Slot,
}

/// A stream has a second subscription for a track that was added to it: what is captured goes on meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    First,
    Added,
}

/// What an attempt made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Live {
    pub subscription: SubscriptionId,
    pub peer: PeerKey,
    /// The mids of its tracks at the publisher.
    pub tracks: Vec<String>,
    /// Whether the router says that the media is encrypted end to end.
    pub encrypted: bool,
}

/// The subscription of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    /// There is none. One is tried at this moment, if at all.
    None { retry: Option<Instant> },
    /// It is being made.
    Pending,
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
    /// Its stream is gone, or went and came back: that is another publisher.
    Stale { unused: Option<Live> },
}

/// The attempts of a session.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    under_way: HashSet<LinkKey>,
    lost_subscriptions: HashSet<SubscriptionId>,
    lost_peers: HashSet<PeerKey>,
}

impl Attempts {
    /// Begins one for a stream. Not while an earlier one is under way: both would bring the same tracks.
    pub fn begin(&mut self, key: &LinkKey, link: &mut Link) -> bool {
        let begins = self.under_way.insert(key.clone());
        if begins {
            *link = Link::Pending;
        }
        begins
    }

    /// The router ended a subscription that no stream has.
    pub fn subscription_lost(&mut self, subscription: SubscriptionId) {
        if !self.under_way.is_empty() {
            self.lost_subscriptions.insert(subscription);
        }
    }

    /// A connection that no stream has is dead.
    pub fn peer_lost(&mut self, peer: PeerKey) {
        if !self.under_way.is_empty() {
            self.lost_peers.insert(peer);
        }
    }

    /// One has ended, with what it `made` unless it failed. `link` is its stream's, if that is there.
    pub fn end(&mut self, key: &LinkKey, made: Option<Live>, link: Option<&mut Link>, now: Instant) -> Ended {
        let is_lost =
            |live: &Live| self.lost_subscriptions.contains(&live.subscription) || self.lost_peers.contains(&live.peer);
        let lost = made.as_ref().is_some_and(is_lost);
        self.under_way.remove(key);
        if self.under_way.is_empty() {
            self.lost_subscriptions.clear();
            self.lost_peers.clear();
        }
        match (link.filter(|link| **link == Link::Pending), made) {
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

    fn key(router_id: &str) -> LinkKey {
        LinkKey { router_id: router_id.to_owned(), slot: Slot::First }
    }

    fn live(n: u64) -> Live {
        let tracks = vec!["0".to_owned()];
        Live { subscription: SubscriptionId(n), peer: PeerKey(n), tracks, encrypted: false }
    }

    fn again(now: Instant) -> Link {
        Link::None { retry: Some(now + RESUBSCRIBE) }
    }

    #[test]
    fn an_attempt_that_succeeds_is_live_and_one_that_fails_is_tried_again() {
        let (mut attempts, mut link, now) = (Attempts::default(), NONE, Instant::now());
        assert!(attempts.begin(&key("alice"), &mut link));
        assert_eq!(link, Link::Pending);
        assert_eq!(attempts.end(&key("alice"), None, Some(&mut link), now), Ended::Failed { unused: None });
        assert_eq!(link, again(now));
        assert!(attempts.begin(&key("alice"), &mut link));
        assert_eq!(attempts.end(&key("alice"), Some(live(1)), Some(&mut link), now), Ended::Live);
        assert_eq!(link, Link::Live(live(1)));
    }

    #[test]
    fn a_stream_that_went_and_came_back_does_not_get_the_subscription_to_the_one_that_went() {
        let (mut attempts, mut link, now) = (Attempts::default(), NONE, Instant::now());
        assert!(attempts.begin(&key("alice"), &mut link));
        let mut back = again(now);
        assert!(!attempts.begin(&key("alice"), &mut back), "the earlier attempt is under way");
        assert!(attempts.begin(&key("bob"), &mut NONE.clone()), "another stream's");
        let ended = attempts.end(&key("alice"), Some(live(1)), Some(&mut back), now);
        assert_eq!((ended, &back), (Ended::Stale { unused: Some(live(1)) }, &again(now)));
        assert!(attempts.begin(&key("alice"), &mut back));
        assert_eq!(attempts.end(&key("alice"), Some(live(2)), Some(&mut back), now), Ended::Live);
        assert_eq!(attempts.end(&key("bob"), Some(live(3)), None, now), Ended::Stale { unused: Some(live(3)) });
    }

    #[test]
    fn what_was_lost_before_its_attempt_ended_is_not_live() {
        type Loss = fn(&mut Attempts, u64);
        let subscription: Loss = |attempts, n| attempts.subscription_lost(SubscriptionId(n));
        let peer: Loss = |attempts, n| attempts.peer_lost(PeerKey(n));
        for loss in [subscription, peer] {
            let (mut attempts, mut alice, mut bob, now) = (Attempts::default(), NONE, NONE, Instant::now());
            assert!(attempts.begin(&key("alice"), &mut alice) && attempts.begin(&key("bob"), &mut bob));
            loss(&mut attempts, 1);
            assert_eq!(attempts.end(&key("bob"), Some(live(2)), Some(&mut bob), now), Ended::Live);
            let ended = attempts.end(&key("alice"), Some(live(1)), Some(&mut alice), now);
            assert_eq!((ended, &alice), (Ended::Failed { unused: Some(live(1)) }, &again(now)));
        }
    }

    #[test]
    fn losses_are_kept_only_while_attempts_are_under_way() {
        let (mut attempts, mut link, now) = (Attempts::default(), NONE, Instant::now());
        attempts.peer_lost(PeerKey(1));
        assert!(attempts.lost_peers.is_empty());
        assert!(attempts.begin(&key("alice"), &mut link));
        attempts.peer_lost(PeerKey(2));
        attempts.subscription_lost(SubscriptionId(2));
        attempts.end(&key("alice"), None, Some(&mut link), now);
        assert!(attempts.lost_peers.is_empty() && attempts.lost_subscriptions.is_empty());
    }
}
