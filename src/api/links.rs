//! Links to archives: presigned by the store if it can, else signed by this program.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::Sha256;

use crate::catalog::ArchiveRow;
use crate::model::time::Wallclock;
use crate::store::{SharedStore, StoreError};

/// The URL at which clients reach the API, without a trailing slash: as configured, else from the request.
#[derive(Debug, Clone)]
pub struct PublicUrl(pub String);

/// The path that signed links begin with.
const PATH: &str = "/links/";

/// Makes and checks links.
#[derive(Clone)]
pub struct Links {
    pub(super) store: SharedStore,
    secret: SecretString,
    valid: std::time::Duration,
}

impl Links {
    /// Links to objects of a store, with their validity.
    #[must_use]
    pub const fn new(store: SharedStore, secret: SecretString, valid: std::time::Duration) -> Self {
        Self { store, secret, valid }
    }

    /// A link that needs no token to an object, which a browser saves as `file_name`. Without a `public_url` only a store that
    /// presigns URLs has links.
    ///
    /// # Errors
    /// When the store cannot sign.
    pub async fn link(
        &self,
        key: &str,
        file_name: &str,
        public_url: Option<&PublicUrl>,
    ) -> Result<Option<String>, StoreError> {
        if let Some(link) = self.store.presign_get(key, self.valid, file_name).await? {
            return Ok(Some(link));
        }
        let Some(PublicUrl(url)) = public_url else { return Ok(None) };
        let expires = (Wallclock::now() + self.valid).as_millis() / 1000;
        let signature = URL_SAFE_NO_PAD.encode(self.signed(key, expires, file_name).finalize().into_bytes());
        Ok(Some(format!("{url}{PATH}{key}?expires={expires}&name={file_name}&signature={signature}")))
    }

    fn signed(&self, key: &str, expires: i64, file_name: &str) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(self.secret.expose_secret().as_bytes())
            .expect("a key of any length will do");
        mac.update(format!("{key}\n{expires}\n{file_name}").as_bytes());
        mac
    }

    /// Whether a link has a valid signature and has not expired.
    pub fn is_good(&self, key: &str, query: &LinkQuery, now: Wallclock) -> bool {
        let Ok(signature) = URL_SAFE_NO_PAD.decode(&query.signature) else { return false };
        let good = self.signed(key, query.expires, &query.name).verify_slice(&signature).is_ok();
        good && now.as_millis() / 1000 <= query.expires
    }
}

/// The file name for downloads: the archive's name, in characters that every file system accepts, and its id.
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

/// The path of a signed link: the parts of the object's key.
#[derive(Debug, Deserialize)]
pub struct LinkPath {
    application: String,
    archive: String,
    file: String,
}

impl LinkPath {
    /// The key of the object.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.application, self.archive, self.file)
    }
}

/// The query of a signed link.
#[derive(Debug, Deserialize)]
pub struct LinkQuery {
    expires: i64,
    /// The file name for downloads.
    pub name: String,
    signature: String,
}
