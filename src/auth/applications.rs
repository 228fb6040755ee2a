//! Applications: adding them, rotating their keys, setting their callback URLs.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::auth::token::is_public_key;
use crate::catalog::{ApplicationKey, ApplicationKind, ApplicationRow, Catalog, CatalogError};
use crate::config::Settings;
use crate::model::fault::{Fault, FaultKind, HasFault};
use crate::model::ids::ApplicationId;
use crate::model::time::Wallclock;
use crate::notify::url_policy::{allowed, check_url};

/// Shortest secret of a legacy project: OpenTok's have forty characters.
const SECRET_CHARS_MIN: usize = 16;
/// Most keys of one application, valid or expired.
const KEYS_MAX: usize = 10;
/// Attempts while others change the same application.
const TRIES: u32 = 5;

/// Why an application cannot be added or changed.
#[derive(Debug, thiserror::Error)]
pub enum AppsError {
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The id is taken.
    #[error("there is an application {0} already; `archiver apps rotate` gives it another key")]
    Exists(ApplicationId),
    /// No application has the id.
    #[error("there is no application {0}; `archiver apps list` shows all")]
    NotFound(ApplicationId),
    /// An invalid value.
    #[error("{0}")]
    Invalid(String),
    /// Too many concurrent changes.
    #[error("others change application {0} all the time: try again")]
    Busy(ApplicationId),
}

impl HasFault for AppsError {
    fn fault(&self) -> Fault {
        match self {
            Self::Catalog(e) => e.fault(),
            Self::Exists(_) | Self::Busy(_) => FaultKind::Conflict.fault(),
            Self::NotFound(_) => FaultKind::NotFound.fault(),
            Self::Invalid(_) => FaultKind::RequestInvalid.fault(),
        }
    }
}

/// A key to add.
#[derive(Debug)]
pub enum NewKey {
    /// The public key of a unified application (PEM).
    Public(String),
    /// The secret of a legacy project; generated if `None`.
    Secret(Option<SecretString>),
}

/// An application to add.
#[derive(Debug)]
pub struct NewApplication {
    /// A UUID or a number; generated if `None`.
    pub id: Option<ApplicationId>,
    /// The display name.
    pub name: String,
    /// Its first key, which determines its kind.
    pub key: NewKey,
    /// Where its callbacks go.
    pub callback_url: Option<String>,
}

/// An application that was added or changed.
#[derive(Debug)]
pub struct Changed {
    /// The application after the change.
    pub row: ApplicationRow,
    /// A generated secret, which is shown only once.
    pub new_secret: Option<SecretString>,
}

/// A random secret of 256 bits.
fn new_secret() -> SecretString {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()).into()
}

/// Checks that the SDKs can parse the id of an application of this kind.
fn check_id(id: &ApplicationId, kind: ApplicationKind) -> Result<(), AppsError> {
    let good = match kind {
        ApplicationKind::Unified => {
            uuid::Uuid::try_parse(id.as_str()).is_ok_and(|uuid| uuid.as_hyphenated().to_string() == id.as_str())
        }
        // .NET reads a 32-bit number.
        ApplicationKind::Legacy => id.as_str().parse::<i32>().is_ok_and(|n| n > 0 && n.to_string() == id.as_str()),
    };
    if good {
        return Ok(());
    }
    let needed = match kind {
        ApplicationKind::Unified => "a unified application's id is a UUID in small letters",
        ApplicationKind::Legacy => "a legacy project's key is a number from 1 to 2147483647",
    };
    Err(AppsError::Invalid(format!("{id}: {needed}")))
}

/// A key that can be added.
struct CheckedKey {
    kind: ApplicationKind,
    key: SecretString,
    /// Whether the key is a secret that was generated here.
    generated: bool,
}

fn checked(key: NewKey) -> Result<CheckedKey, AppsError> {
    match key {
        NewKey::Public(pem) if is_public_key(&pem) => {
            Ok(CheckedKey { kind: ApplicationKind::Unified, key: pem.into(), generated: false })
        }
        NewKey::Public(_) => Err(AppsError::Invalid(
            "this is no RSA public key in PEM; of a private key, `openssl rsa -in private.key -pubout` makes it"
                .to_owned(),
        )),
        NewKey::Secret(Some(secret)) if secret.expose_secret().chars().count() < SECRET_CHARS_MIN => {
            Err(AppsError::Invalid(format!("the secret has fewer than {SECRET_CHARS_MIN} characters")))
        }
        NewKey::Secret(Some(secret)) => Ok(CheckedKey { kind: ApplicationKind::Legacy, key: secret, generated: false }),
        NewKey::Secret(None) => Ok(CheckedKey { kind: ApplicationKind::Legacy, key: new_secret(), generated: true }),
    }
}

