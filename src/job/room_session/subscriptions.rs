//! Subscriptions to the streams of a room: made, followed, tried again and ended.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Missing, REFUSED, Session, Stream, StreamLink, Subscribed};
use crate::job::JobFailure;
use crate::job::link::{Ended, Link, LinkKey, Live, RESUBSCRIBE, Slot};
use crate::job::subscribe::{Made, NotSubscribed, subscribe, wanted_tracks};
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::recording::history::EventKind;
use crate::router::{Offer, SubscriptionId};
use crate::webrtc::{PeerError, PeerKey, UnsupportedTrack};

fn added(router_id: &str) -> LinkKey {
    LinkKey { router_id: router_id.to_owned(), slot: Slot::Added }
}

impl Session<'_> {
    /// The stream that a subscription brings, with its id at the router.
    pub(super) fn subscribed_by(&self, subscription: SubscriptionId) -> Option<(&String, &Stream, &Live)> {
        self.streams.iter().find_map(|(router_id, stream)| {
            let live = stream.lives().find(|live| live.subscription == subscription)?;
            Some((router_id, stream, live))
        })
    }

    /// Notes why a stream is not captured, or that it is, if the history does not have it yet.
    pub(super) fn note_capture(&mut self, router_id: &str, missing: Option<GapCause>, detail: Option<String>) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let news = Missing { cause: missing, detail: detail.clone() };
        // The same cause without a detail says nothing new.
        if stream.noted == news || (stream.noted.cause == missing && news.detail.is_none()) {
            return;
        }
        stream.noted = news;
        let stream = stream.id;
        self.note(EventKind::Capture { stream, kind: None, missing, detail });
    }

    /// Notes which tracks of these kinds a negotiation refused, and which it does not refuse any more.
    pub(super) fn note_unsupported(&mut self, router_id: &str, kinds: &[TrackKind], unsupported: &[UnsupportedTrack]) {
        let Some(known) = self.streams.get_mut(router_id) else { return };
        let stream = known.id;
        let is_refused = |kind: &TrackKind| unsupported.iter().any(|track| track.kind == *kind);
        let (taken, mut now): (Vec<TrackKind>, Vec<TrackKind>) =
            known.unsupported.drain(..).partition(|kind| kinds.contains(kind) && !is_refused(kind));
        now.extend(unsupported.iter().map(|track| track.kind));
        now.sort_unstable();
        now.dedup();
        known.unsupported = now;
        for kind in taken {
            let track = TrackId { stream, kind };
            self.note_track(track, self.health.cause(track), None);
        }
        for UnsupportedTrack { kind, formats } in unsupported {
            tracing::warn!(%stream, kind = kind.as_str(), formats, "a track is not captured: none of its formats is supported");
            let (missing, detail) = (Some(GapCause::Unsupported), Some(formats.clone()));
            self.note(EventKind::Capture { stream, kind: Some(*kind), missing, detail });
        }
    }

    /// Follows the tracks that a stream announces. A track that was added gets a subscription of its own: making another one of all tracks
    /// would cost half a second of those that go on, and Janus 1.1.2 sends false sender reports of what is added to a running one.
    pub(super) fn follow_tracks(&mut self, router_id: &str) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let wanted = wanted_tracks(&self.job.spec.archive, &stream.info);
        let Link::Live(first) = &mut stream.first.link else { return };
        // The router itself takes out of a subscription what is gone.
        first.tracks.retain(|mid| wanted.contains(mid));
        let beside: Vec<String> = wanted.into_iter().filter(|mid| !first.tracks.contains(mid)).collect();
        match &stream.added.link {
            Link::Live(added) if added.tracks == beside => {}
            Link::Live(_) => {
                let gone = std::mem::replace(&mut stream.added, StreamLink::new(None));
                gone.live().cloned().into_iter().for_each(|live| self.hang_up(&live, GapCause::NotSent));
                self.follow_tracks(router_id);
            }
            Link::None { .. } if beside.is_empty() => stream.added = StreamLink::new(None),
            Link::None { retry: None } => {
                stream.added.link = Link::None { retry: Some(Instant::now()) };
                self.note_link(&added(router_id), Some(GapCause::Worker), None);
            }
            // What is being made, or tried again, is looked at once it is there.
            Link::None { .. } | Link::Pending => {}
        }
    }

    /// The tracks that a subscription is to have.
    fn tracks_of(&self, stream: &Stream, slot: Slot) -> Vec<String> {
        let wanted = wanted_tracks(&self.job.spec.archive, &stream.info);
        match (slot, stream.first.live()) {
            (Slot::First, _) => wanted,
            (Slot::Added, Some(first)) => wanted.into_iter().filter(|mid| !first.tracks.contains(mid)).collect(),
            (Slot::Added, None) => Vec::new(),
        }
    }

    /// The kinds of the tracks that a subscription is to have.
    fn kinds_of(&self, key: &LinkKey) -> Vec<TrackKind> {
        let Some(stream) = self.streams.get(&key.router_id) else { return Vec::new() };
        if key.slot == Slot::First && stream.added.live().is_none() {
            return vec![TrackKind::Audio, TrackKind::Video];
        }
        let mids = match (key.slot, stream.first.live()) {
            (Slot::First, Some(first)) => first.tracks.clone(),
            (slot, _) => self.tracks_of(stream, slot),
        };
        stream.info.tracks.iter().filter(|track| mids.contains(&track.mid)).map(|track| track.kind).collect()
    }

    /// Notes why what a subscription is for is not captured, or that it is.
    pub(super) fn note_link(&mut self, key: &LinkKey, missing: Option<GapCause>, detail: Option<String>) {
        if key.slot == Slot::First {
            return self.note_capture(&key.router_id, missing, detail);
        }
        let Some(stream) = self.streams.get(&key.router_id).map(|stream| stream.id) else { return };
        for kind in self.kinds_of(key) {
            let track = TrackId { stream, kind };
            if !self.is_unsupported(track) {
                self.note_track(track, missing.or_else(|| self.health.cause(track)), detail.clone());
            }
        }
    }

    /// The work of subscribing to tracks of a stream.
    pub(super) fn subscription(
        &self,
        router_id: &str,
        id: StreamId,
        tracks: Vec<String>,
    ) -> impl Future<Output = Result<Made, NotSubscribed>> + Send + use<> {
        let (control, context) = (Arc::clone(&self.control), Arc::clone(&self.job.context));
        let (router_id, capture, options) = (router_id.to_owned(), self.capture, self.job.spec.archive.clone());
        async move {
            let work = subscribe(control.as_ref(), &context, capture, &router_id, id, &options, tracks);
            // A panic is a failure as any other: the stream is tried again.
            let result = AssertUnwindSafe(work).catch_unwind().await;
            let panicked = || JobFailure { kind: FaultKind::Bug, detail: "panic, see the log".to_owned() };
            result.unwrap_or_else(|_| Err(panicked().into()))
        }
    }

    /// Ends a stream's subscriptions and peers. `again` makes others soon.
    pub(super) fn unlink(&mut self, router_id: &str, cause: GapCause, again: bool) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let lives: Vec<Live> = stream.lives().cloned().collect();
        stream.first.link = Link::None { retry: again.then(|| Instant::now() + RESUBSCRIBE) };
        stream.added = StreamLink::new(None);
        lives.iter().for_each(|live| self.hang_up(live, cause));
        if again {
            self.note_capture(router_id, Some(cause), None);
        }
    }

    /// Makes a subscription anew. The first one of a stream may bring all of its tracks, so that the added one ends with it.
    pub(super) fn unlink_one(&mut self, key: &LinkKey, cause: GapCause) {
        if key.slot == Slot::First {
            return self.unlink(&key.router_id, cause, true);
        }
        let Some(stream) = self.streams.get_mut(&key.router_id) else { return };
        let retry = Some(Instant::now() + RESUBSCRIBE);
        let lost = std::mem::replace(&mut stream.added.link, Link::None { retry });
        if let Link::Live(live) = lost {
            self.hang_up(&live, cause);
        }
        self.note_link(key, Some(cause), None);
    }

    pub(super) fn hang_up(&mut self, live: &Live, cause: GapCause) {
        self.peers.remove(&live.peer);
        self.connected.remove(&live.peer);
        self.expect_engine(self.job.context.engine.remove_peer(live.peer, cause));
        let (control, subscription) = (Arc::clone(&self.control), live.subscription);
        self.chores.spawn(async move { control.unsubscribe(subscription).await });
    }

    /// What could not be subscribed to need not wait any longer: the next event, or tick, tries it.
    pub(super) fn retry_now(&mut self) {
        for stream in self.streams.values_mut() {
            for slot in [Slot::First, Slot::Added] {
                if let Link::None { retry: retry @ Some(_) } = &mut stream.slot(slot).link {
                    *retry = Some(Instant::now());
                }
            }
        }
    }

    pub(super) fn retry_subscriptions(&mut self) {
        let now = Instant::now();
        let is_due = |link: &Link| matches!(link, Link::None { retry: Some(at) } if *at <= now);
        let mut due: Vec<LinkKey> = Vec::new();
        for (router_id, stream) in self.streams.iter().filter(|(_, stream)| stream.over_limit.is_none()) {
            let key = |slot| LinkKey { router_id: router_id.clone(), slot };
            due.extend(is_due(&stream.first.link).then(|| key(Slot::First)));
            due.extend(is_due(&stream.added.link).then(|| key(Slot::Added)));
        }
        for key in due {
            let Some(stream) = self.streams.get(&key.router_id) else { continue };
            let (id, tracks) = (stream.id, self.tracks_of(stream, key.slot));
            let Some(stream) = self.streams.get_mut(&key.router_id).filter(|_| !tracks.is_empty()) else { continue };
            if self.attempts.begin(&key, &mut stream.slot(key.slot).link) {
                let result = self.subscription(&key.router_id, id, tracks);
                self.subscribing.spawn(async move { Subscribed { key, result: result.await } });
            }
        }
    }

    pub(super) fn subscribed(&mut self, done: Subscribed) {
        let Subscribed { key, result } = done;
        let (made, failed) = match result {
            Ok(made) => (Some(made), None),
            Err(failed) => (None, Some(failed)),
        };
        let (live, unsupported) = made.map_or((None, Vec::new()), |made| (Some(made.live), made.unsupported));
        let peer = live.as_ref().map(|live| live.peer);
        let link = self.streams.get_mut(&key.router_id).map(|stream| &mut stream.slot(key.slot).link);
        match self.attempts.end(&key, live, link, Instant::now()) {
            Ended::Live => self.is_live(&key, peer, &unsupported),
            Ended::Failed { unused: Some(live) } => {
                tracing::warn!(key.router_id, "a subscription was lost before it was complete, making another");
                self.note_link(&key, Some(GapCause::Router), None);
                self.hang_up(&live, GapCause::Router);
            }
            Ended::Failed { unused: None } => {
                failed.into_iter().for_each(|failed| self.not_subscribed(&key, failed));
            }
            // The stream left meanwhile.
            Ended::Stale { unused } => unused.into_iter().for_each(|live| self.hang_up(&live, GapCause::NotSent)),
        }
    }

    fn is_live(&mut self, key: &LinkKey, peer: Option<PeerKey>, unsupported: &[UnsupportedTrack]) {
        self.peers.extend(peer.map(|peer| (peer, key.clone())));
        if let Some(stream) = self.streams.get_mut(&key.router_id) {
            let linked = stream.slot(key.slot);
            (linked.refusals, linked.told) = (0, None);
            if linked.live().is_some_and(|live| live.encrypted) {
                self.is_encrypted(&key.router_id);
            }
        }
        self.note_unsupported(&key.router_id, &self.kinds_of(key), unsupported);
        if peer.is_some_and(|peer| self.connected.contains_key(&peer)) {
            self.note_link(key, None, None);
        }
        // The publisher may have changed its tracks meanwhile.
        self.follow_tracks(&key.router_id);
    }

    /// The router said that a stream's media is encrypted end to end.
    pub(super) fn is_encrypted(&mut self, router_id: &str) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        if !std::mem::replace(&mut stream.encrypted, true) {
            let stream = stream.id;
            tracing::warn!(%stream, "a stream is encrypted end to end: it is captured as it comes, and is in no composed file");
            self.note(EventKind::Encrypted { stream });
        }
    }

    /// A subscription failed. What is refused for good is tried ever more rarely, and told once.
    fn not_subscribed(&mut self, key: &LinkKey, failed: NotSubscribed) {
        let Some(stream) = self.streams.get_mut(&key.router_id) else { return };
        let (id, kind, detail) = (stream.id, failed.failure.kind, failed.failure.detail);
        let linked = stream.slot(key.slot);
        if matches!(failed.cause, GapCause::Refused | GapCause::Unsupported) {
            let pause = REFUSED.delay(linked.refusals, 0.0);
            linked.link = Link::None { retry: Some(Instant::now() + pause) };
            linked.refusals = linked.refusals.saturating_add(1);
        }
        if linked.told.replace(failed.cause) == Some(failed.cause) {
            tracing::debug!(fault.kind = %kind, stream = %id, "still not subscribed: {detail}");
            return;
        }
        tracing::warn!(fault.kind = %kind, stream = %id, cause = failed.cause.as_str(), "not subscribed, trying again: {detail}");
        self.note_unsupported(&key.router_id, &self.kinds_of(key), &failed.unsupported);
        self.note_link(key, Some(failed.cause), Some(detail));
    }

    pub(super) async fn renegotiate(&mut self, mut offer: Offer) {
        offer.mids.retain(|(_, kind)| self.job.spec.archive.has(*kind));
        let Some(peer) = self.subscribed_by(offer.subscription).map(|(.., live)| live.peer) else { return };
        // Nothing active is left: the publisher is about to be gone, and its last packets still come.
        if offer.mids.is_empty() {
            return;
        }
        if offer.encrypted
            && let Some(LinkKey { router_id, .. }) = self.peers.get(&peer).cloned()
        {
            self.is_encrypted(&router_id);
        }
        let kinds: Vec<TrackKind> = offer.mids.iter().map(|(_, kind)| *kind).collect();
        match self.job.context.engine.renegotiate(peer, offer.sdp, offer.mids).await {
            // A connection made anew may take what this one cannot.
            Ok(answer) if !answer.unsupported.is_empty() => {
                if let Some(key) = self.peers.get(&peer).cloned() {
                    self.unlink_one(&key, GapCause::Worker);
                }
            }
            Ok(answer) => {
                if let Some(LinkKey { router_id, .. }) = self.peers.get(&peer).cloned() {
                    self.note_unsupported(&router_id, &kinds, &[]);
                }
                let (control, subscription, answer) = (Arc::clone(&self.control), offer.subscription, answer.sdp);
                self.chores.spawn(async move {
                    if let Err(error) = control.answer(subscription, answer).await {
                        tracing::warn!("a renegotiation was not answered: {}", chain(&error));
                    }
                });
            }
            Err(PeerError::EngineGone(error)) => tracing::error!(fault.kind = "bug", "{error}"),
            Err(error) => {
                tracing::warn!("a renegotiation failed: {}", chain(&error));
                if let Some(key) = self.peers.get(&peer).cloned() {
                    self.unlink_one(&key, GapCause::Router);
                }
            }
        }
    }
}
