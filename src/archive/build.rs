//! Builds an archive from a finished log: composed file, ZIP of individual files, manifest and report. Blocking, and safe to
//! repeat: files of an earlier attempt are overwritten, with the same result.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::coverage::{self, TrackCoverage};
use super::documents::{
    FileEntry, Manifest, ObjectEntry, Report, StreamEntry, StreamReport, TrackReport, VERSION, VonageFile,
    VonageManifest,
};
use super::individual::{self, Plan};
use super::object::{ArchiveDescriptor, Built, Object};
use super::{ArchiveError, StreamFiles, composed, zip};
pub use crate::compose::composer::Clip;
use crate::compose::composer::Composed;
use crate::media::Pipelines;
use crate::model::archive_options::{ArchiveOptions, OutputMode};
use crate::model::cancellable::Cancellable;
use crate::model::ids::{StreamId, TrackId};
use crate::model::media::{GapCause, MissingMedia, VideoType};
use crate::model::time::MediaTime;
use crate::recording::LogReader;
use crate::recording::history::{self, EventKind};
use crate::recording::reader::TrackIndex;
use crate::recording::spool;
use crate::rtp::clock::{Correction, TrackReports, corrections, session_offset};
use crate::store::keys::{Keys, Kind};

struct StreamHistory {
    router_id: Option<String>,
    name: Option<String>,
    connection_data: Option<String>,
    /// At all times.
    signed: bool,
    video_type: VideoType,
    present: Vec<(MediaTime, Option<MediaTime>)>,
    layers: Vec<(i64, Option<u32>, Option<u32>)>,
}

/// Builds the archive in `<archive dir>/out/`. `live_output` is the result of a composer that followed the session: its file
/// exists already.
///
/// # Errors
/// See [`ArchiveError`].
pub fn build(
    dir: &Path,
    descriptor: &ArchiveDescriptor,
    reason: &str,
    live_output: Option<Composed>,
    pipelines: &Pipelines,
    cancel: &CancellationToken,
) -> Result<Cancellable<Built>, ArchiveError> {
    build_with(dir, descriptor, reason, live_output, pipelines, pipelines, cancel)
}

