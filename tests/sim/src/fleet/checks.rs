//! What must be true when a simulation has settled.

use std::collections::BTreeMap;
use std::io::Read;

use archiver::archive::documents::{Manifest, Report};
use archiver::catalog::{JobRow, JobState};
use archiver::model::ids::{StreamId, TrackKind};
use archiver::model::media::{Gap, GapCause};
use archiver::model::time::{MediaTime, Wallclock};
use archiver::store::keys::{Keys, Kind};

use super::files::{self, ArchivedFrame};
use super::publishers::{FrameId, Publication};
use super::script::{Disturbs, MACHINES, Script};
use super::{Fleet, Millis, session_id};

/// A gap's ends may be wrong by this much: a second of Opus, or two pictures, and the time of a connection.
const EDGE: Millis = 500;
/// A worker that works for so long without a break sends what it has: it looks through its spool every 15 s.
const SHIPPED_WITHIN: Millis = 25_000;
/// What is missing at the edge of an announcement is put down to signalling.
const SIGNALLING: Millis = 1_100;
/// An event that is 10 s old is not late, nor is a worker that joins two seconds after that.
const UNTOLD: Millis = 12_500;
/// Somebody who publishes for so long is captured, or told of: a router that could not be reached is told of from 30 s on.
const NEVER_UNTOLD: Millis = 34_000;

/// A session for which a worker has a place is captured within this, once somebody publishes in it.
const CAPTURED_WITHIN: Millis = 8_000;

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Violation {
    /// An event was sent and there is no job.
    NoJob { session: String },
    /// A job has not become available.
    NotAvailable { session: String, state: String, detail: String },
    /// An object of an archive is not in the store, or not right.
    Object { session: String, what: String },
    /// Frames are twice in an archive.
    Twice { session: String, frames: String },
    /// Frames are not in their order.
    OutOfOrder { session: String, frames: String },
    /// Frames were sent, are not in the archive, and no gap tells.
    Silent { session: String, frames: String },
    /// Frames were sent, and a gap says that nothing was.
    SaidNotSent { session: String, frames: String },
    /// Frames lie elsewhere than they were sent.
    Displaced { session: String, frames: String },
    /// An archive lacks media, and says that it is complete.
    SaidComplete { session: String },
    /// An archive has all media, and says that it lacks some.
    SaidIncomplete { session: String, missing: String },
    /// A gap says that media was lost where none is missing.
    FalselyTold { session: String, gaps: String },
    /// Frames were on a disk that was not lost, and are not in the archive.
    Lost { session: String, frames: String },
    /// A session was captured late or not at all, although a worker had a place for it.
    Late { session: String, what: String },
    /// A session changed its owner for no reason.
    Stolen { session: String, epochs: u32 },
    /// Something is left where nothing should be.
    LeftOver { what: String },
}

/// An archive as it is in the store.
struct Archived {
    manifest: Manifest,
    report: Report,
    frames: Vec<ArchivedFrame>,
}

impl Fleet {
    /// All that is wrong.
    pub(super) fn violations(&self, script: &Script) -> Vec<Violation> {
        let mut found = Vec::new();
        for session in &script.sessions {
            self.check_session(session, &mut found);
            self.check_place(session, script, &mut found);
            self.check_owner(session, script, &mut found);
        }
        self.check_left_over(&mut found);
        found
    }

