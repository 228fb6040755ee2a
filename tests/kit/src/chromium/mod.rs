//! A real browser as a publisher: headless Chromium, Janus's own JavaScript client, simulcast.
//!
//! `tests/kit/chromium` holds the node script that drives the browser and the page. Their two npm packages are
//! installed once into the build folder.

mod coded;
mod install;

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::content::Timeline;
use crate::janus::{API_SECRET, Janus};
use crate::publisher::VideoCodec;
use crate::wait::deadline;
pub use coded::{CodedPicture, SentByBrowser};

/// Where Debian's `libjs-janus-gateway` has `janus.js`.
const JANUS_JS: &str = "/usr/share/javascript/janus-gateway";
/// Debian's `chromium`.
const CHROMIUM: &str = "/usr/bin/chromium";
/// A browser that takes longer to end is killed.
const END_MAX: Duration = Duration::from_secs(3);

/// What to publish, and where.
#[derive(Debug, Clone)]
pub struct ChromiumOptions {
    /// `ws://…` of Janus.
    pub url: String,
    /// The secret of every request.
    pub api_secret: String,
    /// A client's token, instead of the secret.
    pub token: Option<String>,
    /// The room.
    pub room: String,
    /// The room's pin.
    pub pin: Option<String>,
    /// The feed's id.
    pub id: String,
    /// What others see.
    pub display: String,
    /// Whether to send sound, in Opus.
    pub audio: bool,
    /// Whether to send the picture.
    pub video: bool,
    /// The picture's codec; the room must have it.
    pub codec: VideoCodec,
    /// Layers in one stream, by the name of their structure (`L3T3_KEY`), instead of simulcast.
    pub svc: Option<String>,
    /// Notes which pictures are coded, for [`ChromiumPublisher::coded`].
    pub notes_coded: bool,
    /// Three layers: the whole size, a half and a quarter of it in each direction.
    pub simulcast: bool,
    /// Width and height.
    pub size: (u32, u32),
    /// Tells one publisher's pictures from another's; 0..=65,535.
    pub code: u16,
    /// What a track is: its mid, and a text for the others. Sound is mid 0, the picture 1 (0 when alone).
    pub descriptions: Vec<(String, String)>,
}

impl ChromiumOptions {
    /// 640x480 in three layers, and sound.
    #[must_use]
    pub fn new(janus: &Janus, room: &str, id: &str) -> Self {
        Self {
            url: janus.url(),
            api_secret: API_SECRET.to_owned(),
            token: None,
            room: janus.room(room),
            pin: None,
            id: id.to_owned(),
            display: format!("The {id}"),
            audio: true,
            video: true,
            codec: VideoCodec::Vp8,
            svc: None,
            notes_coded: false,
            simulcast: true,
            size: (640, 480),
            code: 1,
            descriptions: Vec::new(),
        }
    }
}

/// What the browser says of one layer that it sends.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Layer {
    /// `audio` or `video`.
    pub kind: String,
    /// The layer's name with simulcast.
    pub rid: Option<String>,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Pictures sent.
    pub frames: u64,
    /// RTP packets sent.
    pub packets: u64,
    /// Keyframes among the pictures.
    pub keyframes: u64,
    /// Keyframes asked for (RTCP PLI).
    pub plis: u64,
}

/// What a browser made of a file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Played {
    /// In seconds.
    pub duration: f64,
    /// Of the picture, in pixels.
    pub width: u32,
    /// Of the picture, in pixels.
    pub height: u32,
    /// The media time of the picture that was shown at each time, in seconds.
    pub seen: Vec<f64>,
}

/// A browser that publishes until it is dropped.
#[derive(Debug)]
pub struct ChromiumPublisher {
    node: Child,
    stdin: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    /// The browser's process, which leads a process group.
    browser: Option<u64>,
    // The browser's profile; removed with the handle.
    dir: tempfile::TempDir,
}