/// The same, where `stream_files` makes the individual files.
///
/// # Errors
/// See [`ArchiveError`].
pub fn build_with(
    dir: &Path,
    descriptor: &ArchiveDescriptor,
    reason: &str,
    live_output: Option<Composed>,
    pipelines: &Pipelines,
    stream_files: &dyn StreamFiles,
    cancel: &CancellationToken,
) -> Result<Cancellable<Built>, ArchiveError> {
    let out = dir.join(spool::BUILT);
    std::fs::create_dir_all(&out).map_err(ArchiveError::io("created", &out))?;
    let log = LogReader::open_present(dir)?;
    let events = history::read(dir)?;
    let reports = log.tracks.iter().map(|index| TrackReports {
        track: index.track,
        reports: &index.reports,
        starts: &index.clock_starts,
    });
    let reports: Vec<TrackReports> = reports.collect();
    let (corrections, offset) = (corrections(&reports), session_offset(&reports));
    let all = individual::plan(&log.tracks, &corrections, &[], &ArchiveOptions::default());
    let begin = all.iter().map(|p| p.start).min().unwrap_or(MediaTime::ZERO);
    let end = all.iter().map(|p| p.end).max().unwrap_or(begin);
    let streams = streams_from_history(&events);
    let (mut objects, mut files, mut composed) = (Vec::new(), Vec::new(), None);
    let (mut thumbnails, mut undecodable) = (Vec::new(), BTreeSet::new());
    if descriptor.options.output_mode != OutputMode::Individual {
        let tracks: BTreeSet<TrackId> = log.tracks.iter().map(|track| track.track).collect();
        match composed::build_composed(dir, live_output, descriptor, &tracks, offset, pipelines, cancel) {
            Ok(Cancellable::Done(made)) => {
                objects.push(made.object);
                thumbnails = composed::thumbnail_objects(dir)?;
                (composed, undecodable) = (Some(made.entry), made.undecodable);
            }
            Ok(Cancellable::Cancelled) => return Ok(Cancellable::Cancelled),
            // The individual files hold the media as it came.
            Err(ArchiveError::Undecodable) if descriptor.options.output_mode == OutputMode::Both => {
                tracing::warn!("there is no composed file: {}", ArchiveError::Undecodable);
                undecodable = tracks;
            }
            Err(error) => return Err(error),
        }
    }
    if descriptor.options.output_mode != OutputMode::Composed {
        let plans = individual::plan(&log.tracks, &corrections, &events, &descriptor.options);
        for plan in &plans {
            if cancel.is_cancelled() {
                return Ok(Cancellable::Cancelled);
            }
            let made = stream_files.build(plan, &out, descriptor, cancel)?;
            let Cancellable::Done(made) = made else { return Ok(Cancellable::Cancelled) };
            files.extend(made);
        }
        objects.push(pack_zip(&out, descriptor, &plans, &files, &streams)?);
    }
    // The object that a presigned URL leads to comes first.
    objects.append(&mut thumbnails);
    let clipped = composed.as_ref().filter(|_| descriptor.clip.is_some());
    let (begin, duration_s) = match clipped {
        Some(composed) => (MediaTime::from_millis(composed.start_ms), composed.duration_s()),
        None => (begin, begin.until(end).as_secs_f64()),
    };
    let ended_at = descriptor.ended_at.map(|at| MediaTime::from_wallclock(at, descriptor.origin));
    let mut coverage = coverage::of_log(&log.tracks, &events, &descriptor.options, ended_at);
    coverage::correct(&mut coverage, &corrections);
    let mut report = build_report(descriptor, &log.tracks, &corrections, &streams, &events, &coverage);
    report.add_missing(coverage::of_lost_histories(&log.tracks, &events, &descriptor.options, ended_at).into_iter());
    report.add_missing(log.tracks.iter().filter(|track| undecodable.contains(&track.track)).filter_map(of_undecodable));
    let epochs = report.epochs_ms.iter().map(|(epoch, _)| epoch.0).max().unwrap_or(0);
    let keys = Keys::new(descriptor.application.clone(), descriptor.archive);
    let entry = |o: &Object| ObjectEntry {
        key: keys.key(o.kind),
        size: o.size,
        sha256: o.sha256.clone(),
        part_bytes: o.parts.as_ref().map(|parts| parts.part_bytes),
    };
    let manifest = Manifest {
        version: VERSION,
        archive_id: descriptor.archive,
        job_id: descriptor.job,
        session_id: descriptor.session.clone(),
        application_id: descriptor.application.clone(),
        name: descriptor.name.clone(),
        reason: reason.to_owned(),
        origin: descriptor.origin.to_rfc3339(),
        started_at: begin.to_wallclock(descriptor.origin).to_rfc3339(),
        duration_s,
        epochs,
        complete: report.complete,
        missing: report.missing.clone(),
        objects: objects.iter().map(entry).collect(),
        files,
        streams: streams.iter().map(|(id, stream)| stream_entry(*id, stream)).collect(),
        composed,
        revision: 1,
    };
    Ok(Cancellable::Done(Built { objects, manifest, report }))
}

/// The media of a log on this disk, over all tracks, in milliseconds. Blocking.
///
/// # Errors
/// When the log cannot be read.
pub fn captured_ms(dir: &Path) -> Result<i64, ArchiveError> {
    Ok(coverage::captured_ms(&LogReader::open_present(dir)?.tracks))
}

/// A track that a composed archive lacks because it cannot be decoded.
fn of_undecodable(track: &TrackIndex) -> Option<MissingMedia> {
    let (start, end) = (track.start()?, track.end()?);
    Some(MissingMedia {
        stream_id: track.track.stream,
        kind: track.track.kind,
        cause: GapCause::Unsupported,
        duration_ms: end.as_millis() - start.as_millis(),
        details: vec![
            "the composed file lacks it, because it cannot be decoded: it is encrypted end to end, or damaged"
                .to_owned(),
        ],
    })
}

fn stream_entry(stream_id: StreamId, stream: &StreamHistory) -> StreamEntry {
    StreamEntry {
        stream_id,
        name: stream.name.clone(),
        connection_data: stream.connection_data.clone(),
        video_type: stream.video_type,
        signed: stream.signed,
    }
}

