//! What is in the archive of a cell, on the clock of the senders.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use archiver::compose::geometry::Size;
use archiver::compose::layout::{LayoutStream, place};
use archiver::model::layout::Layout;
use archiver_testkit::content::{Content, Part, SeenFrame};
use archiver_testkit::world::{Downloaded, World};
use serde_json::{Value, json};

use super::numbering::Seen;
use super::table::Sender;
use super::verdict::{Evidence, GapSpan, Mark};

/// A beep belongs to the one that was sent with its pitch this near to it, in seconds.
const SAME_BEEP: f64 = 2.0;
/// Two layers of one picture come within this, in seconds: before the next picture.
const SAME_PICTURE: f64 = 0.03;

/// A cell's archive on this machine.
pub struct Archive {
    files: Downloaded,
    /// Media time zero, in seconds since 1970.
    origin: f64,
    /// Each individual file: its name, when it begins in seconds since 1970, and what is in it.
    individual: Vec<(String, f64, Content)>,
}

impl Archive {
    /// Downloads and decodes it.
    ///
    /// # Errors
    /// When a file is missing.
    pub fn fetch(world: &World, row: &Value) -> Result<Self> {
        let files = tokio::task::block_in_place(|| world.download(row))?;
        let origin = files.manifest["origin"].as_str().context("no origin")?;
        #[allow(clippy::cast_precision_loss)]
        let origin = chrono::DateTime::parse_from_rfc3339(origin)?.timestamp_micros() as f64 / 1e6;
        let mut individual = Vec::new();
        for file in files.manifest["files"].as_array().context("no files")? {
            let name = file["name"].as_str().context("no name")?;
            let begins = origin + file["startMs"].as_f64().context("no start")? / 1000.0;
            let path = files.dir.join(name);
            individual.push((name.to_owned(), begins, tokio::task::block_in_place(|| Content::read(&path))?));
        }
        individual.sort_by(|a, b| a.1.total_cmp(&b.1));
        Ok(Self { files, origin, individual })
    }

    /// Removes what was downloaded.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        Ok(std::fs::remove_dir_all(&self.files.dir)?)
    }

    /// Moves what was downloaded to a folder, which it replaces.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn keep(&self, to: &Path) -> Result<()> {
        if to.exists() {
            std::fs::remove_dir_all(to)?;
        }
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(&self.files.dir)?.flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        self.remove()
    }

    /// Seconds of sound in the individual files.
    pub fn sound_seconds(&self) -> f64 {
        self.individual.iter().flat_map(|(_, _, content)| &content.audio).map(|run| run.to - run.from).sum()
    }

    /// What the report says of the clock and the packets of a publisher's track.
    pub fn clock(&self, client: &str, kind: &str) -> Value {
        let Some(track) = self.files.track(client, kind) else { return Value::Null };
        json!({ "correction": track["correctionMs"], "reports": track["senderReports"], "stats": track["stats"] })
    }

    /// Frames that came too late for the composed file.
    pub fn late_frames(&self) -> &Value {
        &self.files.manifest["composed"]["lateFrames"]
    }

    /// The pictures of a life, and those that cannot be read, by their times.
    pub fn pictures(&self, life: u16) -> Vec<Seen> {
        let all = self.individual.iter().flat_map(|(_, begins, content)| viewed(content).map(move |f| (begins, f)));
        let of_life = all.filter(|(_, frame)| frame.code.is_none_or(|code| code == life));
        let number = |frame: &SeenFrame| frame.code.and(frame.number).map(u32::from);
        let mut seen: Vec<Seen> = of_life
            .map(|(begins, frame)| Seen { at: begins + frame.pts, number: number(frame), size: frame.size })
            .collect();
        seen.sort_by(|a, b| a.at.total_cmp(&b.at));
        seen
    }

    fn gaps(&self, kind: &str) -> Vec<GapSpan> {
        let list = |of: &Value, key: &str| of[key].as_array().cloned().unwrap_or_default();
        let tracks = list(&self.files.report, "streams").into_iter().flat_map(|stream| list(&stream, "tracks"));
        let gaps = tracks.filter(|track| track["kind"] == kind).flat_map(|track| list(&track, "gaps"));
        let span = |gap: Value| {
            let at = |key: &str| Some(self.origin + gap[key].as_f64()? / 1e9);
            Some(GapSpan { from: at("from")?, to: at("to")?, cause: gap["cause"].as_str()?.to_owned() })
        };
        gaps.filter_map(span).collect()
    }

    /// When the recorder was told of a stream, in seconds since 1970.
    pub fn announced(&self) -> Vec<f64> {
        let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
        let streams = list(&self.files.report["streams"]);
        let spans = streams.iter().flat_map(|stream| list(&stream["presentMs"]));
        spans.filter_map(|span| Some(self.origin + span[0].as_f64()? / 1000.0)).collect()
    }

    /// Seconds of gaps of both kinds, by their causes.
    pub fn gaps_by_cause(&self) -> BTreeMap<String, f64> {
        let mut causes = BTreeMap::new();
        for gap in ["video", "audio"].into_iter().flat_map(|kind| self.gaps(kind)) {
            *causes.entry(gap.cause).or_insert(0.0) += ((gap.to - gap.from) * 100.0).round() / 100.0;
        }
        causes
    }

    /// Adds what a viewer sees and hears to what was sent.
    ///
    /// # Errors
    /// When the composed file is missing.
    pub fn read_into(&self, evidence: &mut Evidence, sender: &Sender, lives: usize) -> Result<()> {
        let sent = evidence.beeps.sent.clone();
        let (mut pictures, mut heard) = (Vec::new(), Vec::new());
        for (name, begins, content) in &self.individual {
            evidence.errors.extend(complaints(name, content));
            if !content.in_order() {
                evidence.errors.push(format!("{name}: times of pictures go back"));
            }
            for frame in viewed(content) {
                let at = begins + frame.pts;
                match frame.code.filter(|code| usize::from(*code) <= lives).zip(frame.number) {
                    Some((life, number)) => pictures.push(Mark { life, number: u32::from(number), at }),
                    None => evidence.unreadable.push(at),
                }
            }
            heard.extend(beeps(content, *begins, &sent));
        }
        evidence.pictures.decoded = pictures;
        evidence.beeps.decoded = heard;
        evidence.pictures.gaps = self.gaps("video");
        evidence.beeps.gaps = self.gaps("audio");
        let composed = &self.files.manifest["composed"];
        let begins = self.origin + composed["startMs"].as_f64().context("no composed file")? / 1000.0;
        let file = self.files.dir.join("archive.mp4");
        let whole = tokio::task::block_in_place(|| Content::read(&file))?;
        evidence.errors.extend(complaints("archive.mp4", &whole));
        evidence.beeps.shown = beeps(&whole, begins, &sent);
        if sender.has_video {
            evidence.pictures.shown = tokio::task::block_in_place(|| shown(&file, begins, sender, lives))?;
        }
        Ok(())
    }
}

