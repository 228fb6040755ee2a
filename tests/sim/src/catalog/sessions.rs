//! Sessions.

use archiver::catalog::{CatalogError, Classes, SessionCatalog, SessionRow};
use archiver::model::ids::{ApplicationId, RoomId, RouterName, SessionId};
use async_trait::async_trait;

use super::{MemoryCatalog, State, conflict};

/// Whether a session's room is this one.
fn is_at(row: &SessionRow, router: &RouterName, room: &RoomId) -> bool {
    row.router.as_ref().is_some_and(|place| place.name == *router && place.room == *room)
}

fn has_active_job(state: &State, session: &SessionId) -> bool {
    state.jobs.values().any(|job| job.is_active() && job.row.session == *session)
}

#[async_trait]
impl SessionCatalog for MemoryCatalog {
    async fn add_session(&self, session: &SessionRow) -> Result<(), CatalogError> {
        self.call("add_session", |state| {
            let taken = |place: &archiver::model::session::RouterRoom| {
                state.sessions.values().any(|row| is_at(row, &place.name, &place.room))
            };
            if state.sessions.contains_key(&session.session) || session.router.as_ref().is_some_and(taken) {
                return Err(conflict("add a session"));
            }
            state.sessions.insert(session.session.clone(), session.clone());
            Ok(())
        })
        .await
    }

    async fn session(
        &self,
        application: &ApplicationId,
        session: &SessionId,
    ) -> Result<Option<SessionRow>, CatalogError> {
        self.call("session", |state| {
            Ok(state.sessions.get(session).filter(|row| row.application == *application).cloned())
        })
        .await
    }

    async fn session_of_room(&self, router: &RouterName, room: &RoomId) -> Result<Option<SessionRow>, CatalogError> {
        self.call("session_of_room", |state| Ok(state.sessions.values().find(|row| is_at(row, router, room)).cloned()))
            .await
    }

    async fn recorded_sessions(&self, router: &RouterName) -> Result<Vec<SessionRow>, CatalogError> {
        self.call("recorded_sessions", |state| {
            let is_there = |row: &&SessionRow| row.router.as_ref().is_some_and(|place| place.name == *router);
            let rows = state.sessions.values().filter(is_there);
            Ok(rows.filter(|row| has_active_job(state, &row.session)).cloned().collect())
        })
        .await
    }

    async fn begin_conversation(&self, session: &SessionId, before: i64) -> Result<bool, CatalogError> {
        self.call("begin_conversation", |state| {
            let found = state.sessions.get_mut(session).filter(|row| row.conversation == before);
            let Some(found) = found else { return Ok(false) };
            found.conversation = before + 1;
            Ok(true)
        })
        .await
    }

    async fn keep_classes(&self, before: &SessionRow, classes: &Classes) -> Result<bool, CatalogError> {
        self.call("keep_classes", |state| {
            let found = state.sessions.get_mut(&before.session).filter(|row| row.classes == before.classes);
            let Some(found) = found else { return Ok(false) };
            found.classes.clone_from(classes);
            Ok(true)
        })
        .await
    }
}
