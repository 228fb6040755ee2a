//! One cell of the matrix: a sender, an event, an archive, a verdict.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archiver_testkit::chromium::{ChromiumOptions, ChromiumPublisher, SentByBrowser};
use archiver_testkit::publisher::{Options, Publisher, Truth, unix_seconds};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::World;
use serde_json::{Value, json};

use super::archive::Archive;
use super::events::Event;
use super::numbering::number;
use super::table::Sender;
use super::verdict::{Begin, Evidence, Mark, judge};

/// Seconds of numbers that another track is ahead of the one before it.
const REPLACED_AHEAD: u32 = 20;
/// A recorder takes media that comes so late for that of a sender whose clock stood still (`LATE_MIN` in `src/rtp/clock/mod.rs`), in seconds.
const LATE_MAX: f64 = 0.2;
/// A packet of sound, in seconds.
const PACKET: f64 = 0.02;

/// A cell that is to be run. Its events are made beforehand: that needs the world for itself.
pub struct Cell {
    pub sender: Sender,
    pub event: Event,
    session: String,
    started: Value,
    ended: Value,
}

/// A publisher of the cell.
enum Live {
    Kit(Publisher),
    Browser(Box<ChromiumPublisher>),
}

/// What a publisher sent.
#[derive(Debug)]
struct Life {
    told: Told,
    /// A killed browser does not tell its last pictures.
    unknown_after: Option<f64>,
}

/// What a publisher tells of what it sent.
#[derive(Debug)]
enum Told {
    Kit(Truth),
    Browser(SentByBrowser),
}

impl Live {
    async fn mute_video(&mut self, on: bool) -> Result<()> {
        match self {
            Self::Kit(kit) => kit.mute_video(on),
            Self::Browser(browser) => browser.mute_video(on).await?,
        }
        Ok(())
    }

    async fn mute_audio(&mut self, on: bool) -> Result<()> {
        match self {
            Self::Kit(kit) => kit.mute_audio(on),
            Self::Browser(browser) => browser.mute_audio(on).await?,
        }
        Ok(())
    }

    async fn resize(&mut self, size: (u32, u32)) -> Result<()> {
        match self {
            Self::Kit(kit) => kit.resize(size),
            Self::Browser(browser) => browser.resize(size).await?,
        }
        Ok(())
    }

    async fn replace(&mut self, size: (u32, u32)) -> Result<()> {
        match self {
            Self::Kit(kit) => kit.replace(size, REPLACED_AHEAD),
            Self::Browser(browser) => browser.replace(size, REPLACED_AHEAD).await?,
        }
        Ok(())
    }

    async fn add(&mut self, has_video: bool, added: bool) -> Result<()> {
        match self {
            Self::Kit(kit) if has_video => kit.add_video(added).await,
            Self::Kit(kit) => kit.add_audio(added).await,
            Self::Browser(browser) => browser.add_video(added).await?,
        }
        Ok(())
    }

    async fn leave(self) -> Result<Life> {
        Ok(match self {
            Self::Kit(kit) => Life::of(kit.leave().await?),
            Self::Browser(browser) => Life::of_browser(browser.leave_coded().await?),
        })
    }

    async fn crash(self) -> Result<Life> {
        Ok(match self {
            Self::Kit(kit) => Life::of(kit.crash()),
            Self::Browser(mut browser) => {
                let sent = browser.coded().await?;
                browser.crash();
                let last = sent.coded.last().map(|picture| picture.at);
                Life { unknown_after: last, ..Life::of_browser(sent) }
            }
        })
    }
}

impl Life {
    const fn of(truth: Truth) -> Self {
        Self { told: Told::Kit(truth), unknown_after: None }
    }

    const fn of_browser(sent: SentByBrowser) -> Self {
        Self { told: Told::Browser(sent), unknown_after: None }
    }

    const fn audio_packets(&self) -> u64 {
        match &self.told {
            Told::Kit(truth) => truth.audio_packets,
            Told::Browser(sent) => sent.audio_packets,
        }
    }

    /// How late anything was sent that was due, in seconds, as far as the sender knows.
    const fn late(&self) -> f64 {
        match &self.told {
            Told::Kit(truth) => truth.late_max.as_secs_f64(),
            Told::Browser(_) => 0.0,
        }
    }

    const fn tones(&self) -> u64 {
        match &self.told {
            Told::Kit(truth) => truth.tones,
            Told::Browser(_) => 0,
        }
    }

