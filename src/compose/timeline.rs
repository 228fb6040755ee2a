//! Who is there when: a pure reading of a session's history and of when its tracks began. What is true at a moment
//! depends on nothing later, so that it can be read while the session runs.

use std::collections::BTreeMap;

use crate::capture::history::{Event, What};
use crate::event::Layout;
use crate::ids::{StreamId, TrackKind};
use crate::router::VideoType;
use crate::time::{MediaSpan, MediaTime};

/// A picture is held for so long when no further one comes; then its stream leaves the picture.
pub const HOLD: MediaSpan = 2_000_000_000;

/// A stream in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Which.
    pub id: StreamId,
    /// When it came first.
    pub added: MediaTime,
    /// Its layout classes, each time from when on.
    classes: Vec<(MediaTime, Vec<String>)>,
    /// Since when it is a screen, or none.
    screen: Vec<(MediaTime, bool)>,
    /// When it was there. Empty when the history does not know it: then its media alone tells.
    present: Vec<Span>,
    /// When its publisher had switched the picture off.
    video_off: Vec<Span>,
}

/// From one moment to before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: MediaTime,
    to: MediaTime,
}

impl Span {
    fn has(self, at: MediaTime) -> bool {
        (self.from..self.to).contains(&at)
    }
}

const FOR_EVER: MediaTime = MediaTime(i64::MAX);

impl Stream {
    /// Whether it is in the picture at a moment at which its newest picture is from `newest`.
    #[must_use]
    pub fn is_shown(&self, at: MediaTime, newest: MediaTime) -> bool {
        let there = self.present.is_empty() || self.present.iter().any(|span| span.has(at));
        there && at - newest < HOLD && !self.video_off.iter().any(|span| span.has(at))
    }

    /// Whether it is a screen at a moment. Its first media may be a moment older than the news of it.
    #[must_use]
    pub fn is_screen(&self, at: MediaTime) -> bool {
        let said = self.screen.iter().take_while(|(since, _)| *since <= at).last();
        said.or(self.screen.first()).is_some_and(|(_, screen)| *screen)
    }

    /// Its layout classes at a moment.
    #[must_use]
    pub fn classes(&self, at: MediaTime) -> &[String] {
        self.classes.iter().take_while(|(since, _)| *since <= at).last().map_or(&[], |(_, classes)| classes)
    }

    /// Its place among others at a moment: who has the least comes first (Vonage's order of priority, without what
    /// only a platform knows of its clients).
    #[must_use]
    pub fn priority(&self, at: MediaTime) -> (bool, bool, MediaTime, StreamId) {
        (self.classes(at).is_empty(), !self.is_screen(at), self.added, self.id)
    }
}

/// Reads the history of streams that have media, each with the start of its first track. Streams without are left out.
#[must_use]
pub fn streams(media: &BTreeMap<StreamId, MediaTime>, events: &[Event]) -> BTreeMap<StreamId, Stream> {
    let new = |(id, added): (&StreamId, &MediaTime)| {
        let stream = Stream {
            id: *id,
            added: *added,
            classes: Vec::new(),
            screen: Vec::new(),
            present: Vec::new(),
            video_off: Vec::new(),
        };
        (*id, stream)
    };
    let mut streams: BTreeMap<StreamId, Stream> = media.iter().map(new).collect();
    for event in events {
        happened(&mut streams, event);
    }
    streams
}

/// The layouts that were asked for while the session ran, each from when on.
#[must_use]
pub fn layouts(events: &[Event]) -> Vec<(MediaTime, Layout)> {
    let layout = |event: &Event| match &event.what {
        What::Layout { layout } => Some((event.at, layout.clone())),
        _ => None,
    };
    events.iter().filter_map(layout).collect()
}

