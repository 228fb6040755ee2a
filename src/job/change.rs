//! Asking for something of an archive that is being recorded: another layout, other layout classes of its streams, other
//! streams.

use crate::catalog::{Catalog, CatalogError, JobRow, JobState, StoredDesired};
use crate::model::archive_options::StreamMode;
use crate::model::desired::{Desired, Selection};
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::{ArchiveId, StreamId};
use crate::model::time::Wallclock;

/// How often it is tried when others ask for something else at the same time.
const TRIES: u32 = 10;
/// Streams of one archive that something is asked of: each is a line of its history.
const STREAMS_MAX: usize = 2000;
/// Layout classes of one stream.
pub const CLASSES_MAX: usize = 16;
/// Letters of a layout class.
pub const CLASS_LENGTH_MAX: usize = 64;

/// Why it cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub enum DesireError {
    /// No such archive.
    #[error("there is no archive {0}; `archiver archives list` shows all")]
    NotFound(ArchiveId),
    /// It is not being recorded.
    #[error(
        "archive {archive} is not being recorded: its job is {state}; `archiver archives recompose` makes another one of it"
    )]
    NotRecording {
        /// Which.
        archive: ArchiveId,
        /// Where its job stands.
        state: &'static str,
    },
    /// Others ask for something else all the time.
    #[error("others change what is asked of archive {0} all the time: try again")]
    Busy(ArchiveId),
    /// A layout class that cannot be one.
    #[error(
        "layout classes are at most {CLASSES_MAX} names of at most {CLASS_LENGTH_MAX} letters without blanks: {0:?}"
    )]
    Class(String),
    /// Streams are chosen only in stream mode manual.
    #[error("archive {0} has all streams: they are added and removed in stream mode manual only")]
    AllStreams(ArchiveId),
    /// A selection that cannot be one.
    #[error("{0}")]
    Selection(String),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl HasFault for DesireError {
    fn fault(&self) -> Fault {
        match self {
            Self::NotFound(_) => FaultKind::NotFound.fault(),
            Self::NotRecording { .. } | Self::Busy(_) | Self::AllStreams(_) => FaultKind::Conflict.fault(),
            Self::Class(_) | Self::Selection(_) => FaultKind::RequestInvalid.fault(),
            Self::Catalog(e) => e.fault(),
        }
    }
}

/// Whether these can be layout classes.
///
/// # Errors
/// [`DesireError::Class`].
pub fn check_classes(classes: &[String]) -> Result<(), DesireError> {
    let good = |class: &&String| {
        let blank = class.chars().any(|c| c.is_whitespace() || c.is_control());
        !class.is_empty() && class.chars().count() <= CLASS_LENGTH_MAX && !blank
    };
    match classes.iter().find(|class| !good(class)) {
        Some(bad) => Err(DesireError::Class(bad.clone())),
        None if classes.len() > CLASSES_MAX => Err(DesireError::Class(classes.join(" "))),
        None => Ok(()),
    }
}

/// Asks for a change of what is desired. The job's owner does it with its next heartbeat, whoever that is then.
///
/// # Errors
/// See [`DesireError`].
pub async fn desire(
    catalog: &dyn Catalog,
    archive: ArchiveId,
    change: impl Fn(&mut Desired) + Send + Sync,
) -> Result<Desired, DesireError> {
    let change = |_: &JobRow, desired: &mut Desired| {
        change(desired);
        Ok(())
    };
    desire_of(catalog, archive, change).await
}

/// A change of the streams that a composed archive has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamsChange {
    /// All of them, or those that are added.
    pub mode: Option<StreamMode>,
    /// Streams to add. One that is there already is from now on as `selection` says.
    pub add: Vec<StreamId>,
    /// What of those that are added.
    pub selection: Selection,
    /// Streams to remove.
    pub remove: Vec<StreamId>,
}

impl StreamsChange {
    /// Whether it can be one.
    fn check(&self) -> Result<(), DesireError> {
        if !self.add.is_empty() && self.selection == Selection::NONE {
            return Err(DesireError::Selection("a stream is added with its sound, its picture, or both".to_owned()));
        }
        match self.add.iter().find(|stream| self.remove.contains(stream)) {
            Some(both) => Err(DesireError::Selection(format!("stream {both} is to be added and removed at once"))),
            None => Ok(()),
        }
    }

    /// Changes what is desired of an archive that began with stream mode `first`. Returns whether that can be.
    fn apply(&self, first: StreamMode, desired: &mut Desired) -> bool {
        desired.stream_mode = self.mode.or(desired.stream_mode);
        let chosen = !self.add.is_empty() || !self.remove.is_empty();
        if chosen && desired.stream_mode.unwrap_or(first) == StreamMode::Auto {
            return false;
        }
        desired.selected.extend(self.add.iter().map(|stream| (*stream, self.selection)));
        desired.selected.extend(self.remove.iter().map(|stream| (*stream, Selection::NONE)));
        true
    }
}

