//! What stands for a worker's capture threads. Packets come from the publishers of the simulation; the rules of the tracks and the log are
//! the real ones.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use archiver::model::ids::{StreamId, TrackId, TrackKind};
use archiver::model::media::{Frame, GapCause};
use archiver::model::time::{MediaTime, NtpTime};
use archiver::recording::spool::Spool;
use archiver::recording::{LogError, TrackLog, UnsyncedSegment};
use archiver::router::SubscriptionId;
use archiver::rtp::track::{Output, RtpInput, TrackRules};
use archiver::webrtc::{Answer, CaptureEvent, CaptureKey, CaptureOptions, Command, PeerKey};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::publishers::{FrameId, Holder, Publication, Publishers, clock_rate, codec};
use super::{Millis, Timeline};
use crate::FakeRouter;

/// How often packets are read, rules look at the time, and parts at their age.
const TICK: Millis = 50;
/// From an offer to a connection.
const CONNECT: Millis = 150;
/// A connection without a working path for so long is given up; as in archiver.
const DISCONNECTED_MAX: Millis = 5_000;
/// A socket's buffer holds what came within this time.
const BUFFER: Millis = 500;
/// From a sender report to the next.
const REPORT_EVERY: Millis = 5_000;
/// Opening a log that could not be opened is tried again after this time; as in archiver.
const REOPEN: Millis = 1_000;

/// The capture threads of one worker process.
pub(super) struct StandIn {
    pub machine: usize,
    pub timeline: Timeline,
    pub publishers: Publishers,
    pub router: FakeRouter,
    pub spool: Arc<Spool>,
    captures: BTreeMap<CaptureKey, Capture>,
    peers: BTreeMap<PeerKey, Peer>,
}

struct Capture {
    options: CaptureOptions,
    events: mpsc::Sender<CaptureEvent>,
    tracks: BTreeMap<TrackId, Track>,
    seal_at: Millis,
}

/// The rules and the log of a track.
struct Track {
    rules: TrackRules,
    log: Option<TrackLog>,
    /// When the log may be opened.
    open_at: Millis,
    has_media: bool,
    fails: bool,
    starved: Option<GapCause>,
    /// Frames that are in the log's open part.
    pending: VecDeque<(MediaTime, FrameId)>,
}

/// One PeerConnection.
struct Peer {
    capture: CaptureKey,
    stream: StreamId,
    kinds: Vec<TrackKind>,
    subscription: SubscriptionId,
    connected_at: Millis,
    connected: bool,
    /// When the router was last there.
    heard_at: Millis,
    /// What was sent until then has come, or is lost.
    read_until: Millis,
    report_at: Millis,
}

impl StandIn {
    pub fn new(
        machine: usize,
        timeline: Timeline,
        publishers: Publishers,
        router: FakeRouter,
        spool: Arc<Spool>,
    ) -> Self {
        Self { machine, timeline, publishers, router, spool, captures: BTreeMap::new(), peers: BTreeMap::new() }
    }

