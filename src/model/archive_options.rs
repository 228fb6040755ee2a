//! How an archive is to be recorded and composed, as events and the API ask for it. Ranges are Vonage's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::field_error::FieldError;
use super::ids::TrackKind;
use super::layout::Layout;

/// Longest archive name in characters (Vonage's SDKs check the same).
pub const NAME_CHARS_MAX: usize = 80;
/// Vonage's range of `quantizationParameter`.
const QUANTIZATION: std::ops::RangeInclusive<u8> = 15..=40;
/// Vonage's range of `maxBitrate`, in bit/s.
const BITRATE: std::ops::RangeInclusive<u32> = 100_000..=6_000_000;

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputMode {
    /// One file a stream, in a ZIP.
    Individual,
    /// One MP4.
    #[default]
    Composed,
    /// Both.
    Both,
}

impl OutputMode {
    /// The name in events and in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Individual => "individual",
            Self::Composed => "composed",
            Self::Both => "both",
        }
    }
}

/// Vonage's six sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Resolution {
    #[serde(rename = "640x480")]
    Sd,
    #[serde(rename = "480x640")]
    SdPortrait,
    #[serde(rename = "1280x720")]
    Hd,
    #[serde(rename = "720x1280")]
    HdPortrait,
    #[serde(rename = "1920x1080")]
    Fhd,
    #[serde(rename = "1080x1920")]
    FhdPortrait,
}

impl Resolution {
    /// Width and height in pixels.
    #[must_use]
    pub const fn size(self) -> (u32, u32) {
        match self {
            Self::Sd => (640, 480),
            Self::SdPortrait => (480, 640),
            Self::Hd => (1280, 720),
            Self::HdPortrait => (720, 1280),
            Self::Fhd => (1920, 1080),
            Self::FhdPortrait => (1080, 1920),
        }
    }
}

/// Which streams a composed archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamMode {
    /// All.
    #[default]
    Auto,
    /// Those that are added while it is recorded.
    Manual,
}

/// What the archive should be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveOptions {
    /// 1 to 80 characters.
    pub name: Option<String>,
    /// What it is.
    #[serde(default)]
    pub output_mode: OutputMode,
    /// Of a composed archive.
    pub resolution: Option<Resolution>,
    /// Of a composed archive.
    pub layout: Option<Layout>,
    /// Of a composed archive.
    #[serde(default)]
    pub stream_mode: StreamMode,
    /// Whether sound is archived.
    #[serde(default = "yes")]
    pub has_audio: bool,
    /// Whether pictures are archived.
    #[serde(default = "yes")]
    pub has_video: bool,
    /// Quality of a composed picture: 15 to 40, smaller is better. Not together with `maxBitrate`.
    pub quantization_parameter: Option<u8>,
    /// Limit of a composed picture: 100,000 to 6,000,000 bit/s.
    pub max_bitrate: Option<u32>,
    /// Sets it apart from other archives of the session at the same time: 1 to 80 characters. One at a time has none.
    pub multi_archive_tag: Option<String>,
}

impl ArchiveOptions {
    /// Whether tracks of a kind are archived.
    #[must_use]
    pub const fn has(&self, kind: TrackKind) -> bool {
        match kind {
            TrackKind::Audio => self.has_audio,
            TrackKind::Video => self.has_video,
        }
    }
}

const fn yes() -> bool {
    true
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            name: None,
            output_mode: OutputMode::default(),
            resolution: None,
            layout: None,
            stream_mode: StreamMode::default(),
            has_audio: true,
            has_video: true,
            quantization_parameter: None,
            max_bitrate: None,
            multi_archive_tag: None,
        }
    }
}

/// Whether a text can be a name or a tag: 1 to 80 characters in one line.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= NAME_CHARS_MAX && !text.chars().any(char::is_control)
}

impl ArchiveOptions {
    /// Whether they can be had.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        let wrong = |field: &str, what: &str| Err(FieldError::new(field, what));
        for (field, text) in [("name", &self.name), ("multiArchiveTag", &self.multi_archive_tag)] {
            if text.as_ref().is_some_and(|text| !is_name(text)) {
                return wrong(field, &format!("has none, more than {NAME_CHARS_MAX}, or control characters"));
            }
        }
        if !self.has_audio && !self.has_video {
            return wrong("hasAudio", "is false like hasVideo: nothing would be archived");
        }
        if self.quantization_parameter.is_some_and(|quality| !QUANTIZATION.contains(&quality)) {
            return wrong("quantizationParameter", "is not from 15 to 40");
        }
        if self.max_bitrate.is_some_and(|bits| !BITRATE.contains(&bits)) {
            return wrong("maxBitrate", "is not from 100000 to 6000000");
        }
        if self.max_bitrate.is_some() && self.quantization_parameter.is_some() {
            return wrong("maxBitrate", "does not go with quantizationParameter");
        }
        match &self.layout {
            Some(layout) => layout.check().map_err(|error| error.within("layout")),
            None => Ok(()),
        }
    }
}