    /// Adds what was sent. A browser does not know the numbers of what it sent: the files do.
    fn add_to(&self, evidence: &mut Evidence, life: u16, archive: &Archive) {
        let marks = |list: &[(u32, f64)]| -> Vec<Mark> {
            list.iter().map(|(number, at)| Mark { life, number: *number, at: *at }).collect()
        };
        evidence.unknown_after = self.unknown_after.or(evidence.unknown_after);
        match &self.told {
            Told::Kit(truth) => {
                let timeline = truth.timeline();
                evidence.pictures.sent.extend(marks(&timeline.frames));
                evidence.beeps.sent.extend(marks(&timeline.beeps));
            }
            Told::Browser(sent) => {
                let numbered = number(life, sent, self.unknown_after.is_none(), &archive.pictures(life));
                evidence.errors.extend(numbered.strange.iter().map(|mark| format!("{mark:?} was not drawn then")));
                evidence.pictures.sent.extend(numbered.sent);
                evidence.partial.extend(numbered.partial);
                evidence.blanks.extend(numbered.blank);
                evidence.beeps.sent.extend(marks(&sent.drawn.beeps));
            }
        }
    }
}

/// What a cell's sender did.
#[derive(Default)]
struct Script {
    lives: Vec<Life>,
    begins: Vec<f64>,
    cuts: Vec<f64>,
}

impl Script {
    fn begins(&mut self) {
        self.begins.push(now());
    }

    fn cut(&mut self) {
        self.cuts.push(now());
    }
}

/// What came of a cell: a line of the matrix.
#[derive(Debug, Clone)]
pub struct Row(pub Value);

fn now() -> f64 {
    unix_seconds(Instant::now())
}

