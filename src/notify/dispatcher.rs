//! Delivery loops: claim due notifications, send them, record the result.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::task::{Id, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::retry_policy::{Attempt, disposition};
use super::signature;
use super::url_policy::{SystemResolver, allowed};
use super::webhook::{Sender, WebhookRequest};
use crate::broker::SharedBroker;
use crate::catalog::{
    ApplicationRow, ArchiveRow, CatalogError, Claim, Disposition, NoticeRow, NoticeTarget, SharedCatalog,
};
use crate::config::CallbacksSection;
use crate::model::fault::{Backoff, HasFault, Retry, chain};
use crate::model::ids::ApplicationId;
use crate::model::time::Wallclock;
use crate::runtime::metrics::{NoticeLabels, metrics};
use crate::runtime::retry::retry_until_cancelled;

/// Between two looks for due notifications.
const POLL: Duration = Duration::from_secs(1);
/// At shutdown, deliveries in flight may take this long to end.
pub(super) const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
/// Between two deletions of old notifications.
const CLEANUP_EVERY: Duration = Duration::from_secs(3600);
/// Undelivered notifications are kept this many times as long as delivered ones.
const UNDELIVERED_RETENTION_FACTOR: u32 = 10;
/// One application gets at most one in this many of the concurrent callbacks, so that a receiver that hangs does not delay the
/// callbacks of other applications.
const APPLICATION_SHARE: usize = 4;
/// Added to the receiver's time limit for the lease of a notification: the catalog may be unavailable when the result is recorded.
const LEASE_MARGIN: Duration = Duration::from_secs(30);
/// Longest detail of a failure in the catalog, in characters.
const DETAIL_CHARS_MAX: usize = 500;
const CATALOG: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Renders the body of a callback: the archive as the API shows it. The body is rendered for each attempt, because a presigned URL
/// in it expires within minutes.
#[async_trait]
pub trait Render: Send + Sync + 'static {
    /// The JSON body.
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value;
}

#[async_trait]
impl<F: Fn(&ArchiveRow, &ApplicationRow) -> Value + Send + Sync + 'static> Render for F {
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value {
        self(archive, application)
    }
}

/// Services and settings of the delivery loops. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    /// Holds the notifications.
    pub catalog: SharedCatalog,
    /// Renders the bodies of callbacks.
    pub render: Arc<dyn Render>,
    /// Sends callbacks.
    pub sender: Sender,
    /// Gets the archive events; without a broker none are published.
    pub broker: Option<SharedBroker>,
    /// Callbacks in flight at a time, at most.
    pub concurrency: usize,
    /// Time limit of a receiver's response.
    pub timeout: Duration,
    /// How long delivered notifications are kept.
    pub retention: Duration,
    /// Between two looks for due notifications.
    pub poll: Duration,
    /// Returns the current time; tests set another clock.
    pub clock: Arc<dyn Fn() -> Wallclock + Send + Sync>,
}

impl Dispatcher {
    /// A dispatcher with the settings of a configuration.
    #[must_use]
    pub fn new(
        catalog: SharedCatalog,
        section: &CallbacksSection,
        broker: Option<SharedBroker>,
        render: Arc<dyn Render>,
    ) -> Self {
        let timeout = section.timeout.0;
        Self {
            catalog,
            render,
            sender: Sender::new(allowed(section), timeout, Arc::new(SystemResolver)),
            broker,
            concurrency: section.at_once,
            timeout,
            retention: section.keep.0,
            poll: POLL,
            clock: Arc::new(Wallclock::now),
        }
    }

    pub(super) fn now(&self) -> Wallclock {
        (self.clock)()
    }

    pub(super) fn lease(&self) -> Duration {
        2 * self.timeout + LEASE_MARGIN
    }

    /// Records the result of an attempt. Retries while the catalog is unavailable, because a notification without a recorded result
    /// is sent again.
    pub(super) async fn record(&self, notice: &NoticeRow, attempt: &Attempt, cancel: &CancellationToken) {
        let now = self.now();
        let settled = disposition(notice, attempt, now);
        let detail = match attempt {
            Attempt::Delivered => None,
            Attempt::Failed(error) | Attempt::Undeliverable(error) => {
                Some(error.chars().take(DETAIL_CHARS_MAX).collect::<String>())
            }
        };
        count_and_log(notice, settled, detail.as_deref());
        let record = || self.catalog.settle_notice(notice, settled, detail.as_deref(), now);
        let recorded = retry_until_cancelled("record the result of a notification", CATALOG, cancel, record).await;
        if let Err(error) = recorded {
            tracing::error!("the result of a notification cannot be recorded: {}", chain(&error));
        }
    }
}

fn count_and_log(notice: &NoticeRow, settled: Disposition, detail: Option<&str>) {
    let outcome = match settled {
        Disposition::Delivered => "delivered",
        Disposition::Again(_) => "failed",
        Disposition::Undelivered => "undelivered",
        Disposition::Untried => return,
    };
    let target = notice.target.as_str();
    metrics().notices.get_or_create(&NoticeLabels { target, outcome }).inc();
    let (id, archive, number) = (notice.notice, notice.archive, notice.number);
    let detail = detail.unwrap_or_default();
    match settled {
        Disposition::Undelivered => {
            tracing::warn!(%id, %archive, number, target, "notification given up: {detail}");
        }
        Disposition::Again(at) if notice.failures == 0 => {
            tracing::warn!(%id, %archive, number, target, next_attempt = %at, "notification not delivered, will retry: {detail}");
        }
        _ => tracing::debug!(%id, %archive, number, target, outcome, "{detail}"),
    }
}

/// Callbacks in flight, each with its application.
#[derive(Default)]
struct InFlight {
    tasks: JoinSet<()>,
    applications: HashMap<Id, ApplicationId>,
}

