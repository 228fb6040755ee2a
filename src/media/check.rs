//! Whether every element that the fragments need is there.

use std::path::Path;

use super::{MediaError, fragment};

/// An element and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementCheck {
    /// The fragment that needs it.
    pub fragment: String,
    /// Its name.
    pub element: String,
    /// The Debian package that has it.
    pub package: String,
    /// Whether GStreamer finds it.
    pub found: bool,
}

/// Looks up every element of every fragment.
///
/// # Errors
/// When GStreamer cannot be started or a fragment cannot be read.
pub fn elements(folder: Option<&Path>) -> Result<Vec<ElementCheck>, MediaError> {
    super::init()?;
    let mut checks = Vec::new();
    for (name, _) in fragment::EMBEDDED {
        let fragment = fragment::load(name, folder)?;
        for (element, package) in fragment.elements {
            let found = gstreamer::ElementFactory::find(&element).is_some();
            checks.push(ElementCheck { fragment: (*name).to_owned(), element, package, found });
        }
    }
    Ok(checks)
}