    fn check_session(&self, session: &str, found: &mut Vec<Violation>) {
        let name = || session.to_owned();
        let Some(job) = self.job(session) else { return found.push(Violation::NoJob { session: name() }) };
        if matches!(job.state, JobState::Empty | JobState::Waiting) && !self.is_captured(session) {
            return;
        }
        if job.state != JobState::Available {
            let (state, detail) = (job.state.as_str().to_owned(), format!("{:?}", job.detail));
            return found.push(Violation::NotAvailable { session: name(), state, detail });
        }
        let archived = match self.archived(&job) {
            Ok(archived) => archived,
            Err(what) => return found.push(Violation::Object { session: name(), what }),
        };
        self.check_order(session, &archived, found);
        let room = super::room(session);
        let mut all = Checked { lacks_nothing_told: true, has_all: true };
        for publication in self.publishers.all().into_iter().filter(|publication| publication.room == room) {
            for kind in [TrackKind::Audio, TrackKind::Video] {
                let track =
                    Track { fleet: self, session, job: &job, archived: &archived, publication: &publication, kind };
                let checked = track.check(found);
                all.lacks_nothing_told &= checked.lacks_nothing_told;
                all.has_all &= checked.has_all;
            }
        }
        let Manifest { complete, missing, .. } = &archived.manifest;
        if !all.lacks_nothing_told && *complete != Some(false) {
            found.push(Violation::SaidComplete { session: name() });
        }
        // Nobody knows what was there in a time of which no history is left.
        let is_known = missing.iter().all(|one| one.stream_id != StreamId::UNKNOWN);
        if all.has_all && *complete == Some(false) && is_known {
            let missing = missing.iter().map(|one| format!("{} {} ms", one.cause.as_str(), one.duration_ms));
            let missing = missing.collect::<Vec<_>>().join(", ");
            found.push(Violation::SaidIncomplete { session: name(), missing });
        }
    }

    /// A session for which a worker had a place was captured soon, whether the store was there or not.
    fn check_place(&self, session: &str, script: &Script, found: &mut Vec<Violation>) {
        let room = super::room(session);
        let (all, start) = (self.publishers.all(), script.span(session).map(|(start, _)| start));
        let published = all.iter().filter(|publication| publication.room == room).min_by_key(|one| one.from);
        let (Some(published), Some(start)) = (published, start) else { return };
        let (from, until) = (published.from.max(start), published.from.max(start) + CAPTURED_WITHIN);
        let has_left = published.to.is_some_and(|left| left < until);
        let is_calm = script.has_only(&[Disturbs::Delivery, Disturbs::Nothing], from, until);
        if has_left || !is_calm || script.running(from, until) > MACHINES * script.capacity {
            return;
        }
        let frames = published.sent(TrackKind::Audio, None, until);
        let first =
            frames.iter().filter_map(|frame| self.publishers.holders(*frame).first().map(|holder| holder.at)).min();
        if first.is_none_or(|first| first > until) {
            let what = format!("published at {from}, captured at {first:?} ms");
            found.push(Violation::Late { session: session.to_owned(), what });
        }
    }

    /// Neither wrong clocks nor a broker that is away take a session from its worker.
    fn check_owner(&self, session: &str, script: &Script, found: &mut Vec<Violation>) {
        let epochs = self.job(session).map_or(0, |job| job.epoch.0);
        if script.keeps_owners() && epochs > 1 {
            found.push(Violation::Stolen { session: session.to_owned(), epochs });
        }
    }

    /// Whether a session's archive says that it lacks nothing.
    pub(super) fn is_complete(&self, session: &str) -> bool {
        let archived = self.job(session).map(|job| self.archived(&job));
        matches!(archived, Some(Ok(archived)) if archived.manifest.complete == Some(true))
    }

    /// Which making of a session's archive is in the store.
    pub(super) fn revision(&self, session: &str) -> Option<i64> {
        self.archived(&self.job(session)?).ok().map(|archived| archived.manifest.revision)
    }

    /// Whether anything of a session was ever on a disk.
    fn is_captured(&self, session: &str) -> bool {
        let room = super::room(session);
        let of_it = self.publishers.all().into_iter().filter(|publication| publication.room == room);
        let frames = of_it.flat_map(|publication| publication.sent(TrackKind::Audio, None, self.now));
        frames.into_iter().any(|frame| !self.publishers.holders(frame).is_empty())
    }

