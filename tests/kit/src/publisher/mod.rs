//! A WebRTC publisher that knows what it sent.
//!
//! Pictures carry their number as blocks, sound carries a beep a second whose pitch is the number of the
//! second, so that a finished file can be held against what was sent ([`Truth`]). The media is encoded once a
//! process and played in a loop; when a keyframe is asked for, the picture skips ahead to the next one. Or it is
//! encoded live ([`Options::live`]), which costs more and gives keyframes only when they are asked for.

mod encrypt;
mod live;
pub mod media;
mod pool;
mod rtc;
mod track;

use crate::wait::{deadline, wait_for};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::content::Timeline;
use crate::janus::Client;
use crate::proxy::UdpProxy;
pub use media::{AudioCodec, H264Kind, VideoCodec};
use str0m::media::MediaKind;

/// A connection is tried so often.
const CONNECT_TRIES: u32 = 8;
/// From a publisher's last packet to its request to leave.
const LEAVES_AFTER: Duration = Duration::from_millis(100);

/// What to publish, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// `ws://…` of Janus.
    pub url: String,
    /// The room.
    pub room: String,
    /// The room's pin.
    pub pin: Option<String>,
    /// A client's token; Janus's secret without one.
    pub token: Option<String>,
    /// A token of the room's list; rooms without a list want none.
    pub room_token: Option<String>,
    /// The feed's id.
    pub id: String,
    /// What others see.
    pub display: String,
    /// The picture.
    pub video: Option<VideoCodec>,
    /// The sound.
    pub audio: Option<AudioCodec>,
    /// Width and height.
    pub size: (u32, u32),
    /// Tells one publisher's pictures from another's; 0..65,535.
    pub code: u16,
    /// Bits a second of the picture, in thousands.
    pub kilobits: u32,
    /// Encodes each picture when it is due. Keyframes come only when they are asked for, and numbers begin again
    /// after 65,536 pictures.
    pub live: bool,
    /// Pictures a second.
    pub fps: u32,
    /// How H.264 is coded. Kinds that look ahead are not encoded live.
    pub h264: H264Kind,
    /// Opus has two channels.
    pub stereo: bool,
    /// Each Opus packet has a copy of the one before it.
    pub fec: bool,
    /// Offers telephone events (RFC 4733), and presses a key each two seconds if the answer takes them. That of Janus's VideoRoom
    /// names one codec a track, so that nothing is pressed there.
    pub telephone: bool,
    /// Sends no Opus packets while there is silence, but one each 400 ms.
    pub dtx: bool,
    /// Encrypts its media end to end: nobody else can decode it.
    pub encrypted: bool,
    /// What the tracks are, for the others: sound, picture.
    pub descriptions: (Option<String>, Option<String>),
    /// A second picture with this code, described as `screen`.
    pub screen: Option<u16>,
    /// The local address to send from; media goes to Janus's.
    pub local: std::net::IpAddr,
    /// H.264's `profile-level-id` in the offer, instead of that of [`Options::h264`].
    pub h264_profile: Option<u32>,
    /// A bad network to send through.
    pub proxy: Option<Arc<UdpProxy>>,
}

impl Options {
    /// VP8 at 320x240 and Opus.
    #[must_use]
    pub fn new(janus: &crate::janus::Janus, room: &str, id: &str) -> Self {
        Self {
            url: janus.url(),
            room: janus.room(room),
            pin: None,
            token: None,
            room_token: None,
            id: id.to_owned(),
            display: format!("The {id}"),
            video: Some(VideoCodec::Vp8),
            audio: Some(AudioCodec::Opus),
            size: (320, 240),
            code: 1,
            kilobits: 400,
            live: false,
            fps: media::FPS,
            h264: H264Kind::default(),
            stereo: false,
            fec: false,
            telephone: false,
            dtx: false,
            encrypted: false,
            descriptions: (None, None),
            screen: None,
            local: janus.ip(),
            h264_profile: None,
            proxy: None,
        }
    }
}

