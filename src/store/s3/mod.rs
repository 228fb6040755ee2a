//! Any S3-compatible store. The only folder that names the SDK.

mod error;
mod presign;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Credentials, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::types::{ChecksumMode, CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use aws_smithy_http_client::tls;
use futures_util::StreamExt;
use secrecy::{ExposeSecret, SecretString};

use self::error::error;
use self::presign::{PresignRequest, UrlSigner};
use self::transfer::{Stalled, TransferProgress, flow, stream, transfer_timeouts};
use super::{
    Body, ByteFlow, ByteRange, Capabilities, ObjectInfo, ObjectStore, PendingUpload, PutOptions, StoreError,
    UploadedPart,
};
use crate::model::time::Wallclock;

/// Attempts of one request within the SDK. Retries for hours are the caller's.
const SDK_ATTEMPTS: u32 = 2;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request to the first byte of its response. Transfers have a stall timeout instead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A whole attempt of a request without a body, with its response.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Putting thousands of parts together takes some stores minutes before they answer.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(600);
/// The metadata's name for the whole object's SHA-256, in base64.
const SHA256: &str = "sha256";
/// The metadata's name for the mark of an upload.
const MARK: &str = "mark";

/// How to reach a bucket.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// The region; most compatible stores take any.
    pub region: String,
    /// The address of a compatible store; `None` for Amazon's own.
    pub endpoint: Option<String>,
    /// Bucket names in the path instead of the host name.
    pub path_style: bool,
    /// Key and secret; `None` asks the SDK's own chain (environment, profile, role).
    pub credentials: Option<(String, SecretString)>,
    /// Send checksums with every request (Amazon's default); many compatible stores fail on them.
    pub checksums_always: bool,
    /// `AES256`, `aws:kms`, or none.
    pub encryption: Option<String>,
    /// The KMS key.
    pub kms_key: Option<String>,
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    config: S3Config,
    url_signer: Arc<UrlSigner>,
}

impl S3Store {
    /// Connects to nothing yet; reads the environment's configuration.
    pub async fn new(config: S3Config) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(config.region.clone()))
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(SDK_ATTEMPTS))
            // False alarms with bodies that pause (aws-sdk-rust#1141, #1202); see `transfer` for ours.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some((key, secret)) = &config.credentials {
            loader = loader.credentials_provider(Credentials::new(key, secret.expose_secret(), None, None, "archiver"));
        }
        let shared = loader.load().await;
        let mut builder = aws_sdk_s3::config::Builder::from(&shared).force_path_style(config.path_style);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        if !config.checksums_always {
            builder = builder
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        let url_signer = Arc::new(UrlSigner::new(config.region.clone(), shared.credentials_provider()));
        Self { client: Client::from_conf(builder.build()), config, url_signer }
    }

    /// A presigned URL, signed by the SDK.
    async fn presigned_by_sdk(&self, request: PresignRequest<'_>) -> Result<String, StoreError> {
        let unavailable = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Unavailable {
            doing: "sign a link to",
            key: request.key.to_owned(),
            source,
        };
        let config =
            PresigningConfig::builder().start_time(request.at.to_system_time()).expires_in(request.valid).build();
        let request = self
            .client
            .get_object()
            .bucket(&self.config.bucket)
            .key(request.key)
            .response_content_disposition(request.disposition)
            .presigned(config.map_err(|e| unavailable(Box::new(e)))?)
            .await
            .map_err(|e| unavailable(DisplayErrorContext(&e).to_string().into()))?;
        Ok(request.uri().to_owned())
    }

    fn encryption(&self) -> Option<ServerSideEncryption> {
        self.config.encryption.as_deref().map(ServerSideEncryption::from)
    }
}

/// The store's own checksum of the whole object. That of one in parts is a checksum of checksums, with a `-`.
fn whole(checksum: Option<&str>) -> Option<String> {
    checksum.filter(|checksum| !checksum.contains('-')).map(str::to_owned)
}

fn stalled(doing: &'static str, key: &str) -> impl FnOnce(Stalled) -> StoreError {
    let key = key.to_owned();
    move |source| StoreError::Unavailable { doing, key, source: Box::new(source) }
}

