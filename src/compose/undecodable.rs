//! Which tracks of a composed log cannot be decoded: end-to-end encrypted media, for one. Janus before 1.3 does not tell its subscribers
//! that a publisher encrypts, so only decoding shows it. Pictures fail to decode. Sound does not: a decoder makes noise of it. Pure.

use std::collections::BTreeSet;

use crate::model::ids::{StreamId, TrackId, TrackKind};

/// Failures of a decoder that tell encrypted pictures from a damaged one: a keyframe that fails counts twice, because it is tried again with a
/// new decoder.
const FAILURES_MIN: u64 = 4;
/// Pictures of which next to none could be decoded, that tell the same. A stream may have one keyframe only.
const PICTURES_MIN: u64 = 30;
/// Of so many pictures of noise one may decode to something.
const CHANCE: u64 = 10;

/// What came of decoding a track, for the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DecodeCounts {
    /// Frames at which a decoder failed.
    pub decoder: u64,
    /// Frames that were passed over until the next keyframe: behind one that failed, or while nothing of the stream was drawn.
    pub skipped: u64,
    /// Those of them behind one that failed.
    #[serde(default)]
    pub skipped_after_failure: u64,
    /// Pictures, or packets of sound, that were decoded.
    #[serde(default)]
    pub decoded: u64,
}

impl DecodeCounts {
    /// Whether anything could not be decoded.
    #[must_use]
    pub const fn has_failures(&self) -> bool {
        self.decoder > 0 || self.skipped > 0
    }
}

/// A track, and what came of decoding it.
pub type TrackCounts = (StreamId, TrackKind, DecodeCounts);

/// The tracks of which most or all cannot be decoded. Beside pictures of which nothing can be decoded, the sound of a stream counts as
/// encrypted, too: one publisher encrypts all tracks or none, and noise in the mix would cover everybody.
#[must_use]
pub fn undecodable(tracks: &[TrackCounts]) -> BTreeSet<TrackId> {
    let next_to_nothing = |counts: &DecodeCounts| {
        let lost = counts.decoder + counts.skipped_after_failure;
        counts.decoder > 0 && lost >= PICTURES_MIN && lost >= CHANCE * counts.decoded
    };
    let fails = |counts: &DecodeCounts| counts.decoder > counts.decoded || next_to_nothing(counts);
    let is_encrypted = |(_, kind, counts): &&TrackCounts| {
        *kind == TrackKind::Video && fails(counts) && (counts.decoder >= FAILURES_MIN || next_to_nothing(counts))
    };
    let encrypted: BTreeSet<StreamId> = tracks.iter().filter(is_encrypted).map(|(stream, ..)| *stream).collect();
    let is_undecodable = |(stream, _, counts): &&TrackCounts| fails(counts) || encrypted.contains(stream);
    tracks.iter().filter(is_undecodable).map(|(stream, kind, _)| TrackId { stream: *stream, kind: *kind }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_fail_and_the_sound_beside_them_cannot_be_decoded() {
        let stream: StreamId = "00000000-0000-4000-8000-000000000001".parse().expect("id");
        for (name, video, audio, expected) in [
            ("all is well", Some((0, 300)), Some((0, 500)), (false, false)),
            ("some pictures are damaged", Some((4, 300)), Some((0, 500)), (false, false)),
            ("nothing was shown", Some((0, 0)), Some((0, 500)), (false, false)),
            ("encrypted", Some((4, 0)), Some((0, 500)), (true, true)),
            ("encrypted, and some pictures decode to something", Some((7, 3)), Some((0, 500)), (true, true)),
            ("a damaged keyframe, and the session's end", Some((2, 0)), Some((0, 500)), (true, false)),
            ("encrypted without sound", Some((9, 0)), None, (true, false)),
            ("sound that fails", None, Some((90, 3)), (false, true)),
        ] {
            let track =
                |kind, (decoder, decoded)| (stream, kind, DecodeCounts { decoder, decoded, ..DecodeCounts::default() });
            let video = video.map(|counts| track(TrackKind::Video, counts));
            let tracks: Vec<TrackCounts> =
                video.into_iter().chain(audio.map(|counts| track(TrackKind::Audio, counts))).collect();
            let found = undecodable(&tracks);
            let has = |kind| found.contains(&TrackId { stream, kind });
            assert_eq!((has(TrackKind::Video), has(TrackKind::Audio)), expected, "{name}");
        }
        // One keyframe, which fails or decodes by chance, and pictures that are passed over behind it.
        for (skipped, decoded, expected) in
            [(27, 0, 1), (28, 0, 2), (298, 0, 2), (298, 3, 2), (298, 30, 2), (298, 31, 0)]
        {
            let counts = DecodeCounts { decoder: 2, decoded, skipped, skipped_after_failure: skipped };
            let video = (stream, TrackKind::Video, counts);
            let audio = (stream, TrackKind::Audio, DecodeCounts { decoded: 500, ..DecodeCounts::default() });
            assert_eq!(undecodable(&[video, audio]).len(), expected, "{skipped}, {decoded}");
        }
        // A stream that was long out of the layout, and of which one picture failed.
        let hidden = DecodeCounts { decoder: 1, decoded: 150, skipped: 18_000, skipped_after_failure: 0 };
        assert_eq!(undecodable(&[(stream, TrackKind::Video, hidden)]).len(), 0);
    }
}
