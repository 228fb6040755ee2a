//! The API's server: address, TLS, and a graceful shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::ServiceExt;
use axum::extract::Request;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower_http::normalize_path::NormalizePath;

use super::router::routes;
use super::state::Shared;
use crate::catalog::SharedCatalog;
use crate::config::ApiSection;

/// How long requests in progress may take at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long binding an address in use is retried: a previous process may be about to end.
const BIND_MAX: Duration = Duration::from_secs(3);
const BIND_PAUSE: Duration = Duration::from_millis(50);
/// How long a client may take to send the head of a request.
const HEAD_MAX: Duration = Duration::from_secs(15);

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum ListenError {
    /// The address is in use, or does not belong to this machine.
    #[error("the API cannot listen at {bind}: change api.bind, or end who listens there")]
    Bind {
        bind: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    /// Certificate or key.
    #[error("the API's certificate {certificate:?} and key {key:?} cannot be used: {why}")]
    Certificate {
        /// `api.certificate`.
        certificate: std::path::PathBuf,
        /// `api.key`.
        key: std::path::PathBuf,
        why: String,
    },
}

/// Serves requests until `stop`. `serving` contains the catalog meanwhile.
///
/// # Errors
/// When the address or the certificate cannot be used.
pub async fn listen(
    api: &Shared,
    serving: &watch::Sender<Option<SharedCatalog>>,
    stop: &CancellationToken,
) -> Result<(), ListenError> {
    let section = &api.settings.api;
    let bind = section.bind;
    let failed = |source| ListenError::Bind { bind, source };
    let listener = bind_with_retry(bind).await.map_err(failed)?;
    // Paths of PHP's SDKs end with a slash (listStreams), or begin with two (updateArchiveLayout of vonage/video).
    let routes = NormalizePath::trim_trailing_slash(routes(api));
    let service = ServiceExt::<Request>::into_make_service_with_connect_info::<SocketAddr>(routes);
    let handle = Handle::new();
    let draining = async {
        stop.cancelled().await;
        // Load balancers that poll the readiness endpoint stop sending requests.
        serving.send_replace(None);
        handle.graceful_shutdown(Some(DRAIN_MAX));
        std::future::pending::<()>().await;
    };
    let local = listener.local_addr().map_err(failed)?;
    tracing::info!(%local, tls = section.certificate.is_some(), "the API is served");
    let answering = async {
        let tls = tls(section).await?;
        if !stop.is_cancelled() {
            serving.send_replace(Some(api.catalog.clone()));
        }
        match tls {
            Some(tls) => {
                let mut server = axum_server::from_tcp_rustls(listener, tls).map_err(failed)?.handle(handle.clone());
                configure_http1(server.http_builder());
                server.serve(service).await.map_err(failed)
            }
            None => {
                let mut server = axum_server::from_tcp(listener).map_err(failed)?.handle(handle.clone());
                configure_http1(server.http_builder());
                server.serve(service).await.map_err(failed)
            }
        }
    };
    tokio::select! {
        served = answering => served,
        () = draining => Ok(()),
    }
}

/// The TLS configuration, if there is a certificate.
async fn tls(section: &ApiSection) -> Result<Option<RustlsConfig>, ListenError> {
    let (Some(certificate), Some(key)) = (section.certificate.clone(), section.key.clone()) else { return Ok(None) };
    let read = tokio::task::spawn_blocking(move || {
        crate::runtime::tls::server(&certificate, &key).map_err(|why| ListenError::Certificate {
            certificate,
            key,
            why,
        })
    });
    let server = read.await.expect("reading a certificate does not panic")?;
    Ok(Some(RustlsConfig::from_config(Arc::new(server))))
}

/// Binds the address, and retries while another process holds it.
async fn bind_with_retry(bind: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let deadline = Instant::now() + BIND_MAX;
    loop {
        match std::net::TcpListener::bind(bind) {
            Ok(listener) => return listener.set_nonblocking(true).map(|()| listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(BIND_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Limits the head of a request in time and size, so that idle connections are closed. Only HTTP/1 is served: the time limit starts
/// with the connection only if the protocol is known before the first byte.
fn configure_http1(builder: &mut hyper_util::server::conn::auto::Builder<hyper_util::rt::TokioExecutor>) {
    *builder = builder.clone().http1_only();
    builder.http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEAD_MAX).max_headers(100);
}
