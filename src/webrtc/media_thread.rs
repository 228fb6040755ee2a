//! The media thread: one loop over one socket, all peers and all track rules. It never blocks on the log thread: frames
//! that the log thread cannot take at once are kept for a while, and then counted as lost to storage.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::backlog::{self, LostFrames};
use super::formats::Answer;
use super::local::{Routes, advertised};
use super::messages::{CaptureEvent, CaptureKey, Command, EngineConfig, LogCommand, LogEntry, PeerKey, send_event};
use super::peer::Peer;
use super::sink::{Capture, Sink, forward};
use super::socket::{Buffers, Socket};
use super::{PeerError, sdp};
use crate::model::ids::{StreamId, TrackId, TrackKind};
use crate::model::media::GapCause;
use crate::model::time::{MediaTime, Wallclock};
use crate::rtp::track::{Output, TrackRules};

/// How often the rules of every track look at the time: stalls, given-up packets, repeated requests.
const RULES_TICK: Duration = Duration::from_millis(50);
/// How long the thread sleeps when there are no peers.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// Datagram batches read before anything else is done again.
const BATCHES_A_TURN_MAX: usize = 64;

struct PeerEntry {
    peer: Peer,
    capture: CaptureKey,
    stream: StreamId,
    addresses: Vec<SocketAddr>,
    /// The router's candidates that came after its offer.
    candidates: usize,
}

pub(super) struct MediaThread {
    config: EngineConfig,
    commands: Receiver<Command>,
    batches: SyncSender<LogCommand>,
    socket: Socket,
    buffers: Buffers,
    captures: HashMap<CaptureKey, Capture>,
    peers: HashMap<PeerKey, PeerEntry>,
    by_address: HashMap<SocketAddr, PeerKey>,
    backlog: Vec<LogEntry>,
    /// All frames of packets that arrived before are in the log, or go there with the backlog.
    watermarks: Vec<(CaptureKey, MediaTime)>,
    outputs: Vec<Output>,
    next_rules_tick: Instant,
}

impl MediaThread {
    pub fn new(
        config: EngineConfig,
        commands: Receiver<Command>,
        batches: SyncSender<LogCommand>,
    ) -> std::io::Result<Self> {
        let socket = Socket::bind(config.bind, config.receive_buffer_bytes)?;
        Ok(Self {
            config,
            commands,
            batches,
            buffers: socket.buffers(),
            socket,
            next_rules_tick: now(),
            captures: HashMap::new(),
            peers: HashMap::new(),
            by_address: HashMap::new(),
            backlog: Vec::new(),
            watermarks: Vec::new(),
            outputs: Vec::new(),
        })
    }

    pub const fn local(&self) -> SocketAddr {
        self.socket.local()
    }

    pub fn run(mut self) {
        loop {
            let wait = if self.captures.is_empty() { IDLE_WAIT } else { self.config.batch };
            let mut next = match self.commands.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            // Packets are read before a command removes their peer: the last ones of a publisher that left may still be in the socket.
            if next.is_some() {
                self.receive();
            }
            while let Some(command) = next {
                if matches!(command, Command::Shutdown) {
                    return self.end();
                }
                self.command(command);
                next = self.commands.try_recv().ok();
            }
            self.receive();
            self.tick();
            self.flush();
        }
        self.end();
    }

    fn end(mut self) {
        for key in self.captures.keys().copied().collect::<Vec<_>>() {
            let (done, _) = oneshot::channel();
            self.close(key, done);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Open { key, options, events, done } => {
                let open = LogCommand::Open { key, options: options.clone(), events: events.clone() };
                self.captures.insert(key, Capture::new(*options, events));
                self.send_to_log(open);
                done.send(()).unwrap_or_default();
            }
            Command::AddPeer { key, capture, stream, offer, mids, done } => {
                let answer = self.add_peer(key, capture, stream, &offer, &mids);
                done.send(answer).unwrap_or_default();
            }
            Command::Renegotiate { key, offer, mids, done } => {
                done.send(self.renegotiate(key, &offer, &mids)).unwrap_or_default();
            }
            Command::AddCandidate { key, candidate } => self.add_candidate(key, &candidate),
            Command::RemovePeer { key, cause } => self.remove_peer(key, cause),
            Command::Muted { capture, track, muted } => self.set_muted(capture, track, muted),
            Command::Selected { capture, track } => {
                let rules = self.captures.get_mut(&capture).and_then(|capture| capture.tracks.get_mut(&track));
                // The next tick sends the request.
                rules.into_iter().for_each(TrackRules::selected);
            }
            Command::Close { key, done } => self.close(key, done),
            Command::Shutdown => {}
        }
    }

