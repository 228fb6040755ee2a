//! Where a peer's packets go: through the rules of their tracks to the backlog of the log.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::sync::mpsc;

use super::messages::{CaptureEvent, CaptureKey, CaptureOptions, EntryData, LogEntry, PeerKey, send_event};
use super::peer::{PeerSink, ReceivedPacket, SenderReportIn};
use super::socket::Socket;
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::model::time::MediaTime;
use crate::rtp::track::{Output, RtpInput, TrackRules};

/// What the thread knows of a capture.
pub(super) struct Capture {
    pub options: CaptureOptions,
    pub events: mpsc::Sender<CaptureEvent>,
    pub tracks: BTreeMap<TrackId, TrackRules>,
    /// Tracks whose media is missing although it seems to be sent, as the driver was told.
    starved: BTreeMap<TrackId, GapCause>,
}

impl Capture {
    pub const fn new(options: CaptureOptions, events: mpsc::Sender<CaptureEvent>) -> Self {
        Self { options, events, tracks: BTreeMap::new(), starved: BTreeMap::new() }
    }

    /// Tells which tracks have begun or ceased to starve.
    pub fn tell_starved(&mut self, now: MediaTime) {
        for (track, rules) in &self.tracks {
            let cause = rules.starved(now);
            if cause != self.starved.get(track).copied() {
                match cause {
                    Some(cause) => self.starved.insert(*track, cause),
                    None => self.starved.remove(track),
                };
                send_event(&self.events, CaptureEvent::TrackStarved { track: *track, cause });
            }
        }
    }
}

/// The parts of the media thread that a peer's events need, without the peer itself.
pub(super) struct Sink<'a> {
    pub socket: &'a Socket,
    pub capture_key: CaptureKey,
    pub capture: Option<&'a mut Capture>,
    pub stream: StreamId,
    pub peer: PeerKey,
    pub outputs: &'a mut Vec<Output>,
    pub backlog: &'a mut Vec<LogEntry>,
    pub keyframe_wanted: bool,
    pub now: Instant,
}

/// Moves a track's outputs to the backlog. Returns whether a keyframe is wanted.
pub(super) fn forward(
    capture: CaptureKey,
    track: TrackId,
    outputs: &mut Vec<Output>,
    backlog: &mut Vec<LogEntry>,
) -> bool {
    let mut wanted = false;
    for output in outputs.drain(..) {
        if matches!(output, Output::RequestKeyframe { .. }) {
            wanted = true;
        } else {
            backlog.push(LogEntry { capture, track, data: EntryData::Output(output) });
        }
    }
    wanted
}

impl Sink<'_> {
    /// The rules of a track, which begin with its first use.
    pub fn rules(&mut self, kind: TrackKind) -> Option<(TrackId, MediaTime, &mut TrackRules)> {
        let capture = self.capture.as_deref_mut()?;
        let track = TrackId { stream: self.stream, kind };
        let now = capture.options.clock.at(self.now);
        let options = &capture.options;
        let rules = capture.tracks.entry(track).or_insert_with(|| {
            let mut rules = TrackRules::new(kind, options.track.clone(), now);
            if let Some(end) = options.prior_ends.get(&track) {
                rules.continue_from(*end, GapCause::Worker);
            }
            rules
        });
        Some((track, now, rules))
    }

    /// Changes the rules of a track, and passes on what comes of it.
    pub fn change(&mut self, kind: TrackKind, change: impl FnOnce(&mut TrackRules, MediaTime, &mut Vec<Output>)) {
        let mut outputs = std::mem::take(self.outputs);
        if let Some((track, now, rules)) = self.rules(kind) {
            change(rules, now, &mut outputs);
            self.keyframe_wanted |= forward(self.capture_key, track, &mut outputs, self.backlog);
        }
        *self.outputs = outputs;
    }
}

impl PeerSink for Sink<'_> {
    fn transmit(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.socket.send(to, bytes);
    }

    fn packet(&mut self, kind: TrackKind, packet: ReceivedPacket) {
        let Some(clock) = self.capture.as_ref().map(|c| c.options.clock) else { return };
        let arrived = clock.at(packet.arrived);
        let input = RtpInput {
            codec: packet.codec,
            seq: packet.seq,
            rtp: packet.rtp,
            marker: packet.marker,
            payload: bytes::Bytes::from_owner(packet.payload),
            arrived,
        };
        self.change(kind, |rules, _, outputs| rules.push(input, outputs));
    }

    fn sender_report(&mut self, kind: TrackKind, report: SenderReportIn) {
        let Some(clock) = self.capture.as_ref().map(|c| c.options.clock) else { return };
        let arrived = clock.at(report.arrived);
        self.change(kind, |rules, now, outputs| {
            rules.packets_sent(report.packets, now);
            rules.sender_report(report.ntp, report.rtp, arrived, outputs);
        });
    }

    fn connected(&mut self, kinds: &[TrackKind]) {
        if let Some(capture) = &self.capture {
            send_event(&capture.events, CaptureEvent::Connected { peer: self.peer });
        }
        // Before the connection, no keyframe could be requested.
        for kind in kinds {
            let track = TrackId { stream: self.stream, kind: *kind };
            if self.capture.as_ref().is_some_and(|c| c.tracks.contains_key(&track)) {
                self.change(*kind, |rules, now, outputs| rules.source_connected(now, outputs));
            }
        }
    }
}
