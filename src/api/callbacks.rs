//! What callbacks carry: an archive's object, as a request for it would be answered.

use async_trait::async_trait;
use serde_json::Value;

use super::extract::Base;
use super::{Shared, wire};
use crate::callback::Render;
use crate::catalog::{ApplicationRow, ArchiveRow};

/// Renders archives for callbacks.
pub(super) struct Rendered(pub(super) Shared);

#[async_trait]
impl Render for Rendered {
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value {
        let object = match self.0.wire(archive, application, &Base(self.0.base(None))).await {
            Ok(object) => object,
            // The change is what matters; a link can be asked for.
            Err(_) => wire::archive(archive, application, None, None),
        };
        serde_json::to_value(object).expect("plain data")
    }
}
