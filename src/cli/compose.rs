//! `archiver compose`: the child process that makes one file of a log; also for use by hand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::{print_json, print_line};
use crate::compose::child;
use crate::compose::composer::{Options, compose};
use crate::compose::geometry::Size;
use crate::compose::log_follower::ProgressReceiver;
use crate::compose::process::{self, ComposerMessage, Task};
use crate::media::Pipelines;
use crate::model::archive_options::Resolution;
use crate::model::fault::HasFault;
use crate::model::layout::{Layout, LayoutType};
use crate::model::stylesheet::Stylesheet;

/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Compose {
    /// The archive's folder in the spool, or a copy of it.
    dir: PathBuf,
    /// The file to make.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Its size: 640x480, 480x640, 1280x720, 720x1280, 1920x1080 or 1080x1920.
    #[arg(long, default_value = "640x480", value_parser = named::<Resolution>)]
    resolution: Resolution,
    /// bestFit, pip, verticalPresentation, horizontalPresentation or custom.
    /// Without it, those that the session had, and bestFit before it had any.
    #[arg(long, value_parser = named::<LayoutType>)]
    layout: Option<LayoutType>,
    /// The layout while a screen is shared; only with bestFit.
    #[arg(long, value_parser = named::<LayoutType>)]
    screenshare: Option<LayoutType>,
    /// The style sheet of a custom layout.
    #[arg(long, value_name = "FILE")]
    stylesheet: Option<PathBuf>,
    /// Pictures a second.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=60))]
    rate: u32,
    /// Sound only.
    #[arg(long, conflicts_with = "no_audio")]
    no_video: bool,
    /// Picture only.
    #[arg(long)]
    no_audio: bool,
    /// Quality of the picture, 15 to 40: smaller is better.
    #[arg(long, value_parser = clap::value_parser!(u8).range(15..=40), conflicts_with = "max_bitrate")]
    quality: Option<u8>,
    /// Limit of the picture, in bit/s.
    #[arg(long, value_parser = clap::value_parser!(u32).range(100_000..=6_000_000))]
    max_bitrate: Option<u32>,
    /// A folder with pipeline fragments that go before those of this build.
    #[arg(long, value_name = "DIR")]
    pipelines: Option<PathBuf>,
    /// Give up when a pipeline makes no progress for so many seconds.
    #[arg(long, default_value_t = 30)]
    stall: u64,
    /// Print progress and the result as lines of JSON.
    #[arg(long)]
    json: bool,
    /// All that is wanted, from a worker.
    #[arg(long, hide = true, value_parser = task)]
    task: Option<Task>,
}

fn task(text: &str) -> Result<Task, serde_json::Error> {
    serde_json::from_str(text)
}

impl Compose {
    /// What is wanted, by a worker or by the arguments.
    fn task(&self) -> Result<Task> {
        if let Some(task) = &self.task {
            return Ok(task.clone());
        }
        let stylesheet = self.stylesheet.as_deref().map(sheet).transpose()?;
        let (width, height) = self.resolution.size();
        let layout = Layout { kind: self.layout.unwrap_or_default(), stylesheet, screenshare_type: self.screenshare };
        Ok(Task {
            options: Options {
                size: Size::new(width, height),
                rate: self.rate,
                layout,
                video: !self.no_video,
                audio: !self.no_audio,
                quantizer: self.quality,
                bitrate_max: self.max_bitrate,
                seconds_max: 0,
                clip: None,
                ignore_layout_history: self.layout.is_some() || self.screenshare.is_some(),
                excluded: BTreeSet::new(),
            },
            pipelines: Pipelines::new(self.pipelines.clone(), Duration::from_secs(self.stall)),
            follow: false,
        })
    }
}

/// Reads a style sheet, and says where it cannot be used.
pub(super) fn sheet(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Stylesheet::parse(&text).with_context(|| format!("{} cannot be used", path.display()))?;
    Ok(text)
}

/// A value by its name in events.
pub(super) fn named<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|e| e.to_string())
}

pub(super) fn run(args: &Compose) -> Result<()> {
    if args.screenshare == Some(LayoutType::Custom) {
        bail!("while a screen is shared the layout cannot be custom; see `archiver compose --help`");
    }
    if (args.layout == Some(LayoutType::Custom)) != args.stylesheet.is_some() {
        bail!("--layout custom takes --stylesheet FILE, and no other layout does");
    }
    let Task { options, pipelines, follow } = args.task()?;
    if args.task.is_some() {
        child::limit_process();
    }
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {eta} left")?);
    let (told, last) = (Mutex::new(None::<Instant>), AtomicU64::new(0));
    let progress = |made: u64, of: u64| {
        let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let waits = made < of && made == last.swap(made, Ordering::Relaxed);
        if made < of && told.is_some_and(|at| at.elapsed() < TELL) {
            return;
        }
        *told = Some(Instant::now());
        bar.set_length(of);
        bar.set_position(made);
        if args.json {
            print_json_line(&if waits { ComposerMessage::Waiting } else { ComposerMessage::Progress(made, of) });
        }
    };
    let log_progress = if follow { process::receive_progress()? } else { ProgressReceiver::finished() };
    let composed =
        compose(&args.dir, &args.out, &options, &pipelines, log_progress, &CancellationToken::new(), &progress);
    let composed = composed.map(|composed| composed.done().expect("nothing cancels the new token"));
    bar.finish_and_clear();
    if args.json {
        print_json_line(&match &composed {
            Ok(composed) => ComposerMessage::Composed(composed.clone()),
            Err(error) => ComposerMessage::Failed(error.fault().kind, crate::model::fault::chain(error)),
        });
    }
    let composed = composed.with_context(|| format!("{} cannot be composed", args.dir.display()))?;
    if !args.json {
        print_json(&composed)?;
    }
    Ok(())
}

fn print_json_line(line: &ComposerMessage) {
    print_line(&serde_json::to_string(line).expect("plain data"));
}