/// What was sent.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// Pictures: number, when it was taken.
    pub frames: Vec<(u32, Instant)>,
    /// The same of the second picture.
    pub screen_frames: Vec<(u32, Instant)>,
    /// Seconds of sound whose beep was sent: number, when it began.
    pub beeps: Vec<(u32, Instant)>,
    /// Pictures whose time passed while the picture was off.
    pub frames_left_out: usize,
    /// Packets of sound.
    pub audio_packets: u64,
    /// Keys pressed.
    pub tones: u64,
    /// Keyframes that were asked for.
    pub keyframe_requests: u64,
    /// How late anything was sent that was due: a publisher without a processor is no sender to hold a file against.
    pub late_max: Duration,
}

/// Seconds since 1970 of an instant; one reading of both clocks serves the whole process.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn unix_seconds(at: Instant) -> f64 {
    static ANCHOR: LazyLock<(Instant, f64)> = LazyLock::new(|| {
        (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
    });
    let (instant, seconds) = *ANCHOR;
    match at.checked_duration_since(instant) {
        Some(after) => seconds + after.as_secs_f64(),
        None => seconds - instant.duration_since(at).as_secs_f64(),
    }
}

impl Truth {
    /// The same on the wall clock, to hold a file against.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let wall = |list: &[(u32, Instant)]| list.iter().map(|(n, at)| (*n, unix_seconds(*at))).collect();
        Timeline { frames: wall(&self.frames), beeps: wall(&self.beeps) }
    }

    /// The second picture alone, to hold a file against.
    #[must_use]
    pub fn screen_timeline(&self) -> Timeline {
        let frames = self.screen_frames.clone();
        Self { frames, ..Self::default() }.timeline()
    }

    /// When the first and the last picture were taken.
    #[must_use]
    pub fn live_span(&self) -> Option<(Instant, Instant)> {
        Some((self.frames.first()?.1, self.frames.last()?.1))
    }
}

#[derive(Debug, Default)]
struct Switches {
    stop: AtomicBool,
    video_off: AtomicBool,
    audio_off: AtomicBool,
    connected: AtomicBool,
    ended: AtomicBool,
    size: Mutex<Option<(u32, u32)>>,
    /// So many seconds of numbers are left out.
    jump: AtomicU32,
    /// A track that is to go or to come.
    change: Mutex<Option<Change>>,
    /// Janus's answer to the offer of such a change.
    answer: Mutex<Option<String>>,
    changes: AtomicUsize,
}

impl Switches {
    const fn off(&self, kind: MediaKind) -> &AtomicBool {
        match kind {
            MediaKind::Video => &self.video_off,
            MediaKind::Audio => &self.audio_off,
        }
    }
}

/// Whether a track is to be in the connection.
#[derive(Debug, Clone, Copy)]
struct Change {
    kind: MediaKind,
    added: bool,
}

/// A publisher that publishes until it is dropped.
#[derive(Debug)]
pub struct Publisher {
    switches: Arc<Switches>,
    truth: Arc<Mutex<Truth>>,
    signalling: Option<tokio::task::JoinHandle<Client>>,
    leave: tokio::sync::watch::Sender<bool>,
}

impl Publisher {
    /// Joins the room and publishes; returns when media flows. A connection that does not come up is tried again, as people do: on a busy
    /// machine a connection of str0m to Janus was seen that got no answer to its checks, and that neither side gave up.
    ///
    /// # Errors
    /// When Janus refuses, or no connection comes up within [`deadline`].
    pub async fn start(options: Options) -> Result<Self> {
        for attempt in 1..=CONNECT_TRIES {
            let publisher = Self::publish(&options).await?;
            if publisher.connects().await {
                return Ok(publisher);
            }
            eprintln!("{}: no connection to Janus, attempt {attempt} of {CONNECT_TRIES}", options.id);
            publisher.leave().await?;
        }
        bail!("no connection to Janus within {:?}", deadline())
    }