    fn check_order(&self, session: &str, archived: &Archived, found: &mut Vec<Violation>) {
        let mut last: BTreeMap<(u32, TrackKind), u32> = BTreeMap::new();
        let (mut twice, mut out_of_order) = (Vec::new(), Vec::new());
        let mut seen: BTreeMap<FrameId, u32> = BTreeMap::new();
        for ArchivedFrame { frame, .. } in &archived.frames {
            let times = seen.entry(*frame).or_default();
            *times += 1;
            if *times == 2 {
                twice.push(*frame);
            }
            let before = last.insert((frame.publication, frame.kind), frame.n);
            if before.is_some_and(|before| before > frame.n) {
                out_of_order.push(*frame);
            }
        }
        let session = session.to_owned();
        if !twice.is_empty() {
            found.push(Violation::Twice { session: session.clone(), frames: runs(&twice) });
        }
        if !out_of_order.is_empty() {
            found.push(Violation::OutOfOrder { session, frames: runs(&out_of_order) });
        }
    }

    /// Reads an archive from the store.
    fn archived(&self, job: &JobRow) -> Result<Archived, String> {
        let keys = Keys::new(job.application.clone(), job.archive);
        let object = |kind: Kind| {
            let key = keys.key(kind);
            self.store.bytes(&key).ok_or_else(|| format!("{key} is missing"))
        };
        let manifest: Manifest = serde_json::from_slice(&object(Kind::Manifest)?).map_err(|e| e.to_string())?;
        let report: Report = serde_json::from_slice(&object(Kind::Report)?).map_err(|e| e.to_string())?;
        let zip = std::io::Cursor::new(object(Kind::Zip)?);
        let mut zip = zip::ZipArchive::new(zip).map_err(|e| e.to_string())?;
        let mut frames = Vec::new();
        for file in &manifest.files {
            let mut text = String::new();
            let mut entry = zip.by_name(&file.name).map_err(|e| e.to_string())?;
            entry.read_to_string(&mut text).map_err(|e| e.to_string())?;
            frames.extend(files::read(&text)?);
        }
        Ok(Archived { manifest, report, frames })
    }

    fn check_left_over(&self, found: &mut Vec<Violation>) {
        let mut left = |what: String| found.push(Violation::LeftOver { what });
        for machine in &self.machines {
            for entry in std::fs::read_dir(machine.spool()).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.path().is_dir() && entry.path().join("job.json").exists() {
                    left(format!("{} in the spool of {}", name, machine.name()));
                }
            }
        }
        for queue in [format!("started.{}", super::REGION), format!("ended.{}", super::REGION), "dead".to_owned()] {
            if self.rabbit.waiting(&queue) > 0 {
                left(format!("messages in {queue}"));
            }
        }
        let pending = self.world.block_on(archiver::store::ObjectStore::pending_uploads(&self.store, ""));
        let pending = pending.expect("this handle has no faults");
        if !pending.is_empty() {
            left(format!("{} uploads", pending.len()));
        }
    }
}

/// What a track's frames say.
#[derive(Clone, Copy)]
struct Checked {
    /// No gap tells of a frame that is missing.
    lacks_nothing_told: bool,
    /// Every frame that was sent is in the archive.
    has_all: bool,
}

/// One track of one publication.
struct Track<'a> {
    fleet: &'a Fleet,
    session: &'a str,
    job: &'a JobRow,
    archived: &'a Archived,
    publication: &'a Publication,
    kind: TrackKind,
}