    /// Does what the threads do, until the engine is dropped.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut ticks = interval(Duration::from_millis(TICK));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    None | Some(Command::Shutdown) => break,
                    Some(command) => {
                        self.tick();
                        self.command(command);
                    }
                },
                _ = ticks.tick() => self.tick(),
            }
        }
        for key in self.captures.keys().copied().collect::<Vec<_>>() {
            self.close(key);
        }
    }

    fn command(&mut self, command: Command) {
        let now = self.timeline.now();
        match command {
            Command::Open { key, options, events, done } => {
                let seal_at = now + millis(options.segment);
                self.captures.insert(key, Capture { options: *options, events, tracks: BTreeMap::new(), seal_at });
                done.send(()).unwrap_or_default();
            }
            Command::AddPeer { key, capture, stream, offer, mids, done } => {
                let kinds: Vec<TrackKind> = mids.iter().map(|(_, kind)| *kind).collect();
                let subscription = subscription_of(&offer);
                let peer = Peer {
                    capture,
                    stream,
                    kinds,
                    subscription,
                    connected_at: now + CONNECT,
                    connected: false,
                    heard_at: now,
                    read_until: now,
                    report_at: now + CONNECT + 1_000,
                };
                let clock = self.captures.get(&capture).map(|capture| capture.options.clock);
                let at = clock.map(|clock| clock.at(self.timeline.instant(now)));
                if let (Some(at), Some(capture)) = (at, self.captures.get_mut(&capture)) {
                    for kind in &peer.kinds {
                        capture.track(TrackId { stream, kind: *kind }, at);
                    }
                }
                self.peers.insert(key, peer);
                let answer = Answer { sdp: "v=0\r\n".to_owned(), unsupported: Vec::new() };
                done.send(Ok(answer)).unwrap_or_default();
            }
            Command::Renegotiate { done, .. } => {
                let answer = Answer { sdp: "v=0\r\n".to_owned(), unsupported: Vec::new() };
                done.send(Ok(answer)).unwrap_or_default();
            }
            Command::AddCandidate { .. } | Command::Shutdown => {}
            Command::RemovePeer { key, cause } => {
                let Some(peer) = self.peers.remove(&key) else { return };
                self.lose_source(&peer, cause);
            }
            Command::Muted { capture, track, muted } => {
                self.change(capture, track, |rules, at, out| rules.set_publisher_muted(muted, at, out));
            }
            Command::Selected { capture, track } => {
                let known = self.captures.get_mut(&capture).and_then(|capture| capture.tracks.get_mut(&track));
                known.into_iter().for_each(|track| track.rules.selected());
            }
            Command::Close { key, done } => {
                self.close(key);
                done.send(()).unwrap_or_default();
            }
        }
    }

    fn lose_source(&mut self, peer: &Peer, cause: GapCause) {
        for kind in &peer.kinds {
            let track = TrackId { stream: peer.stream, kind: *kind };
            self.change(peer.capture, track, |rules, at, out| rules.source_lost(cause, at, out));
        }
    }

    /// Changes the rules of a track, and writes what comes of it.
    fn change(
        &mut self,
        capture: CaptureKey,
        track: TrackId,
        change: impl FnOnce(&mut TrackRules, MediaTime, &mut Vec<Output>),
    ) {
        let writer = self.writer();
        let Some(capture) = self.captures.get_mut(&capture) else { return };
        let at = capture.options.clock.at(writer.timeline.instant(writer.now));
        let mut out = Vec::new();
        let Some(known) = capture.tracks.get_mut(&track) else { return };
        change(&mut known.rules, at, &mut out);
        writer.write(capture, track, out);
    }

    fn writer(&self) -> Writer {
        Writer {
            machine: self.machine,
            now: self.timeline.now(),
            timeline: self.timeline,
            publishers: self.publishers.clone(),
            spool: Arc::clone(&self.spool),
        }
    }

    fn tick(&mut self) {
        let now = self.timeline.now();
        for key in self.peers.keys().copied().collect::<Vec<_>>() {
            self.read(key, now);
        }
        let writer = self.writer();
        for capture in self.captures.values_mut() {
            let at = capture.options.clock.at(writer.timeline.instant(now));
            for id in capture.tracks.keys().copied().collect::<Vec<_>>() {
                let track = capture.tracks.get_mut(&id).expect("it was listed");
                let mut out = Vec::new();
                track.rules.tick(at, &mut out);
                let stats = track.rules.take_stats();
                let starved = track.rules.starved(at);
                let told = std::mem::replace(&mut track.starved, starved);
                if told != starved {
                    send(&capture.events, CaptureEvent::TrackStarved { track: id, cause: starved });
                }
                if let Some(log) = &mut track.log {
                    log.stats(&stats);
                }
                writer.write(capture, id, out);
                writer.age(capture, id, at);
            }
            if now >= capture.seal_at {
                capture.seal_at = now + millis(capture.options.segment);
                writer.seal(capture);
            }
        }
    }

    /// Reads what has come over a connection.
    fn read(&mut self, key: PeerKey, now: Millis) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if now < peer.connected_at {
            return;
        }
        let feed = self.router.feed(peer.subscription);
        if feed.is_some() {
            peer.heard_at = now;
        } else if now - peer.heard_at > DISCONNECTED_MAX {
            let peer = self.peers.remove(&key).expect("it was found above");
            self.lose_source(&peer, GapCause::Network);
            if let Some(capture) = self.captures.get(&peer.capture) {
                let reason = "no working network path".to_owned();
                send(&capture.events, CaptureEvent::PeerLost { peer: key, reason });
            }
            return;
        }
        let (capture, stream, kinds) = (peer.capture, peer.stream, peer.kinds.clone());
        if !std::mem::replace(&mut peer.connected, true) {
            peer.read_until = now;
            if let Some(capture) = self.captures.get(&capture) {
                send(&capture.events, CaptureEvent::Connected { peer: key });
            }
            for kind in &kinds {
                self.change(capture, TrackId { stream, kind: *kind }, TrackRules::source_connected);
            }
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        // A process that stood still finds the newest packets alone.
        let after = peer.read_until.max(now.saturating_sub(BUFFER));
        peer.read_until = now;
        let reports = now >= peer.report_at;
        if reports {
            peer.report_at = now + REPORT_EVERY;
        }
        let Some(publication) = feed.and_then(|(room, id)| self.publishers.newest(&room, &id)) else { return };
        for kind in kinds {
            let track = TrackId { stream, kind };
            self.packets(capture, track, &publication, after, now);
            if reports && publication.to.is_none_or(|to| now < to) && now >= publication.from {
                self.report(capture, track, &publication, now);
            }
        }
    }

    fn packets(&mut self, capture: CaptureKey, track: TrackId, publication: &Publication, after: Millis, now: Millis) {
        let timeline = self.timeline;
        let Some(clock) = self.captures.get(&capture).map(|capture| capture.options.clock) else { return };
        for frame in publication.sent(track.kind, Some(after), now) {
            let sent = publication.sent_at(frame);
            let input = RtpInput {
                codec: codec(track.kind),
                seq: (u64::from(publication.number) << 20) + u64::from(frame.n) + 1_000,
                rtp: rtp(publication, track.kind, sent),
                marker: true,
                payload: frame.payload(),
                arrived: clock.at(timeline.instant(sent)),
            };
            self.change(capture, track, |rules, _, out| rules.push(input, out));
        }
    }

    fn report(&mut self, capture: CaptureKey, track: TrackId, publication: &Publication, now: Millis) {
        let sent = publication.sent(track.kind, None, now).len();
        let (packets, rtp) = (u32::try_from(sent).unwrap_or(u32::MAX), rtp(publication, track.kind, now));
        let ntp = NtpTime::from_wallclock(self.timeline.wallclock(now));
        self.change(capture, track, |rules, at, out| {
            rules.packets_sent(packets, at);
            rules.sender_report(ntp, rtp, at, out);
        });
    }

    fn close(&mut self, key: CaptureKey) {
        let writer = self.writer();
        let of_it: Vec<PeerKey> =
            self.peers.iter().filter(|(_, peer)| peer.capture == key).map(|(peer, _)| *peer).collect();
        for peer in of_it {
            let peer = self.peers.remove(&peer).expect("it was listed");
            self.lose_source(&peer, GapCause::Worker);
        }
        if let Some(mut capture) = self.captures.remove(&key) {
            writer.seal(&mut capture);
        }
    }
}

