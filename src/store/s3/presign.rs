//! Links, signed one after the other: a page of a list has fifty of them, and a request through all of the SDK takes longer
//! for each than everything else that the page needs.
//!
//! What a link of this bucket looks like is learnt from the first one, which the SDK makes. Only when ours of the same moment is
//! the same letter for letter, the next ones are ours; else the SDK makes all.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use crate::model::time::Wallclock;

/// Credentials of a role change; they are asked for again after this.
const CREDENTIALS_FOR: Duration = Duration::from_secs(60);

/// What is escaped in a query: all but unreserved letters (RFC 3986, 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub key: &'a str,
    /// `Content-Disposition` of the answer.
    pub disposition: &'a str,
    pub at: Wallclock,
    pub valid: Duration,
}

/// How the links of this bucket begin.
#[derive(Debug, Clone)]
enum Shape {
    /// No link was made yet.
    Unknown,
    /// Everything before the key.
    Begins(String),
    /// Not as we would make it.
    Other,
}

/// Signs links.
#[derive(Debug)]
pub(super) struct Links {
    region: String,
    provider: Option<SharedCredentialsProvider>,
    shape: Mutex<Shape>,
    credentials: Mutex<Option<(Credentials, Instant)>>,
}

impl Links {
    pub fn new(region: String, provider: Option<SharedCredentialsProvider>) -> Self {
        Self { region, provider, shape: Mutex::new(Shape::Unknown), credentials: Mutex::new(None) }
    }

    /// A link, if it is known how to make it.
    pub async fn make(&self, asked: Asked<'_>) -> Option<String> {
        let shape = self.shape.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Shape::Begins(begin) = shape else { return None };
        self.signed(&begin, asked).await
    }

    /// Learns from a link that the SDK made.
    pub async fn learn(&self, asked: Asked<'_>, link: &str) {
        if !matches!(*self.shape.lock().unwrap_or_else(PoisonError::into_inner), Shape::Unknown) {
            return;
        }
        let begin = link.split_once('?').and_then(|(path, _)| path.strip_suffix(asked.key));
        let shape = match begin {
            Some(begin) if self.signed(begin, asked).await.as_deref() == Some(link) => Shape::Begins(begin.to_owned()),
            _ => Shape::Other,
        };
        *self.shape.lock().unwrap_or_else(PoisonError::into_inner) = shape;
    }

    async fn signed(&self, begin: &str, asked: Asked<'_>) -> Option<String> {
        let unreserved = |c: char| c.is_ascii_alphanumeric() || "-_.~/".contains(c);
        if !asked.key.chars().all(unreserved) {
            return None;
        }
        let identity = self.credentials().await?.into();
        let mut settings = SigningSettings::default();
        // As S3 wants it, and the SDK for it.
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(asked.valid);
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(asked.at.to_system_time())
            .settings(settings)
            .build()
            .ok()?
            .into();
        let disposition = encoded(asked.disposition);
        let address = format!("{begin}{}?x-id=GetObject&response-content-disposition={disposition}", asked.key);
        let request = SignableRequest::new("GET", &address, std::iter::empty(), SignableBody::UnsignedPayload).ok()?;
        let (instructions, _) = sign(request, &params).ok()?.into_parts();
        let mut link = address;
        for (name, value) in instructions.params() {
            link.extend(["&", name, "="]);
            link.extend(encoded(value));
        }
        Some(link)
    }

    async fn credentials(&self) -> Option<Credentials> {
        let known = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((credentials, since)) = known
            && since.elapsed() < CREDENTIALS_FOR
        {
            return Some(credentials);
        }
        // Without any the SDK says what is wrong.
        let credentials = self.provider.as_ref()?.provide_credentials().await.ok()?;
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = Some((credentials.clone(), Instant::now()));
        Some(credentials)
    }
}

fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, QUERY)
}

#[cfg(test)]
mod tests {
    use super::super::{S3Config, S3Store};
    use super::*;

    const VALID: Duration = Duration::from_secs(600);

    async fn store(endpoint: Option<&str>, path_style: bool, checksums_always: bool) -> S3Store {
        S3Store::new(S3Config {
            bucket: "archives".to_owned(),
            region: "eu-central-1".to_owned(),
            endpoint: endpoint.map(str::to_owned),
            path_style,
            credentials: Some(("AKIDEXAMPLE".to_owned(), "a/secret+of=ours".into())),
            checksums_always,
            encryption: None,
            kms_key: None,
        })
        .await
    }

    #[tokio::test]
    async fn links_are_those_of_the_sdk_letter_for_letter() {
        for (endpoint, path_style, checksums_always) in [
            (Some("http://127.0.0.1:9000"), true, false),
            (Some("https://s3.example.com/base"), true, true),
            (Some("https://s3.example.com"), false, false),
            (None, false, false),
            (None, false, true),
        ] {
            let store = store(endpoint, path_style, checksums_always).await;
            let name = format!("{endpoint:?}, path style {path_style}, checksums {checksums_always}");
            let asked = |key, disposition| Asked { key, disposition, at: Wallclock::now(), valid: VALID };
            let first = asked("an-app/an-archive/archive.mp4", "attachment; filename=\"Weekly-1.mp4\"");
            assert_eq!(store.links.make(first).await, None, "{name}: nothing is known of the bucket");
            store.links.learn(first, &store.presigned(first).await.expect("link")).await;
            for (key, disposition) in [
                ("123456/b/archive.zip", "attachment; filename=\"b.zip\""),
                ("a~b/c_d/e.f-g", "inline; filename=\"\u{e9} %&+=?/#.mp4\""),
            ] {
                let next = asked(key, disposition);
                let by_sdk = store.presigned(next).await.expect("link");
                assert_eq!(store.links.make(next).await.as_deref(), Some(by_sdk.as_str()), "{name}");
            }
            let odd = asked("an app/100%/\u{e9}.mp4", "inline");
            assert_eq!(store.links.make(odd).await, None, "{name}: a key that is none of ours is the SDK's");
        }
    }

    #[tokio::test]
    async fn what_is_not_as_we_would_make_it_is_left_to_the_sdk() {
        let store = store(None, false, false).await;
        let asked = Asked { key: "k", disposition: "inline", at: Wallclock::now(), valid: VALID };
        let other = store.presigned(asked).await.expect("link").replace("x-id=GetObject", "x-id=HeadObject");
        store.links.learn(asked, &other).await;
        store.links.learn(asked, &store.presigned(asked).await.expect("link")).await;
        assert_eq!(store.links.make(asked).await, None);
    }
}