fn wallclock(at: Option<&aws_sdk_s3::primitives::DateTime>) -> Option<Wallclock> {
    at.map(|at| Wallclock(at.secs() * 1_000_000 + i64::from(at.subsec_nanos() / 1000)))
}

fn tag(etag: Option<&str>) -> Option<String> {
    etag.map(|etag| etag.trim_matches('"').to_owned())
}

#[async_trait]
impl ObjectStore for S3Store {
    fn describe(&self) -> String {
        let at = self.config.endpoint.as_deref().unwrap_or("Amazon S3");
        format!("bucket {} at {at}", self.config.bucket)
    }

    async fn put(&self, key: &str, body: Body, options: PutOptions) -> Result<ObjectInfo, StoreError> {
        let (size, progress) = (body.len(), TransferProgress::default());
        let mut request = self
            .client
            .put_object()
            .bucket(&self.config.bucket)
            .key(key)
            .content_length(i64::try_from(size).unwrap_or(i64::MAX))
            .set_content_type(options.content_type.map(str::to_owned))
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.config.kms_key.clone())
            .body(stream(&body, &progress));
        if let Some(sha256) = &options.sha256 {
            request = request.metadata(SHA256, sha256);
            if self.config.checksums_always {
                request = request.checksum_sha256(sha256);
            }
        }
        if options.if_absent {
            request = request.if_none_match("*");
        }
        let sent = progress.with_stall_timeout(request.customize().config_override(transfer_timeouts()).send()).await;
        let answer = sent.map_err(stalled("write", key))?.map_err(|e| error("write", key, None, &e))?;
        let etag = tag(answer.e_tag());
        Ok(ObjectInfo { key: key.to_owned(), size, etag, sha256: options.sha256, mark: None, modified: None })
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        // Compatible stores may refuse what they do not know.
        let mode = self.config.checksums_always.then_some(ChecksumMode::Enabled);
        let request = self.client.head_object().bucket(&self.config.bucket).key(key).set_checksum_mode(mode);
        match request.send().await {
            Ok(answer) => Ok(Some(ObjectInfo {
                key: key.to_owned(),
                size: answer.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                etag: tag(answer.e_tag()),
                // What the store has computed counts more than what we have told it.
                sha256: whole(answer.checksum_sha256())
                    .or_else(|| answer.metadata().and_then(|m| m.get(SHA256).cloned())),
                mark: answer.metadata().and_then(|m| m.get(MARK).cloned()),
                modified: wallclock(answer.last_modified()),
            })),
            // A HEAD has no body to carry a code: 404 is the key, unless the bucket is gone too.
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 404) => Ok(None),
            Err(e) => Err(error("look at", key, None, &e)),
        }
    }

    async fn get(&self, key: &str, range: Option<ByteRange>) -> Result<ByteFlow, StoreError> {
        if range.is_some_and(|range| range.len == 0) {
            return Ok(futures_util::stream::empty().boxed());
        }
        let range = range.map(|ByteRange { start, len }| format!("bytes={start}-{}", start.saturating_add(len - 1)));
        let request = self.client.get_object().bucket(&self.config.bucket).key(key).set_range(range);
        let answer = request.send().await.map_err(|e| error("read", key, None, &e))?;
        Ok(flow(answer.body, key.to_owned()))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut pages =
            self.client.list_objects_v2().bucket(&self.config.bucket).prefix(prefix).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| error("list", prefix, None, &e))?;
            found.extend(page.contents().iter().filter_map(|object| {
                Some(ObjectInfo {
                    key: object.key()?.to_owned(),
                    size: object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                    etag: tag(object.e_tag()),
                    sha256: None,
                    mark: None,
                    modified: wallclock(object.last_modified()),
                })
            }));
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.client.delete_object().bucket(&self.config.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(e) => match error("remove", key, None, &e) {
                StoreError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn create_upload(&self, key: &str, options: PutOptions) -> Result<String, StoreError> {
        let mut request = self
            .client
            .create_multipart_upload()
            .bucket(&self.config.bucket)
            .key(key)
            .set_content_type(options.content_type.map(str::to_owned))
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(self.config.kms_key.clone());
        for (name, value) in [(SHA256, &options.sha256), (MARK, &options.mark)] {
            if let Some(value) = value {
                request = request.metadata(name, value);
            }
        }
        let answer = request.send().await.map_err(|e| error("begin an upload of", key, None, &e))?;
        answer.upload_id().map(str::to_owned).ok_or_else(|| {
            let source = "the answer has no upload id".into();
            StoreError::Unavailable { doing: "begin an upload of", key: key.to_owned(), source }
        })
    }

    async fn upload_part(
        &self,
        key: &str,
        upload_id: &str,
        number: i32,
        body: Body,
    ) -> Result<UploadedPart, StoreError> {
        let (size, progress, doing) = (body.len(), TransferProgress::default(), "upload a part of");
        let request = self
            .client
            .upload_part()
            .bucket(&self.config.bucket)
            .key(key)
            .upload_id(upload_id)
            .part_number(number)
            .content_length(i64::try_from(size).unwrap_or(i64::MAX))
            .body(stream(&body, &progress));
        let sent = progress.with_stall_timeout(request.customize().config_override(transfer_timeouts()).send()).await;
        let answer = sent.map_err(stalled(doing, key))?.map_err(|e| error(doing, key, Some(upload_id), &e))?;
        Ok(UploadedPart { number, etag: answer.e_tag().unwrap_or_default().to_owned(), size })
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[UploadedPart],
        if_absent: bool,
    ) -> Result<ObjectInfo, StoreError> {
        let completed = parts
            .iter()
            .map(|part| CompletedPart::builder().part_number(part.number).e_tag(&part.etag).build())
            .collect();
        let upload = CompletedMultipartUpload::builder().set_parts(Some(completed)).build();
        let mut request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.config.bucket)
            .key(key)
            .upload_id(upload_id)
            .multipart_upload(upload);
        if if_absent {
            request = request.if_none_match("*");
        }
        let patient = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(COMPLETE_TIMEOUT)
            .operation_attempt_timeout(COMPLETE_TIMEOUT)
            .build();
        let patient = aws_sdk_s3::config::Builder::default().timeout_config(patient);
        let sent = request.customize().config_override(patient).send().await;
        sent.map_err(|e| error("complete", key, Some(upload_id), &e))?;
        self.head(key).await?.ok_or_else(|| StoreError::NotFound { key: key.to_owned() })
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let request = self.client.abort_multipart_upload().bucket(&self.config.bucket).key(key).upload_id(upload_id);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(e) => match error("give up an upload of", key, Some(upload_id), &e) {
                StoreError::NoSuchUpload { .. } | StoreError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn pending_uploads(&self, prefix: &str) -> Result<Vec<PendingUpload>, StoreError> {
        let (mut found, mut key_marker, mut id_marker) = (Vec::new(), None, None);
        loop {
            let page = self
                .client
                .list_multipart_uploads()
                .bucket(&self.config.bucket)
                .prefix(prefix)
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker)
                .send()
                .await
                .map_err(|e| error("list the uploads of", prefix, None, &e))?;
            found.extend(page.uploads().iter().filter_map(|upload| {
                let (key, upload_id) = (upload.key()?.to_owned(), upload.upload_id()?.to_owned());
                Some(PendingUpload { key, upload_id, begun: wallclock(upload.initiated()) })
            }));
            if !page.is_truncated().unwrap_or(false) {
                return Ok(found);
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
            if key_marker.is_none() {
                // It says that there is more, but not from where: the next page would be this one for ever.
                return Ok(found);
            }
        }
    }

    async fn presign_get(&self, key: &str, valid: Duration, file_name: &str) -> Result<Option<String>, StoreError> {
        let plain: String = file_name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
        let disposition = format!("attachment; filename=\"{plain}\"");
        let request = PresignRequest { key, disposition: &disposition, at: Wallclock::now(), valid };
        if let Some(url) = self.url_signer.sign(request).await {
            return Ok(Some(url));
        }
        let url = self.presigned_by_sdk(request).await?;
        self.url_signer.learn_template(request, &url).await;
        Ok(Some(url))
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        super::probe::probe(self, prefix).await
    }
}
