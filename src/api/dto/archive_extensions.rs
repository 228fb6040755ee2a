//! Bodies of requests that make an archive from another one. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::archives::{invalid_field, normalize_layout};
use super::lenient::JsonRequest;
use crate::api::error::ApiError;
use crate::archive::derive::clip::ClipRange;
use crate::archive::derive::queue::DerivedArchive;
use crate::model::archive_options::Resolution;
use crate::model::layout::Layout;

/// A part of an archive, in milliseconds from its beginning.
struct Span {
    from_ms: Option<u32>,
    to_ms: Option<u32>,
}

impl Span {
    /// From seconds.
    fn new(from: Option<f64>, to: Option<f64>) -> Result<Self, ApiError> {
        let (from_ms, to_ms) = (milliseconds("from", from)?, milliseconds("to", to)?);
        match to_ms {
            Some(to) if to <= from_ms.unwrap_or(0) => {
                Err(ApiError::invalid("the part ends before it begins: to is more than from"))
            }
            _ => Ok(Self { from_ms, to_ms }),
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn milliseconds(field: &str, seconds: Option<f64>) -> Result<Option<u32>, ApiError> {
    let Some(seconds) = seconds else { return Ok(None) };
    let range = 0.0..f64::from(u32::MAX) / 1000.0;
    if !range.contains(&seconds) {
        return Err(ApiError::invalid(format!("{field} is a number of seconds from 0 on")));
    }
    Ok(Some((seconds * 1000.0).round() as u32))
}

/// What part of an archive is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClipArchive {
    /// Seconds from its beginning.
    from: Option<f64>,
    /// Seconds from its beginning.
    to: Option<f64>,
    /// Begin at the keyframe before, if there is none at the beginning; without it that is an error.
    at_keyframe: Option<bool>,
}

impl JsonRequest for ClipArchive {
    type Checked = DerivedArchive;

    fn check(self) -> Result<DerivedArchive, ApiError> {
        let Span { from_ms, to_ms } = Span::new(self.from, self.to)?;
        if from_ms.is_none() && to_ms.is_none() {
            return Err(ApiError::invalid("give from, to, or both: seconds from the archive's beginning"));
        }
        let at_keyframe = self.at_keyframe.unwrap_or(false);
        Ok(DerivedArchive::Clip(ClipRange { from_ms: from_ms.unwrap_or(0), to_ms, at_keyframe }))
    }
}

/// How an archive is to be composed anew.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecomposeArchive {
    /// Another layout; as it was without.
    layout: Option<Layout>,
    /// Another size; as it was without.
    resolution: Option<Resolution>,
    /// Only a part: seconds from its beginning.
    from: Option<f64>,
    /// Only a part: seconds from its beginning.
    to: Option<f64>,
}

impl JsonRequest for RecomposeArchive {
    type Checked = DerivedArchive;

    fn normalize(fields: &mut Map<String, Value>) -> Result<(), ApiError> {
        normalize_layout(fields);
        Ok(())
    }

    fn check(self) -> Result<DerivedArchive, ApiError> {
        if let Some(layout) = &self.layout {
            layout.check().map_err(|e| invalid_field(&e))?;
        }
        let Span { from_ms, to_ms } = Span::new(self.from, self.to)?;
        Ok(DerivedArchive::Recompose { layout: self.layout, resolution: self.resolution, from_ms, to_ms })
    }
}
