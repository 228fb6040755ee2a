//! The layout of a composed archive, in Vonage's terms.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::field_error::FieldError;
use super::stylesheet::Stylesheet;

/// Longest custom style sheet in bytes.
pub const STYLESHEET_BYTES_MAX: usize = 16 << 10;

/// Vonage's layout types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum LayoutType {
    #[default]
    BestFit,
    Pip,
    VerticalPresentation,
    HorizontalPresentation,
    Custom,
}

/// How a composed archive looks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Layout {
    /// Its type.
    #[serde(rename = "type", default)]
    pub kind: LayoutType,
    /// Only with, and needed for, `custom`.
    pub stylesheet: Option<String>,
    /// Only with `bestFit`.
    pub screenshare_type: Option<LayoutType>,
}

impl Layout {
    /// Whether it can be one.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), FieldError> {
        let (sheet, screen) = ("stylesheet", "screenshareType");
        if (self.kind == LayoutType::Custom) != self.stylesheet.is_some() {
            return Err(FieldError::new(sheet, "goes with type custom, and only with it"));
        }
        if self.stylesheet.as_ref().is_some_and(|s| s.len() > STYLESHEET_BYTES_MAX) {
            return Err(FieldError::new(sheet, format!("has more than {STYLESHEET_BYTES_MAX} bytes")));
        }
        if let Some(Err(problem)) = self.stylesheet.as_deref().map(Stylesheet::parse) {
            return Err(FieldError::new(sheet, problem.to_string()));
        }
        match self.screenshare_type {
            Some(LayoutType::Custom) => Err(FieldError::new(screen, "may not be custom")),
            Some(_) if self.kind != LayoutType::BestFit => Err(FieldError::new(screen, "goes only with type bestFit")),
            _ => Ok(()),
        }
    }
}
