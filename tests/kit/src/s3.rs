//! An S3 server in this process: s3s with its file system backend, and faults on demand.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::task::JoinHandle;

/// The access key.
pub const ACCESS_KEY: &str = "test-key";
/// The secret key.
pub const SECRET_KEY: &str = "test-secret";
/// The bucket that is there.
pub const BUCKET: &str = "archives";

/// What happens to a request instead of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Fault {
    /// 503 without doing it.
    Unavailable,
    /// No answer ever, without doing it.
    Hang,
    /// The connection is closed, without doing it.
    Cut,
    /// It is done, then the connection is closed.
    LostAnswer,
    /// 200 with an error inside, as CompleteMultipartUpload may answer, without doing it.
    ErrorIn200,
}

/// Which requests meet a fault.
#[derive(Debug)]
struct Injected {
    fault: S3Fault,
    /// In `METHOD /path?query`.
    matching: String,
    times: u64,
}

/// A running server.
#[derive(Debug)]
pub struct S3Server {
    dir: tempfile::TempDir,
    address: SocketAddr,
    task: Option<JoinHandle<()>>,
    /// Requests that were answered.
    requests: Arc<AtomicU64>,
    faults: Arc<Mutex<Vec<Injected>>>,
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
        let mut server = Self { dir, address, task: None, requests: Arc::default(), faults: Arc::default() };
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

    /// The next `times` requests whose `METHOD /path?query` has `matching` in it meet a fault.
    pub fn inject(&self, fault: S3Fault, matching: &str, times: u64) {
        let injected = Injected { fault, matching: matching.to_owned(), times };
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(injected);
    }

    /// Faults that no request has met yet.
    #[must_use]
    pub fn faults_left(&self) -> u64 {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|fault| fault.times).sum()
    }

    /// All requests are answered again.
    pub fn heal(&self) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Stops listening and drops all connections.
    pub async fn stop(&mut self) {
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
        let listener = crate::net::listen(self.address).await?;
        let (requests, faults) = (Arc::clone(&self.requests), Arc::clone(&self.faults));
        // Aborted by `stop` and by dropping; its connections are in a set that goes with it.
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (service, requests, faults) = (service.clone(), Arc::clone(&requests), Arc::clone(&faults));
                connections.spawn(async move {
                    let counted = hyper::service::service_fn(move |request: Request<Incoming>| {
                        requests.fetch_add(1, Ordering::Relaxed);
                        let fault = due(&faults, &format!("{} {}", request.method(), request.uri()));
                        answer(service.clone(), request, fault)
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

/// The fault that a request meets, which has one time less then.
fn due(faults: &Mutex<Vec<Injected>>, request: &str) -> Option<S3Fault> {
    let mut faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
    let found = faults.iter_mut().find(|f| f.times > 0 && request.contains(&f.matching))?;
    found.times -= 1;
    Some(found.fault)
}

async fn answer(service: S3Service, request: Request<Incoming>, fault: Option<S3Fault>) -> Result<Response<s3s::Body>> {
    let error = |status: u16| {
        let xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>InternalError</Code><Message>made for a test</Message></Error>";
        Ok(Response::builder().status(status).body(s3s::Body::from(xml.to_owned()))?)
    };
    match fault {
        Some(S3Fault::Unavailable) => return error(503),
        Some(S3Fault::ErrorIn200) => return error(200),
        Some(S3Fault::Hang) => std::future::pending().await,
        Some(S3Fault::Cut) => bail!("the connection is closed for a test"),
        Some(S3Fault::LostAnswer) | None => {}
    }
    let done = hyper::service::Service::call(&service, request).await;
    if fault == Some(S3Fault::LostAnswer) {
        bail!("the answer is lost for a test");
    }
    done.map_err(|e| anyhow::anyhow!("{e:?}"))
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}
