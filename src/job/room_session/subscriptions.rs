//! Subscriptions to the streams of a room: made, followed, tried again and ended.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Missing, REFUSED, Session, Stream, Subscribed, TracksAdded};
use crate::job::JobFailure;
use crate::job::link::{Ended, Link, Live, RESUBSCRIBE};
use crate::job::subscribe::{Made, NotSubscribed, subscribe, wanted_tracks};
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::recording::history::EventKind;
use crate::router::{Offer, SubscriptionId, TrackInfo};
use crate::webrtc::{PeerError, PeerKey, UnsupportedTrack};

const KINDS: [TrackKind; 2] = [TrackKind::Audio, TrackKind::Video];

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
        let Link::Live(live) = &mut stream.link else { return };
        // The router itself takes out of a subscription what is gone.
        live.tracks.retain(|mid| wanted.contains(mid));
        let (kept, gone) = stream.added.drain(..).partition(|live| live.tracks.iter().any(|mid| wanted.contains(mid)));
        stream.added = kept;
        let known: Vec<&String> = stream.lives().flat_map(|live| &live.tracks).collect();
        let missing: Vec<String> = wanted.iter().filter(|mid| !known.contains(mid)).cloned().collect();
        let beside = stream.lives().next().map(|live| live.subscription);
        if let (false, Some(beside), false) = (missing.is_empty(), beside, stream.adding) {
            stream.adding = true;
            let (router_id, id) = (router_id.to_owned(), stream.id);
            let result = self.subscription(&router_id, id, missing);
            self.adding.spawn(async move { TracksAdded { router_id, beside, result: result.await } });
        }
        let gone: Vec<Live> = gone;
        for live in gone {
            self.peers.remove(&live.peer);
            self.hang_up(&live, GapCause::NotSent);
        }
    }

    pub(super) fn tracks_added(&mut self, done: TracksAdded) {
        let TracksAdded { router_id, beside, result } = done;
        let is_same = |stream: &&mut Stream| stream.lives().next().is_some_and(|live| live.subscription == beside);
        let stream = self.streams.get_mut(&router_id).filter(is_same);
        match (stream, result) {
            (Some(stream), Ok(made)) => {
                stream.adding = false;
                let of_added = |track: &&TrackInfo| made.live.tracks.contains(&track.mid);
                let kinds: Vec<TrackKind> =
                    stream.info.tracks.iter().filter(of_added).map(|track| track.kind).collect();
                self.peers.insert(made.live.peer, router_id.clone());
                stream.added.push(made.live);
                self.note_unsupported(&router_id, &kinds, &made.unsupported);
                self.follow_tracks(&router_id);
            }
            // All of the stream is tried again, with pauses.
            (Some(_), Err(failed)) => {
                self.unlink(&router_id, failed.cause, true);
                self.not_subscribed(&router_id, failed);
            }
            (None, Ok(made)) => self.hang_up(&made.live, GapCause::NotSent),
            (None, Err(_)) => {}
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

    /// Ends a stream's subscription and peer. `again` makes another one soon.
    pub(super) fn unlink(&mut self, router_id: &str, cause: GapCause, again: bool) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let retry = again.then(|| Instant::now() + RESUBSCRIBE);
        let lives: Vec<Live> = stream.lives().cloned().collect();
        stream.link = Link::None { retry };
        stream.added.clear();
        stream.adding = false;
        for live in lives {
            self.peers.remove(&live.peer);
            self.hang_up(&live, cause);
        }
        if again {
            self.note_capture(router_id, Some(cause), None);
        }
    }

    pub(super) fn hang_up(&mut self, live: &Live, cause: GapCause) {
        self.connected.remove(&live.peer);
        self.expect_engine(self.job.context.engine.remove_peer(live.peer, cause));
        let (control, subscription) = (Arc::clone(&self.control), live.subscription);
        self.chores.spawn(async move { control.unsubscribe(subscription).await });
    }

    /// What could not be subscribed to need not wait any longer: the next event, or tick, tries it.
    pub(super) fn retry_now(&mut self) {
        for stream in self.streams.values_mut() {
            if let Link::None { retry } = &mut stream.link {
                *retry = Some(Instant::now());
            }
        }
    }

    pub(super) fn retry_subscriptions(&mut self) {
        let now = Instant::now();
        let mut begun = Vec::new();
        for (router_id, stream) in &mut self.streams {
            let due = matches!(stream.link, Link::None { retry: Some(at) } if at <= now);
            let tracks = wanted_tracks(&self.job.spec.archive, &stream.info);
            let is_wanted = due && !tracks.is_empty() && stream.over_limit.is_none();
            if is_wanted && self.attempts.begin(router_id, &mut stream.link) {
                begun.push((router_id.clone(), stream.id, tracks));
            }
        }
        for (router_id, id, tracks) in begun {
            let result = self.subscription(&router_id, id, tracks);
            self.subscribing.spawn(async move { Subscribed { router_id, result: result.await } });
        }
    }

    pub(super) fn subscribed(&mut self, done: Subscribed) {
        let Subscribed { router_id, result } = done;
        let (made, failed) = match result {
            Ok(made) => (Some(made), None),
            Err(failed) => (None, Some(failed)),
        };
        let (live, unsupported) = made.map_or((None, Vec::new()), |made| (Some(made.live), made.unsupported));
        let peer = live.as_ref().map(|live| live.peer);
        let link = self.streams.get_mut(&router_id).map(|stream| &mut stream.link);
        match self.attempts.end(&router_id, live, link, Instant::now()) {
            Ended::Live => self.is_live(&router_id, peer, &unsupported),
            Ended::Failed { unused: Some(live) } => {
                tracing::warn!(router_id, "a subscription was lost before it was complete, making another");
                self.note_capture(&router_id, Some(GapCause::Router), None);
                self.hang_up(&live, GapCause::Router);
            }
            Ended::Failed { unused: None } => {
                failed.into_iter().for_each(|failed| self.not_subscribed(&router_id, failed));
            }
            // The stream left meanwhile.
            Ended::Stale { unused } => unused.into_iter().for_each(|live| self.hang_up(&live, GapCause::NotSent)),
        }
    }

    pub(super) fn is_live(&mut self, router_id: &str, peer: Option<PeerKey>, unsupported: &[UnsupportedTrack]) {
        self.peers.extend(peer.map(|peer| (peer, router_id.to_owned())));
        if let Some(stream) = self.streams.get_mut(router_id) {
            stream.refusals = 0;
            stream.told = None;
        }
        self.note_unsupported(router_id, &KINDS, unsupported);
        if peer.is_some_and(|peer| self.connected.contains(&peer)) {
            self.note_capture(router_id, None, None);
        }
        // The publisher may have changed its tracks meanwhile.
        self.follow_tracks(router_id);
    }

    /// A subscription failed. What is refused for good is tried ever more rarely, and told once.
    pub(super) fn not_subscribed(&mut self, router_id: &str, failed: NotSubscribed) {
        let Some(stream) = self.streams.get_mut(router_id) else { return };
        let (id, kind, detail) = (stream.id, failed.failure.kind, failed.failure.detail);
        if matches!(failed.cause, GapCause::Refused | GapCause::Unsupported) {
            let pause = REFUSED.delay(stream.refusals, 0.0);
            stream.link = Link::None { retry: Some(Instant::now() + pause) };
            stream.refusals = stream.refusals.saturating_add(1);
        }
        if stream.told.replace(failed.cause) == Some(failed.cause) {
            tracing::debug!(fault.kind = %kind, stream = %id, "still not subscribed: {detail}");
            return;
        }
        tracing::warn!(fault.kind = %kind, stream = %id, cause = failed.cause.as_str(), "not subscribed, trying again: {detail}");
        self.note_unsupported(router_id, &KINDS, &failed.unsupported);
        self.note_capture(router_id, Some(failed.cause), Some(detail));
    }

    pub(super) async fn renegotiate(&mut self, mut offer: Offer) {
        offer.mids.retain(|(_, kind)| self.job.spec.archive.has(*kind));
        let Some(peer) = self.subscribed_by(offer.subscription).map(|(.., live)| live.peer) else { return };
        // Nothing active is left: the publisher is about to be gone, and its last packets still come.
        if offer.mids.is_empty() {
            return;
        }
        let kinds: Vec<TrackKind> = offer.mids.iter().map(|(_, kind)| *kind).collect();
        match self.job.context.engine.renegotiate(peer, offer.sdp, offer.mids).await {
            // A connection made anew may take what this one cannot.
            Ok(answer) if !answer.unsupported.is_empty() => {
                if let Some(router_id) = self.peers.get(&peer).cloned() {
                    self.unlink(&router_id, GapCause::Worker, true);
                }
            }
            Ok(answer) => {
                if let Some(router_id) = self.peers.get(&peer).cloned() {
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
                if let Some(router_id) = self.peers.get(&peer).cloned() {
                    self.unlink(&router_id, GapCause::Router, true);
                }
            }
        }
    }
}