/// The pictures of a file. Where the router changes to another layer of a simulcast, the file may have one picture of both layers, one right behind
/// the other: a viewer sees one.
fn viewed(content: &Content) -> impl Iterator<Item = &SeenFrame> {
    let is_again = |before: &SeenFrame, frame: &SeenFrame| {
        frame.number.is_some()
            && (frame.number, frame.code) == (before.number, before.code)
            && frame.size != before.size
            && frame.pts - before.pts < SAME_PICTURE
    };
    let before = std::iter::once(None).chain(content.frames.iter().map(Some));
    let frames = before.zip(&content.frames);
    frames.filter(move |(before, frame)| !before.is_some_and(|before| is_again(before, frame))).map(|(_, frame)| frame)
}

/// What a decoder complained about: the first one of many.
fn complaints(name: &str, content: &Content) -> Option<String> {
    let first = content.errors.first()?;
    Some(format!("{name}: {} errors of the decoder: {first}", content.errors.len()))
}

/// The beeps of a file, each with the life of the one that was sent nearest to it.
fn beeps(content: &Content, begins: f64, sent: &[Mark]) -> Vec<Mark> {
    let mut all: Vec<_> = content.beeps.iter().chain(&content.cut_beeps).map(|b| (begins + b.at, b.second)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mark = |(at, number): (f64, u32)| {
        let same = sent.iter().filter(|mark| mark.number == number && (mark.at - at).abs() < SAME_BEEP);
        let nearest = same.min_by(|a, b| (a.at - at).abs().total_cmp(&(b.at - at).abs()));
        Mark { life: nearest.map_or(0, |mark| mark.life), number, at }
    };
    all.into_iter().map(mark).collect()
}

/// The pictures of the composed file, wherever they are drawn: alone, or beside a ghost.
fn shown(file: &Path, begins: f64, sender: &Sender, lives: usize) -> Result<Vec<Mark>> {
    let frame = if sender.size.1 > sender.size.0 { Size::new(480, 640) } else { Size::new(640, 480) };
    let (width, height) = sender.size;
    let stream = LayoutStream { size: Some(sender.size), ..LayoutStream::default() };
    let mut parts: Vec<Part> = Vec::new();
    for count in 1..=lives {
        for cell in place(&Layout::default(), frame, &vec![stream.clone(); count]) {
            let area = cell.area.contain(Size::new(width, height));
            parts.push(Part { x: area.x, y: area.y, width: area.width, height: area.height });
        }
    }
    let mut marks: BTreeMap<usize, Mark> = BTreeMap::new();
    for part in parts {
        let content = Content::read_part(file, Some(part))?;
        for (place, frame) in content.frames.iter().enumerate() {
            let code = frame.code.filter(|code| (1..=lives).contains(&usize::from(*code)));
            if let Some((life, number)) = code.zip(frame.number) {
                let mark = Mark { life, number: u32::from(number), at: begins + frame.pts };
                // Of two lives beside each other the later one moves.
                if marks.get(&place).is_none_or(|before| before.life < life) {
                    marks.insert(place, mark);
                }
            }
        }
    }
    Ok(marks.into_values().collect())
}