fn happened(streams: &mut BTreeMap<StreamId, Stream>, event: &Event) {
    let open = |spans: &mut Vec<Span>, from: MediaTime| {
        if spans.last().is_none_or(|span| span.to <= from) {
            spans.push(Span { from, to: FOR_EVER });
        }
    };
    let close = |spans: &mut Vec<Span>| {
        if let Some(span) = spans.last_mut().filter(|span| span.to == FOR_EVER) {
            span.to = event.at;
        }
    };
    match &event.what {
        What::Stream { stream, video_type, .. } => {
            if let Some(stream) = streams.get_mut(stream) {
                stream.screen.push((event.at, *video_type == VideoType::Screen));
                // Its first pictures may be a moment older than the news of it.
                let from = if stream.present.is_empty() { event.at.min(stream.added) } else { event.at };
                open(&mut stream.present, from);
            }
        }
        What::StreamGone { stream } => {
            if let Some(stream) = streams.get_mut(stream) {
                close(&mut stream.present);
            }
        }
        What::Muted { stream, kind: TrackKind::Video, muted } => {
            if let Some(stream) = streams.get_mut(stream) {
                match muted {
                    true => open(&mut stream.video_off, event.at),
                    false => close(&mut stream.video_off),
                }
            }
        }
        What::Classes { stream, classes } => {
            if let Some(stream) = streams.get_mut(stream) {
                stream.classes.push((event.at, classes.clone()));
            }
        }
        // A router that is away says nothing of those who are there: their media tells.
        What::EpochBegan { .. }
        | What::Muted { .. }
        | What::Layer { .. }
        | What::Layout { .. }
        | What::RouterLost
        | What::RouterBack
        | What::Ended { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_millis(ms)
    }

    fn id(n: u8) -> StreamId {
        format!("00000000-0000-4000-8000-0000000000{n:02}").parse().expect("id")
    }

    fn told(stream: u8, ms: i64, video_type: VideoType) -> Event {
        let what =
            What::Stream { stream: id(stream), router_id: "r".into(), name: None, connection_data: None, video_type };
        Event { at: at(ms), what }
    }

    fn read(events: &[Event]) -> Stream {
        streams(&BTreeMap::from([(id(1), at(0))]), events).remove(&id(1)).expect("stream")
    }

    #[test]
    fn a_stream_is_in_the_picture_while_it_is_there_has_pictures_and_is_not_switched_off() {
        let muted =
            |ms, muted| Event { at: at(ms), what: What::Muted { stream: id(1), kind: TrackKind::Video, muted } };
        let gone = |ms| Event { at: at(ms), what: What::StreamGone { stream: id(1) } };
        let there = told(1, 100, VideoType::Camera);
        for (name, events, moment, newest, shown) in [
            ("a history that does not know it", vec![], 5000, 4990, true),
            ("its first picture, before the news of it", vec![there.clone()], 50, 50, true),
            ("a picture of just now", vec![there.clone()], 5000, 4990, true),
            ("a picture that is held", vec![there.clone()], 5000, 3100, true),
            ("no picture for two seconds", vec![there.clone()], 5000, 3000, false),
            ("gone", vec![there.clone(), gone(4000)], 4000, 3990, false),
            ("before it went", vec![there.clone(), gone(4000)], 3999, 3990, true),
            ("back again", vec![there.clone(), gone(4000), told(1, 6000, VideoType::Camera)], 6100, 6090, true),
            ("away in between", vec![there.clone(), gone(4000), told(1, 6000, VideoType::Camera)], 5900, 5890, false),
            ("switched off", vec![there.clone(), muted(4000, true)], 4100, 4090, false),
            ("switched on again", vec![there.clone(), muted(4000, true), muted(5000, false)], 5100, 5090, true),
            (
                "its sound switched off",
                vec![
                    there,
                    Event { at: at(4000), what: What::Muted { stream: id(1), kind: TrackKind::Audio, muted: true } },
                ],
                4100,
                4090,
                true,
            ),
        ] {
            assert_eq!(read(&events).is_shown(at(moment), at(newest)), shown, "{name}");
        }
    }

    #[test]
    fn classes_and_their_priority_are_a_stream_s_from_when_they_were_asked_for() {
        let classes = |ms, classes: &[&str]| {
            let classes = classes.iter().map(|class| (*class).to_owned()).collect();
            Event { at: at(ms), what: What::Classes { stream: id(1), classes } }
        };
        let stream = read(&[told(1, 0, VideoType::Camera), classes(3000, &["focus"]), classes(6000, &[])]);
        for (ms, expected) in
            [(0, vec![]), (2999, vec![]), (3000, vec!["focus"]), (5999, vec!["focus"]), (6000, vec![])]
        {
            assert_eq!(stream.classes(at(ms)), expected, "{ms}");
            assert_eq!(stream.priority(at(ms)).0, expected.is_empty(), "{ms}");
        }
    }

    #[test]
    fn what_a_stream_shows_is_true_from_when_it_was_told() {
        let stream = read(&[told(1, 100, VideoType::Screen), told(1, 5000, VideoType::Camera)]);
        assert!(stream.is_screen(at(0)) && stream.is_screen(at(4999)) && !stream.is_screen(at(5000)));
        assert!(stream.priority(at(0)) < read(&[told(1, 0, VideoType::Camera)]).priority(at(0)));
    }
}