    /// Joins a room and asks for a connection.
    async fn publish(options: &Options) -> Result<Self> {
        let mut client = match &options.token {
            Some(token) => Client::connect_with_token(&options.url, token).await?,
            None => Client::connect(&options.url).await?,
        };
        let mut join = json!({
            "request": "join", "ptype": "publisher", "room": options.room, "id": options.id, "display": options.display,
        });
        if let Some(pin) = &options.pin {
            join["pin"] = json!(pin);
        }
        if let Some(token) = &options.room_token {
            join["token"] = json!(token);
        }
        let joined = client.message(join, None).await?;
        if joined["plugindata"]["data"]["videoroom"] != "joined" {
            bail!("not let into the room: {joined}");
        }
        // The first one of its kind encodes the loop.
        let (mut sender, offer) = {
            let options = options.clone();
            tokio::task::spawn_blocking(move || rtc::Connection::offer(&options)).await??
        };
        let (audio_mid, video_mid) = sender.mids();
        let screen = Some("screen".to_owned());
        let described = [
            (audio_mid, &options.descriptions.0),
            (video_mid, &options.descriptions.1),
            (sender.screen_mid(), &screen),
        ];
        let descriptions: Vec<Value> = described
            .into_iter()
            .filter_map(|(mid, text)| Some(json!({ "mid": mid?, "description": text.as_ref()? })))
            .collect();
        let mut publish = json!({ "request": "publish" });
        if !descriptions.is_empty() {
            publish["descriptions"] = json!(descriptions);
        }
        if let Some(codec) = options.video {
            publish["videocodec"] = json!(codec.janus());
        }
        if let Some(codec) = options.audio {
            publish["audiocodec"] = json!(codec.janus());
        }
        let answer = client.message(publish, Some(offer_jsep(&offer, options.encrypted))).await?;
        let sdp = answer["jsep"]["sdp"].as_str().with_context(|| format!("no answer: {answer}"))?;
        let mut sdp = sdp.to_owned();
        if !sdp.contains("a=candidate:") {
            sdp += &client.later_candidates().await?;
        }
        sender.answer(&sdp)?;
        let (switches, truth) = (Arc::new(Switches::default()), Arc::new(Mutex::new(Truth::default())));
        let (offers, offered) = tokio::sync::mpsc::channel(1);
        pool::drive(rtc::DrivenConnection::new(sender, Arc::clone(&switches), Arc::clone(&truth), offers))?;
        let (leave, leaving) = tokio::sync::watch::channel(false);
        // Awaited by `leave`; a publisher that is dropped takes its socket with it.
        #[allow(clippy::disallowed_methods)]
        let signalling = tokio::spawn(signal(client, leaving, offered, Arc::clone(&switches), options.encrypted));
        let publisher = Self { switches, truth, signalling: Some(signalling), leave };
        Ok(publisher)
    }

