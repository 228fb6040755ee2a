//! Every metric there is. Names and labels are a closed list; ids are never labels.
//!
//! `README.md` has the same list as a table, and a test compares the two.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::model::fault::{Blame, FaultKind};
use crate::model::ids::TrackKind;
use crate::model::media::{Gap, MissingMedia, TrackStats};

/// The outcome of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum EventOutcome {
    Accepted,
    Duplicate,
    SessionBusy,
    SkippedRelayed,
    SkippedManual,
    Ended,
    Parked,
    Retried,
}

/// Label of [`Metrics::events`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabels {
    /// The outcome.
    pub outcome: EventOutcome,
}

/// The outcome of a message of a media router's event handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum HintOutcome {
    Used,
    NothingNew,
    Malformed,
}

/// Label of [`Metrics::router_hints`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HintLabels {
    /// The outcome.
    pub outcome: HintOutcome,
}

/// The outcome of publishing a session's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum StartOutcome {
    Published,
    Unroutable,
    Failed,
}

/// Label of [`Metrics::session_starts`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StartLabels {
    /// The outcome.
    pub outcome: StartOutcome,
}

/// Label of things that are counted by fault.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FaultLabels {
    /// The fault's stable name.
    pub kind: &'static str,
    /// The side that the fault is on.
    pub blame: &'static str,
}

impl From<FaultKind> for FaultLabels {
    fn from(kind: FaultKind) -> Self {
        let blame = match kind.fault().blame {
            Blame::Ours => "ours",
            Blame::Source => "source",
            Blame::Destination => "destination",
            Blame::Request => "request",
        };
        Self { kind: kind.as_str(), blame }
    }
}

/// Labels of [`Metrics::packets`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PacketLabels {
    /// `audio` or `video`.
    pub kind: &'static str,
    /// `received`, `repaired`, `lost`, `late`, `duplicate`, `malformed`.
    pub fate: &'static str,
}

/// Cause of a gap.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GapLabels {
    /// A name of [`GapCause`](crate::model::media::GapCause).
    pub cause: &'static str,
}

/// Kind of something that is not recorded as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FindingLabels {
    /// A name of [`FindingKind`](crate::reconcile::findings::FindingKind).
    pub kind: &'static str,
}

/// Label of [`Metrics::api_requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route, with names in place of ids.
    pub route: String,
    /// `ok`, `refused` (4xx) or `failed` (5xx).
    pub outcome: &'static str,
}

