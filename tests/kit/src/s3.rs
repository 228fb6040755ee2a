//! An S3 server in this process: s3s with its file system backend.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The access key.
pub const ACCESS_KEY: &str = "test-key";
/// The secret key.
pub const SECRET_KEY: &str = "test-secret";
/// The bucket that is there.
pub const BUCKET: &str = "archives";

/// A running server.
#[derive(Debug)]
pub struct S3Server {
    dir: tempfile::TempDir,
    address: SocketAddr,
    task: Option<JoinHandle<()>>,
    /// Requests that were answered.
    requests: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl S3Server {
    /// Starts one on a free port of the loopback.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join(BUCKET))?;
        let address =
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), crate::net::free_port(IpAddr::V4(Ipv4Addr::LOCALHOST))?);
        let mut server = Self { dir, address, task: None, requests: Arc::default(), stopped: Arc::default() };
        server.restart().await?;
        Ok(server)
    }

    /// `http://…`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where its objects are.
    #[must_use]
    pub fn root(&self) -> std::path::PathBuf {
        self.dir.path().join(BUCKET)
    }

    /// Requests that were answered so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Stops listening and drops all connections.
    pub async fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            task.abort();
            task.await.unwrap_or_default();
        }
    }

    /// Starts again with the same address and objects.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await;
        let files = s3s_fs::FileSystem::new(self.dir.path()).ok().context("the folder cannot be used")?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind(self.address).await?;
        let requests = Arc::clone(&self.requests);
        self.stopped = Arc::new(AtomicBool::new(false));
        // Aborted by `stop` and by dropping; its connections are in a set that goes with it.
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (service, requests) = (service.clone(), Arc::clone(&requests));
                connections.spawn(async move {
                    let counted = hyper::service::service_fn(move |request| {
                        requests.fetch_add(1, Ordering::Relaxed);
                        hyper::service::Service::call(&service, request)
                    });
                    // A connection that breaks is the client's to notice.
                    Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), counted)
                        .await
                        .unwrap_or_default();
                });
            }
        });
        self.task = Some(task);
        Ok(())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}