async fn seconds(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

impl Cell {
    pub fn new(world: &mut World, sender: &Sender, event: Event) -> Self {
        let session = format!("{}-{}", sender.name, event.name());
        let mut started = world.started(&session);
        let resolution = if sender.size.1 > sender.size.0 { "480x640" } else { "640x480" };
        started["data"]["archive"] = json!({ "outputMode": "both", "resolution": resolution });
        let ended = world.ended(&session);
        Self { sender: *sender, event, session, started, ended }
    }

    /// Runs it. The archive of a cell that fails is kept in a folder, if there is one, and what its sender told (`sent.txt`).
    ///
    /// # Errors
    /// When a server or the program refuses what the cell needs.
    pub async fn run(&self, world: &World, kept: Option<&Path>) -> Result<Row> {
        let begun = Instant::now();
        let options = self.sender.kit_options(Options::new(&world.janus, &self.session, "one"));
        world.janus.create_room(&self.session, self.sender.room(options.as_ref())).await?;
        world.publish(&self.started)?;
        let script = self.play(world).await?;
        world.publish(&self.ended)?;
        let row = world.archive(&self.session, "available").await;
        let archive = Archive::fetch(world, &row)?;
        let tones: u64 = script.lives.iter().map(Life::tones).sum();
        let late = script.lives.iter().map(Life::late).fold(0.0, f64::max);
        let evidence = self.evidence(&script, &archive)?;
        let verdict = judge(&evidence);
        let judged = match verdict.problems.is_empty() {
            true => "ok",
            // The machine gave it no processor: it was no sender to hold a recorder against.
            false if late > LATE_MAX => "starved",
            false => "failed",
        };
        match kept.filter(|_| !verdict.problems.is_empty()) {
            Some(kept) => {
                archive.keep(kept)?;
                std::fs::write(kept.join("sent.txt"), format!("{:#?}", script.lives))?;
            }
            None => archive.remove()?,
        }
        world.janus.destroy_room(&self.session).await?;
        let (pictures, beeps) = (&evidence.pictures, &evidence.beeps);
        let mut shown: Vec<(u16, u32)> = pictures.shown.iter().map(|mark| (mark.life, mark.number)).collect();
        shown.sort_unstable();
        shown.dedup();
        Ok(Row(json!({
            "sender": self.sender.name, "event": self.event.name(),
            "verdict": judged, "lateS": late,
            "sent": pictures.sent.len(), "decoded": pictures.decoded.len(), "shown": shown.len(),
            "beepsSent": beeps.sent.len(), "beepsHeard": beeps.decoded.len(), "beepsComposed": beeps.shown.len(),
            "soundS": evidence.sound, "tones": tones, "gaps": archive.gaps_by_cause(), "excused": verdict.excused,
            "lateFrames": archive.late_frames(), "audioClock": archive.clock("one", "audio"),
            "problems": verdict.problems, "seconds": begun.elapsed().as_secs_f64().round(),
        })))
    }

    /// Publishes with the options of a life of this cell.
    async fn publish(&self, world: &World, life: u16, id: &str) -> Result<Live> {
        let display = json!({ "name": "One", "streamId": "11111111-1111-4111-8111-111111111111" }).to_string();
        let kit = Options { display: display.clone(), code: life, ..Options::new(&world.janus, &self.session, id) };
        if let Some(options) = self.sender.kit_options(kit) {
            return Ok(Live::Kit(Publisher::start(options).await?));
        }
        let browser = ChromiumOptions { display, code: life, ..ChromiumOptions::new(&world.janus, &self.session, id) };
        let options = self.sender.browser_options(browser).context("a sender is one or the other")?;
        Ok(Live::Browser(Box::new(ChromiumPublisher::start(&options).await?)))
    }

    /// Waits until the tracks of this session are captured.
    async fn captured(&self, world: &World) -> Result<()> {
        let row = world.archive(&self.session, "started").await;
        let tracks = world.data().join("spool").join(row["archive"].as_str().context("no id")?).join("tracks");
        let wanted = if self.sender.has_video { 2 } else { 1 };
        wait_for(&format!("{wanted} tracks of {}", self.session), || async {
            (std::fs::read_dir(&tracks).ok()?.flatten().count() >= wanted).then_some(())
        })
        .await;
        Ok(())
    }

    /// The sender's part.
    async fn play(&self, world: &World) -> Result<Script> {
        let (mut script, has_video) = (Script::default(), self.sender.has_video);
        script.begins();
        let mut live = self.publish(world, 1, "one").await?;
        self.captured(world).await?;
        seconds(4.0).await;
        match self.event {
            Event::Steady => seconds(6.0).await,
            Event::Sizes => {
                for size in [self.sender.other_size, self.sender.size] {
                    live.resize(size).await?;
                    seconds(3.5).await;
                }
            }
            Event::Mute => {
                if has_video {
                    live.mute_video(true).await?;
                    seconds(3.0).await;
                    live.mute_video(false).await?;
                    seconds(2.0).await;
                }
                script.cut();
                live.mute_audio(true).await?;
                script.cut();
                seconds(3.0).await;
                script.cut();
                live.mute_audio(false).await?;
                script.cut();
                seconds(3.0).await;
            }
            Event::ReplaceTrack => {
                script.cut();
                live.replace(self.sender.other_size).await?;
                script.cut();
                seconds(5.0).await;
            }
            Event::Renegotiation => {
                script.cut();
                live.add(has_video, false).await?;
                seconds(3.0).await;
                script.begins();
                live.add(has_video, true).await?;
                script.cut();
                seconds(5.0).await;
            }
            Event::Crash => {
                script.lives.push(live.crash().await?);
                script.cut();
                seconds(4.0).await;
                return Ok(script);
            }
            Event::Reconnect => {
                script.lives.push(live.leave().await?);
                script.cut();
                seconds(1.5).await;
                script.begins();
                live = self.publish(world, 2, "one").await?;
                seconds(5.0).await;
            }
            Event::Ghost => {
                script.lives.push(live.crash().await?);
                script.cut();
                seconds(1.5).await;
                script.begins();
                live = self.publish(world, 2, "two").await?;
                seconds(6.0).await;
            }
        }
        script.cut();
        script.lives.push(live.leave().await?);
        script.cut();
        Ok(script)
    }

    /// What was sent and what is in the archive, on one clock.
    fn evidence(&self, script: &Script, archive: &Archive) -> Result<Evidence> {
        let Script { lives, begins, cuts } = script;
        let has_b_frames = self.sender.has_b_frames;
        let mut evidence = Evidence { has_b_frames, cuts: cuts.clone(), ..Evidence::default() };
        for (number, life) in (1..).zip(lives) {
            life.add_to(&mut evidence, number, archive);
        }
        ensure!(!evidence.beeps.sent.is_empty(), "the sender sent no sound");
        ensure!(evidence.pictures.sent.is_empty() != self.sender.has_video, "the sender sent no picture");
        // What is sent begins after it was told to.
        let first = |begin: f64| {
            let all = evidence.pictures.sent.iter().chain(&evidence.beeps.sent).map(|mark| mark.at);
            all.filter(|at| *at >= begin).min_by(f64::total_cmp).unwrap_or(begin)
        };
        let announced = archive.announced();
        let begin = |at: f64| {
            let told = announced.iter().copied().filter(|told| *told > at - 0.5).min_by(f64::total_cmp);
            Begin { at, announced: told.unwrap_or(at) }
        };
        evidence.begins = begins.iter().map(|at| begin(first(*at))).collect();
        archive.read_into(&mut evidence, &self.sender, lives.len())?;
        #[allow(clippy::cast_precision_loss)]
        let sound = lives.iter().map(Life::audio_packets).sum::<u64>() as f64 * PACKET;
        evidence.sound = Some((sound, archive.sound_seconds()));
        Ok(evidence)
    }
}
