//! What a running archive should be like from now on: somebody asks for it in the catalog, so that it survives whoever
//! owns the job; the owner notes in the session's history what is new, and the composer draws by that. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::capture::history::{Event, What};
use crate::event::Layout;
use crate::ids::StreamId;

/// What is asked for, all in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Desired {
    /// The layout, if it is another than the archive began with.
    pub layout: Option<Layout>,
    /// Streams' layout classes.
    pub classes: BTreeMap<StreamId, Vec<String>>,
}

impl Desired {
    /// What was noted before, by this owner or another.
    #[must_use]
    pub fn noted(events: &[Event]) -> Self {
        let mut noted = Self::default();
        for event in events {
            match &event.what {
                What::Layout { layout } => noted.layout = Some(layout.clone()),
                What::Classes { stream, classes } => {
                    noted.classes.insert(*stream, classes.clone());
                }
                _ => {}
            }
        }
        noted
    }

    /// What is to be noted now, of which `noted` was before.
    #[must_use]
    pub fn news(&self, noted: &Self) -> Vec<What> {
        let layout = self.layout.iter().filter(|layout| noted.layout.as_ref() != Some(layout));
        let layout = layout.map(|layout| What::Layout { layout: layout.clone() });
        let classes = self.classes.iter().filter(|(stream, classes)| {
            let before = noted.classes.get(stream);
            before != Some(classes) && !(before.is_none() && classes.is_empty())
        });
        let classes = classes.map(|(stream, classes)| What::Classes { stream: *stream, classes: classes.clone() });
        layout.chain(classes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::LayoutType;
    use crate::time::MediaTime;

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
        let new_layout = What::Layout { layout: layout(LayoutType::Pip) };
        let classes = |classes| What::Classes { stream: stream(1), classes };
        let nothing = Desired::default;
        for (name, wanted, noted, news) in [
            ("nothing is asked for", nothing(), nothing(), vec![]),
            ("a layout", pip.clone(), nothing(), vec![new_layout.clone()]),
            ("the same again", pip.clone(), pip.clone(), vec![]),
            ("classes too", both.clone(), pip.clone(), vec![classes(focus())]),
            ("both at once", both.clone(), nothing(), vec![new_layout, classes(focus())]),
            ("no classes any more", none.clone(), both, vec![classes(Vec::new())]),
            ("no classes where there were none", none, pip, vec![]),
        ] {
            assert_eq!(wanted.news(&noted), news, "{name}");
            let lines = noted.news(&nothing()).into_iter().chain(news);
            let events: Vec<Event> = lines.map(|what| Event { at: MediaTime::ZERO, what }).collect();
            assert_eq!(wanted.news(&Desired::noted(&events)), [], "{name}, read by the next owner");
        }
    }

    #[test]
    fn an_older_or_newer_program_s_wish_is_read() {
        let read = |text: &str| serde_json::from_str::<Desired>(text).expect("wish");
        assert_eq!(read("{}"), Desired::default());
        assert_eq!(read(r#"{"layout":{"type":"pip"},"other":1}"#).layout, Some(layout(LayoutType::Pip)));
    }
}