impl ChromiumPublisher {
    /// Starts the browser and publishes; returns when media flows.
    ///
    /// # Errors
    /// When node, npm's packages, Chromium or janus.js are missing, or when Janus refuses.
    pub async fn start(options: &ChromiumOptions) -> Result<Self> {
        let mut publisher = Self::launch().await?;
        let descriptions: Vec<Value> =
            options.descriptions.iter().map(|(mid, text)| json!({ "mid": mid, "description": text })).collect();
        let publish = json!({
            "do": "publish", "url": options.url, "apiSecret": options.api_secret, "token": options.token,
            "room": options.room, "pin": options.pin, "id": options.id, "display": options.display, "audio": options.audio, "video": options.video,
            "codec": options.codec.janus(), "svc": options.svc, "coded": options.notes_coded,
            "simulcast": options.simulcast, "width": options.size.0, "height": options.size.1, "code": options.code,
            "descriptions": descriptions,
        });
        publisher.ask(&publish).await?;
        Ok(publisher)
    }

    /// Plays a file in a browser's `<video>`, and goes to these times in it, in seconds.
    ///
    /// # Errors
    /// When it does not play.
    pub async fn play(url: &str, times: &[f64]) -> Result<Played> {
        let mut browser = Self::launch().await?;
        Ok(serde_json::from_value(browser.ask(&json!({ "do": "play", "url": url, "times": times })).await?)?)
    }

    /// Starts the browser, which shows the page and does nothing yet.
    async fn launch() -> Result<Self> {
        for file in [CHROMIUM, &format!("{JANUS_JS}/janus.js")] {
            if !std::path::Path::new(file).exists() {
                bail!("{file} is missing; `make setup` installs it");
            }
        }
        let modules = tokio::task::spawn_blocking(install::modules).await??;
        let dir = tempfile::tempdir()?;
        let log = std::fs::File::create(dir.path().join("node.log"))?;
        let mut node = Command::new("node")
            .arg(install::sources().join("publisher.mjs"))
            .arg(&modules)
            .args([JANUS_JS, CHROMIUM])
            .env("TMPDIR", dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("node cannot be started; `make setup` installs nodejs")?;
        let stdin = node.stdin.take();
        let stdout = node.stdout.take().context("no stdout")?;
        let mut publisher = Self { node, stdin, answers: BufReader::new(stdout).lines(), browser: None, dir };
        let ready = publisher.answer().await.with_context(|| publisher.log())?;
        publisher.browser = ready["pid"].as_u64();
        Ok(publisher)
    }

    async fn ask(&mut self, command: &Value) -> Result<Value> {
        let stdin = self.stdin.as_mut().context("the browser has ended")?;
        stdin.write_all(format!("{command}\n").as_bytes()).await?;
        self.answer().await.with_context(|| format!("{}: {}", command["do"], self.log()))
    }

    async fn answer(&mut self) -> Result<Value> {
        let line = tokio::time::timeout(deadline(), self.answers.next_line()).await.context("the browser hangs")??;
        let mut answer: Value = serde_json::from_str(&line.context("the browser has ended")?)?;
        if let Some(error) = answer["error"].as_str() {
            bail!("in the browser: {error}");
        }
        Ok(answer["ok"].take())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("node.log")).unwrap_or_default()
    }

    /// Stops or resumes the picture; the browser goes on sending black pictures.
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn mute_video(&mut self, on: bool) -> Result<()> {
        self.ask(&json!({ "do": "mute", "kind": "video", "on": on })).await.map(drop)
    }

    /// Stops or resumes the sound; the browser goes on sending silence.
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn mute_audio(&mut self, on: bool) -> Result<()> {
        self.ask(&json!({ "do": "mute", "kind": "audio", "on": on })).await.map(drop)
    }

    /// Draws pictures of another size.
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn resize(&mut self, size: (u32, u32)) -> Result<()> {
        self.ask(&json!({ "do": "resize", "width": size.0, "height": size.1 })).await.map(drop)
    }

    /// Sends another picture, of this size, and another sound, so many seconds later, in the same tracks (`replaceTrack`).
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn replace(&mut self, size: (u32, u32), seconds: u32) -> Result<()> {
        let replace = json!({ "do": "replace", "width": size.0, "height": size.1, "seconds": seconds });
        self.ask(&replace).await.map(drop)
    }

    /// Takes the picture out of the connection, or adds it again, by a renegotiation.
    ///
    /// # Errors
    /// When Janus refuses, or the browser has ended.
    pub async fn add_video(&mut self, added: bool) -> Result<()> {
        self.ask(&json!({ "do": "renegotiate", "kind": "video", "on": added })).await.map(drop)
    }

    /// Ceases or resumes to send a simulcast layer: `h`, `m` or `l`. Another than the highest that is sent is what the
    /// router has for its subscribers then.
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn layer(&mut self, rid: &str, on: bool) -> Result<()> {
        self.ask(&json!({ "do": "layer", "rid": rid, "on": on })).await.map(drop)
    }