impl Capture {
    /// A track, which begins with its first use.
    fn track(&mut self, id: TrackId, at: MediaTime) -> &mut Track {
        let options = &self.options;
        self.tracks.entry(id).or_insert_with(|| {
            let mut rules = TrackRules::new(id.kind, options.track.clone(), at);
            if let Some(end) = options.prior_ends.get(&id) {
                rules.continue_from(*end, GapCause::Worker);
            }
            Track {
                rules,
                log: None,
                open_at: 0,
                has_media: false,
                fails: false,
                starved: None,
                pending: VecDeque::new(),
            }
        })
    }
}

/// Writes to the logs, at one moment.
struct Writer {
    machine: usize,
    now: Millis,
    timeline: Timeline,
    publishers: Publishers,
    spool: Arc<Spool>,
}

impl Writer {
    fn write(&self, capture: &mut Capture, id: TrackId, out: Vec<Output>) {
        for output in out {
            if matches!(output, Output::RequestKeyframe { .. }) {
                continue;
            }
            let Some(track) = self.open(capture, id) else { return };
            let log = track.log.as_mut().expect("it is open");
            let written = match output {
                Output::Format(format) => log.format(&format),
                Output::Frame(frame) => {
                    track.pending.extend(read_id(id.kind, &frame));
                    log.frame(&frame).map(|()| None)
                }
                Output::Gap(gap) => log.gap(gap).map(|()| None),
                Output::SenderReport(report) => {
                    log.sender_report(report);
                    Ok(None)
                }
                Output::ClockBegins(at) => log.clock_begins(at).map(|()| None),
                Output::RequestKeyframe { .. } => Ok(None),
            };
            self.after(capture, id, written);
        }
    }

