//! Applications and shared secrets.

use archiver::catalog::{ApplicationCatalog, ApplicationKey, ApplicationRow, CatalogError};
use archiver::model::ids::ApplicationId;
use archiver::model::time::Wallclock;
use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

use super::{MemoryCatalog, storable};

/// The row as the SQL catalogs keep it.
fn stored(row: &ApplicationRow) -> ApplicationRow {
    let secret = |secret: &SecretString| SecretString::from(storable(secret.expose_secret()));
    ApplicationRow {
        name: storable(&row.name),
        keys: row.keys.iter().map(|key| ApplicationKey { key: secret(&key.key), ..key.clone() }).collect(),
        callback_url: row.callback_url.as_deref().map(storable),
        callback_secret: row.callback_secret.as_ref().map(secret),
        ..row.clone()
    }
}

#[async_trait]
impl ApplicationCatalog for MemoryCatalog {
    async fn add_application(&self, application: &ApplicationRow) -> Result<bool, CatalogError> {
        self.call("add_application", |state| {
            let is_new = !state.applications.contains_key(&application.application);
            if is_new {
                state.applications.insert(application.application.clone(), stored(application));
            }
            Ok(is_new)
        })
        .await
    }

    async fn change_application(&self, application: &ApplicationRow, before: Wallclock) -> Result<bool, CatalogError> {
        self.call("change_application", |state| {
            let found = state.applications.get_mut(&application.application);
            let Some(found) = found.filter(|found| found.updated_at == before) else { return Ok(false) };
            *found = stored(application);
            Ok(true)
        })
        .await
    }

    async fn application(&self, application: &ApplicationId) -> Result<Option<ApplicationRow>, CatalogError> {
        self.call("application", |state| Ok(state.applications.get(application).cloned())).await
    }

    async fn applications(&self) -> Result<Vec<ApplicationRow>, CatalogError> {
        self.call("applications", |state| Ok(state.applications.values().cloned().collect())).await
    }

    async fn shared_secret(&self, name: &str, new: &SecretString) -> Result<SecretString, CatalogError> {
        self.call("shared_secret", |state| {
            Ok(state.secrets.entry(name.to_owned()).or_insert_with(|| new.clone()).clone())
        })
        .await
    }
}
