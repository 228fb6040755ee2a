//! Which tracks of a composed log cannot be decoded: end-to-end encrypted media, for one. Janus 1.1.2 does not tell its subscribers that a
//! publisher encrypts, so only decoding shows it. Pictures fail to decode. Sound does not: a decoder makes noise of it. Pure.

use std::collections::BTreeSet;

use super::inputs::Errors;
use crate::model::ids::{StreamId, TrackId, TrackKind};

/// Failures of a decoder that tell encrypted pictures from a damaged one: a keyframe that fails counts twice, because it is tried again with a
/// new decoder.
const FAILURES_MIN: u64 = 4;
/// Pictures of which none could be decoded, that tell the same. A stream may have one keyframe only.
const PICTURES_MIN: u64 = 30;

/// What came of decoding a track.
pub type TrackErrors = (StreamId, TrackKind, Errors);

/// The tracks of which most or all cannot be decoded. Beside pictures of which nothing can be decoded, the sound of a stream counts as
/// encrypted, too: one publisher encrypts all tracks or none, and noise in the mix would cover everybody.
#[must_use]
pub fn undecodable(tracks: &[TrackErrors]) -> BTreeSet<TrackId> {
    let fails = |errors: &Errors| errors.decoder > errors.decoded;
    let nothing = |errors: &Errors| errors.decoded == 0 && errors.decoder + errors.skipped >= PICTURES_MIN;
    let is_encrypted = |(_, kind, errors): &&TrackErrors| {
        *kind == TrackKind::Video && fails(errors) && (errors.decoder >= FAILURES_MIN || nothing(errors))
    };
    let encrypted: BTreeSet<StreamId> = tracks.iter().filter(is_encrypted).map(|(stream, ..)| *stream).collect();
    let is_undecodable = |(stream, _, errors): &&TrackErrors| fails(errors) || encrypted.contains(stream);
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
            let track = |kind, (decoder, decoded)| (stream, kind, Errors { decoder, decoded, skipped: 0 });
            let video = video.map(|errors| track(TrackKind::Video, errors));
            let tracks: Vec<TrackErrors> =
                video.into_iter().chain(audio.map(|errors| track(TrackKind::Audio, errors))).collect();
            let found = undecodable(&tracks);
            let has = |kind| found.contains(&TrackId { stream, kind });
            assert_eq!((has(TrackKind::Video), has(TrackKind::Audio)), expected, "{name}");
        }
        // One keyframe, which fails, and pictures that are passed over behind it.
        for (skipped, expected) in [(27, 1), (28, 2)] {
            let video = (stream, TrackKind::Video, Errors { decoder: 2, decoded: 0, skipped });
            let audio = (stream, TrackKind::Audio, Errors { decoded: 500, ..Errors::default() });
            assert_eq!(undecodable(&[video, audio]).len(), expected, "{skipped}");
        }
    }
}