    /// Writes a part that is old enough.
    fn age(&self, capture: &mut Capture, id: TrackId, at: MediaTime) {
        let log = capture.tracks.get_mut(&id).and_then(|track| track.log.as_mut());
        if let Some(written) = log.map(|log| log.tick(at)) {
            self.after(capture, id, written.map(|()| None));
        }
    }

    /// Notes what is on disk now, and tells the driver.
    fn after(&self, capture: &mut Capture, id: TrackId, written: Result<Option<UnsyncedSegment>, LogError>) {
        let Some(track) = capture.tracks.get_mut(&id) else { return };
        let events = &capture.events;
        match written {
            Ok(segment) => {
                if let Some(segment) = segment {
                    sync(vec![segment], events);
                }
                if std::mem::take(&mut track.fails) {
                    send(events, CaptureEvent::StorageRecovered { track: id });
                }
            }
            Err(error) => {
                track.pending.clear();
                if !std::mem::replace(&mut track.fails, true) {
                    send(events, CaptureEvent::StorageFailed { track: id, reason: error.to_string() });
                }
            }
        }
        let Some(log) = &track.log else { return };
        let open = log.open_since();
        while track.pending.front().is_some_and(|(pts, _)| open.is_none_or(|open| *pts < open)) {
            let (_, frame) = track.pending.pop_front().expect("it was seen");
            self.publishers.captured(frame, Holder { machine: self.machine, at: self.now });
        }
        if log.has_media() && !std::mem::replace(&mut track.has_media, true) {
            send(events, CaptureEvent::FirstMedia { track: id });
        }
    }

    fn open<'a>(&self, capture: &'a mut Capture, id: TrackId) -> Option<&'a mut Track> {
        let Capture { options, events, tracks, .. } = capture;
        let track = tracks.get_mut(&id)?;
        if track.log.is_none() && self.now >= track.open_at {
            match TrackLog::open(&options.dir, id, options.epoch, options.log.clone(), Arc::clone(&self.spool)) {
                Ok((log, _)) => track.log = Some(log),
                Err(error) => {
                    track.open_at = self.now + REOPEN;
                    send(events, CaptureEvent::StorageFailed { track: id, reason: error.to_string() });
                }
            }
        }
        track.log.is_some().then_some(track)
    }

    /// Seals all tracks at one moment.
    fn seal(&self, capture: &mut Capture) {
        let mut segments = Vec::new();
        for id in capture.tracks.keys().copied().collect::<Vec<_>>() {
            let log = capture.tracks.get_mut(&id).and_then(|track| track.log.as_mut());
            match log.map(TrackLog::seal) {
                None => {}
                Some(Ok(segment)) => {
                    segments.extend(segment);
                    self.after(capture, id, Ok(None));
                }
                Some(Err(error)) => self.after(capture, id, Err(error)),
            }
        }
        if !segments.is_empty() {
            sync(segments, &capture.events);
        }
    }
}

fn read_id(kind: TrackKind, frame: &Frame) -> Option<(MediaTime, FrameId)> {
    Some((frame.pts, FrameId::read(kind, &frame.data)?))
}

fn sync(segments: Vec<UnsyncedSegment>, events: &mpsc::Sender<CaptureEvent>) {
    let sealed = segments.into_iter().filter_map(|segment| segment.sync().ok()).collect();
    send(events, CaptureEvent::Sealed { segments: sealed });
}

fn send(events: &mpsc::Sender<CaptureEvent>, event: CaptureEvent) {
    // The driver may be gone.
    events.try_send(event).unwrap_or_default();
}

fn millis(span: Duration) -> Millis {
    Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX)
}

/// The RTP time of a moment.
fn rtp(publication: &Publication, kind: TrackKind, at: Millis) -> u32 {
    let since = (at - publication.from) * clock_rate(kind) / 1_000;
    u32::try_from(since % (1 << 32)).expect("it is below").wrapping_add(publication.number * 1_000_003)
}

/// The subscription of an offer of the fake router.
fn subscription_of(offer: &str) -> SubscriptionId {
    let origin = offer.lines().find_map(|line| line.strip_prefix("o=- "));
    let number = origin.and_then(|line| line.split(' ').next()).and_then(|number| number.parse().ok());
    SubscriptionId(number.expect("the fake router's offer"))
}

impl Timeline {
    /// The monotonic instant of a moment, which all machines share.
    pub(super) fn instant(&self, at: Millis) -> Instant {
        self.base + Duration::from_millis(at)
    }
}