/// Packs the files into the ZIP, with Vonage's manifest.
fn pack_zip(
    out: &Path,
    descriptor: &ArchiveDescriptor,
    plans: &[Plan],
    files: &[FileEntry],
    streams: &BTreeMap<StreamId, StreamHistory>,
) -> Result<Object, ArchiveError> {
    let begin = plans.iter().map(|p| p.start).min().unwrap_or(MediaTime::ZERO);
    let vonage = vonage_manifest(descriptor, begin, files, streams);
    let document = serde_json::to_vec_pretty(&vonage).expect("plain data");
    let names: Vec<String> = files.iter().map(|f| f.name.clone()).collect();
    let path = out.join("archive.zip");
    let manifest_name = format!("{}.json", descriptor.archive);
    zip::write(&path, out, &names, (&manifest_name, &document))?;
    zip::check(&path, &[names, vec![manifest_name]].concat())?;
    let (sha256, size) = zip::sha256(&path)?;
    Ok(Object { kind: Kind::Zip, path, size, sha256, parts: None })
}

/// The streams that a job's history names.
fn streams_from_history(events: &[history::Event]) -> BTreeMap<StreamId, StreamHistory> {
    let mut streams: BTreeMap<StreamId, StreamHistory> = BTreeMap::new();
    for event in events {
        match &event.kind {
            EventKind::Stream { stream, router_id, name, connection_data, signed, video_type } => {
                let entry = streams.entry(*stream).or_insert_with(|| StreamHistory {
                    router_id: None,
                    name: None,
                    connection_data: None,
                    signed: true,
                    // Vonage's manifest has the type that a stream had at first.
                    video_type: *video_type,
                    present: Vec::new(),
                    layers: Vec::new(),
                });
                entry.router_id = Some(router_id.clone());
                entry.name.clone_from(name);
                entry.connection_data.clone_from(connection_data);
                entry.signed &= signed;
                if entry.present.last().is_none_or(|(_, end)| end.is_some()) {
                    entry.present.push((event.at, None));
                }
            }
            EventKind::StreamGone { stream } => {
                if let Some((_, end @ None)) = streams.get_mut(stream).and_then(|s| s.present.last_mut()) {
                    *end = Some(event.at);
                }
            }
            EventKind::Layer { stream, spatial, temporal } => {
                if let Some(entry) = streams.get_mut(stream) {
                    entry.layers.push((event.at.as_millis(), *spatial, *temporal));
                }
            }
            EventKind::EpochBegan { .. }
            | EventKind::Joined
            | EventKind::Left
            | EventKind::Unseen { .. }
            | EventKind::Tracks { .. }
            | EventKind::Capture { .. }
            | EventKind::Encrypted { .. }
            | EventKind::Muted { .. }
            | EventKind::Layout { .. }
            | EventKind::Classes { .. }
            | EventKind::StreamMode { .. }
            | EventKind::Selected { .. }
            | EventKind::RouterLost
            | EventKind::RouterBack
            | EventKind::Ended { .. } => {}
        }
    }
    streams
}

fn vonage_manifest(
    descriptor: &ArchiveDescriptor,
    begin: MediaTime,
    files: &[FileEntry],
    streams: &BTreeMap<StreamId, StreamHistory>,
) -> VonageManifest {
    let file = |f: &FileEntry| {
        let stream = streams.get(&f.stream_id);
        VonageFile {
            connection_data: stream.and_then(|p| p.connection_data.clone()).unwrap_or_default(),
            filename: f.name.clone(),
            size: f.size,
            start_time_offset: f.start_ms - begin.as_millis(),
            stop_time_offset: f.end_ms - begin.as_millis(),
            stream_id: f.stream_id,
            video_type: stream.map(|p| p.video_type).unwrap_or_default(),
        }
    };
    VonageManifest {
        created_at: begin.to_wallclock(descriptor.origin).as_millis(),
        id: descriptor.archive,
        name: descriptor.name.clone().unwrap_or_default(),
        application_id: descriptor.application.clone(),
        partner_id: descriptor.application.as_str().parse().ok(),
        session_id: descriptor.session.clone(),
        files: files.iter().map(file).collect(),
    }
}