/// Labels of [`Metrics::notices`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NoticeLabels {
    /// `callback`, `event`.
    pub target: &'static str,
    /// `delivered`, `failed` (will be retried), `undelivered` (given up).
    pub outcome: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    /// Events by outcome.
    pub events: Family<EventLabels, Counter>,
    /// Jobs running on this worker.
    pub jobs_active: Gauge<i64, AtomicI64>,
    /// Free capacity: further jobs that this worker can run.
    pub capacity_free: Gauge<i64, AtomicI64>,
    /// Archives made available.
    pub archives_available: Counter,
    /// Of them, archives that lack something that was sent.
    pub archives_incomplete: Counter,
    /// What these archives lack, by cause, in seconds of a track.
    pub missing_seconds: Family<GapLabels, Counter<f64, AtomicU64>>,
    /// How often archives were made again, because more of their media came.
    pub archives_revised: Counter,
    /// Jobs parked, by fault.
    pub jobs_parked: Family<FaultLabels, Counter>,
    /// Retries, by fault.
    pub retries: Family<FaultLabels, Counter>,
    /// Jobs taken over from an expired lease or an earlier run.
    pub takeovers: Counter,
    /// Packets by kind and fate.
    pub packets: Family<PacketLabels, Counter>,
    /// Gaps that capture logs note, by cause, in seconds; also those in which nothing was sent.
    pub gap_seconds: Family<GapLabels, Counter<f64, AtomicU64>>,
    /// Bytes written to capture logs.
    pub captured_bytes: Counter,
    /// Segments sealed.
    pub segments_sealed: Counter,
    /// Bytes sealed and not yet in the store.
    pub unshipped_bytes: Gauge<i64, AtomicI64>,
    /// By how many seconds this machine's clock is ahead of the catalog's.
    pub clock_skew_seconds: Gauge<f64, AtomicU64>,
    /// Bytes in the spool.
    pub spool_bytes: Gauge<i64, AtomicI64>,
    /// From the session's end until the archive is available, in seconds: the service's objective.
    pub archive_delay: Histogram,
    /// How far composers are behind their sessions, in seconds, sampled twice a second for each.
    pub compose_behind: Histogram,
    /// From receiving an event to the first media on disk, in seconds.
    pub start_delay: Histogram,
    /// Jobs whose first worker joined the room 10 s and more after the session's event: what was published before is not recorded.
    pub late_joins: Counter,
    /// Rooms and jobs that are not recorded as they should be, by kind.
    pub not_recorded: Family<FindingLabels, Gauge>,
    /// When rooms and jobs were compared for the last time, in seconds since 1970.
    pub reconciled_at: Gauge<i64, AtomicI64>,
    /// Seconds from a session's event to the moment when its first worker is in the room. Events that are at most 10 s old when they come
    /// count from then on.
    pub join_delay: Histogram,
    /// Requests to the API, by route and outcome.
    pub api_requests: Family<RequestLabels, Counter>,
    /// The API's response time, in seconds.
    pub api_seconds: Histogram,
    /// Attempts to deliver notifications, by target and outcome.
    pub notices: Family<NoticeLabels, Counter>,
    /// 1 while the broker is connected.
    pub broker_connected: Gauge<i64, AtomicI64>,
    /// Messages of media routers' event handlers.
    pub router_hints: Family<HintLabels, Counter>,
    /// Starts of sessions that the bridge published, by outcome.
    pub session_starts: Family<StartLabels, Counter>,
}

impl Metrics {
    /// Counts a track's packets since the last call.
    pub fn received(&self, kind: TrackKind, stats: &TrackStats) {
        for (fate, packets) in [
            ("received", stats.packets),
            ("repaired", stats.repaired),
            ("lost", stats.lost),
            ("late", stats.late),
            ("duplicate", stats.duplicate),
            ("malformed", stats.malformed),
        ] {
            self.packets.get_or_create(&PacketLabels { kind: kind.as_str(), fate }).inc_by(packets);
        }
    }

    /// Counts missing media.
    pub fn missing(&self, gap: &Gap) {
        let seconds = Duration::from_nanos(u64::try_from(gap.to - gap.from).unwrap_or(0)).as_secs_f64();
        self.gap_seconds.get_or_create(&GapLabels { cause: gap.cause.as_str() }).inc_by(seconds);
    }

    /// Counts an archive that became available.
    pub fn available(&self, lacks: &[MissingMedia]) {
        self.archives_available.inc();
        if !lacks.is_empty() {
            self.archives_incomplete.inc();
        }
        for one in lacks {
            let seconds = Duration::from_millis(u64::try_from(one.duration_ms).unwrap_or(0)).as_secs_f64();
            self.missing_seconds.get_or_create(&GapLabels { cause: one.cause.as_str() }).inc_by(seconds);
        }
    }
}

static ALL: LazyLock<(Metrics, Registry)> = LazyLock::new(build);

/// The metrics of this process.
#[must_use]
pub fn metrics() -> &'static Metrics {
    &ALL.0
}

/// All metrics in Prometheus' text form (OpenMetrics).
#[must_use]
pub fn render() -> String {
    text_of(&ALL.1)
}

fn text_of(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap_or_default();
    text
}

