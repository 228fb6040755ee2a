//! The history of jobs and of parked entries.

use serde::{Deserialize, Serialize};

use crate::model::time::Wallclock;

/// A line of a history. As JSON, also in the column of parked entries, a line is a list of three values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Wallclock, String, String)", into = "(Wallclock, String, String)")]
pub struct HistoryLine {
    /// When it happened.
    pub at: Wallclock,
    /// What happened.
    pub what: String,
    /// Who did it: a worker, a person, or a part of this program.
    pub who: String,
}

impl From<(Wallclock, String, String)> for HistoryLine {
    fn from((at, what, who): (Wallclock, String, String)) -> Self {
        Self { at, what, who }
    }
}

impl From<HistoryLine> for (Wallclock, String, String) {
    fn from(line: HistoryLine) -> Self {
        (line.at, line.what, line.who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_list_of_three_as_earlier_versions_wrote_it() {
        let line = HistoryLine { at: Wallclock(7), what: "replayed".to_owned(), who: "ann".to_owned() };
        let json = serde_json::to_string(&line).expect("plain data");
        assert_eq!(json, r#"[7,"replayed","ann"]"#);
        assert_eq!(serde_json::from_str::<HistoryLine>(&json).expect("a line"), line);
    }
}