fn build_report(
    descriptor: &ArchiveDescriptor,
    tracks: &[TrackIndex],
    corrections: &BTreeMap<TrackId, Correction>,
    streams: &BTreeMap<StreamId, StreamHistory>,
    events: &[history::Event],
    coverage: &BTreeMap<TrackId, TrackCoverage>,
) -> Report {
    let mut ids: Vec<StreamId> = streams.keys().copied().chain(coverage.keys().map(|track| track.stream)).collect();
    ids.sort_unstable();
    ids.dedup();
    let of_track = |(id, covered): (&TrackId, &TrackCoverage)| {
        let log = tracks.iter().find(|track| track.track == *id);
        let report = log.map_or_else(|| TrackReport::of_nothing(id.kind), |track| track_report(track, corrections));
        let announced_codec = Some(covered.codec.clone()).filter(|codec| !codec.is_empty());
        TrackReport { announced_codec, details: covered.details.clone(), gaps: covered.gaps.clone(), ..report }
    };
    let last = events.last().map_or(MediaTime::ZERO, |e| e.at);
    let stream = |id: &StreamId| {
        let stream = streams.get(id);
        let present = stream.map_or(&[][..], |p| &p.present);
        StreamReport {
            stream_id: *id,
            router_id: stream.and_then(|p| p.router_id.clone()),
            name: stream.and_then(|p| p.name.clone()),
            video_type: stream.map(|p| p.video_type).unwrap_or_default(),
            present_ms: present.iter().map(|(a, b)| (a.as_millis(), b.unwrap_or(last).as_millis())).collect(),
            tracks: coverage.iter().filter(|(track, _)| track.stream == *id).map(of_track).collect(),
            layers: stream.map(|p| p.layers.clone()).unwrap_or_default(),
        }
    };
    let gap_s = coverage.values().flat_map(|track| &track.gaps).map(|g| g.from.until(g.to).as_secs_f64()).sum();
    let missing = coverage::lacking(coverage);
    let epoch = |e: &history::Event| match e.kind {
        EventKind::EpochBegan { epoch, .. } => Some((epoch, e.at.as_millis())),
        _ => None,
    };
    Report {
        version: VERSION,
        archive_id: descriptor.archive,
        streams: ids.iter().map(stream).collect(),
        complete: Some(missing.is_empty()),
        missing,
        gap_s,
        epochs_ms: events.iter().filter_map(epoch).collect(),
    }
}

#[allow(clippy::cast_precision_loss)]
fn track_report(track: &TrackIndex, corrections: &BTreeMap<TrackId, Correction>) -> TrackReport {
    let correction = corrections.get(&track.track).cloned().unwrap_or_default();
    let (start, end) = (track.start().unwrap_or_default(), track.end().unwrap_or_default());
    let (mut codecs, mut sizes) = (Vec::new(), Vec::new());
    for segment in track.segments.iter().filter(|s| !s.parts.is_empty()) {
        let format = &segment.format;
        if codecs.last() != Some(&format.codec) {
            codecs.push(format.codec);
        }
        let at = segment.parts.first().map_or(0, |p| correction.apply(p.from).as_millis());
        if format.width > 0 && sizes.last().is_none_or(|(_, w, h)| (*w, *h) != (format.width, format.height)) {
            sizes.push((at, format.width, format.height));
        }
    }
    let mut frames = track.frames();
    let damaged_parts = if track.segments.iter().all(|s| s.sealed.is_some()) {
        0
    } else {
        frames.by_ref().for_each(drop);
        frames.damaged_parts()
    };
    let ms = |at: MediaTime| correction.at(at) as f64 / 1e6;
    TrackReport {
        kind: track.track.kind,
        announced_codec: None,
        details: Vec::new(),
        codecs,
        sizes,
        start_ms: correction.apply(start).as_millis(),
        end_ms: correction.apply(end).as_millis(),
        stats: track.stats,
        gaps: Vec::new(),
        correction_ms: (ms(start), ms(end)),
        sender_reports: (correction.used, correction.refused),
        damaged_parts,
    }
}
