//! Links to archives: those of the store where it has some, else our own, signed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::Sha256;

use crate::catalog::ArchiveRow;
use crate::model::time::Wallclock;
use crate::store::{SharedStore, StoreError};

/// Where this service is found, without a slash at its end: as configured, else as the request has it.
#[derive(Debug, Clone)]
pub struct Base(pub String);

/// What our links begin with.
const PATH: &str = "/links/";

/// Makes and checks links.
#[derive(Clone)]
pub struct Links {
    pub(super) store: SharedStore,
    secret: SecretString,
    valid: std::time::Duration,
}

impl Links {
    /// Links of a store, that are valid for so long.
    #[must_use]
    pub const fn new(store: SharedStore, secret: SecretString, valid: std::time::Duration) -> Self {
        Self { store, secret, valid }
    }

    /// A link to an object that needs no token, and what it is called when it is kept. `base` is where this service is found;
    /// where that is not known, there is none but of a store that has links of its own.
    ///
    /// # Errors
    /// When the store cannot sign.
    pub async fn link(&self, key: &str, file_name: &str, base: Option<&Base>) -> Result<Option<String>, StoreError> {
        if let Some(link) = self.store.presign_get(key, self.valid, file_name).await? {
            return Ok(Some(link));
        }
        let Some(Base(base)) = base else { return Ok(None) };
        let expires = (Wallclock::now() + self.valid).as_millis() / 1000;
        let signature = URL_SAFE_NO_PAD.encode(self.signed(key, expires, file_name).finalize().into_bytes());
        Ok(Some(format!("{base}{PATH}{key}?expires={expires}&name={file_name}&signature={signature}")))
    }

    fn signed(&self, key: &str, expires: i64, file_name: &str) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(self.secret.expose_secret().as_bytes())
            .expect("a key of any length will do");
        mac.update(format!("{key}\n{expires}\n{file_name}").as_bytes());
        mac
    }

    /// Whether a link is of ours and still valid.
    pub fn is_good(&self, key: &str, query: &LinkQuery, now: Wallclock) -> bool {
        let Ok(signature) = URL_SAFE_NO_PAD.decode(&query.signature) else { return false };
        let good = self.signed(key, query.expires, &query.name).verify_slice(&signature).is_ok();
        good && now.as_millis() / 1000 <= query.expires
    }
}

/// What an archive's file is called when somebody keeps it: its name as far as every file system takes it, and its id.
#[must_use]
pub fn file_name(row: &ArchiveRow, key: &str) -> String {
    let extension = key.rsplit('.').next().unwrap_or("bin");
    let name: String = row
        .name
        .iter()
        .flat_map(|name| name.chars())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let name = name.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-");
    let name = if name.is_empty() { "archive" } else { &name };
    format!("{name}-{}.{extension}", row.archive)
}

/// The query of a link of ours.
#[derive(Debug, Deserialize)]
pub struct LinkQuery {
    expires: i64,
    /// What the file is called when it is kept.
    pub name: String,
    signature: String,
}
