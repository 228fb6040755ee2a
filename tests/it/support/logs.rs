//! A log of one video track, written as the capture does, and what is made of it without a worker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use archiver::archive::build::build;
use archiver::archive::documents::FileEntry;
use archiver::compose::composer::{Composed, Options, compose};
use archiver::compose::geometry::Size;
use archiver::compose::log_follower::ProgressReceiver;
use archiver::media::Pipelines;
use archiver::model::ids::{Epoch, TrackId, TrackKind};
use archiver::model::layout::Layout;
use archiver::model::media::{Frame, TrackFormat};
use archiver::recording::spool::Spool;
use archiver::recording::{LogOptions, TrackLog};
use tokio_util::sync::CancellationToken;

/// A frame, behind its format if that changes.
pub type Item = (Option<TrackFormat>, Frame);

/// The stream's id.
pub const STREAM: &str = "00000000-0000-4000-8000-000000000001";

/// Adds a track to the log `archive` in a folder, with a segment sealed after every so many frames.
pub fn add_track(dir: &Path, track: TrackId, items: &[Item], segment: usize) {
    let spool = Arc::new(Spool::open(dir, 1 << 30, 70).expect("spool"));
    let opened = TrackLog::open(&dir.join("archive"), track, Epoch(1), LogOptions::default(), spool);
    let (mut log, _) = opened.expect("log");
    for (n, (format, frame)) in items.iter().enumerate() {
        if let Some(format) = format {
            log.format(format).expect("format");
        }
        if n > 0 && n % segment == 0 {
            log.seal().expect("seal");
        }
        log.frame(frame).expect("frame");
    }
    log.seal().expect("seal");
}

/// The log of one stream.
pub struct Log {
    pub dir: tempfile::TempDir,
}

impl Log {
    /// Writes frames as the capture does, with a segment sealed after every so many of them.
    pub fn of(video: &[Item], segment: usize) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let track = TrackId { stream: STREAM.parse().expect("id"), kind: TrackKind::Video };
        add_track(dir.path(), track, video, segment);
        Self { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    /// The one file of the stream.
    pub fn individual(&self) -> (PathBuf, FileEntry) {
        let descriptor = super::archives::individual(
            "00000000-0000-4000-8000-000000000002".parse().expect("id"),
            "s".parse().expect("id"),
        );
        let cancel = CancellationToken::new();
        let built = build(&self.path(), &descriptor, "session ended", None, &super::archives::pipelines(), &cancel);
        let files = built.expect("build").done().expect("nothing cancels it").manifest.files;
        let [file] = files.as_slice() else { panic!("{files:?}") };
        assert!(!file.raw, "{file:?}");
        (self.path().join("out").join(&file.name), file.clone())
    }

    /// Composes it, 320x240 and without sound.
    pub fn composed(&self, rate: u32, log_progress: ProgressReceiver) -> (PathBuf, Composed) {
        self.composed_with(rate, log_progress, &|_| {})
    }

    /// The same. `made` gets the number of frames made, repeatedly.
    pub fn composed_with(
        &self,
        rate: u32,
        log_progress: ProgressReceiver,
        made: &(dyn Fn(u64) + Sync),
    ) -> (PathBuf, Composed) {
        let options = Options {
            size: Size { width: 320, height: 240 },
            rate,
            layout: Layout::default(),
            video: true,
            audio: false,
            quantizer: None,
            bitrate_max: None,
            seconds_max: 60,
            clip: None,
            ignore_layout_history: false,
            excluded: std::collections::BTreeSet::new(),
        };
        let (out, cancel) = (self.dir.path().join("composed.mp4"), CancellationToken::new());
        let composed =
            compose(&self.path(), &out, &options, &Pipelines::default(), log_progress, &cancel, &|frames, _| {
                made(frames);
            });
        (out, composed.expect("compose").done().expect("nothing cancels it"))
    }
}