impl InFlight {
    /// The applications that have `share` callbacks in flight, or more.
    fn applications_at_limit(&self, share: usize) -> Vec<ApplicationId> {
        let mut counts: HashMap<&ApplicationId, usize> = HashMap::new();
        self.applications.values().for_each(|application| *counts.entry(application).or_default() += 1);
        counts.into_iter().filter(|(_, count)| *count >= share).map(|(application, _)| application.clone()).collect()
    }

    /// Waits until a callback ends, and removes all that have ended. Never returns when none is in flight.
    async fn join_ended(&mut self) {
        let Some(first) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        self.remove(first);
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.remove(ended);
        }
    }

    fn remove(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                // The callback is sent again when its lease expires.
                tracing::error!(fault.kind = "bug", "a callback panicked: {error}");
                error.id()
            }
        };
        self.applications.remove(&id);
    }
}

pub(super) async fn run_callbacks(dispatcher: &Arc<Dispatcher>, cancel: &CancellationToken) {
    let (mut in_flight, mut outage) = (InFlight::default(), CatalogOutage::default());
    let share = dispatcher.concurrency.div_ceil(APPLICATION_SHARE);
    // Cancelled later than `cancel`, so that callbacks in flight can end and record their results.
    let abort = CancellationToken::new();
    while !cancel.is_cancelled() {
        let free = dispatcher.concurrency.saturating_sub(in_flight.tasks.len());
        if free > 0 {
            let claim = Claim {
                target: NoticeTarget::Callback,
                count: u32::try_from(free).unwrap_or(u32::MAX),
                of_one: u32::try_from(share).unwrap_or(u32::MAX),
                without: &in_flight.applications_at_limit(share),
                lease: dispatcher.lease(),
            };
            for notice in outage.check(dispatcher.catalog.claim_notices(&claim, dispatcher.now()).await) {
                let (dispatcher, application, abort) =
                    (Arc::clone(dispatcher), notice.application.clone(), abort.clone());
                let task = in_flight.tasks.spawn(async move { send_callback(&dispatcher, &notice, &abort).await });
                in_flight.applications.insert(task.id(), application);
            }
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = in_flight.join_ended() => {}
            () = sleep(dispatcher.poll) => {}
        }
    }
    let rest = async { while in_flight.tasks.join_next().await.is_some() {} };
    if timeout(SHUTDOWN_MAX, rest).await.is_err() {
        tracing::info!("callbacks in flight are aborted, they will be sent again");
        abort.cancel();
        in_flight.tasks.shutdown().await;
    }
}

/// Sends one callback and records the result.
async fn send_callback(dispatcher: &Dispatcher, notice: &NoticeRow, abort: &CancellationToken) {
    let attempt = match dispatcher.catalog.application(&notice.application).await {
        Ok(application) => attempt_callback(dispatcher, notice, application).await,
        Err(error) if error.fault().retry == Retry::Never => Attempt::Undeliverable(chain(&error)),
        Err(error) => {
            tracing::warn!("the application of a callback cannot be read: {}", chain(&error));
            // No attempt was made. If this fails too, the lease expires.
            let (settled, now) = (Disposition::Untried, dispatcher.now());
            dispatcher.catalog.settle_notice(notice, settled, None, now).await.unwrap_or_default();
            return sleep(dispatcher.poll).await;
        }
    };
    dispatcher.record(notice, &attempt, abort).await;
}

/// Posts to the application's current URL: it may have changed since the archive's status did.
async fn attempt_callback(dispatcher: &Dispatcher, notice: &NoticeRow, application: Option<ApplicationRow>) -> Attempt {
    let Some(application) = application else {
        return Attempt::Undeliverable("the application is not there any more".to_owned());
    };
    let Some(url) = application.callback_url.as_deref().filter(|url| !url.is_empty()) else {
        return Attempt::Undeliverable("the application has no callback URL any more".to_owned());
    };
    let object = dispatcher.render.render(&notice.told, &application).await;
    let body = object.to_string().into_bytes();
    let sign = |secret| signature::token(&application, secret, notice.notice, &body, dispatcher.now());
    let token = application.callback_secret.as_ref().map(sign);
    match dispatcher.sender.send(WebhookRequest { url, notice: notice.notice, token, body }).await {
        Ok(()) => Attempt::Delivered,
        Err(error) => Attempt::Failed(error.to_string()),
    }
}

pub(super) async fn run_cleanup(dispatcher: &Dispatcher, cancel: &CancellationToken) {
    while !cancel.is_cancelled() {
        let now = dispatcher.now();
        let ago = |age: Duration| Wallclock(now.0.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX)));
        let undelivered = dispatcher.retention.saturating_mul(UNDELIVERED_RETENTION_FACTOR);
        match dispatcher.catalog.delete_old_notices(ago(dispatcher.retention), ago(undelivered)).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "old notifications deleted"),
            Err(error) => tracing::warn!("old notifications cannot be deleted: {}", chain(&error)),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(CLEANUP_EVERY) => {}
        }
    }
}

/// Logs an outage of the catalog once, not at each poll.
#[derive(Default)]
pub(super) struct CatalogOutage {
    logged: bool,
}

impl CatalogOutage {
    /// The claimed notifications; none while the catalog is unavailable.
    pub(super) fn check(&mut self, claimed: Result<Vec<NoticeRow>, CatalogError>) -> Vec<NoticeRow> {
        match claimed {
            Ok(notices) => {
                self.logged = false;
                notices
            }
            Err(error) => {
                if !std::mem::replace(&mut self.logged, true) {
                    tracing::warn!("notifications cannot be claimed: {}", chain(&error));
                }
                Vec::new()
            }
        }
    }
}