fn build() -> (Metrics, Registry) {
    let metrics = Metrics {
        events: Family::default(),
        jobs_active: Gauge::default(),
        capacity_free: Gauge::default(),
        archives_available: Counter::default(),
        archives_incomplete: Counter::default(),
        archives_revised: Counter::default(),
        missing_seconds: Family::default(),
        jobs_parked: Family::default(),
        retries: Family::default(),
        takeovers: Counter::default(),
        packets: Family::default(),
        gap_seconds: Family::default(),
        captured_bytes: Counter::default(),
        segments_sealed: Counter::default(),
        unshipped_bytes: Gauge::default(),
        clock_skew_seconds: Gauge::default(),
        spool_bytes: Gauge::default(),
        archive_delay: Histogram::new(exponential_buckets(0.1, 2.0, 14)),
        compose_behind: Histogram::new(exponential_buckets(0.25, 2.0, 16)),
        start_delay: Histogram::new(exponential_buckets(0.02, 2.0, 12)),
        late_joins: Counter::default(),
        not_recorded: Family::default(),
        reconciled_at: Gauge::default(),
        join_delay: Histogram::new(exponential_buckets(0.05, 2.0, 16)),
        api_requests: Family::default(),
        api_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
        notices: Family::default(),
        broker_connected: Gauge::default(),
        router_hints: Family::default(),
        session_starts: Family::default(),
    };
    let mut registry = Registry::with_prefix("archiver");
    macro_rules! register {
        ($($field:ident, $help:literal;)*) => {
            $(registry.register(stringify!($field), $help, metrics.$field.clone());)*
        };
    }
    register! {
        events, "events by outcome";
        jobs_active, "jobs that run on this worker";
        capacity_free, "places for further jobs on this worker";
        archives_available, "archives made available";
        archives_incomplete, "archives made available that lack something that was sent";
        archives_revised, "how often archives were made again, because more of their media came";
        missing_seconds, "media that archives lack, in seconds of a track, by cause";
        jobs_parked, "jobs parked, by fault kind and blame";
        retries, "faults that were met with a retry, by fault kind and blame";
        takeovers, "jobs taken over from an expired lease or an earlier run";
        packets, "RTP packets by kind and fate";
        gap_seconds, "gaps in capture logs in seconds, by cause; also those in which nothing was sent";
        captured_bytes, "bytes written to capture logs";
        segments_sealed, "segments sealed";
        unshipped_bytes, "bytes sealed and not yet in the store";
        clock_skew_seconds, "seconds by which this machine's clock is ahead of the catalog's";
        spool_bytes, "bytes in the spool";
        archive_delay, "seconds from a session's end to its archive being available";
        compose_behind, "seconds by which composers are behind their sessions";
        start_delay, "seconds from an event to the first media on disk";
        late_joins, "jobs whose first worker joined the room 10 s and more after the session's event, or after the last look at a waiting session's room";
        not_recorded, "findings of the last two comparisons of rooms and jobs, by kind; each worker reports all of them";
        reconciled_at, "when this worker compared rooms and jobs for the last time, in seconds since 1970";
        join_delay, "seconds from a session's event, or from the last look at a waiting session's room, to its first worker being in the room";
        api_requests, "requests to the API, by route and outcome";
        api_seconds, "seconds that the API takes to answer";
        notices, "callbacks and events of archives' changes, by target and outcome";
        broker_connected, "1 while the broker is connected";
        router_hints, "messages of media routers' event handlers, by outcome";
        session_starts, "starts of sessions that workers were told of, by outcome";
    }
    (metrics, registry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::media::GapCause;
    use crate::model::time::MediaTime;

    #[test]
    fn every_metric_is_rendered_with_its_prefix() {
        // Not those of the process: other tests count with them.
        let (metrics, registry) = build();
        metrics.events.get_or_create(&EventLabels { outcome: EventOutcome::Accepted }).inc();
        let stats = TrackStats { packets: 3, lost: 1, ..TrackStats::default() };
        metrics.received(TrackKind::Video, &stats);
        let (from, to) = (MediaTime::from_millis(500), MediaTime::from_millis(750));
        metrics.missing(&Gap { from, to, cause: GapCause::Network });
        let text = text_of(&registry);
        assert!(text.contains("archiver_packets_total{kind=\"video\",fate=\"lost\"} 1"), "{text}");
        assert!(text.contains("archiver_gap_seconds_total{cause=\"network\"} 0.25"), "{text}");
        assert!(text.contains("archiver_events_total{outcome=\"Accepted\"}"), "{text}");
        assert!(text.contains("# TYPE archiver_archive_delay histogram"), "{text}");
    }
}