    fn map_offer(&self, offer: &str) -> String {
        match &self.config.candidate_map {
            Some(map) => sdp::map_candidates(offer, map.as_ref()),
            None => offer.to_owned(),
        }
    }

    fn add_peer(
        &mut self,
        key: PeerKey,
        capture: CaptureKey,
        stream: StreamId,
        offer: &str,
        mids: &[(String, TrackKind)],
    ) -> Result<Answer, PeerError> {
        let offer = self.map_offer(offer);
        let routes = Routes::find(&self.socket, self.config.advertise, &sdp::candidates(&offer));
        routes.log(&self.socket);
        let (peer, answer) = catch_panic(|| Peer::accept(&offer, mids, &routes.local, now()))?;
        // The rules of a new video track request a keyframe on their first tick. They must exist now: the router may
        // send nothing before that request.
        self.peers.insert(key, PeerEntry { peer, capture, stream, addresses: Vec::new(), candidates: 0 });
        let mut sink_tracks: Vec<TrackKind> = mids.iter().map(|(_, kind)| *kind).collect();
        sink_tracks.dedup();
        self.drive(key, |_, sink| {
            for kind in sink_tracks {
                sink.rules(kind);
            }
            Ok(())
        });
        Ok(answer)
    }

    /// Accepts a further offer. A track that it takes out has no source any more, until another offer or connection brings one.
    fn renegotiate(&mut self, key: PeerKey, offer: &str, mids: &[(String, TrackKind)]) -> Result<Answer, PeerError> {
        let offer = self.map_offer(offer);
        let Some(entry) = self.peers.get_mut(&key) else {
            return Err(PeerError::Broken { reason: "it has ended".to_owned() });
        };
        let before = entry.peer.kinds();
        let answer = catch_panic(|| entry.peer.renegotiate(&offer, mids));
        let kinds = entry.peer.kinds();
        self.drive(key, |_, sink| {
            let removed = before.into_iter().filter(|kind| !kinds.contains(kind));
            removed
                .for_each(|kind| sink.change(kind, |rules, now, out| rules.source_lost(GapCause::NotSent, now, out)));
            Ok(())
        });
        answer
    }

    /// Adds a candidate of the router that is not in its offer.
    fn add_candidate(&mut self, key: PeerKey, candidate: &str) {
        let Some(entry) = self.peers.get_mut(&key).filter(|entry| entry.candidates < sdp::CANDIDATES_MAX) else {
            return;
        };
        entry.candidates += 1;
        let candidate = match &self.config.candidate_map {
            Some(map) => sdp::map_candidate(candidate, map.as_ref()),
            None => candidate.to_owned(),
        };
        let Some(remote) = sdp::candidate(&candidate) else { return };
        let routes = Routes::find(&self.socket, self.config.advertise, &[remote]);
        routes.log(&self.socket);
        self.drive(key, |peer, _| {
            if let Err(error) = peer.add_candidate(&candidate, &routes.local) {
                tracing::debug!(%error, "a candidate of the media router is not used");
            }
            Ok(())
        });
    }

