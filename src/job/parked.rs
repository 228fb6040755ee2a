//! Which parked entries somebody means: by their faults, their age, and what their events say.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::broker::STARTED_KEY;
use crate::catalog::{Catalog, CatalogError, ParkedFilter, ParkedRow};

/// Entries that are read from the catalog at a time: each may have an event of 64 KiB.
const PAGE: u32 = 200;
/// Pages that are read for one answer: events are searched one after the other.
const PAGES_MAX: usize = 500;

/// What entries have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Criteria {
    /// What the catalog knows of them.
    pub filter: ParkedFilter,
    /// The session of their events.
    pub session: Option<String>,
    /// The application of their events.
    pub application: Option<String>,
    /// The region of their events, or where those were published to.
    pub region: Option<String>,
}

impl Criteria {
    /// Whether an entry's event is meant. An event that cannot be read names nothing.
    #[must_use]
    pub fn fits(&self, row: &ParkedRow) -> bool {
        if self.session.is_none() && self.application.is_none() && self.region.is_none() {
            return true;
        }
        let event: Value =
            STANDARD.decode(&row.body).ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        let says = |path: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| event.pointer(path).and_then(Value::as_str) == Some(wanted))
        };
        let published_to = row.routing_key.strip_prefix(STARTED_KEY).and_then(|rest| rest.strip_prefix('.'));
        let is_of_region = says("/data/region", &self.region) || published_to == self.region.as_deref();
        says("/data/sessionId", &self.session) && says("/data/applicationId", &self.application) && is_of_region
    }

    /// The entries that are meant, newest first, `max` of them at most. Of more than 100,000 entries only the newest are looked at.
    ///
    /// # Errors
    /// When the catalog is away.
    pub async fn select(&self, catalog: &dyn Catalog, max: usize) -> Result<Vec<ParkedRow>, CatalogError> {
        let (mut filter, mut selected) = (self.filter, Vec::new());
        for _ in 0..PAGES_MAX {
            let page = catalog.parked(&filter, PAGE).await?;
            let Some(last) = page.last().filter(|_| selected.len() < max) else { break };
            filter.behind = Some(last.place());
            selected.extend(page.into_iter().filter(|row| self.fits(row)).take(max - selected.len()));
        }
        Ok(selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ParkedState;
    use crate::model::ids::ParkedId;
    use crate::model::time::Wallclock;

    fn row(body: &[u8]) -> ParkedRow {
        ParkedRow {
            parked: ParkedId::of_content("bug", body),
            job: None,
            fault: "bug".to_owned(),
            detail: String::new(),
            routing_key: "session.started.eu".to_owned(),
            body: STANDARD.encode(body),
            state: ParkedState::Parked,
            times: 1,
            first_at: Wallclock(1),
            last_at: Wallclock(1),
            history: Vec::new(),
        }
    }

    #[test]
    fn an_entry_is_meant_by_what_its_event_says() {
        let event = row(br#"{"data":{"sessionId":"s1","applicationId":"a1","region":"us"}}"#);
        let damaged = row(b"{");
        let named = |text: &str| Some(text.to_owned());
        let all = Criteria::default();
        for (name, criteria, fits_event, fits_damaged) in [
            ("all", all.clone(), true, true),
            ("a session", Criteria { session: named("s1"), ..all.clone() }, true, false),
            ("another session", Criteria { session: named("s2"), ..all.clone() }, false, false),
            ("an application", Criteria { application: named("a1"), ..all.clone() }, true, false),
            ("its region", Criteria { region: named("us"), ..all.clone() }, true, false),
            ("the region that it was published to", Criteria { region: named("eu"), ..all.clone() }, true, true),
            ("another region", Criteria { region: named("asia"), ..all.clone() }, false, false),
            ("both", Criteria { session: named("s1"), application: named("a2"), ..all }, false, false),
        ] {
            assert_eq!((criteria.fits(&event), criteria.fits(&damaged)), (fits_event, fits_damaged), "{name}");
        }
    }
}
