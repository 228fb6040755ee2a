//! Queries of requests.

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use utoipa::IntoParams;

use super::lenient::{QueryRequest, parse_text, parsed_option};
use crate::catalog::{ArchiveFilter, ArchiveStatus, JobState, NoticeState, ParkedState};
use crate::model::fault::FaultKind;
use crate::model::ids::{ApplicationId, SessionId};
use crate::model::time::Wallclock;

/// Archives of a page, unless the query says otherwise (Vonage's default).
const COUNT: u32 = 50;
/// Archives of a page at most (Vonage's limit).
const COUNT_MAX: u32 = 1000;

/// Which archives.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase")]
pub struct ListQuery {
    /// Pass over so many.
    #[serde(default, deserialize_with = "number")]
    offset: Option<u32>,
    /// At most so many: 50 without, 1000 at most.
    #[serde(default, deserialize_with = "number")]
    count: Option<u32>,
    /// Only of this session; `session_id` means the same.
    #[serde(default, deserialize_with = "session")]
    #[param(value_type = Option<String>)]
    session_id: Option<SessionId>,
    /// Ours: only with this status.
    #[serde(default, deserialize_with = "status")]
    #[param(value_type = Option<String>)]
    status: Option<ArchiveStatus>,
    /// Ours: only those created then or later, in milliseconds since 1970.
    #[serde(default, deserialize_with = "milliseconds")]
    from: Option<i64>,
    /// Ours: only those created before, in milliseconds since 1970.
    #[serde(default, deserialize_with = "milliseconds")]
    to: Option<i64>,
}

impl QueryRequest for ListQuery {
    // vonage-python and vonage-ruby.
    const ALIASES: &'static [(&'static str, &'static str)] = &[("session_id", "sessionId")];
}

impl ListQuery {
    /// The archives of an application that match.
    pub fn filter(self, application: ApplicationId) -> ArchiveFilter {
        let time = |milliseconds: i64| Wallclock(milliseconds.saturating_mul(1000));
        ArchiveFilter {
            application: Some(application),
            offset: self.offset.unwrap_or(0),
            count: self.count.unwrap_or(COUNT).min(COUNT_MAX),
            session: self.session_id,
            status: self.status,
            from: self.from.map(time),
            to: self.to.map(time),
        }
    }
}

/// The query of a list of streams.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Pass over so many.
    #[serde(default, deserialize_with = "number")]
    offset: Option<u32>,
    /// At most so many: all without.
    #[serde(default, deserialize_with = "number")]
    count: Option<u32>,
}

impl QueryRequest for PageQuery {}

impl PageQuery {
    /// The page of these items.
    pub fn of<T>(&self, items: Vec<T>) -> Vec<T> {
        let offset = self.offset.map_or(0, |offset| offset as usize);
        let count = self.count.map_or(usize::MAX, |count| count as usize);
        items.into_iter().skip(offset).take(count).collect()
    }
}

/// Which jobs, for operators.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct JobsQuery {
    /// accepted, capturing, finalizing, available, parked or discarded
    #[serde(default, deserialize_with = "parsed_option")]
    #[param(value_type = Option<String>)]
    pub state: Option<JobState>,
}

/// Which parked jobs, for operators.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ParkedQuery {
    /// parked (without it), replayed, resolved or discarded
    #[serde(default, deserialize_with = "parsed_option")]
    #[param(value_type = Option<String>)]
    pub state: Option<ParkedState>,
    /// Only those with this fault.
    #[serde(default, deserialize_with = "parsed_option")]
    #[param(value_type = Option<String>)]
    pub fault: Option<FaultKind>,
    /// Only those of this session.
    #[serde(default)]
    pub session: Option<String>,
    /// Only those of this application.
    #[serde(default)]
    pub application: Option<String>,
    /// Only those of this region.
    #[serde(default)]
    pub region: Option<String>,
}

/// Which callbacks, for operators.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallbacksQuery {
    /// waiting, delivered or undelivered
    #[serde(default, deserialize_with = "parsed_option")]
    #[param(value_type = Option<String>)]
    pub state: Option<NoticeState>,
    /// Only of this application
    #[serde(default, deserialize_with = "parsed_option")]
    #[param(value_type = Option<String>)]
    pub application: Option<ApplicationId>,
}

fn number<'de, D: Deserializer<'de>>(text: D) -> Result<Option<u32>, D::Error> {
    parse_text(text, |_| " is not a number from 0 on".to_owned()).map(Some)
}

fn milliseconds<'de, D: Deserializer<'de>>(text: D) -> Result<Option<i64>, D::Error> {
    parse_text(text, |_| " is not a time in milliseconds since 1970".to_owned()).map(Some)
}

fn session<'de, D: Deserializer<'de>>(text: D) -> Result<Option<SessionId>, D::Error> {
    parse_text(text, |_| " is not a session's id".to_owned()).map(Some)
}

fn status<'de, D: Deserializer<'de>>(text: D) -> Result<Option<ArchiveStatus>, D::Error> {
    match parse_text(text, |e: String| format!(" : {e}"))? {
        ArchiveStatus::Deleted => Err(D::Error::custom(" is not one of archives that are still there")),
        status => Ok(Some(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::lenient::read_query;
    use super::*;
    use crate::api::error::ApiError;

    fn list(query: &str) -> Result<ArchiveFilter, ApiError> {
        read_query::<ListQuery>(query).map(|query| query.filter("app".parse().expect("id")))
    }

    #[test]
    fn lists_are_asked_for_in_two_spellings_and_with_what_dangles() {
        let filter = list("offset=3&").expect("Java");
        assert_eq!((filter.offset, filter.count), (3, 50));
        for query in ["sessionId=s1&count=2000", "session_id=s1&count=1000&offset="] {
            let filter = list(query).expect(query);
            assert_eq!((filter.session.expect("session").as_str(), filter.count), ("s1", 1000));
        }
        let ours = list("status=available&from=1000&to=2000").expect("ours");
        assert_eq!((ours.status, ours.from), (Some(ArchiveStatus::Available), Some(Wallclock(1_000_000))));
        for bad in ["offset=-1", "count=many", "status=lost", "sessionId=a%20b", "from=yesterday"] {
            assert_eq!(list(bad).expect_err(bad).status, 400);
        }
    }

    #[test]
    fn an_error_names_the_parameter_as_it_was_written() {
        for (query, message) in [
            ("offset=-1", "offset is not a number from 0 on"),
            ("session_id=a%20b", "session_id is not a session's id"),
            ("sessionId=a%20b&sessionId=s1", "sessionId is not a session's id"),
            ("status=deleted", "status is not one of archives that are still there"),
            ("status=lost", "status : no archive status is called \"lost\""),
            ("to=now&from=yesterday", "to is not a time in milliseconds since 1970"),
        ] {
            assert_eq!(list(query).expect_err(query).message, message, "{query}");
        }
        let last = list("sessionId=s1&count=None&session_id=s2&offset=1&offset=2").expect("the last counts");
        assert_eq!((last.session.expect("session").as_str(), last.offset, last.count), ("s2", 2, COUNT));
    }
}
