//! `archiver archives …`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::{print_json, print_line};
use crate::archive::build::Clip;
use crate::archive::delete;
use crate::archive::derive::Derivation;
use crate::archive::derive::clip::{ClipRange, clip};
use crate::archive::derive::recompose::{RecomposeOverrides, recompose};
use crate::archive::documents::{Manifest, ObjectEntry};
use crate::catalog::{ArchiveFilter, ArchiveRow, ArchiveStatus, Catalog};
use crate::config::Settings;
use crate::job::change::{StreamsChange, check_classes, desire, select_streams};
use crate::model::archive_options::{Resolution, StreamMode};
use crate::model::cancellable::Cancellable;
use crate::model::desired::{Desired, Selection};
use crate::model::ids::{ApplicationId, ArchiveId, SessionId, StreamId};
use crate::model::layout::{Layout, LayoutType};
use crate::model::media::MissingMedia;
use crate::store::body::collect;
use crate::store::checksum::Hasher;
use crate::store::download::{Download, download};
use crate::store::keys::{Keys, Kind};
use crate::store::{ObjectStore, SharedStore};

/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum ArchivesCommand {
    /// List archives, newest first.
    List {
        /// Only of this application.
        #[arg(long)]
        application: Option<ApplicationId>,
        /// Only of this session.
        #[arg(long)]
        session: Option<SessionId>,
        /// Only with this status.
        #[arg(long)]
        status: Option<ArchiveStatus>,
        /// Pass over so many.
        #[arg(long, default_value_t = 0)]
        offset: u32,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        count: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show an archive: its manifest and where it can be fetched.
    Show {
        /// The archive.
        archive: ArchiveId,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Download an archive's ZIP, manifest and report into a folder, and check them.
    Download {
        /// The archive.
        archive: ArchiveId,
        /// The folder.
        #[arg(long, short, default_value = ".")]
        out: PathBuf,
    },
    /// Read an archive in the store from end to end, and compare it with its manifest.
    Verify {
        /// The archive.
        archive: ArchiveId,
    },
    /// Make a new, composed archive of an archive's kept segments: with another layout or size, or of a part of it.
    Recompose {
        /// The archive.
        archive: ArchiveId,
        /// bestFit, pip, verticalPresentation, horizontalPresentation or custom; without, as it was.
        #[arg(long, value_parser = super::compose::named::<LayoutType>)]
        layout: Option<LayoutType>,
        /// The layout while a screen is shared; only with bestFit.
        #[arg(long, value_parser = super::compose::named::<LayoutType>, requires = "layout")]
        screenshare: Option<LayoutType>,
        /// The style sheet of a custom layout.
        #[arg(long, value_name = "FILE")]
        stylesheet: Option<PathBuf>,
        /// 640x480, 480x640, 1280x720, 720x1280, 1920x1080 or 1080x1920; without, as it was.
        #[arg(long, value_parser = super::compose::named::<Resolution>)]
        resolution: Option<Resolution>,
        /// Begin so many seconds behind the beginning of the archive.
        #[arg(long, value_name = "SECONDS", value_parser = seconds_as_ms)]
        from: Option<u32>,
        /// End so many seconds behind the beginning of the archive.
        #[arg(long, value_name = "SECONDS", value_parser = seconds_as_ms)]
        to: Option<u32>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a new archive of a part of a composed one by copying, without encoding: also when the segments are gone. The
    /// part begins at a keyframe, of which there is one in two seconds.
    Clip {
        /// The archive.
        archive: ArchiveId,
        /// Begin so many seconds behind the beginning of the archive.
        #[arg(long, value_name = "SECONDS", value_parser = seconds_as_ms, required_unless_present = "to")]
        from: Option<u32>,
        /// End so many seconds behind the beginning of the archive.
        #[arg(long, value_name = "SECONDS", value_parser = seconds_as_ms)]
        to: Option<u32>,
        /// Begin at the keyframe before, if there is none at the beginning.
        #[arg(long)]
        at_keyframe: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give an archive that is being recorded another layout, from now on.
    Layout {
        /// The archive.
        archive: ArchiveId,
        /// bestFit, pip, verticalPresentation, horizontalPresentation or custom.
        #[arg(long, value_parser = super::compose::named::<LayoutType>)]
        layout: LayoutType,
        /// The layout while a screen is shared; only with bestFit.
        #[arg(long, value_parser = super::compose::named::<LayoutType>)]
        screenshare: Option<LayoutType>,
        /// The style sheet of a custom layout.
        #[arg(long, value_name = "FILE")]
        stylesheet: Option<PathBuf>,
    },
    /// Give a stream of an archive that is being recorded layout classes, from now on: `focus`, `full`, or those of your
    /// style sheet; without any, it has none.
    Classes {
        /// The archive.
        archive: ArchiveId,
        /// The stream; `archiver archives show` has those of a finished archive, the router those of a running one.
        stream: StreamId,
        /// The classes.
        classes: Vec<String>,
    },
    /// Choose which streams an archive that is being recorded shows and sounds, from now on. All are captured whatever is
    /// chosen; in stream mode manual the composed file has those that were added.
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args(["mode", "add", "remove"]))]
    Streams {
        /// The archive.
        archive: ArchiveId,
        /// auto (all streams) or manual (those that are added).
        #[arg(long, value_parser = super::compose::named::<StreamMode>)]
        mode: Option<StreamMode>,
        /// A stream to add, or to have otherwise than before; may be given again.
        #[arg(long, value_name = "STREAM")]
        add: Vec<StreamId>,
        /// Add them without their sound.
        #[arg(long, requires = "add", conflicts_with = "no_video")]
        no_audio: bool,
        /// Add them without their picture.
        #[arg(long, requires = "add")]
        no_video: bool,
        /// A stream to remove; may be given again.
        #[arg(long, value_name = "STREAM")]
        remove: Vec<StreamId>,
    },
    /// Delete an archive and all its objects.
    Delete {
        /// The archive.
        archive: ArchiveId,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// Milliseconds of a number of seconds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn seconds_as_ms(text: &str) -> Result<u32, String> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, such as 12.5".to_owned())?;
    let range = 0.0..f64::from(u32::MAX) / 1000.0;
    if range.contains(&seconds) {
        Ok((seconds * 1000.0).round() as u32)
    } else {
        Err("give seconds, such as 12.5".to_owned())
    }
}

fn check_part(from: Option<u32>, to: Option<u32>) -> Result<()> {
    if to.is_some_and(|to| to <= from.unwrap_or(0)) {
        bail!("the part ends before it begins: give --to more than --from");
    }
    Ok(())
}

/// Shows that something is done.
async fn with_spinner<T>(doing: &'static str, work: impl Future<Output = T>) -> T {
    let spinner = ProgressBar::new_spinner().with_message(doing);
    spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// The result of work that a person waits for: a cancellation ends the command like an error.
fn unless_cancelled<T>(work: &str, result: Cancellable<T>) -> Result<T> {
    result.done().with_context(|| format!("the {work} was called off"))
}

fn print_created(made: &ArchiveRow, json: bool) -> Result<()> {
    if json {
        return print_json(made);
    }
    print_line(&format!("{} of {} s; see `archiver archives show {}`", made.archive, made.duration_s, made.archive));
    Ok(())
}

async fn load_archive(catalog: &dyn Catalog, archive: ArchiveId) -> Result<ArchiveRow> {
    catalog
        .archive(archive)
        .await?
        .with_context(|| format!("there is no archive {archive}; see `archiver archives list`"))
}

async fn load_manifest(store: &dyn ObjectStore, keys: &Keys) -> Result<Manifest> {
    let key = keys.key(Kind::Manifest);
    let bytes = collect(store.get(&key, None).await?, &key, MANIFEST_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).with_context(|| format!("{key} is no manifest"))
}

pub(super) async fn run(settings: &Settings, command: ArchivesCommand) -> Result<()> {
    let catalog = crate::app::services::catalog(settings).await?;
    let store = crate::app::services::store(settings).await?;
    let stop = CancellationToken::new();
    match command {
        ArchivesCommand::List { application, session, status, offset, count, json } => {
            let count = count.min(1000);
            let filter = ArchiveFilter { application, session, status, offset, count, ..ArchiveFilter::default() };
            let (rows, total) = catalog.archives(&filter).await?;
            if json {
                return print_json(&serde_json::json!({ "count": total, "items": rows }));
            }
            for row in &rows {
                let (size, name) = (row.size >> 10, row.name.as_deref().unwrap_or(""));
                print_line(&format!(
                    "{}  {:<9} {:>6} s {size:>9} KiB  {}  {} {name}",
                    row.archive,
                    row.status.as_str(),
                    row.duration_s,
                    row.created_at,
                    row.session
                ));
            }
            print_line(&format!("{} of {total}", rows.len()));
        }
        ArchivesCommand::Show { archive, json } => show(settings, catalog.as_ref(), &store, archive, json).await?,
        ArchivesCommand::Download { archive, out } => {
            let row = load_archive(catalog.as_ref(), archive).await?;
            let keys = Keys::new(row.application.clone(), archive);
            let manifest = load_manifest(store.as_ref(), &keys).await.context("the archive is not available yet")?;
            std::fs::create_dir_all(&out)?;
            for object in &manifest.objects {
                let name = object.key.rsplit('/').next().unwrap_or("object");
                let path = out.join(name);
                download_object(store.as_ref(), object, &path).await?;
                print_line(&path.display().to_string());
            }
            let path = out.join("manifest.json");
            std::fs::write(&path, serde_json::to_vec_pretty(&manifest)?)?;
            print_line(&path.display().to_string());
        }
        ArchivesCommand::Verify { archive } => {
            let row = load_archive(catalog.as_ref(), archive).await?;
            let manifest = load_manifest(store.as_ref(), &Keys::new(row.application, archive)).await?;
            for object in &manifest.objects {
                verify_object(store.as_ref(), object).await?;
                print_line(&format!("ok {}", object.key));
            }
        }
        ArchivesCommand::Recompose { archive, layout, screenshare, stylesheet, resolution, from, to, json } => {
            if (layout == Some(LayoutType::Custom)) != stylesheet.is_some() {
                bail!("--layout custom takes --stylesheet FILE, and no other layout does");
            }
            let stylesheet = stylesheet.as_deref().map(super::compose::sheet).transpose()?;
            check_part(from, to)?;
            let overrides = RecomposeOverrides {
                layout: layout.map(|kind| Layout { kind, stylesheet, screenshare_type: screenshare }),
                resolution,
                clip: (from.is_some() || to.is_some()).then(|| Clip { from_ms: from.unwrap_or(0), to_ms: to }),
            };
            let new = ArchiveId::random();
            let making = recompose(
                settings,
                catalog.as_ref(),
                store.as_ref(),
                Derivation { source: archive, new },
                &overrides,
                &stop,
            );
            let made = with_spinner("fetching the segments and composing them", making).await;
            let made = made.map_err(anyhow::Error::from).and_then(|made| unless_cancelled("work", made));
            print_created(&made.with_context(|| format!("archive {archive} cannot be made again"))?, json)?;
        }
        ArchivesCommand::Clip { archive, from, to, at_keyframe, json } => {
            check_part(from, to)?;
            let part = ClipRange { from_ms: from.unwrap_or(0), to_ms: to, at_keyframe };
            let new = ArchiveId::random();
            let making =
                clip(settings, catalog.as_ref(), store.as_ref(), Derivation { source: archive, new }, part, &stop);
            let made = with_spinner("fetching the part and copying it", making).await;
            let made = made.map_err(anyhow::Error::from).and_then(|made| unless_cancelled("work", made));
            print_created(&made.with_context(|| format!("archive {archive} cannot be clipped"))?, json)?;
        }
        ArchivesCommand::Layout { archive, layout, screenshare, stylesheet } => {
            let stylesheet = stylesheet.as_deref().map(super::compose::sheet).transpose()?;
            let wanted = Layout { kind: layout, stylesheet, screenshare_type: screenshare };
            wanted.check()?;
            desire(catalog.as_ref(), archive, |desired| desired.layout = Some(wanted.clone())).await?;
            print_line("the layout changes with the next heartbeat of the archive's worker");
        }
        ArchivesCommand::Classes { archive, stream, classes } => {
            check_classes(&classes)?;
            let change = |desired: &mut Desired| {
                desired.classes.insert(stream, classes.clone());
            };
            desire(catalog.as_ref(), archive, change).await?;
            print_line("the classes change with the next heartbeat of the archive's worker");
        }
        ArchivesCommand::Streams { archive, mode, add, no_audio, no_video, remove } => {
            let selection = Selection { has_audio: !no_audio, has_video: !no_video };
            select_streams(catalog.as_ref(), archive, &StreamsChange { mode, add, selection, remove }).await?;
            print_line("the streams change with the next heartbeat of the archive's worker");
        }
        ArchivesCommand::Delete { archive, yes } => {
            let row = load_archive(catalog.as_ref(), archive).await?;
            delete::check(&row)?;
            if !yes && !confirmed(&format!("delete archive {archive} of session {}?", row.session))? {
                bail!("nothing was deleted");
            }
            delete::mark(catalog.as_ref(), &row).await?;
            delete::remove(catalog.as_ref(), store.as_ref(), &row).await?;
            print_line(&format!("deleted {archive}"));
        }
    }
    Ok(())
}

/// Whether an archive has all that was sent.
fn completeness(row: &ArchiveRow) -> &'static str {
    match row.is_complete() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    }
}

fn lack_in_words(lack: &MissingMedia) -> String {
    let seconds = Duration::from_millis(u64::try_from(lack.duration_ms).unwrap_or(0)).as_secs_f64();
    let of = format!("{seconds:.1} s of {} of stream {}: {}", lack.kind.as_str(), lack.stream_id, lack.cause.as_str());
    if lack.details.is_empty() { of } else { format!("{of} ({})", lack.details.join("; ")) }
}

async fn show(
    settings: &Settings,
    catalog: &dyn Catalog,
    store: &SharedStore,
    archive: ArchiveId,
    json: bool,
) -> Result<()> {
    let row = load_archive(catalog, archive).await?;
    let keys = Keys::new(row.application.clone(), archive);
    let manifest = load_manifest(store.as_ref(), &keys).await.ok();
    let link = match &row.object_key {
        Some(key) => {
            store.presign_get(key, settings.store.link_valid.0, key.rsplit('/').next().unwrap_or("archive")).await?
        }
        None => None,
    };
    if json {
        return print_json(&serde_json::json!({ "archive": row, "manifest": manifest, "url": link }));
    }
    print_line(&format!(
        "archive   {archive}\nsession   {}\nstatus    {} {}\ncreated   {}",
        row.session,
        row.status.as_str(),
        row.reason,
        row.created_at
    ));
    print_line(&format!(
        "duration  {} s\nsize      {} bytes\nobject    {}",
        row.duration_s,
        row.size,
        row.object_key.as_deref().unwrap_or("-")
    ));
    if row.revision > 1 {
        print_line(&format!("revision  {}: made again, because more of its media came", row.revision));
    }
    print_line(&format!("complete  {}", completeness(&row)));
    for lack in row.missing.iter().flatten() {
        print_line(&format!("  lacks {}", lack_in_words(lack)));
    }
    for file in manifest.iter().flat_map(|m| &m.files) {
        let codec = |c: &Option<crate::model::media::Codec>| c.map_or("-", crate::model::media::Codec::as_str);
        print_line(&format!(
            "  {}  {}+{}  {}..{} ms",
            file.name,
            codec(&file.video),
            codec(&file.audio),
            file.start_ms,
            file.end_ms
        ));
    }
    if let Some(link) = link {
        print_line(&format!("link      {link}"));
    }
    Ok(())
}

fn progress_bar(object: &ObjectEntry) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")?;
    Ok(ProgressBar::new(object.size).with_style(style).with_message(object.key.clone()))
}

/// Reads an object into a file, from where an earlier call broke off, and checks it.
async fn download_object(store: &dyn ObjectStore, object: &ObjectEntry, path: &Path) -> Result<()> {
    let bar = progress_bar(object)?;
    let wanted = Download {
        key: object.key.clone(),
        size: object.size,
        sha256: object.sha256.clone(),
        part_bytes: object.part_bytes,
        path: path.to_owned(),
    };
    let fetched = download(store, &wanted, &CancellationToken::new(), &|bytes| bar.inc(bytes)).await?;
    unless_cancelled("download", fetched)?;
    bar.finish_and_clear();
    Ok(())
}

/// Reads an object to nowhere, and checks it.
async fn verify_object(store: &dyn ObjectStore, object: &ObjectEntry) -> Result<()> {
    let bar = progress_bar(object)?;
    let (mut flow, mut hasher) = (store.get(&object.key, None).await?, Hasher::new(object.part_bytes));
    while let Some(chunk) = flow.next().await {
        let chunk = chunk?;
        hasher.update(&chunk);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let actual = hasher.finish();
    if actual != object.sha256 {
        bail!("{} is damaged: its SHA-256 is {actual} instead of {}", object.key, object.sha256);
    }
    Ok(())
}

fn confirmed(question: &str) -> Result<bool> {
    use std::io::Write;
    write!(std::io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