impl Track<'_> {
    /// Checks each frame that was sent.
    fn check(&self, found: &mut Vec<Violation>) -> Checked {
        let until = self.publication.to.unwrap_or(self.fleet.now);
        let sent = self.publication.sent(self.kind, None, until);
        let first = sent.iter().filter_map(|frame| self.fleet.publishers.holders(*frame).first().map(|h| h.at)).min();
        let Some(first) = first else { return self.check_never_captured(&sent, found) };
        let archived: BTreeMap<FrameId, MediaTime> =
            self.archived.frames.iter().map(|archived| (archived.frame, archived.pts)).collect();
        let gaps = self.gaps();
        let (mut silent, mut not_sent, mut lost, mut displaced) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        self.check_gaps(&sent, &archived, &gaps, found);
        let (mut is_complete, mut has_all) = (true, true);
        for frame in sent {
            let at = self.publication.sent_at(frame);
            if let Some(pts) = archived.get(&frame) {
                let archived_at = pts.to_wallclock(self.job.origin);
                if distance(archived_at, self.fleet.timeline.wallclock(at)) > EDGE {
                    displaced.push(frame);
                }
                continue;
            }
            has_all = false;
            // The last moments before an end are on the way.
            if (at < first && first <= at + UNTOLD) || at + SIGNALLING > until {
                continue;
            }
            if self.must_be_archived(frame) {
                lost.push(frame);
            }
            let within = |edge: i64| {
                gaps.iter().filter(move |gap| {
                    self.starts(gap) - edge <= at.cast_signed() && at.cast_signed() <= self.ends(gap) + edge
                })
            };
            let causes: Vec<GapCause> = within(EDGE.cast_signed()).map(|gap| gap.cause).collect();
            match causes.iter().any(|cause| *cause != GapCause::NotSent) {
                true => is_complete = false,
                false if causes.is_empty() && self.is_unknown() => is_complete = false,
                false if causes.is_empty() => silent.push(frame),
                // Well inside of it.
                false if within(-SIGNALLING.cast_signed()).next().is_some() => not_sent.push(frame),
                false => {}
            }
        }
        let session = || self.session.to_owned();
        if !silent.is_empty() {
            found.push(Violation::Silent { session: session(), frames: self.told(&silent) });
        }
        if !not_sent.is_empty() {
            found.push(Violation::SaidNotSent { session: session(), frames: self.told(&not_sent) });
        }
        if !lost.is_empty() {
            found.push(Violation::Lost { session: session(), frames: self.told(&lost) });
        }
        if !displaced.is_empty() {
            found.push(Violation::Displaced { session: session(), frames: self.told(&displaced) });
        }
        // What is told of the time in which a publisher came or left while nobody was there is no mistake.
        let is_unseen = gaps.iter().filter(|gap| gap.cause.is_loss()).any(|gap| self.comes_or_leaves_unseen(gap));
        Checked { lacks_nothing_told: is_complete, has_all: has_all && !is_unseen }
    }

    /// Checks a track of which no worker has anything: a gap tells of it, unless it was short.
    fn check_never_captured(&self, sent: &[FrameId], found: &mut Vec<Violation>) -> Checked {
        let until = self.publication.to.unwrap_or(self.fleet.now);
        let is_told = self.gaps().iter().any(|gap| gap.cause.is_loss()) || self.is_unknown();
        let is_long = until >= self.publication.from + NEVER_UNTOLD;
        if is_long && !is_told {
            found.push(Violation::Silent { session: self.session.to_owned(), frames: self.told(sent) });
        }
        Checked { lacks_nothing_told: !is_told, has_all: false }
    }

    /// Checks that well inside of each gap that tells of a loss frames are missing, and none is there.
    fn check_gaps(
        &self,
        sent: &[FrameId],
        archived: &BTreeMap<FrameId, MediaTime>,
        gaps: &[Gap],
        found: &mut Vec<Violation>,
    ) {
        let is_false = |gap: &&Gap| {
            let (from, to) = (self.starts(gap) + EDGE.cast_signed(), self.ends(gap) - EDGE.cast_signed());
            let inside = |frame: &&FrameId| (from..to).contains(&self.publication.sent_at(**frame).cast_signed());
            let mut inside = sent.iter().filter(inside).peekable();
            let is_long = to - from >= SIGNALLING.cast_signed();
            let is_nothing = inside.peek().is_none() && !self.comes_or_leaves_unseen(gap);
            // Nothing is missing of the time before the session started.
            let is_before = self.starts(gap) + EDGE.cast_signed() < self.started();
            is_before || is_long && (is_nothing || inside.any(|frame| archived.contains_key(frame)))
        };
        let told: Vec<String> =
            gaps.iter().filter(|gap| gap.cause.is_loss()).filter(is_false).map(|gap| self.gap(gap)).collect();
        if !told.is_empty() {
            let id = format!("{} of publication {}: ", self.kind.as_str(), self.publication.number);
            found.push(Violation::FalselyTold { session: self.session.to_owned(), gaps: id + &told.join(", ") });
        }
    }

    /// When the session started, by its event.
    fn started(&self) -> i64 {
        let started_at = self.job.spec().ok().and_then(|spec| spec.started_at);
        started_at.map_or(i64::MIN, |at| (at.0 - self.fleet.timeline.start.0) / 1_000)
    }

    /// Whether the publisher may have come or left in a gap: if nobody was there, nobody saw when.
    fn comes_or_leaves_unseen(&self, gap: &Gap) -> bool {
        let within = self.starts(gap) - EDGE.cast_signed()..=self.ends(gap);
        let came_and_left = [Some(self.publication.from), self.publication.to];
        came_and_left.into_iter().flatten().any(|at| within.contains(&at.cast_signed()))
    }

    fn gap(&self, gap: &Gap) -> String {
        format!("{:.1}–{:.1} {}", self.starts(gap) as f64 / 1e3, self.ends(gap) as f64 / 1e3, gap.cause.as_str())
    }

    fn told(&self, frames: &[FrameId]) -> String {
        let (first, last) = (frames[0], frames[frames.len() - 1]);
        let at = |frame| self.publication.sent_at(frame) as f64 / 1e3;
        let gaps: Vec<String> = self.gaps().iter().map(|gap| self.gap(gap)).collect();
        format!("{}, sent from {:.1} to {:.1} s; gaps: {}", runs(frames), at(first), at(last), gaps.join(", "))
    }

    fn gaps(&self) -> Vec<Gap> {
        let stream = StreamId::of_router(&session_id(self.session), &self.publication.router_id);
        let reports = self.archived.report.streams.iter().filter(|report| report.stream_id == stream);
        let tracks = reports.flat_map(|report| &report.tracks).filter(|track| track.kind == self.kind);
        tracks.flat_map(|track| track.gaps.clone()).collect()
    }

    /// Whether the archive says that it does not know of some stream, and this one may be it.
    fn is_unknown(&self) -> bool {
        let stream = StreamId::of_router(&session_id(self.session), &self.publication.router_id);
        let Archived { manifest, report, .. } = self.archived;
        manifest.missing.iter().any(|missing| missing.stream_id == StreamId::UNKNOWN)
            && report.streams.iter().all(|report| report.stream_id != stream)
    }

    fn millis(&self, at: MediaTime) -> i64 {
        (at.to_wallclock(self.job.origin).0 - self.fleet.timeline.start.0) / 1_000
    }

    fn starts(&self, gap: &Gap) -> i64 {
        self.millis(gap.from)
    }

    fn ends(&self, gap: &Gap) -> i64 {
        self.millis(gap.to)
    }

    /// Whether a worker that has the frame on its disk worked long enough to send it, or ended as it should. What comes after the archive was
    /// made is added to it.
    fn must_be_archived(&self, frame: FrameId) -> bool {
        let now = self.fleet.now;
        self.fleet.publishers.holders(frame).iter().any(|holder| {
            let machine = &self.fleet.machines[holder.machine];
            machine.worked_since(holder.at, now) >= SHIPPED_WITHIN || machine.has_left_nothing_since(holder.at)
        })
    }
}

fn distance(a: Wallclock, b: Wallclock) -> Millis {
    Millis::try_from(a.since(b).max(b.since(a)).as_millis()).unwrap_or(Millis::MAX)
}

/// Frames as runs of numbers.
fn runs(frames: &[FrameId]) -> String {
    let mut runs: Vec<(FrameId, u32)> = Vec::new();
    for frame in frames {
        match runs.last_mut() {
            Some((first, last))
                if first.kind == frame.kind && first.publication == frame.publication && *last + 1 == frame.n =>
            {
                *last = frame.n;
            }
            _ => runs.push((*frame, frame.n)),
        }
    }
    let run = |(first, last): &(FrameId, u32)| {
        format!("{} of publication {}: {}–{last}", first.kind.as_str(), first.publication, first.n)
    };
    let told: Vec<String> = runs.iter().take(4).map(run).collect();
    format!("{} frames ({}{})", frames.len(), told.join(", "), if runs.len() > 4 { ", …" } else { "" })
}
