//! Asking for something of an archive that is being recorded: another layout, other layout classes of its streams.

use crate::catalog::{Catalog, CatalogError, JobState};
use crate::fault::{Fault, FaultKind, HasFault};
use crate::ids::ArchiveId;
use crate::job::desired::Desired;
use crate::time::Wallclock;

/// How often it is tried when others ask for something else at the same time.
const TRIES: u32 = 10;
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
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl HasFault for DesireError {
    fn fault(&self) -> Fault {
        match self {
            Self::NotFound(_) => FaultKind::NotFound.fault(),
            Self::NotRecording { .. } | Self::Busy(_) => FaultKind::Conflict.fault(),
            Self::Class(_) => FaultKind::EventInvalid.fault(),
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
    catalog: &Catalog,
    archive: ArchiveId,
    change: impl Fn(&mut Desired) + Send + Sync,
) -> Result<Desired, DesireError> {
    for _ in 0..TRIES {
        let row = catalog.archive(archive).await?.ok_or(DesireError::NotFound(archive))?;
        let job = catalog.job(row.job).await?.ok_or(DesireError::NotFound(archive))?;
        if !matches!(job.state, JobState::Accepted | JobState::Capturing) {
            return Err(DesireError::NotRecording { archive, state: job.state.as_str() });
        }
        let known = job.desired.as_deref().map(serde_json::from_str::<Desired>).transpose();
        // What cannot be read was not written by this program: it is asked for anew.
        let mut desired = known.unwrap_or_default().unwrap_or_default();
        change(&mut desired);
        let text = serde_json::to_string(&desired).expect("plain data");
        if catalog.desire(&job, &text, Wallclock::now()).await? {
            return Ok(desired);
        }
    }
    Err(DesireError::Busy(archive))
}

#[cfg(test)]
mod tests {
    use super::*;

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