    /// Whether its connection comes up in time.
    async fn connects(&self) -> bool {
        let until = Instant::now() + deadline() / CONNECT_TRIES;
        while !self.switches.connected.load(Ordering::Relaxed) {
            if Instant::now() > until || self.switches.ended.load(Ordering::Relaxed) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// What was sent so far.
    #[must_use]
    pub fn truth(&self) -> Truth {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops or resumes sending the picture.
    pub fn mute_video(&self, off: bool) {
        self.switches.video_off.store(off, Ordering::Relaxed);
    }

    /// Stops or resumes sending the sound.
    pub fn mute_audio(&self, off: bool) {
        self.switches.audio_off.store(off, Ordering::Relaxed);
    }

    /// Takes the picture out of the connection, or adds it again, by a renegotiation: what a browser does that ends the camera's track.
    ///
    /// # Panics
    /// When it takes longer than [`deadline`].
    pub async fn add_video(&self, added: bool) {
        self.change(Change { kind: MediaKind::Video, added }).await;
    }

    /// The same for the sound.
    ///
    /// # Panics
    /// When it takes longer than [`deadline`].
    pub async fn add_audio(&self, added: bool) {
        self.change(Change { kind: MediaKind::Audio, added }).await;
    }

    async fn change(&self, change: Change) {
        let before = self.switches.changes.load(Ordering::Relaxed);
        *self.switches.change.lock().unwrap_or_else(PoisonError::into_inner) = Some(change);
        wait_for("a renegotiation", || async {
            (self.switches.changes.load(Ordering::Relaxed) > before).then_some(())
        })
        .await;
    }

    /// Changes the picture's size, with a keyframe.
    pub fn resize(&self, size: (u32, u32)) {
        *self.switches.size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
    }

    /// Shows and sounds something else from now on, in the same tracks, as a browser's `replaceTrack` does: numbers go on so many
    /// seconds later, the picture with a keyframe of another size.
    pub fn replace(&self, size: (u32, u32), seconds: u32) {
        self.resize(size);
        self.switches.jump.store(seconds, Ordering::Relaxed);
    }

    /// Whether its connection is up.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.switches.ended.load(Ordering::Relaxed)
    }

    /// Pictures sent so far.
    #[must_use]
    pub fn frames_sent(&self) -> usize {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner).frames.len()
    }

    /// Waits until so many further pictures were due: sent, or left out because the picture is off.
    ///
    /// # Panics
    /// When it takes longer than [`deadline`].
    pub async fn pictures_pass(&self, further: usize) {
        let due = || self.frames_sent() + self.frames_left_out();
        let until = due() + further;
        wait_for("pictures to be sent", || async { (due() >= until).then_some(()) }).await;
    }

    /// Waits until so many further beeps were sent.
    pub async fn beeps_pass(&self, further: usize) {
        let sent = || self.truth.lock().unwrap_or_else(PoisonError::into_inner).beeps.len();
        let until = sent() + further;
        wait_for("beeps to be sent", || async { (sent() >= until).then_some(()) }).await;
    }

    /// Pictures left out so far, because the picture was off when they were due.
    #[must_use]
    pub fn frames_left_out(&self) -> usize {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner).frames_left_out
    }

    async fn stop_media(&mut self) -> Truth {
        self.switches.stop.store(true, Ordering::Relaxed);
        while self.is_live() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.truth()
    }

    /// Unpublishes and leaves the room. Returns what was sent.
    ///
    /// # Errors
    /// When Janus is away.
    pub async fn leave(mut self) -> Result<Truth> {
        let truth = self.stop_media().await;
        // The router ends a publisher's connection with its request to leave, whatever its socket still holds.
        tokio::time::sleep(LEAVES_AFTER).await;
        self.leave.send(true).unwrap_or_default();
        if let Some(signalling) = self.signalling.take() {
            signalling.await?.message(json!({ "request": "leave" }), None).await?;
        }
        Ok(truth)
    }

    /// Vanishes without a word. Returns what was sent.
    pub fn crash(mut self) -> Truth {
        self.switches.stop.store(true, Ordering::Relaxed);
        while self.is_live() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let truth = self.truth();
        if let Some(signalling) = self.signalling.take() {
            signalling.abort();
        }
        truth
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.switches.stop.store(true, Ordering::Relaxed);
        if let Some(signalling) = self.signalling.take() {
            signalling.abort();
        }
    }
}

/// An offer as Janus's own client sends it (`janus.js`): it says whether the media is encrypted end to end.
fn offer_jsep(sdp: &str, encrypted: bool) -> Value {
    let mut jsep = json!({ "type": "offer", "sdp": sdp });
    if encrypted {
        jsep["e2ee"] = json!(true);
    }
    jsep
}

/// Keeps the session, and takes the connection's offers to Janus.
async fn signal(
    mut client: Client,
    mut leaving: tokio::sync::watch::Receiver<bool>,
    mut offers: tokio::sync::mpsc::Receiver<String>,
    switches: Arc<Switches>,
    encrypted: bool,
) -> Client {
    loop {
        tokio::select! {
            _ = leaving.changed() => return client,
            Some(offer) = offers.recv() => {
                let jsep = offer_jsep(&offer, encrypted);
                let Ok(answer) = client.message(json!({ "request": "configure" }), Some(jsep)).await else { return client };
                let sdp = answer["jsep"]["sdp"].as_str().map(str::to_owned);
                *switches.answer.lock().unwrap_or_else(PoisonError::into_inner) = sdp;
            }
            () = tokio::time::sleep(Duration::from_secs(5)) => {
                client.drain().await;
                if client.keep_alive().await.is_err() {
                    return client;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
