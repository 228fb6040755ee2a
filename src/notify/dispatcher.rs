//! The loops that tell: what is due is taken, told, and what became of it is noted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::task::{Id, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::retry_policy::{Tried, settle};
use super::signature;
use super::url_policy::{SystemResolver, allowed};
use super::webhook::{Post, Sender};
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

/// How often it is looked for what is due.
const POLL: Duration = Duration::from_secs(1);
/// What is being sent when the process stops is waited for so long.
pub(super) const STOP_MAX: Duration = Duration::from_secs(5);
/// How often old notices are deleted.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
/// What was given up is kept so many times as long as what was delivered.
const UNDELIVERED_KEPT: u32 = 10;
/// Of the callbacks that are sent at a time, those of one application are at most one in so many: a receiver that hangs
/// must not keep the others waiting.
const SHARE: usize = 4;
/// Beyond the receiver's time: a lease ends so much later, for the catalog may be away.
const LEASE_SPARE: Duration = Duration::from_secs(30);
/// Longest text that is kept of a failure, in characters.
const DETAIL_MAX: usize = 500;
const CATALOG: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Makes an archive's object as developers know it: of the moment, for a link in it is valid for minutes.
#[async_trait]
pub trait Render: Send + Sync + 'static {
    /// The object.
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value;
}

#[async_trait]
impl<F: Fn(&ArchiveRow, &ApplicationRow) -> Value + Send + Sync + 'static> Render for F {
    async fn render(&self, archive: &ArchiveRow, application: &ApplicationRow) -> Value {
        self(archive, application)
    }
}

/// What the loops need. Cheap to clone.
#[derive(Clone)]
pub struct Telling {
    /// Where notices are.
    pub catalog: SharedCatalog,
    /// Makes callbacks' bodies.
    pub render: Arc<dyn Render>,
    /// Sends callbacks.
    pub sender: Sender,
    /// Where events go; `None` publishes none.
    pub broker: Option<SharedBroker>,
    /// Callbacks that are sent at a time.
    pub at_once: usize,
    /// A receiver has so long to answer.
    pub timeout: Duration,
    /// How long delivered notices are kept.
    pub keep: Duration,
    /// How often it is looked for what is due.
    pub poll: Duration,
    /// What time it is.
    pub clock: Arc<dyn Fn() -> Wallclock + Send + Sync>,
}

impl Telling {
    /// With the settings of a configuration.
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
            at_once: section.at_once,
            timeout,
            keep: section.keep.0,
            poll: POLL,
            clock: Arc::new(Wallclock::now),
        }
    }

    pub(super) fn now(&self) -> Wallclock {
        (self.clock)()
    }

    pub(super) fn lease(&self) -> Duration {
        2 * self.timeout + LEASE_SPARE
    }

    /// Notes what became of a try, however long the catalog is away; the notice would be told twice else.
    pub(super) async fn note(&self, notice: &NoticeRow, tried: &Tried, cancel: &CancellationToken) {
        let now = self.now();
        let settled = settle(notice, tried, now);
        let detail = match tried {
            Tried::Delivered => None,
            Tried::Failed(why) | Tried::Gone(why) => Some(why.chars().take(DETAIL_MAX).collect::<String>()),
        };
        self.tell_of(notice, settled, detail.as_deref());
        let act = || self.catalog.settle_notice(notice, settled, detail.as_deref(), now);
        if let Some(Err(error)) = retry_until_cancelled("note what became of a notice", CATALOG, cancel, act).await {
            tracing::error!("what became of a notice is not noted: {}", chain(&error));
        }
    }

    /// Counts it, and logs what a person may want to know.
    fn tell_of(&self, notice: &NoticeRow, settled: Disposition, detail: Option<&str>) {
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
                tracing::warn!(%id, %archive, number, target, "a notice is given up: {detail}");
            }
            Disposition::Again(at) if notice.failures == 0 => {
                tracing::warn!(%id, %archive, number, target, again = %at, "a notice is not delivered yet: {detail}");
            }
            _ => tracing::debug!(%id, %archive, number, target, outcome, "{detail}"),
        }
    }
}

/// Callbacks that are under way, and whose they are.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<()>,
    whose: HashMap<Id, ApplicationId>,
}

impl UnderWay {
    /// Applications with at least so many.
    fn busy(&self, share: usize) -> Vec<ApplicationId> {
        let mut counts: HashMap<&ApplicationId, usize> = HashMap::new();
        self.whose.values().for_each(|application| *counts.entry(application).or_default() += 1);
        counts.into_iter().filter(|(_, count)| *count >= share).map(|(application, _)| application.clone()).collect()
    }

