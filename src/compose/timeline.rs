//! Which streams are present when: computed purely from a session's history and the starts of its tracks. The result for a
//! moment depends on nothing later, so that it can be computed while the session runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::archive_options::StreamMode;
use crate::model::desired::Selection;
use crate::model::ids::{StreamId, TrackKind};
use crate::model::layout::Layout;
use crate::model::media::VideoType;
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::history::{Event, EventKind};

/// A picture is held for so long when no further one comes; then its stream leaves the picture.
pub const HOLD: MediaSpan = 2_000_000_000;
/// Streams whose sound is mixed (Vonage's limit).
pub const AUDIO_STREAMS_MAX: usize = 50;

/// A stream in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its id.
    pub id: StreamId,
    /// When it came first.
    pub added: MediaTime,
    /// Its layout classes, each time from when on.
    classes: Vec<(MediaTime, Vec<String>)>,
    /// Since when it is a screen, or none.
    screen: Vec<(MediaTime, bool)>,
    /// Which of its media is in the archive, each time from when on. All of it before.
    selected: Vec<(MediaTime, Selection)>,
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
    /// Whether it is in the picture at a moment at which its newest picture is from `newest`. A stream whose pictures go on is in the
    /// picture even when the history says that it has left: pictures are sent ahead of their moments.
    #[must_use]
    pub fn is_shown(&self, at: MediaTime, newest: MediaTime, goes_on: bool) -> bool {
        let selected = (goes_on || self.is_present(at)) && self.selection(at).has_video;
        selected && at - newest < HOLD && !self.video_off.iter().any(|span| span.has(at))
    }

    /// Whether it is in the session at a moment. A stream that the history does not know always is.
    pub fn is_present(&self, at: MediaTime) -> bool {
        self.present.is_empty() || self.present.iter().any(|span| span.has(at))
    }

    fn selection(&self, at: MediaTime) -> Selection {
        self.selected.iter().take_while(|(since, _)| *since <= at).last().map_or(Selection::ALL, |(_, what)| *what)
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

    /// Its sort key among others at a moment: the least comes first (Vonage's order of priority, without the criteria that
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
            selected: selections(*id, events),
            present: Vec::new(),
            video_off: Vec::new(),
        };
        (*id, stream)
    };
    let mut streams: BTreeMap<StreamId, Stream> = media.iter().map(new).collect();
    for event in events {
        apply_event(&mut streams, event);
    }
    streams
}

/// Which media of a stream is in the archive, each time from when on. Before a stream is added, a manual archive has none.
#[must_use]
pub fn selections(id: StreamId, events: &[Event]) -> Vec<(MediaTime, Selection)> {
    let (mut mode, mut added) = (StreamMode::Auto, Selection::NONE);
    let change = |event: &Event| {
        match &event.kind {
            EventKind::StreamMode { mode: now } => mode = *now,
            EventKind::Selected { stream, selection } if *stream == id => added = *selection,
            _ => return None,
        }
        let selection = match mode {
            StreamMode::Auto => Selection::ALL,
            StreamMode::Manual => added,
        };
        Some((event.at, selection))
    };
    events.iter().filter_map(change).collect()
}

/// The streams whose audio is mixed at a moment. A stream that has left is mixed to its end, unless present streams need
/// its place.
#[must_use]
pub fn audible_streams<'a>(streams: impl Iterator<Item = &'a Stream>, at: MediaTime) -> BTreeSet<StreamId> {
    let mut audible: Vec<&Stream> = streams.filter(|stream| stream.selection(at).has_audio).collect();
    audible.sort_by_key(|stream| (!stream.is_present(at), stream.priority(at)));
    audible.iter().take(AUDIO_STREAMS_MAX).map(|stream| stream.id).collect()
}

/// The layouts that were requested while the session ran, each from when on.
#[must_use]
pub fn layouts(events: &[Event]) -> Vec<(MediaTime, Layout)> {
    let layout = |event: &Event| match &event.kind {
        EventKind::Layout { layout } => Some((event.at, layout.clone())),
        _ => None,
    };
    events.iter().filter_map(layout).collect()
}