/// Asks for other streams in a composed archive.
///
/// # Errors
/// See [`DesireError`].
pub async fn select_streams(
    catalog: &dyn Catalog,
    archive: ArchiveId,
    change: &StreamsChange,
) -> Result<Desired, DesireError> {
    change.check()?;
    let change = |job: &JobRow, desired: &mut Desired| match change.apply(first_mode(job), desired) {
        true => Ok(()),
        false => Err(DesireError::AllStreams(archive)),
    };
    desire_of(catalog, archive, change).await
}

/// The stream mode that a job's archive began with.
fn first_mode(job: &JobRow) -> StreamMode {
    // Its worker parks a job whose event cannot be read, and tells why.
    job.spec().map_or_else(|_| StreamMode::default(), |spec| spec.archive.stream_mode)
}

async fn desire_of(
    catalog: &dyn Catalog,
    archive: ArchiveId,
    change: impl Fn(&JobRow, &mut Desired) -> Result<(), DesireError> + Send + Sync,
) -> Result<Desired, DesireError> {
    for _ in 0..TRIES {
        let row = catalog.archive(archive).await?.ok_or(DesireError::NotFound(archive))?;
        let job = catalog.job(row.job).await?.ok_or(DesireError::NotFound(archive))?;
        if !matches!(job.state, JobState::Accepted | JobState::Capturing) {
            return Err(DesireError::NotRecording { archive, state: job.state.as_str() });
        }
        // What cannot be read was not written by this program: it is asked for anew.
        let known = job.desired.as_ref().and_then(|known| known.value().ok());
        let mut desired = known.cloned().unwrap_or_default();
        change(&job, &mut desired)?;
        if desired.classes.len() > STREAMS_MAX || desired.selected.len() > STREAMS_MAX {
            return Err(DesireError::Selection(format!(
                "more than {STREAMS_MAX} streams of archive {archive} were named"
            )));
        }
        if catalog.desire(&job, &StoredDesired::of(desired.clone()), Wallclock::now()).await? {
            return Ok(desired);
        }
    }
    Err(DesireError::Busy(archive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_chosen_in_stream_mode_manual_only() {
        let stream = |n: u8| format!("00000000-0000-4000-8000-0000000000{n:02}").parse::<StreamId>().expect("id");
        let change = |mode, add: &[u8], remove: &[u8]| {
            let ids = |ids: &[u8]| ids.iter().map(|n| stream(*n)).collect();
            StreamsChange { mode, add: ids(add), selection: Selection::ALL, remove: ids(remove) }
        };
        let (auto, manual) = (Some(StreamMode::Auto), Some(StreamMode::Manual));
        for (name, first, before, change, possible) in [
            ("a manual archive", StreamMode::Manual, None, change(None, &[1], &[2]), true),
            ("one with all streams", StreamMode::Auto, None, change(None, &[1], &[]), false),
            ("one that becomes manual", StreamMode::Auto, None, change(manual, &[1], &[]), true),
            ("one that became manual", StreamMode::Auto, manual, change(None, &[], &[1]), true),
            ("one that has all streams since", StreamMode::Manual, auto, change(None, &[], &[1]), false),
            ("one that is to have all", StreamMode::Manual, None, change(auto, &[], &[]), true),
        ] {
            assert!(change.check().is_ok(), "{name}");
            let mut desired = Desired { stream_mode: before, ..Desired::default() };
            assert_eq!(change.apply(first, &mut desired), possible, "{name}");
            if possible {
                let selected = |ids: &[StreamId], what| ids.iter().all(|id| desired.selected.get(id) == Some(&what));
                assert!(selected(&change.add, Selection::ALL) && selected(&change.remove, Selection::NONE), "{name}");
                assert_eq!(desired.stream_mode, change.mode.or(before), "{name}");
            }
        }
        assert!(change(None, &[1, 2], &[3, 2]).check().is_err());
        assert!(StreamsChange { selection: Selection::NONE, ..change(None, &[1], &[]) }.check().is_err());
    }

    #[test]
    fn classes_are_few_short_names() {
        let long = "x".repeat(CLASS_LENGTH_MAX);
        for (classes, good) in [
            (vec![], true),
            (vec!["focus".to_owned(), "größer".to_owned(), long.clone()], true),
            (vec![String::new()], false),
            (vec!["two words".to_owned()], false),
            (vec![long + "x"], false),
            (vec!["a".to_owned(); CLASSES_MAX + 1], false),
        ] {
            assert_eq!(check_classes(&classes).is_ok(), good, "{classes:?}");
        }
    }
}
