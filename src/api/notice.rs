//! Bodies of callbacks.

use serde_json::Value;

use super::dto::response;
use super::links::PublicUrl;
use super::state::Shared;
use crate::catalog::{ApplicationRow, ArchiveRow};
use crate::notify::Render;

/// Renders a callback's body: the archive as `GET` answers it.
pub struct NoticeBody(pub Shared);

#[async_trait::async_trait]
impl Render for NoticeBody {
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value {
        // Without a configured URL there is only a link that the store presigns.
        let public_url = self.0.settings.api.public_url.as_ref().map(|_| PublicUrl(self.0.public_url(None)));
        let body = match self.0.archive_response(archive, application, public_url.as_ref()).await {
            Ok(body) => body,
            // A callback without a link is better than none: the client can get the archive.
            Err(_) => response::archive(archive, application, None, None),
        };
        serde_json::to_value(body).expect("plain data")
    }
}
