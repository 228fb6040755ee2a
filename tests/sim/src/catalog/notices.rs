//! Notices.

use std::collections::BTreeMap;

use archiver::catalog::{
    ArchiveRow, CatalogError, Claim, Disposition, NoticeCatalog, NoticeFilter, NoticeRow, NoticeState, NoticeTarget,
};
use archiver::model::ids::{ApplicationId, ArchiveId, NoticeId};
use archiver::model::time::Wallclock;
use async_trait::async_trait;

use super::{MemoryCatalog, State, count, page, storable};

impl State {
    /// What is to be told of a change: as an event always, to an application that has an address for it now.
    pub fn add_notices(&mut self, archive: &ArchiveRow, number: i64) {
        let application = self.applications.get(&archive.application);
        let has_address = application.is_some_and(|row| row.callback_url.as_ref().is_some_and(|url| !url.is_empty()));
        for target in [NoticeTarget::Event, NoticeTarget::Callback] {
            if target == NoticeTarget::Callback && !has_address {
                continue;
            }
            let at = archive.updated_at;
            let notice = NoticeRow {
                notice: NoticeId::of(archive.archive, target.as_str(), number),
                archive: archive.archive,
                target,
                number,
                application: archive.application.clone(),
                status: archive.status,
                told: archive.clone(),
                state: NoticeState::Waiting,
                failures: 0,
                first_at: None,
                due_at: at,
                detail: None,
                created_at: at,
                updated_at: at,
            };
            self.notices.insert((archive.archive, target, number), notice);
        }
    }

    /// The keys of what a claim takes, the longest due first.
    fn due(&self, claim: &Claim<'_>, now: Wallclock) -> Vec<(ArchiveId, NoticeTarget, i64)> {
        let waiting = self.notices.values().filter(|n| n.target == claim.target && n.state == NoticeState::Waiting);
        // In the order of their numbers: the first of an archive is its oldest.
        let mut heads: BTreeMap<ArchiveId, &NoticeRow> = BTreeMap::new();
        for notice in waiting {
            heads.entry(notice.archive).or_insert(notice);
        }
        let mut due: Vec<&NoticeRow> = heads.into_values().filter(|n| n.due_at <= now).collect();
        due.retain(|notice| !claim.without.contains(&notice.application));
        due.sort_by_key(|notice| (notice.due_at, notice.archive));
        let mut of_one: BTreeMap<&ApplicationId, u32> = BTreeMap::new();
        due.retain(|notice| {
            let taken = of_one.entry(&notice.application).or_default();
            *taken += 1;
            *taken <= claim.of_one
        });
        let keys = due.into_iter().map(|notice| (notice.archive, notice.target, notice.number)).collect();
        page(keys, 0, claim.count)
    }
}

fn is_listed(filter: &NoticeFilter, notice: &NoticeRow) -> bool {
    filter.target.is_none_or(|wanted| notice.target == wanted)
        && filter.state.is_none_or(|wanted| notice.state == wanted)
        && filter.application.as_ref().is_none_or(|wanted| notice.application == *wanted)
        && filter.archive.is_none_or(|wanted| notice.archive == wanted)
}

#[async_trait]
impl NoticeCatalog for MemoryCatalog {
    async fn claim_notices(&self, claim: &Claim<'_>, now: Wallclock) -> Result<Vec<NoticeRow>, CatalogError> {
        self.call("claim_notices", |state| {
            let mut taken = Vec::new();
            for key in state.due(claim, now) {
                let notice = state.notices.get_mut(&key).expect("its key was found above");
                notice.due_at = now + claim.lease;
                notice.first_at.get_or_insert(now);
                notice.updated_at = now;
                taken.push(notice.clone());
            }
            taken.sort_by_key(|notice| (notice.created_at, notice.archive, notice.number));
            Ok(taken)
        })
        .await
    }

    async fn settle_notice(
        &self,
        notice: &NoticeRow,
        settled: Disposition,
        detail: Option<&str>,
        now: Wallclock,
    ) -> Result<bool, CatalogError> {
        self.call("settle_notice", |state| {
            let found = state.notices.get_mut(&(notice.archive, notice.target, notice.number));
            let ours = |found: &&mut NoticeRow| {
                found.state == NoticeState::Waiting
                    && (settled == Disposition::Delivered || found.due_at == notice.due_at)
            };
            let Some(found) = found.filter(ours) else { return Ok(false) };
            (found.state, found.due_at) = match settled {
                Disposition::Delivered => (NoticeState::Delivered, notice.due_at),
                Disposition::Again(at) => (NoticeState::Waiting, at),
                Disposition::Undelivered => (NoticeState::Undelivered, notice.due_at),
                Disposition::Untried => (NoticeState::Waiting, now),
            };
            found.failures += u32::from(matches!(settled, Disposition::Again(_) | Disposition::Undelivered));
            found.detail = detail.map(storable);
            found.updated_at = now;
            Ok(true)
        })
        .await
    }

    async fn notices(&self, filter: &NoticeFilter) -> Result<(Vec<NoticeRow>, i64), CatalogError> {
        self.call("notices", |state| {
            let mut rows: Vec<NoticeRow> =
                state.notices.values().filter(|notice| is_listed(filter, notice)).cloned().collect();
            rows.sort_by_key(|n| (std::cmp::Reverse(n.created_at), n.archive, std::cmp::Reverse(n.number), n.target));
            let total = count(rows.len());
            Ok((page(rows, filter.offset, filter.count), total))
        })
        .await
    }

    async fn resend_notices(
        &self,
        archive: ArchiveId,
        number: Option<i64>,
        now: Wallclock,
    ) -> Result<u64, CatalogError> {
        self.call("resend_notices", |state| {
            let is_wanted = |notice: &&mut NoticeRow| {
                notice.archive == archive
                    && notice.target == NoticeTarget::Callback
                    && match number {
                        Some(number) => notice.number == number && notice.state != NoticeState::Waiting,
                        None => notice.state == NoticeState::Undelivered,
                    }
            };
            let mut resent = 0;
            for notice in state.notices.values_mut().filter(is_wanted) {
                notice.state = NoticeState::Waiting;
                (notice.failures, notice.first_at, notice.detail) = (0, None, None);
                (notice.due_at, notice.updated_at) = (now, now);
                resent += 1;
            }
            Ok(resent)
        })
        .await
    }

    async fn delete_old_notices(&self, delivered: Wallclock, undelivered: Wallclock) -> Result<u64, CatalogError> {
        self.call("delete_old_notices", |state| {
            let before = state.notices.len();
            state.notices.retain(|_, notice| match notice.state {
                NoticeState::Waiting => true,
                NoticeState::Delivered => notice.updated_at >= delivered,
                NoticeState::Undelivered => notice.updated_at >= undelivered,
            });
            Ok(u64::try_from(before - state.notices.len()).unwrap_or(u64::MAX))
        })
        .await
    }
}
