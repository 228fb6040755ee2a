//! The composer of a session while it is captured: follows the log, and has little left to do at the end. What it has
//! written goes to the store meanwhile.

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Job;
use crate::archive::composed;
use crate::archive::object::journal;
use crate::compose::composer::Composed;
use crate::compose::process;
use crate::compose::process::{ChildError, LiveLog};
use crate::media::Pipelines;
use crate::model::archive_options::OutputMode;
use crate::model::cancellable::Cancellable;
use crate::model::fault::chain;
use crate::model::time::MediaTime;
use crate::store::keys::Kind;
use crate::store::streaming_upload;
use crate::store::streaming_upload::GrowingFile;

/// A file may lack this many frames that came when their time in the file was over: beyond it the file is made again.
const LATE_MAX: u64 = 50;

/// A composer under way.
pub(super) struct Composing {
    /// How far the log is complete.
    watermark: watch::Sender<MediaTime>,
    cancel: CancellationToken,
    running: JoinHandle<Result<Cancellable<Composed>, ChildError>>,
    /// Sends the file while it grows, until this is cancelled.
    sending: TaskTracker,
    written: CancellationToken,
}

impl Composing {
    /// Starts a composer if the archive is to have a composed file. `watermark` tells it how the log grows.
    pub(super) fn start(job: &Job, watermark: watch::Sender<MediaTime>) -> Option<Self> {
        let wanted = &job.spec.archive;
        if wanted.output_mode == OutputMode::Individual {
            return None;
        }
        let section = &job.context.settings.pipelines;
        let pipelines = Pipelines::new(section.dir.clone(), section.stall.0);
        let (dir, cancel, begun) = (job.dir.clone(), job.given_up.child_token(), watch::Sender::new(0));
        let longest = job.context.settings.limits.recorded_max.0;
        let (options, cancelled) = (composed::options(wanted, longest), cancel.clone());
        let (output, path) = (options.output(), composed::path(&job.dir));
        let file = GrowingFile {
            key: job.keys.key(Kind::Mp4),
            journal: journal(&path),
            path,
            content_type: Kind::Mp4.content_type(),
            part_bytes: job.context.settings.store.part_size.0,
            final_range: Box::new(move |len| output.final_range(len)),
            starts: begun.subscribe(),
        };
        let (sending, written) = (TaskTracker::new(), CancellationToken::new());
        let (store, stop, end) = (std::sync::Arc::clone(&job.context.store), cancel.clone(), written.clone());
        sending
            .spawn(async move { stop.run_until_cancelled(streaming_upload::send(store.as_ref(), &file, &end)).await });
        sending.close();
        let live_log = LiveLog { watermark: watermark.subscribe(), starts: begun };
        let work = move || {
            let out = composed::path(&dir);
            out.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(ChildError::Start)?;
            process::run(&dir, &out, &options, &pipelines, Some(&live_log), &cancelled)
        };
        Some(Self { watermark, cancel, running: tokio::task::spawn_blocking(work), sending, written })
    }

    /// The session has ended, and its log is complete: waits for the file. `None` when it must be made anew.
    pub(super) async fn end(self) -> Option<Composed> {
        self.watermark.send_replace(MediaTime(i64::MAX));
        let ended = self.running.await;
        self.written.cancel();
        self.sending.wait().await;
        match ended {
            Ok(Ok(Cancellable::Done(composed))) if composed.late <= LATE_MAX => {
                if composed.late > 0 {
                    tracing::warn!(
                        frames = composed.late,
                        "the composed file shows some frames late or not at all: they came after their moments were composed"
                    );
                }
                Some(composed)
            }
            Ok(Ok(Cancellable::Done(composed))) => {
                tracing::warn!(frames = composed.late, "media came too late for the composer, it runs again");
                None
            }
            Ok(Ok(Cancellable::Cancelled)) => None,
            Ok(Err(error)) => {
                tracing::warn!("the composer that followed the session failed, it runs again: {}", chain(&error));
                None
            }
            Err(panic) => {
                tracing::error!(fault.kind = "bug", "the composer's thread panicked: {panic}");
                None
            }
        }
    }

    /// Ends it without a file: the next owner of the job makes it.
    pub(super) async fn call_off(self) {
        self.cancel.cancel();
        if let Err(panic) = self.running.await {
            tracing::error!(fault.kind = "bug", "the composer's thread panicked: {panic}");
        }
        self.sending.wait().await;
    }
}
