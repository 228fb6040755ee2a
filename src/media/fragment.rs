//! Pipeline fragments: a header of `# name: value` lines, then one element a line.
//!
//! Strings are never put into a fragment's text; the program sets them as properties of the named elements.

use std::path::Path;

use super::{MediaError, libav};

/// A fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Its file's name without `.launch`.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    /// The elements that the program looks up by name.
    pub names: Vec<String>,
    /// The elements it needs, and the Debian packages that have them.
    pub elements: Vec<(String, String)>,
    /// Samples by which an encoder's sound comes late, for which its container cannot make up.
    pub delay: u64,
    /// Whether libavcodec, which does the same as the elements, is called without them.
    pub directly: bool,
    /// The text for GStreamer's parser, without the header.
    pub text: String,
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        /// The fragments of this build.
        pub const EMBEDDED: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../pipelines/", $name, ".launch"))),)*];
    };
}

embedded![
    "mux-webm",
    "mux-mkv",
    "mux-input-video",
    "mux-input-audio",
    "count",
    "still",
    "verify",
    "decode-vp8",
    "decode-vp9",
    "decode-h264",
    "decode-av1",
    "decode-opus",
    "decode-pcmu",
    "decode-pcma",
    "compose-video",
    "compose-audio",
];

/// Finds a fragment: in the folder if it has one of that name, else in this build.
///
/// # Errors
/// When there is none, or its header is not as it should be.
pub fn load(name: &str, folder: Option<&Path>) -> Result<Fragment, MediaError> {
    let bad = |what: String| MediaError::Fragment { name: name.to_owned(), what };
    if let Some(folder) = folder {
        let path = folder.join(format!("{name}.launch"));
        match std::fs::read_to_string(&path) {
            Ok(text) => return parse(name, &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(bad(format!("{} cannot be read: {e}", path.display()))),
        }
    }
    let embedded =
        EMBEDDED.iter().find(|(n, _)| *n == name).ok_or_else(|| bad("there is no such fragment".to_owned()))?;
    parse(name, embedded.1)
}

/// Reads a fragment's text.
///
/// # Errors
/// When the header is not as it should be.
pub fn parse(name: &str, text: &str) -> Result<Fragment, MediaError> {
    let bad = |what: &str| MediaError::Fragment { name: name.to_owned(), what: what.to_owned() };
    let header = |key: &str| {
        let line = text
            .lines()
            .filter_map(|l| l.strip_prefix('#'))
            .find_map(|l| l.trim().strip_prefix(key)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    let list =
        |value: String| value.split(',').map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect::<Vec<_>>();
    let element = |text: &String| {
        let (name, package) = text.split_once(" (")?;
        Some((name.to_owned(), package.strip_suffix(')')?.to_owned()))
    };
    let elements = list(header("elements").ok_or(bad("the header has no `elements`"))?);
    let elements: Option<Vec<_>> = elements.iter().map(element).collect();
    let body: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with('#')).collect();
    Ok(Fragment {
        name: name.to_owned(),
        purpose: header("purpose").ok_or(bad("the header has no `purpose`"))?,
        names: header("names").map(list).unwrap_or_default(),
        delay: header("delay").map_or(Ok(0), |d| d.parse().map_err(|_| bad("`delay` is no number of samples")))?,
        directly: directly(header("directly").as_deref()).map_err(|e| bad(&e))?,
        elements: elements.ok_or(bad("`elements` is a list of `element (Debian package)`"))?,
        text: body.join("\n"),
    })
}

/// Reads `directly: <library>, <why>`.
fn directly(value: Option<&str>) -> Result<bool, String> {
    let library = value.map(|value| value.split(',').next().unwrap_or(value).trim());
    match library {
        None => Ok(false),
        Some(libav::NAME) => Ok(true),
        Some(other) => Err(format!("`directly: {other}` is not known; {} is, or leave the line out", libav::NAME)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fragment_of_this_build_has_a_whole_header_and_names_what_it_says() {
        for (name, text) in EMBEDDED {
            let fragment = parse(name, text).expect("fragment");
            assert!(!fragment.elements.is_empty());
            for named in &fragment.names {
                let in_text = fragment.text.contains(&format!("name={named}"));
                // `verify` makes its sinks when it knows what is in the file.
                assert!(in_text || *name == "verify", "{name}: {named}");
            }
        }
    }

    #[test]
    fn a_folder_goes_before_this_build_and_a_bad_header_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("verify.launch"), "filesrc").expect("write");
        let error = load("verify", Some(dir.path())).expect_err("no header");
        assert!(error.to_string().contains("no `elements`"), "{error}");
        assert!(load("mux-webm", Some(dir.path())).is_ok());
        assert!(load("nothing", None).is_err());
    }
}
