//! The streams of a room while it is captured: which are there, and which of them have a place.

use tokio::time::Instant;

use super::{Missing, Session, Stream, StreamLink};
use crate::job::stream_ids::Assigned;
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::recording::history::{Announced, EventKind};
use crate::router::{Signature, StreamInfo, TrackInfo};

impl Session<'_> {
    pub(super) fn count_publishing(&mut self) {
        let publishing = self.streams.values().filter(|s| !s.info.tracks.is_empty()).count();
        self.presence.publishing(publishing, self.clock.wallclock());
    }

    pub(super) fn present(&mut self, info: StreamInfo) {
        let Assigned { id, displaced } = self.ids.assign(&self.job.row.session, &info);
        let displaced = displaced.and_then(|router_id| self.displace(&router_id));
        let router_id = info.router_id.clone();
        let known = self.streams.get(&router_id).map(|s| s.info.clone());
        let same_words = known.as_ref().is_some_and(|k| {
            let words = |s: &StreamInfo| (s.name.clone(), s.connection_data.clone(), s.signature, s.video_type);
            words(k) == words(&info)
        });
        if !same_words {
            if info.signature == Signature::Invalid {
                tracing::warn!(
                    router_id,
                    stream_id = info.stream_id,
                    "a client says what this program has signed for another feed: it joins with another id than it was given, or copies \
                     another client's display; its name and connection data prove nothing"
                );
            }
            self.note(EventKind::Stream {
                stream: id,
                router_id: router_id.clone(),
                name: info.name.clone(),
                connection_data: info.connection_data.clone(),
                signed: info.signature == Signature::Valid,
                video_type: info.video_type,
            });
        }
        self.note_tracks(id, known.as_ref(), &info);
        for track in &info.tracks {
            let before = known.as_ref().and_then(|k| k.tracks.iter().find(|t| t.mid == track.mid)).map(|t| t.muted);
            if before.unwrap_or(false) != track.muted {
                self.note(EventKind::Muted { stream: id, kind: track.kind, muted: track.muted });
            }
            // The engine may know a new track from an earlier publication, in which it was muted.
            if before != Some(track.muted) {
                let track_id = TrackId { stream: id, kind: track.kind };
                self.expect_engine(self.job.context.engine.set_muted(self.capture, track_id, track.muted));
            }
        }
        match self.streams.get_mut(&router_id) {
            Some(stream) => {
                stream.info = info;
                self.follow_tracks(&router_id);
            }
            None => self.add_stream(router_id, id, info),
        }
        if let Some(displaced) = displaced {
            self.present(displaced);
        }
        self.retry_subscriptions();
    }

    /// Another stream at the router has the id of this one from now on. What is here is captured as a stream of its own.
    pub(super) fn displace(&mut self, router_id: &str) -> Option<StreamInfo> {
        let info = self.streams.get(router_id).map(|stream| stream.info.clone())?;
        tracing::warn!(
            router_id,
            stream_id = info.stream_id,
            "two publishers have the same stream id: the one that came first is a stream of its own now"
        );
        self.unlink(router_id, GapCause::NotSent, false);
        if let Some(stream) = self.streams.remove(router_id) {
            self.note(EventKind::StreamGone { stream: stream.id });
        }
        Some(info)
    }

    /// Notes what a stream announces, if that is news.
    pub(super) fn note_tracks(&self, stream: StreamId, known: Option<&StreamInfo>, info: &StreamInfo) {
        let announced = |info: &StreamInfo| -> Vec<Announced> {
            let track = |t: &TrackInfo| Announced { mid: t.mid.clone(), kind: t.kind, codec: t.codec.clone() };
            info.tracks.iter().map(track).collect()
        };
        let tracks = announced(info);
        if known.map(announced).unwrap_or_default() != tracks {
            self.note(EventKind::Tracks { stream, tracks });
        }
        let is_new =
            |kind: &TrackKind| !known.is_some_and(|known| known.tracks.iter().any(|track| track.kind == *kind));
        // A disk that failed before may still fail.
        for kind in info.tracks.iter().map(|track| track.kind).filter(is_new) {
            let track = TrackId { stream, kind };
            if let Some(cause) = self.health.cause(track) {
                self.note_track(track, Some(cause), None);
            }
        }
    }

    pub(super) fn add_stream(&mut self, router_id: String, id: StreamId, info: StreamInfo) {
        let limit = self.job.context.settings.capture.streams_max;
        let captured = self.streams.values().filter(|stream| stream.over_limit.is_none()).count();
        let over_limit = (captured >= limit).then(Instant::now);
        if over_limit.is_some() {
            let detail = format!("capture.streams_max = {limit} streams are captured already");
            tracing::warn!(stream = %id, limit, "a stream is not captured until another one leaves: raise capture.streams_max");
            self.note(EventKind::Capture {
                stream: id,
                kind: None,
                missing: Some(GapCause::Limit),
                detail: Some(detail),
            });
        }
        let cause = Some(if over_limit.is_some() { GapCause::Limit } else { GapCause::Worker });
        let noted = Missing { cause, detail: None };
        let (first, added) = (StreamLink::new(Some(Instant::now())), StreamLink::new(None));
        let stream = Stream { info, id, first, added, over_limit, unsupported: Vec::new(), noted, encrypted: false };
        self.streams.insert(router_id, stream);
    }

    /// Gives a place that became free to the stream that has waited longest.
    pub(super) fn take_waiting(&mut self) {
        let limit = self.job.context.settings.capture.streams_max;
        while self.streams.values().filter(|stream| stream.over_limit.is_none()).count() < limit {
            let waiting = self.streams.iter_mut().filter_map(|(router_id, s)| Some((s.over_limit?, router_id, s)));
            let Some((_, router_id, stream)) = waiting.min_by_key(|(since, ..)| *since) else { return };
            stream.over_limit = None;
            tracing::info!(stream = %stream.id, "there is a place now for a stream that was beyond capture.streams_max");
            let router_id = router_id.clone();
            self.note_capture(&router_id, Some(GapCause::Worker), None);
        }
    }

    pub(super) fn gone(&mut self, router_id: &str) {
        self.unlink(router_id, GapCause::NotSent, false);
        self.ids.gone(router_id);
        if let Some(stream) = self.streams.remove(router_id) {
            self.note(EventKind::StreamGone { stream: stream.id });
            self.health.forget(stream.id);
            self.note_storage();
        }
        self.take_waiting();
    }
}
