//! Bodies of requests about callbacks. Pure.

use serde::Deserialize;
use utoipa::ToSchema;

use super::lenient::JsonRequest;
use crate::api::error::ApiError;

/// Where callbacks are to go.
#[derive(Debug, Deserialize, ToSchema)]
pub struct RegisterCallback {
    /// An address such as `https://host/path`.
    url: String,
    /// `archive`.
    group: Option<String>,
    /// `status`.
    event: Option<String>,
}

impl JsonRequest for RegisterCallback {
    /// The address.
    type Checked = String;

    fn check(self) -> Result<String, ApiError> {
        let other = |given: &Option<String>, known: &str| given.as_ref().is_some_and(|given| given != known);
        if other(&self.group, "archive") || other(&self.event, "status") {
            return Err(ApiError::invalid(
                "callbacks are those of group archive, event status: there are no others here",
            ));
        }
        Ok(self.url)
    }
}