/// Adds an application.
///
/// # Errors
/// See [`AppsError`].
pub async fn add(
    catalog: &dyn Catalog,
    settings: &Settings,
    new: NewApplication,
    now: Wallclock,
) -> Result<Changed, AppsError> {
    let CheckedKey { kind, key, generated } = checked(new.key)?;
    let id = match new.id {
        Some(id) => id,
        None => new_id(kind),
    };
    check_id(&id, kind)?;
    check_callback(settings, new.callback_url.as_deref()).await?;
    let row = ApplicationRow {
        application: id.clone(),
        kind,
        name: new.name.chars().filter(|c| !c.is_control()).take(200).collect(),
        keys: vec![ApplicationKey { key: key.clone(), created_at: now, ends_at: None }],
        callback_secret: new.callback_url.is_some().then(new_secret),
        callback_url: new.callback_url,
        created_at: now,
        updated_at: now,
    };
    if !catalog.add_application(&row).await? {
        return Err(AppsError::Exists(id));
    }
    Ok(Changed { row, new_secret: generated.then_some(key) })
}

fn new_id(kind: ApplicationKind) -> ApplicationId {
    let text = match kind {
        ApplicationKind::Unified => uuid::Uuid::new_v4().to_string(),
        ApplicationKind::Legacy => rand::random_range(10_000_000..=i32::MAX).to_string(),
    };
    text.parse().expect("digits and letters")
}

/// Applies `change` to an application, with optimistic locking: a concurrent change makes it read and try again.
async fn changed<T>(
    catalog: &dyn Catalog,
    id: &ApplicationId,
    now: Wallclock,
    change: impl Fn(&mut ApplicationRow) -> Result<T, AppsError>,
) -> Result<(ApplicationRow, T), AppsError> {
    for _ in 0..TRIES {
        let mut row = catalog.application(id).await?.ok_or_else(|| AppsError::NotFound(id.clone()))?;
        let before = row.updated_at;
        let told = change(&mut row)?;
        // The time serves as the version of the row, so it must grow with every change.
        row.updated_at = Wallclock(now.0.max(before.0 + 1));
        if catalog.change_application(&row, before).await? {
            return Ok((row, told));
        }
    }
    Err(AppsError::Busy(id.clone()))
}

/// Gives an application another key. The previous keys stay valid for `overlap`.
///
/// # Errors
/// See [`AppsError`].
pub async fn rotate(
    catalog: &dyn Catalog,
    id: &ApplicationId,
    public_key: Option<String>,
    overlap: Duration,
    now: Wallclock,
) -> Result<Changed, AppsError> {
    let secret = new_secret();
    let change = |row: &mut ApplicationRow| {
        let key = match (row.kind, &public_key) {
            (ApplicationKind::Unified, Some(pem)) => checked(NewKey::Public(pem.clone()))?.key,
            (ApplicationKind::Legacy, None) => secret.clone(),
            (ApplicationKind::Unified, None) => {
                return Err(AppsError::Invalid("a unified application needs --public-key FILE".to_owned()));
            }
            (ApplicationKind::Legacy, Some(_)) => {
                return Err(AppsError::Invalid(
                    "a legacy project has a secret, which is made here, no public key".to_owned(),
                ));
            }
        };
        let end = now + overlap;
        for old in &mut row.keys {
            old.ends_at = Some(old.ends_at.map_or(end, |known| Wallclock(known.0.min(end.0))));
        }
        row.keys.retain(|key| key.is_good(now));
        row.keys.insert(0, ApplicationKey { key, created_at: now, ends_at: None });
        row.keys.truncate(KEYS_MAX);
        Ok(row.kind)
    };
    let (row, kind) = changed(catalog, id, now, change).await?;
    Ok(Changed { row, new_secret: (kind == ApplicationKind::Legacy).then_some(secret) })
}

/// Sets an application's callback URL; `None` ends callbacks. The secret that signs them stays.
///
/// # Errors
/// See [`AppsError`].
pub async fn set_callback(
    catalog: &dyn Catalog,
    settings: &Settings,
    id: &ApplicationId,
    url: Option<String>,
    now: Wallclock,
) -> Result<ApplicationRow, AppsError> {
    check_callback(settings, url.as_deref()).await?;
    let change = |row: &mut ApplicationRow| {
        row.callback_url.clone_from(&url);
        if url.is_some() && row.callback_secret.is_none() {
            row.callback_secret = Some(new_secret());
        }
        Ok(())
    };
    Ok(changed(catalog, id, now, change).await?.0)
}

/// Checks that callbacks may be sent to the URL.
async fn check_callback(settings: &Settings, url: Option<&str>) -> Result<(), AppsError> {
    let Some(url) = url else { return Ok(()) };
    let checked = check_url(url, &allowed(&settings.callbacks)).await;
    checked.map(drop).map_err(|error| AppsError::Invalid(format!("callbacks cannot go there: {error}")))
}

/// The application as JSON, without its secrets.
#[must_use]
pub fn shown(row: &ApplicationRow, now: Wallclock) -> Value {
    let keys: Vec<Value> = row
        .keys
        .iter()
        .map(|key| {
            json!({
                "createdAt": key.created_at.to_rfc3339(), "endsAt": key.ends_at.map(Wallclock::to_rfc3339),
                "good": key.is_good(now),
            })
        })
        .collect();
    json!({
        "applicationId": row.application, "kind": row.kind, "name": row.name, "callbackUrl": row.callback_url, "keys": keys,
        "createdAt": row.created_at.to_rfc3339(), "updatedAt": row.updated_at.to_rfc3339(),
    })
}
