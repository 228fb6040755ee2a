//! Presigned URLs without the SDK's request pipeline: a page of a list has fifty of them, and the SDK takes longer for each
//! than everything else that the page needs.
//!
//! The template of a bucket's URLs is learned from the first one, which the SDK signs. Only if the URL that this module signs
//! for the same moment is identical, it signs the next ones; else the SDK signs all.

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

/// How long credentials are cached. Those of a role change.
const CREDENTIALS_TTL: Duration = Duration::from_secs(60);

/// What is escaped in a query: all but unreserved letters (RFC 3986, 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A request for a presigned URL.
#[derive(Debug, Clone, Copy)]
pub(super) struct PresignRequest<'a> {
    pub key: &'a str,
    /// `Content-Disposition` of the answer.
    pub disposition: &'a str,
    pub at: Wallclock,
    pub valid: Duration,
}

/// How the presigned URLs of this bucket begin.
#[derive(Debug, Clone)]
enum UrlTemplate {
    /// No URL was signed yet.
    Unknown,
    /// The URL up to the key.
    Prefix(String),
    /// The SDK's URL differs from the one that this module would sign.
    NotReproducible,
}

/// Signs URLs.
#[derive(Debug)]
pub(super) struct UrlSigner {
    region: String,
    provider: Option<SharedCredentialsProvider>,
    template: Mutex<UrlTemplate>,
    credentials: Mutex<Option<(Credentials, Instant)>>,
}

impl UrlSigner {
    pub fn new(region: String, provider: Option<SharedCredentialsProvider>) -> Self {
        Self { region, provider, template: Mutex::new(UrlTemplate::Unknown), credentials: Mutex::new(None) }
    }

    /// Signs a URL, if the template is known.
    pub async fn sign(&self, request: PresignRequest<'_>) -> Option<String> {
        let template = self.template.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let UrlTemplate::Prefix(prefix) = template else { return None };
        self.sign_with_prefix(&prefix, request).await
    }

    /// Learns the template from a URL that the SDK signed.
    pub async fn learn_template(&self, request: PresignRequest<'_>, url: &str) {
        if !matches!(*self.template.lock().unwrap_or_else(PoisonError::into_inner), UrlTemplate::Unknown) {
            return;
        }
        let prefix = url.split_once('?').and_then(|(path, _)| path.strip_suffix(request.key));
        let template = match prefix {
            Some(prefix) if self.sign_with_prefix(prefix, request).await.as_deref() == Some(url) => {
                UrlTemplate::Prefix(prefix.to_owned())
            }
            _ => UrlTemplate::NotReproducible,
        };
        *self.template.lock().unwrap_or_else(PoisonError::into_inner) = template;
    }

    async fn sign_with_prefix(&self, prefix: &str, request: PresignRequest<'_>) -> Option<String> {
        let unreserved = |c: char| c.is_ascii_alphanumeric() || "-_.~/".contains(c);
        if !request.key.chars().all(unreserved) {
            return None;
        }
        let identity = self.credentials().await?.into();
        let mut settings = SigningSettings::default();
        // These are S3's rules, which the SDK applies, too.
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(request.valid);
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(request.at.to_system_time())
            .settings(settings)
            .build()
            .ok()?
            .into();
        let disposition = percent_encoded(request.disposition);
        let address = format!("{prefix}{}?x-id=GetObject&response-content-disposition={disposition}", request.key);
        let signable = SignableRequest::new("GET", &address, std::iter::empty(), SignableBody::UnsignedPayload).ok()?;
        let (instructions, _) = sign(signable, &params).ok()?.into_parts();
        let mut url = address;
        for (name, value) in instructions.params() {
            url.extend(["&", name, "="]);
            url.extend(percent_encoded(value));
        }
        Some(url)
    }

    async fn credentials(&self) -> Option<Credentials> {
        let known = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((credentials, since)) = known
            && since.elapsed() < CREDENTIALS_TTL
        {
            return Some(credentials);
        }
        // Without credentials, the SDK's own attempt reports the error.
        let credentials = self.provider.as_ref()?.provide_credentials().await.ok()?;
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = Some((credentials.clone(), Instant::now()));
        Some(credentials)
    }
}

fn percent_encoded(text: &str) -> PercentEncode<'_> {
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
            let request = |key, disposition| PresignRequest { key, disposition, at: Wallclock::now(), valid: VALID };
            let first = request("an-app/an-archive/archive.mp4", "attachment; filename=\"Weekly-1.mp4\"");
            assert_eq!(store.url_signer.sign(first).await, None, "{name}: nothing is known of the bucket");
            store.url_signer.learn_template(first, &store.presigned_by_sdk(first).await.expect("link")).await;
            for (key, disposition) in [
                ("123456/b/archive.zip", "attachment; filename=\"b.zip\""),
                ("a~b/c_d/e.f-g", "inline; filename=\"\u{e9} %&+=?/#.mp4\""),
            ] {
                let next = request(key, disposition);
                let by_sdk = store.presigned_by_sdk(next).await.expect("link");
                assert_eq!(store.url_signer.sign(next).await.as_deref(), Some(by_sdk.as_str()), "{name}");
            }
            let odd = request("an app/100%/\u{e9}.mp4", "inline");
            assert_eq!(store.url_signer.sign(odd).await, None, "{name}: a key that is none of ours is the SDK's");
        }
    }

    #[tokio::test]
    async fn what_is_not_as_we_would_make_it_is_left_to_the_sdk() {
        let store = store(None, false, false).await;
        let request = PresignRequest { key: "k", disposition: "inline", at: Wallclock::now(), valid: VALID };
        let other = store.presigned_by_sdk(request).await.expect("link").replace("x-id=GetObject", "x-id=HeadObject");
        store.url_signer.learn_template(request, &other).await;
        store.url_signer.learn_template(request, &store.presigned_by_sdk(request).await.expect("link")).await;
        assert_eq!(store.url_signer.sign(request).await, None);
    }
}
