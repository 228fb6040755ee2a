//! What a running archive should be like from now on: somebody asks for it in the catalog, so that it survives whoever
//! owns the job; the owner notes in the session's history what is new, and the composer draws by that. Pure.

use crate::model::archive_options::{ArchiveOptions, StreamMode};
use crate::model::desired::{Desired, Selection};
use crate::model::time::MediaTime;
use crate::recording::history::{Event, EventKind};

/// What was noted before, by this owner or another.
#[must_use]
pub fn noted(events: &[Event]) -> Desired {
    let mut noted = Desired::default();
    for event in events {
        match &event.kind {
            EventKind::Layout { layout } => noted.layout = Some(layout.clone()),
            EventKind::Classes { stream, classes } => {
                noted.classes.insert(*stream, classes.clone());
            }
            EventKind::StreamMode { mode } => noted.stream_mode = Some(*mode),
            EventKind::Selected { stream, selection } => {
                noted.selected.insert(*stream, *selection);
            }
            _ => {}
        }
    }
    noted
}

/// What an archive begins with that is not the usual, unless it was noted. It stands at the archive's origin: before
/// all media, and harmless when an owner who does not have the others' history notes it again.
#[must_use]
pub fn first(noted: &Desired, options: &ArchiveOptions) -> Option<Event> {
    let mode = options.stream_mode;
    let news = mode != StreamMode::default() && noted.stream_mode.is_none();
    news.then_some(Event { at: MediaTime::ZERO, kind: EventKind::StreamMode { mode } })
}

/// What is to be noted now, of which `noted` was before.
#[must_use]
pub fn changes(wanted: &Desired, noted: &Desired) -> Vec<EventKind> {
    let layout = wanted.layout.iter().filter(|layout| noted.layout.as_ref() != Some(layout));
    let layout = layout.map(|layout| EventKind::Layout { layout: layout.clone() });
    let classes = wanted.classes.iter().filter(|(stream, classes)| {
        let before = noted.classes.get(stream);
        before != Some(classes) && !(before.is_none() && classes.is_empty())
    });
    let classes = classes.map(|(stream, classes)| EventKind::Classes { stream: *stream, classes: classes.clone() });
    let mode = wanted.stream_mode.filter(|mode| noted.stream_mode != Some(*mode));
    let mode = mode.map(|mode| EventKind::StreamMode { mode });
    let selected = wanted.selected.iter().filter(|(stream, selection)| {
        let before = noted.selected.get(stream).copied().unwrap_or(Selection::NONE);
        before != **selection
    });
    let selected = selected.map(|(stream, selection)| EventKind::Selected { stream: *stream, selection: *selection });
    layout.chain(classes).chain(mode).chain(selected).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::ids::StreamId;
    use crate::model::layout::{Layout, LayoutType};

    fn layout(kind: LayoutType) -> Layout {
        Layout { kind, ..Layout::default() }
    }

    fn stream(n: u8) -> StreamId {
        format!("00000000-0000-4000-8000-0000000000{n:02}").parse().expect("id")
    }

    #[test]
    fn only_what_is_new_is_noted_also_by_the_next_owner() {
        let focus = || vec!["focus".to_owned()];
        let pip = Desired { layout: Some(layout(LayoutType::Pip)), ..Desired::default() };
        let both = Desired { classes: BTreeMap::from([(stream(1), focus())]), ..pip.clone() };
        let none = Desired { classes: BTreeMap::from([(stream(1), Vec::new())]), ..pip.clone() };
        let new_layout = EventKind::Layout { layout: layout(LayoutType::Pip) };
        let classes = |classes| EventKind::Classes { stream: stream(1), classes };
        let nothing = Desired::default;
        let selected = |selection| Desired {
            stream_mode: Some(StreamMode::Manual),
            selected: BTreeMap::from([(stream(1), selection)]),
            ..Desired::default()
        };
        let (added, removed) = (selected(Selection::ALL), selected(Selection::NONE));
        let silent = Selection { has_audio: false, has_video: true };
        let manual = EventKind::StreamMode { mode: StreamMode::Manual };
        let selects = |selection| EventKind::Selected { stream: stream(1), selection };
        let auto = Desired { stream_mode: Some(StreamMode::Auto), ..added.clone() };
        for (name, wanted, noted, news) in [
            ("nothing is asked for", nothing(), nothing(), vec![]),
            ("a layout", pip.clone(), nothing(), vec![new_layout.clone()]),
            ("the same again", pip.clone(), pip.clone(), vec![]),
            ("classes too", both.clone(), pip.clone(), vec![classes(focus())]),
            ("both at once", both.clone(), nothing(), vec![new_layout, classes(focus())]),
            ("no classes any more", none.clone(), both, vec![classes(Vec::new())]),
            ("no classes where there were none", none, pip, vec![]),
            ("a stream is selected", added.clone(), nothing(), vec![manual.clone(), selects(Selection::ALL)]),
            ("the same stream again", added.clone(), added.clone(), vec![]),
            ("without its sound", selected(silent), added.clone(), vec![selects(silent)]),
            ("removed", removed.clone(), added.clone(), vec![selects(Selection::NONE)]),
            ("removed where it was not", removed, nothing(), vec![manual]),
            ("all streams again", auto, added, vec![EventKind::StreamMode { mode: StreamMode::Auto }]),
        ] {
            assert_eq!(super::changes(&wanted, &noted), news, "{name}");
            let lines = super::changes(&noted, &nothing()).into_iter().chain(news);
            let events: Vec<Event> = lines.map(|kind| Event { at: MediaTime::ZERO, kind }).collect();
            assert_eq!(super::changes(&wanted, &super::noted(&events)), [], "{name}, read by the next owner");
        }
    }

    #[test]
    fn the_stream_mode_of_the_event_is_noted_once_and_at_the_origin() {
        let options = |stream_mode| ArchiveOptions { stream_mode, ..ArchiveOptions::default() };
        let (auto, manual) = (options(StreamMode::Auto), options(StreamMode::Manual));
        let before = Desired::default();
        assert_eq!(first(&before, &auto), None);
        let event = first(&before, &manual).expect("news");
        assert_eq!(event.at, MediaTime::ZERO);
        assert_eq!(first(&noted(&[event]), &manual), None);
    }
}