    /// Waits for one to end, then takes all that have; for ever if there is none.
    async fn ended(&mut self) {
        let Some(first) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        self.take(first);
        while let Some(another) = self.tasks.try_join_next_with_id() {
            self.take(another);
        }
    }

    fn take(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                // Its lease ends, and it is tried again.
                tracing::error!(fault.kind = "bug", "a callback panicked: {error}");
                error.id()
            }
        };
        self.whose.remove(&id);
    }
}

pub(super) async fn keep_calling(telling: &Arc<Telling>, cancel: &CancellationToken) {
    let (mut under_way, mut away) = (UnderWay::default(), Away::default());
    let share = telling.at_once.div_ceil(SHARE);
    // Cancelled later than `cancel`: what is under way ends, and is noted.
    let gone = CancellationToken::new();
    while !cancel.is_cancelled() {
        let free = telling.at_once.saturating_sub(under_way.tasks.len());
        if free > 0 {
            let claim = Claim {
                target: NoticeTarget::Callback,
                count: u32::try_from(free).unwrap_or(u32::MAX),
                of_one: u32::try_from(share).unwrap_or(u32::MAX),
                without: &under_way.busy(share),
                lease: telling.lease(),
            };
            for notice in away.heard(telling.catalog.claim_notices(&claim, telling.now()).await) {
                let (telling, application, gone) = (Arc::clone(telling), notice.application.clone(), gone.clone());
                let task = under_way.tasks.spawn(async move { call(&telling, &notice, &gone).await });
                under_way.whose.insert(task.id(), application);
            }
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = under_way.ended() => {}
            () = sleep(telling.poll) => {}
        }
    }
    let rest = async { while under_way.tasks.join_next().await.is_some() {} };
    if timeout(STOP_MAX, rest).await.is_err() {
        tracing::info!("callbacks that are under way are left: they are sent again");
        gone.cancel();
        under_way.tasks.shutdown().await;
    }
}

/// Sends one callback, and notes what became of it.
async fn call(telling: &Telling, notice: &NoticeRow, gone: &CancellationToken) {
    let tried = match telling.catalog.application(&notice.application).await {
        Ok(application) => post(telling, notice, application).await,
        Err(error) if error.fault().retry == Retry::Never => Tried::Gone(chain(&error)),
        Err(error) => {
            tracing::warn!("a callback waits for its application's row: {}", chain(&error));
            // It was not tried; its lease ends by itself if this fails too.
            telling.catalog.settle_notice(notice, Disposition::Untried, None, telling.now()).await.unwrap_or_default();
            return sleep(telling.poll).await;
        }
    };
    telling.note(notice, &tried, gone).await;
}

/// To where the application wants it now: the address may be another one than when the archive changed.
async fn post(telling: &Telling, notice: &NoticeRow, application: Option<ApplicationRow>) -> Tried {
    let Some(application) = application else {
        return Tried::Gone("the application is not there any more".to_owned());
    };
    let Some(url) = application.callback_url.as_deref().filter(|url| !url.is_empty()) else {
        return Tried::Gone("the application has no callback URL any more".to_owned());
    };
    let object = telling.render.render(&notice.told, &application).await;
    let body = object.to_string().into_bytes();
    let sign = |secret| signature::token(&application, secret, notice.notice, &body, telling.now());
    let token = application.callback_secret.as_ref().map(sign);
    match telling.sender.send(Post { url, notice: notice.notice, token, body }).await {
        Ok(()) => Tried::Delivered,
        Err(error) => Tried::Failed(error.to_string()),
    }
}

pub(super) async fn keep_clean(telling: &Telling, cancel: &CancellationToken) {
    while !cancel.is_cancelled() {
        let now = telling.now();
        let ago = |span: Duration| Wallclock(now.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)));
        let undelivered = telling.keep.saturating_mul(UNDELIVERED_KEPT);
        match telling.catalog.delete_old_notices(ago(telling.keep), ago(undelivered)).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "old notices are deleted"),
            Err(error) => tracing::warn!("old notices stay for now: {}", chain(&error)),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(CLEAN_EVERY) => {}
        }
    }
}

/// Whether the catalog is away; said once.
#[derive(Default)]
pub(super) struct Away(bool);

impl Away {
    pub(super) fn heard(&mut self, claimed: Result<Vec<NoticeRow>, CatalogError>) -> Vec<NoticeRow> {
        match claimed {
            Ok(notices) => {
                self.0 = false;
                notices
            }
            Err(error) => {
                if !std::mem::replace(&mut self.0, true) {
                    tracing::warn!("nothing is told for now: {}", chain(&error));
                }
                Vec::new()
            }
        }
    }
}
