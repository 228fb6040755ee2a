//! What somebody asks of an archive while it is recorded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::archive_options::StreamMode;
use super::ids::StreamId;
use super::layout::Layout;

/// What is asked for, all in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Desired {
    /// The layout, if it is another than the archive began with.
    pub layout: Option<Layout>,
    /// Streams' layout classes.
    pub classes: BTreeMap<StreamId, Vec<String>>,
    /// The stream mode, if it is another than the archive began with.
    pub stream_mode: Option<StreamMode>,
    /// Streams that were added or removed.
    pub selected: BTreeMap<StreamId, Selection>,
}

/// What of a stream a composed archive has while its stream mode is manual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// Its sound.
    pub has_audio: bool,
    /// Its picture.
    pub has_video: bool,
}

impl Selection {
    /// All of it.
    pub const ALL: Self = Self { has_audio: true, has_video: true };
    /// The stream is not in the archive: it was never added, or is removed.
    pub const NONE: Self = Self { has_audio: false, has_video: false };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::LayoutType;

    #[test]
    fn an_older_or_newer_program_s_wish_is_read() {
        let pip = Layout { kind: LayoutType::Pip, ..Layout::default() };
        let read = |text: &str| serde_json::from_str::<Desired>(text).expect("wish");
        assert_eq!(read("{}"), Desired::default());
        assert_eq!(read(r#"{"layout":{"type":"pip"},"other":1}"#).layout, Some(pip));
    }
}