    /// What it sends, layer by layer.
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn stats(&mut self) -> Result<Vec<Layer>> {
        Ok(serde_json::from_value(self.ask(&json!({ "do": "stats" })).await?)?)
    }

    /// What was drawn and played so far.
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn truth(&mut self) -> Result<Timeline> {
        timeline(self.ask(&json!({ "do": "truth" })).await?)
    }

    /// What was drawn, played and coded so far; see [`ChromiumOptions::notes_coded`].
    ///
    /// # Errors
    /// When the browser has ended.
    pub async fn coded(&mut self) -> Result<SentByBrowser> {
        coded::read(self.ask(&json!({ "do": "truth" })).await?)
    }

    /// Leaves as [`ChromiumPublisher::leave`] does. Returns what was coded, too.
    ///
    /// # Errors
    /// When the browser has ended before.
    pub async fn leave_coded(mut self) -> Result<SentByBrowser> {
        let all = coded::read(self.ask(&json!({ "do": "leave" })).await?)?;
        self.end().await;
        Ok(all)
    }

    /// Unpublishes, leaves the room and ends the browser. Returns what was drawn and played.
    ///
    /// # Errors
    /// When the browser has ended before.
    pub async fn leave(mut self) -> Result<Timeline> {
        let truth = timeline(self.ask(&json!({ "do": "leave" })).await?)?;
        self.end().await;
        Ok(truth)
    }

    async fn end(&mut self) {
        self.stdin = None;
        // Whatever is left then is killed on drop.
        tokio::time::timeout(END_MAX, self.node.wait()).await.map(drop).unwrap_or_default();
    }

    /// Vanishes without a word.
    pub fn crash(mut self) {
        self.kill();
    }

    fn kill(&mut self) {
        if let Some(pid) = self.browser.take() {
            let mut kill = std::process::Command::new("kill");
            kill.args(["-KILL", "--", &format!("-{pid}")]).stderr(Stdio::null());
            // An error means that it has ended by itself.
            kill.status().map(drop).unwrap_or_default();
        }
        self.node.start_kill().unwrap_or_default();
    }
}

impl Drop for ChromiumPublisher {
    fn drop(&mut self) {
        // The script closes the browser when nobody talks to it any more.
        self.stdin = None;
        let until = Instant::now() + END_MAX;
        while matches!(self.node.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
    }
}

fn timeline(value: Value) -> Result<Timeline> {
    #[derive(Deserialize)]
    struct ReportedMedia {
        frames: Vec<(u32, f64)>,
        beeps: Vec<(u32, f64)>,
    }
    let ReportedMedia { frames, beeps } = serde_json::from_value(value)?;
    Ok(Timeline { frames, beeps })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::known_slowness;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_browser_publishes_three_layers_and_leaves() {
        let janus = Janus::start().expect("janus");
        janus
            .create_room("r", json!({ "audiocodec": "opus", "videocodec": "vp8", "pin": "secret" }))
            .await
            .expect("room");
        let mut options = ChromiumOptions::new(&janus, "r", "browser");
        options.pin = Some("wrong".to_owned());
        assert!(ChromiumPublisher::start(&options).await.is_err());
        options.pin = Some("secret".to_owned());
        let mut publisher = ChromiumPublisher::start(&options).await.expect("publish");
        let pid = publisher.browser.expect("pid");
        let until = Instant::now() + deadline();
        loop {
            let layers = publisher.stats().await.expect("stats");
            let sent = |width| layers.iter().any(|l| l.width == width && l.frames > 30);
            // Two beeps, which come a second after each other.
            let sound = layers.iter().any(|l| l.kind == "audio" && l.packets > 150);
            if sound && [640, 320, 160].into_iter().all(sent) {
                break;
            }
            assert!(Instant::now() < until, "{layers:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let truth = publisher.leave().await.expect("leave");
        assert!(truth.frames.len() > 30 && truth.beeps.len() > 1, "{truth:?}");
        let seconds = truth.frames[truth.frames.len() - 1].1 - truth.frames[0].1;
        #[allow(clippy::cast_precision_loss)]
        let rate = truth.frames.len() as f64 / seconds;
        assert!((20.0 / known_slowness()..32.0).contains(&rate), "{rate} pictures a second");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the browser still runs");
    }
}
