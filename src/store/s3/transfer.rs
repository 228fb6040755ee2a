//! Transfers of bodies to and from the store, with a stall timeout.
//!
//! The SDK's read timeout runs from the first byte of the request to the first byte of the response, so it would end each
//! large part on a slow line. Here a transfer is given up when it makes *no progress* for a time.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::StreamBody;

use crate::store::{Body, ByteFlow, StoreError};

/// A transfer without progress for this time is given up.
const STALL: Duration = Duration::from_secs(30);

/// A transfer made no progress.
#[derive(Debug, thiserror::Error)]
#[error("nothing moved for {} s", .0.as_secs())]
pub(super) struct Stalled(Duration);

/// Counts the chunks of a body that were sent.
#[derive(Debug, Clone, Default)]
pub(super) struct TransferProgress(Arc<AtomicU64>);

impl TransferProgress {
    /// Awaits a transfer as long as it makes progress.
    pub(super) async fn with_stall_timeout<F: Future>(&self, transfer: F) -> Result<F::Output, Stalled> {
        self.run_within_stall(STALL, transfer).await
    }

    async fn run_within_stall<F: Future>(&self, stall: Duration, transfer: F) -> Result<F::Output, Stalled> {
        let mut transfer = std::pin::pin!(transfer);
        let mut before = self.0.load(Ordering::Relaxed);
        loop {
            if let Ok(output) = tokio::time::timeout(stall, &mut transfer).await {
                return Ok(output);
            }
            let now = self.0.load(Ordering::Relaxed);
            if now == before {
                return Err(Stalled(stall));
            }
            before = now;
        }
    }
}

/// The SDK's timeouts for requests with [`TransferProgress::with_stall_timeout`], which replaces the attempt timeout.
pub(super) fn transfer_timeouts() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Builder::default().timeout_config(
        TimeoutConfig::builder()
            .connect_timeout(super::CONNECT_TIMEOUT)
            .disable_read_timeout()
            .disable_operation_attempt_timeout()
            .build(),
    )
}

/// A body for the SDK, which asks for it again when it tries again.
pub(super) fn stream(body: &Body, progress: &TransferProgress) -> ByteStream {
    let (len, body, progress) = (body.len(), body.clone(), progress.clone());
    ByteStream::new(SdkBody::retryable(move || {
        let moved = Arc::clone(&progress.0);
        let frames = body.flow().map_ok(move |chunk| {
            moved.fetch_add(1, Ordering::Relaxed);
            http_body::Frame::data(chunk)
        });
        SdkBody::from_body_1_x(Sized { inner: Mutex::new(StreamBody::new(frames)), len })
    }))
}

/// A stream that knows its length, so that it is sent with `Content-Length`. The SDK wants bodies to be
/// `Sync`, which a mutex makes them; it is never locked.
struct Sized<B> {
    inner: Mutex<B>,
    len: u64,
}

impl<B: http_body::Body + Unpin> http_body::Body for Sized<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        Pin::new(inner).poll_frame(context)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.len)
    }
}

/// An answer's body as a flow, which ends with an error when it stands still.
pub(super) fn flow(body: ByteStream, key: String) -> ByteFlow {
    let next = |(mut body, key): (ByteStream, String)| async move {
        let unavailable = |source| StoreError::Unavailable { doing: "read", key: key.clone(), source };
        let chunk = match tokio::time::timeout(STALL, body.next()).await {
            Err(_) => Err(unavailable(Box::new(Stalled(STALL)) as Box<_>)),
            Ok(None) => return None,
            Ok(Some(chunk)) => chunk.map_err(|e| unavailable(Box::new(e))),
        };
        Some((chunk, (body, key)))
    };
    // Nobody reads on after an error.
    futures_util::stream::unfold((body, key), next).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_transfer_that_moves_takes_as_long_as_it_takes() {
        let progress = TransferProgress::default();
        let transfer = async {
            for _ in 0..20 {
                tokio::time::sleep(TICK).await;
                progress.0.fetch_add(1, Ordering::Relaxed);
            }
        };
        assert!(progress.run_within_stall(10 * TICK, transfer).await.is_ok());
    }

    #[tokio::test]
    async fn a_transfer_that_stands_still_is_given_up() {
        let stalled = TransferProgress::default().run_within_stall(TICK, std::future::pending::<()>()).await;
        assert!(stalled.is_err());
    }
}