    /// Runs `act` on a peer, then processes the peer's output. A peer that fails or panics is removed; the others
    /// continue.
    fn drive(&mut self, key: PeerKey, act: impl FnOnce(&mut Peer, &mut Sink<'_>) -> Result<(), PeerError>) {
        let now = now();
        let Some(entry) = self.peers.get_mut(&key) else { return };
        let mut sink = Sink {
            socket: &self.socket,
            capture_key: entry.capture,
            capture: self.captures.get_mut(&entry.capture),
            stream: entry.stream,
            peer: key,
            outputs: &mut self.outputs,
            backlog: &mut self.backlog,
            keyframe_wanted: false,
            now,
        };
        let result = catch_panic(|| {
            act(&mut entry.peer, &mut sink)?;
            if sink.keyframe_wanted {
                entry.peer.request_keyframe();
            }
            entry.peer.tick(now, &mut sink)
        });
        if let Err(error) = result {
            self.lose_peer(key, error.to_string());
        }
    }

    fn receive(&mut self) {
        for _ in 0..BATCHES_A_TURN_MAX {
            let now = now();
            let wallclock = Wallclock::now();
            let advertise = self.config.advertise;
            let Self { socket, buffers, peers, by_address, captures, outputs, backlog, .. } = self;
            let socket = &*socket;
            let mut failed: Vec<(PeerKey, PeerError)> = Vec::new();
            let more = socket.receive(buffers, now, wallclock, |from, to, bytes, at| {
                // ICE knows the local side by the address that the router was told.
                let to = advertised(to, advertise);
                let Some(key) = find_peer(peers, by_address, from, to, bytes, at) else { return };
                let Some(entry) = peers.get_mut(&key) else { return };
                let mut sink = Sink {
                    socket,
                    capture_key: entry.capture,
                    capture: captures.get_mut(&entry.capture),
                    stream: entry.stream,
                    peer: key,
                    outputs,
                    backlog,
                    keyframe_wanted: false,
                    now,
                };
                let result = catch_panic(|| {
                    entry.peer.receive(from, to, bytes, at, &mut sink)?;
                    if sink.keyframe_wanted {
                        entry.peer.request_keyframe();
                        entry.peer.tick(now, &mut sink)?;
                    }
                    Ok(())
                });
                if let Err(error) = result {
                    failed.push((key, error));
                }
            });
            for (key, error) in failed {
                self.lose_peer(key, error.to_string());
            }
            match more {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(%error, "the media socket cannot be read");
                    return;
                }
            }
        }
    }

