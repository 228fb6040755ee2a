//! From a feed of Janus to the streams of this program. A stream has at most one track of each kind; a feed may have more, such as a
//! camera and a screen in one PeerConnection. Each further track is a stream of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::wire::video_type;
use crate::model::ids::TrackKind;
use crate::router::{StreamInfo, TrackInfo};

/// Between a feed's id and the mid of a further track, in that stream's id.
const SEPARATOR: char = '\u{1f}';

/// The feed that a stream belongs to.
pub(super) fn feed_of(router_id: &str) -> &str {
    router_id.split_once(SEPARATOR).map_or(router_id, |(feed, _)| feed)
}

/// Which streams each feed has.
#[derive(Debug, Default)]
pub(super) struct Feeds(BTreeMap<String, Feed>);

#[derive(Debug, Default)]
struct Feed {
    /// The mids of the feed's own stream, which are kept while they are announced.
    main: BTreeMap<TrackKind, String>,
    /// The mids of the further streams.
    further: BTreeSet<String>,
}

impl Feeds {
    /// The streams of a feed that is present: its own, then the further ones.
    pub fn streams(&mut self, info: &StreamInfo) -> Vec<StreamInfo> {
        // The streams of such a feed could be mistaken for those of another one: its further tracks are left out.
        if info.router_id.contains(SEPARATOR) {
            if info.first_tracks().count() < info.tracks.len() {
                tracing::warn!(
                    feed = info.router_id,
                    "a feed whose id has a control character has one track of each kind archived"
                );
            }
            return vec![info.clone()];
        }
        let feed = self.0.entry(info.router_id.clone()).or_default();
        feed.sort(&info.tracks);
        let (further, own): (Vec<&TrackInfo>, _) =
            info.tracks.iter().partition(|track| feed.further.contains(&track.mid));
        let own = StreamInfo { tracks: own.into_iter().cloned().collect(), ..info.clone() };
        std::iter::once(own).chain(further.into_iter().map(|track| further_stream(info, track))).collect()
    }

    /// A feed is gone: all of its streams are.
    pub fn gone(&mut self, router_id: &str) {
        self.0.remove(router_id);
    }
}

impl Feed {
    /// Decides for each track whether it is of the feed's own stream. A track stays in its stream: when the camera goes, the screen
    /// does not take its place.
    fn sort(&mut self, tracks: &[TrackInfo]) {
        self.main.retain(|_, mid| tracks.iter().any(|track| track.mid == *mid));
        self.further.retain(|mid| tracks.iter().any(|track| track.mid == *mid));
        for track in tracks {
            if self.further.contains(&track.mid) {
                continue;
            }
            let main = self.main.entry(track.kind).or_insert_with(|| track.mid.clone());
            if *main != track.mid {
                self.further.insert(track.mid.clone());
            }
        }
    }
}

