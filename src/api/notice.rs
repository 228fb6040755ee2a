//! A callback's body.

use serde_json::Value;

use super::dto::response;
use super::links::Base;
use super::state::Shared;
use crate::catalog::{ApplicationRow, ArchiveRow};
use crate::notify::Render;

/// A callback's body: the archive as a request for it would be answered.
pub struct NoticeBody(pub Shared);

#[async_trait::async_trait]
impl Render for NoticeBody {
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value {
        // Without an address that developers know there can be no link of ours, only the store's own.
        let base = self.0.settings.api.public_url.as_ref().map(|_| Base(self.0.base(None)));
        let body = match self.0.wire(archive, application, base.as_ref()).await {
            Ok(body) => body,
            // Better without a link than not at all: the archive can be asked for.
            Err(_) => response::archive(archive, application, None, None),
        };
        serde_json::to_value(body).expect("plain data")
    }
}