    fn tick(&mut self) {
        let now = now();
        let due: Vec<PeerKey> =
            self.peers.iter().filter(|(_, e)| e.peer.next_timeout <= now).map(|(key, _)| *key).collect();
        for key in due {
            self.drive(key, |_, _| Ok(()));
        }
        if now < self.next_rules_tick {
            return;
        }
        self.next_rules_tick = now + RULES_TICK;
        let (connect_max, disconnected_max) = (self.config.connect_max, self.config.disconnected_max);
        let dead: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, e)| e.peer.is_dead(now, connect_max, disconnected_max))
            .map(|(key, _)| *key)
            .collect();
        for key in dead {
            self.lose_peer(key, "no working network path".to_owned());
        }
        let mut wanted = Vec::new();
        self.watermarks.clear();
        for (capture_key, capture) in &mut self.captures {
            let at = capture.options.clock.at(now);
            let mut watermark = at;
            for (track, rules) in &mut capture.tracks {
                rules.tick(at, &mut self.outputs);
                watermark = watermark.min(rules.watermark(at));
                let stats = rules.take_stats();
                if forward(*capture_key, *track, &mut self.outputs, &mut self.backlog) {
                    wanted.push((*capture_key, track.stream));
                }
                self.backlog.push(LogEntry::stats(*capture_key, *track, stats));
            }
            capture.tell_starved(at);
            self.watermarks.push((*capture_key, watermark));
        }
        for (capture, stream) in wanted {
            let key = self.peers.iter().find(|(_, e)| e.capture == capture && e.stream == stream).map(|(key, _)| *key);
            if let Some(key) = key {
                self.drive(key, |peer, _| {
                    peer.request_keyframe();
                    Ok(())
                });
            }
        }
    }

    fn set_muted(&mut self, capture_key: CaptureKey, track: TrackId, muted: bool) {
        let Some(capture) = self.captures.get_mut(&capture_key) else { return };
        let at = capture.options.clock.at(now());
        if let Some(rules) = capture.tracks.get_mut(&track) {
            rules.set_publisher_muted(muted, at, &mut self.outputs);
            forward(capture_key, track, &mut self.outputs, &mut self.backlog);
        }
    }

    fn lose_peer(&mut self, key: PeerKey, reason: String) {
        if let Some(entry) = self.peers.get(&key)
            && let Some(capture) = self.captures.get(&entry.capture)
        {
            send_event(&capture.events, CaptureEvent::PeerLost { peer: key, reason });
        }
        self.remove_peer(key, GapCause::Router);
    }

    fn remove_peer(&mut self, key: PeerKey, cause: GapCause) {
        let Some(entry) = self.peers.remove(&key) else { return };
        self.by_address.retain(|_, k| *k != key);
        let Some(capture) = self.captures.get_mut(&entry.capture) else { return };
        let at = capture.options.clock.at(now());
        let kinds = entry.peer.kinds();
        let is_its = |track: &TrackId| track.stream == entry.stream && kinds.contains(&track.kind);
        for (track, rules) in capture.tracks.iter_mut().filter(|(track, _)| is_its(track)) {
            rules.source_lost(cause, at, &mut self.outputs);
            forward(entry.capture, *track, &mut self.outputs, &mut self.backlog);
        }
    }

    fn close(&mut self, key: CaptureKey, done: oneshot::Sender<()>) {
        let peers: Vec<PeerKey> = self.peers.iter().filter(|(_, e)| e.capture == key).map(|(k, _)| *k).collect();
        for peer in peers {
            self.remove_peer(peer, GapCause::Worker);
        }
        if let Some(mut capture) = self.captures.remove(&key) {
            for (track, rules) in &mut capture.tracks {
                self.backlog.push(LogEntry::stats(key, *track, rules.take_stats()));
            }
        }
        self.flush();
        // What a busy log thread could not take yet must come before its capture ends.
        if !self.backlog.is_empty() {
            let entries = std::mem::take(&mut self.backlog);
            self.send_to_log(LogCommand::Entries { entries, watermarks: Vec::new() });
        }
        self.send_to_log(LogCommand::Close { key, done });
    }

    /// Hands frames to the log thread. While that thread is busy they wait here, up to a limit.
    fn flush(&mut self) {
        if self.backlog.is_empty() && self.watermarks.is_empty() {
            return;
        }
        let (entries, watermarks) = (std::mem::take(&mut self.backlog), std::mem::take(&mut self.watermarks));
        match self.batches.try_send(LogCommand::Entries { entries, watermarks }) {
            Ok(()) => {}
            Err(std::sync::mpsc::TrySendError::Full(LogCommand::Entries { mut entries, .. })) => {
                if entries.len() > backlog::ENTRIES_MAX {
                    self.frames_lost(&backlog::give_up_frames(&mut entries));
                }
                // What became due meanwhile comes behind what waits already.
                entries.append(&mut self.backlog);
                self.backlog = entries;
            }
            Err(_) => tracing::error!("the log thread has ended"),
        }
    }

    /// Frames that could not be written are a gap of the storage, which ends with the next keyframe: the frames in between build on
    /// those that are lost.
    fn frames_lost(&mut self, lost: &BTreeMap<(CaptureKey, TrackId), LostFrames>) {
        for ((capture, track), LostFrames { from, count }) in lost {
            tracing::error!(%track, frames = count, "the disk is too slow, frames are lost until the next keyframe");
            if let Some(rules) = self.captures.get_mut(capture).and_then(|capture| capture.tracks.get_mut(track)) {
                rules.frames_lost(*from);
            }
        }
    }

    fn send_to_log(&self, command: LogCommand) {
        // Opening and closing must not be lost; they are rare, so waiting for the disk is right here.
        if self.batches.send(command).is_err() {
            tracing::error!("the log thread has ended");
        }
    }
}

fn find_peer(
    peers: &mut HashMap<PeerKey, PeerEntry>,
    by_address: &mut HashMap<SocketAddr, PeerKey>,
    from: SocketAddr,
    to: SocketAddr,
    bytes: &[u8],
    at: Instant,
) -> Option<PeerKey> {
    if let Some(key) = by_address.get(&from) {
        return Some(*key);
    }
    let (key, entry) = peers.iter_mut().find(|(_, e)| e.peer.accepts(from, to, bytes, at))?;
    entry.addresses.push(from);
    by_address.insert(from, *key);
    Some(*key)
}

/// A panic in one peer's code must not reach the others: it becomes that peer's error.
fn catch_panic<T>(act: impl FnOnce() -> Result<T, PeerError>) -> Result<T, PeerError> {
    catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|_| Err(PeerError::Broken { reason: "panic, see the log".to_owned() }))
}

fn now() -> Instant {
    Instant::now()
}