fn apply_event(streams: &mut BTreeMap<StreamId, Stream>, event: &Event) {
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
    match &event.kind {
        EventKind::Stream { stream, video_type, .. } => {
            if let Some(stream) = streams.get_mut(stream) {
                stream.screen.push((event.at, *video_type == VideoType::Screen));
                // Its first pictures may be a moment older than the news of it.
                let from = if stream.present.is_empty() { event.at.min(stream.added) } else { event.at };
                open(&mut stream.present, from);
            }
        }
        EventKind::StreamGone { stream } => {
            if let Some(stream) = streams.get_mut(stream) {
                close(&mut stream.present);
            }
        }
        EventKind::Muted { stream, kind: TrackKind::Video, muted } => {
            if let Some(stream) = streams.get_mut(stream) {
                match muted {
                    true => open(&mut stream.video_off, event.at),
                    false => close(&mut stream.video_off),
                }
            }
        }
        EventKind::Classes { stream, classes } => {
            if let Some(stream) = streams.get_mut(stream) {
                stream.classes.push((event.at, classes.clone()));
            }
        }
        // While a router is unavailable, the media tells which streams are present.
        EventKind::EpochBegan { .. }
        | EventKind::Joined
        | EventKind::Left
        | EventKind::Unseen { .. }
        | EventKind::Muted { .. }
        | EventKind::Layer { .. }
        | EventKind::Layout { .. }
        | EventKind::StreamMode { .. }
        | EventKind::Selected { .. }
        | EventKind::RouterLost
        | EventKind::RouterBack
        | EventKind::Tracks { .. }
        | EventKind::Capture { .. }
        | EventKind::Encrypted { .. }
        | EventKind::Ended { .. } => {}
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
        let kind = EventKind::Stream {
            stream: id(stream),
            router_id: "r".into(),
            name: None,
            connection_data: None,
            signed: false,
            video_type,
        };
        Event { at: at(ms), kind }
    }

    fn read(events: &[Event]) -> Stream {
        streams(&BTreeMap::from([(id(1), at(0))]), events).remove(&id(1)).expect("stream")
    }

    #[test]
    fn a_stream_is_in_the_picture_while_it_is_there_has_pictures_and_is_not_switched_off() {
        let muted =
            |ms, muted| Event { at: at(ms), kind: EventKind::Muted { stream: id(1), kind: TrackKind::Video, muted } };
        let gone = |ms| Event { at: at(ms), kind: EventKind::StreamGone { stream: id(1) } };
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
                    Event {
                        at: at(4000),
                        kind: EventKind::Muted { stream: id(1), kind: TrackKind::Audio, muted: true },
                    },
                ],
                4100,
                4090,
                true,
            ),
        ] {
            assert_eq!(read(&events).is_shown(at(moment), at(newest), false), shown, "{name}");
        }
    }

    #[test]
    fn pictures_that_go_on_when_their_stream_has_left_are_shown_unless_they_are_switched_off_or_not_selected() {
        let gone = Event { at: at(4000), kind: EventKind::StreamGone { stream: id(1) } };
        let off = EventKind::Muted { stream: id(1), kind: TrackKind::Video, muted: true };
        let manual = EventKind::StreamMode { mode: StreamMode::Manual };
        let there = told(1, 100, VideoType::Camera);
        for (name, before, shown) in [
            ("gone", vec![], true),
            ("switched off", vec![Event { at: at(3900), kind: off }], false),
            ("not selected", vec![Event { at: at(3900), kind: manual }], false),
        ] {
            let events = [vec![there.clone()], before, vec![gone.clone()]].concat();
            assert_eq!(read(&events).is_shown(at(4010), at(4005), true), shown, "{name}");
        }
    }

    #[test]
    fn a_manual_archive_has_of_each_stream_what_was_added() {
        let mode = |ms, mode| Event { at: at(ms), kind: EventKind::StreamMode { mode } };
        let (manual, auto) = (|ms| mode(ms, StreamMode::Manual), |ms| mode(ms, StreamMode::Auto));
        let select = |ms, stream, has_audio, has_video| {
            let selection = Selection { has_audio, has_video };
            Event { at: at(ms), kind: EventKind::Selected { stream: id(stream), selection } }
        };
        let (both, sound, picture, none) = ((true, true), (true, false), (false, true), (false, false));
        // What is seen and heard of stream 1 at each of the moments.
        for (name, events, expected) in [
            ("all streams", vec![], vec![(0, both)]),
            ("manual, and never added", vec![manual(0)], vec![(0, none), (5000, none)]),
            ("another one is added", vec![manual(0), select(1000, 2, true, true)], vec![(2000, none)]),
            ("added", vec![manual(0), select(1000, 1, true, true)], vec![(999, none), (1000, both)]),
            ("only its sound", vec![manual(0), select(1000, 1, true, false)], vec![(1000, sound)]),
            ("only its picture", vec![manual(0), select(1000, 1, false, true)], vec![(1000, picture)]),
            (
                "added again, otherwise",
                vec![manual(0), select(1000, 1, true, true), select(2000, 1, false, true)],
                vec![(1999, both), (2000, picture)],
            ),
            (
                "removed",
                vec![manual(0), select(1000, 1, true, true), select(2000, 1, false, false)],
                vec![(1999, both), (2000, none)],
            ),
            (
                "manual for a while; what was added stays so",
                vec![manual(1000), select(2000, 1, true, false), auto(3000), manual(4000)],
                vec![(999, both), (1000, none), (2000, sound), (3000, both), (4000, sound)],
            ),
            (
                "added before it was manual, at the moment it becomes so",
                vec![select(500, 1, false, true), manual(1000), select(1000, 1, true, true)],
                vec![(500, both), (999, both), (1000, both)],
            ),
        ] {
            let stream = read(&[vec![told(1, 0, VideoType::Camera)], events].concat());
            for (ms, (audio, video)) in expected {
                assert_eq!(stream.is_shown(at(ms), at(ms), false), video, "{name}: picture at {ms}");
                assert_eq!(
                    audible_streams([&stream].into_iter(), at(ms)).len(),
                    usize::from(audio),
                    "{name}: sound at {ms}"
                );
            }
        }
    }

    #[test]
    fn the_sound_of_as_many_as_may_be_is_heard_of_those_who_are_there_first() {
        let all = u8::try_from(AUDIO_STREAMS_MAX).expect("small") + 2;
        let media = (1..=all).map(|n| (id(n), at(i64::from(n)))).collect();
        let gone = Event { at: at(3000), kind: EventKind::StreamGone { stream: id(1) } };
        let mut events: Vec<Event> = (1..=all).map(|n| told(n, i64::from(n), VideoType::Camera)).collect();
        events.push(gone);
        let left_out = |ms, events: &[Event]| {
            let streams = streams(&media, events);
            let heard = audible_streams(streams.values(), at(ms));
            (1..=all).filter(|n| !heard.contains(&id(*n))).collect::<Vec<u8>>()
        };
        assert_eq!(left_out(2000, &events), [all - 1, all], "who came last");
        assert_eq!(left_out(4000, &events), [1, all], "who has left makes room");
        // One more is no limit when others are not selected.
        events.push(Event { at: at(0), kind: EventKind::StreamMode { mode: StreamMode::Manual } });
        for n in 1..=all {
            let selection = if n > 2 { Selection::ALL } else { Selection::NONE };
            events.push(Event { at: at(0), kind: EventKind::Selected { stream: id(n), selection } });
        }
        assert_eq!(left_out(2000, &events), [1, 2], "who is not selected makes room");
    }

    #[test]
    fn classes_and_their_priority_are_a_stream_s_from_when_they_were_asked_for() {
        let classes = |ms, classes: &[&str]| {
            let classes = classes.iter().map(|class| (*class).to_owned()).collect();
            Event { at: at(ms), kind: EventKind::Classes { stream: id(1), classes } }
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