/// A track as a stream, named by its description.
fn further_stream(info: &StreamInfo, track: &TrackInfo) -> StreamInfo {
    let at_router = info.stream_id.as_deref().unwrap_or(&info.router_id);
    let described = track.description.as_deref().and_then(|text| video_type(Some(&text.into())));
    StreamInfo {
        router_id: format!("{}{SEPARATOR}{}", info.router_id, track.mid),
        stream_id: Some(format!("{at_router}{SEPARATOR}{}", track.mid)),
        name: track.description.clone().or_else(|| info.name.clone()),
        connection_data: info.connection_data.clone(),
        signature: info.signature,
        video_type: described.unwrap_or(info.video_type),
        tracks: vec![track.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::media::VideoType;
    use crate::router::Signature;

    fn track(mid: &str, kind: TrackKind, description: Option<&str>) -> TrackInfo {
        let codec = if kind == TrackKind::Audio { "opus" } else { "vp8" };
        let description = description.map(str::to_owned);
        TrackInfo { mid: mid.to_owned(), kind, codec: codec.to_owned(), description, muted: false }
    }

    fn feed(id: &str, tracks: &[TrackInfo]) -> StreamInfo {
        StreamInfo {
            router_id: id.to_owned(),
            stream_id: None,
            name: Some("Alice".to_owned()),
            connection_data: Some("data".to_owned()),
            signature: Signature::Valid,
            video_type: VideoType::Camera,
            tracks: tracks.to_vec(),
        }
    }

    /// Stream ids at the router with the mids of their tracks.
    fn mids(streams: &[StreamInfo]) -> Vec<(String, String)> {
        let mids = |stream: &StreamInfo| stream.tracks.iter().map(|t| t.mid.as_str()).collect::<Vec<_>>().join(" ");
        streams.iter().map(|stream| (stream.router_id.replace(SEPARATOR, "+"), mids(stream))).collect()
    }

    #[test]
    fn each_further_track_is_a_stream_and_stays_one() {
        let (sound, camera) = (track("0", TrackKind::Audio, None), track("1", TrackKind::Video, Some("camera")));
        let (screen, other) = (track("2", TrackKind::Video, Some("screen")), track("3", TrackKind::Audio, None));
        let again = track("4", TrackKind::Video, None);
        let mut feeds = Feeds::default();
        for (name, tracks, expected) in [
            ("one of each kind", vec![&sound, &camera], vec![("a", "0 1")]),
            ("a screen comes", vec![&sound, &camera, &screen], vec![("a", "0 1"), ("a+2", "2")]),
            ("the camera goes", vec![&sound, &screen], vec![("a", "0"), ("a+2", "2")]),
            ("the camera is back", vec![&sound, &again, &screen], vec![("a", "0 4"), ("a+2", "2")]),
            ("the screen goes", vec![&sound, &again], vec![("a", "0 4")]),
            ("a second sound", vec![&other, &sound, &again], vec![("a", "0 4"), ("a+3", "3")]),
            ("nothing", vec![], vec![("a", "")]),
        ] {
            let tracks: Vec<TrackInfo> = tracks.into_iter().cloned().collect();
            let expected: Vec<_> = expected.iter().map(|(id, mids)| ((*id).to_owned(), (*mids).to_owned())).collect();
            assert_eq!(mids(&feeds.streams(&feed("a", &tracks))), expected, "{name}");
        }
        // Whoever comes again begins anew.
        feeds.gone("a");
        assert_eq!(mids(&feeds.streams(&feed("a", &[screen]))), [("a".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn a_further_stream_has_the_name_and_the_type_of_its_track() {
        let tracks = [
            track("0", TrackKind::Video, None),
            track("1", TrackKind::Video, Some("screen")),
            track("2", TrackKind::Video, Some("Whiteboard")),
        ];
        let streams = Feeds::default().streams(&feed("a", &tracks));
        let told: Vec<_> = streams.iter().map(|s| (s.name.as_deref(), s.video_type)).collect();
        let expected = [
            (Some("Alice"), VideoType::Camera),
            (Some("screen"), VideoType::Screen),
            (Some("Whiteboard"), VideoType::Camera),
        ];
        assert_eq!(told, expected);
        assert!(streams.iter().all(|stream| stream.connection_data.as_deref() == Some("data")));
        assert!(streams.iter().all(|stream| stream.signature == Signature::Valid));
        assert!(streams.iter().all(|stream| feed_of(&stream.router_id) == "a"));
        assert_eq!(streams[1].stream_id.as_deref(), Some("a\u{1f}1"));
    }

    #[test]
    fn an_id_that_looks_like_that_of_a_further_track_is_not_taken_apart() {
        let tracks = [track("0", TrackKind::Video, None), track("1", TrackKind::Video, None)];
        let info = feed("a\u{1f}1", &tracks);
        assert_eq!(Feeds::default().streams(&info), std::slice::from_ref(&info));
    }
}
