//! Checks of values. Messages name the key, the value and what is allowed.

use std::ops::RangeInclusive;

use secrecy::ExposeSecret;
use url::Url;

use super::values::Redacted;
use super::{DurationValue, Settings, StoreKind};
use crate::model::network::Network;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const MIB: u64 = 1 << 20;

struct Rules<'e> {
    errors: &'e mut Vec<String>,
}

impl Rules<'_> {
    fn require(&mut self, ok: bool, text: impl FnOnce() -> String) {
        if !ok {
            self.errors.push(text());
        }
    }

    fn duration(&mut self, key: &str, duration: DurationValue, allowed: RangeInclusive<u64>, words: &str) {
        let ms = u64::try_from(duration.0.as_millis()).unwrap_or(u64::MAX);
        self.require(allowed.contains(&ms), || {
            format!("{key} = {}: allowed is {words}", duration.redacted().unwrap_or_default())
        });
    }

    fn number(&mut self, key: &str, number: u64, allowed: RangeInclusive<u64>) {
        self.require(allowed.contains(&number), || {
            format!("{key} = {number}: allowed is {} to {}", allowed.start(), allowed.end())
        });
    }

    /// An address that is printed, so it must not contain a password.
    fn address_without_password(&mut self, key: &str, text: &str, schemes: &[&str], instead: &str) {
        if Url::parse(text).is_ok_and(|url| !url.username().is_empty() || url.password().is_some()) {
            self.errors.push(format!("{key}: has a user or password; use {instead}"));
        } else {
            self.address(key, text, schemes, &format!(" = {text:?}"));
        }
    }

    fn address(&mut self, key: &str, text: &str, schemes: &[&str], printed_value: &str) {
        let ok = Url::parse(text).is_ok_and(|url| schemes.contains(&url.scheme()) && url.has_host());
        let allowed: Vec<String> = schemes.iter().map(|s| format!("{s}://host")).collect();
        self.require(ok, || format!("{key}{printed_value}: is not an address such as {}", allowed.join(" or ")));
    }
}

/// Adds all errors.
pub(super) fn check(settings: &Settings, errors: &mut Vec<String>) {
    let mut rules = Rules { errors };
    worker_and_services(settings, &mut rules);
    store(settings, &mut rules);
    routers(settings, &mut rules);
    regions(settings, &mut rules);
    api(settings, &mut rules);
    media(settings, &mut rules);
    limits(settings, &mut rules);
    let level = &settings.log.level;
    rules.require(level.split(',').all(is_directive), || {
        format!("log.level = {level:?}: allowed is off, error, warn, info, debug, trace, or a list of module=level")
    });
}

fn worker_and_services(settings: &Settings, rules: &mut Rules) {
    rules.number("worker.capacity", settings.worker.capacity as u64, 1..=1000);
    rules.duration("worker.lease", DurationValue(settings.lease()), 2 * SECOND..=2 * MINUTE, "2s to 2m");
    rules.duration("worker.offer", settings.worker.offer, 0..=HOUR, "0s to 1h");
    rules.require(!settings.worker.data_dir.as_os_str().is_empty(), || "worker.data_dir = \"\": is empty".to_owned());
    if let Some(url) = &settings.broker.url {
        rules.address("broker.url", url.expose_secret(), &["amqp", "amqps"], "");
    }
    let prefix = &settings.broker.prefix;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    rules.require((1..=64).contains(&prefix.len()) && prefix.chars().all(plain), || {
        format!("broker.prefix = {prefix:?}: allowed are 1 to 64 letters, digits and -_.")
    });
    rules.duration("broker.heartbeat", settings.broker.heartbeat, SECOND..=5 * MINUTE, "1s to 5m");
    rules.duration("broker.retry_after", settings.broker.retry_after, 100..=HOUR, "100ms to 1h");
    if let Some(url) = &settings.catalog.url {
        let url = url.expose_secret();
        match url.strip_prefix("sqlite:") {
            Some(path) => {
                let in_memory = path.is_empty() || path.contains(":memory:");
                rules.require(!in_memory && !path.contains('?'), || {
                    "catalog.url: sqlite: needs the path of a file, without options".to_owned()
                });
            }
            None => {
                let ok = Url::parse(url)
                    .is_ok_and(|url| ["postgres", "postgresql"].contains(&url.scheme()) && url.has_host());
                rules.require(ok, || "catalog.url: is neither postgres://host/database nor sqlite:/path".to_owned());
            }
        }
    }
}

fn store(settings: &Settings, rules: &mut Rules) {
    let store = &settings.store;
    let part = store.part_size.0;
    rules.require((crate::store::upload::PART_BYTES_MIN..=5 << 30).contains(&part), || {
        format!("store.part_size = {}: allowed is 5MiB to 5GiB", store.part_size.redacted().unwrap_or_default())
    });
    rules.duration("store.keep_segments", store.keep_segments, 0..=10_000 * HOUR, "0s to 10000h");
    rules.duration("store.link_valid", store.link_valid, SECOND..=7 * 24 * HOUR, "1s to 168h");
    if let Some(endpoint) = &store.endpoint {
        rules.address_without_password("store.endpoint", endpoint, &["http", "https"], "access_key and secret_key");
    }
    if let Some(encryption) = &store.encryption {
        rules.require(["AES256", "aws:kms"].contains(&encryption.as_str()), || {
            format!("store.encryption = {encryption:?}: allowed is AES256 or aws:kms")
        });
    }
    if store.kms_key.is_some() {
        rules.require(store.encryption.as_deref() == Some("aws:kms"), || {
            "store.kms_key: is used only with store.encryption = \"aws:kms\"".to_owned()
        });
    }
    if store.kind == StoreKind::S3 {
        rules.require(!store.bucket.is_empty(), || "store.bucket: is missing, store.kind is s3".to_owned());
        rules.require(!store.region.is_empty(), || "store.region = \"\": is empty".to_owned());
        rules.require(store.access_key.is_some() == store.secret_key.is_some(), || {
            "store.access_key and store.secret_key: go together".to_owned()
        });
    }
}

fn routers(settings: &Settings, rules: &mut Rules) {
    for (n, router) in settings.routers.iter().enumerate() {
        let key = format!("router {}.url", router.name);
        rules.address_without_password(&key, &router.url, &["ws", "wss"], "api_secret or token");
        let twice = settings.routers[..n].iter().any(|r| r.name == router.name);
        rules.require(!twice, || format!("router {}: is there more than once", router.name));
        if let Some(url) = &router.public_url {
            rules.address_without_password(
                &format!("router {}.public_url", router.name),
                url,
                &["ws", "wss"],
                "room_key",
            );
        }
    }
}

fn networks(key: &str, list: &super::List, rules: &mut Rules) {
    for error in list.0.iter().filter_map(|text| text.parse::<Network>().err()) {
        rules.errors.push(format!("{key}: {error}"));
    }
}

fn regions(settings: &Settings, rules: &mut Rules) {
    for (n, region) in settings.regions.iter().enumerate() {
        let key = format!("region {}", region.name);
        rules.require(!settings.regions[..n].iter().any(|r| r.name == region.name), || {
            format!("{key}: is there more than once")
        });
        networks(&format!("{key}.networks"), &region.networks, rules);
        rules.require(region.latitude.is_some() == region.longitude.is_some(), || {
            format!("{key}.latitude and {key}.longitude: go together")
        });
        let inside = |degrees: Option<f64>, most: f64| degrees.is_none_or(|d| (-most..=most).contains(&d));
        rules.require(inside(region.latitude, 90.0) && inside(region.longitude, 180.0), || {
            format!("{key}: latitude is from -90 to 90, longitude from -180 to 180")
        });
    }
}

fn api(settings: &Settings, rules: &mut Rules) {
    let api = &settings.api;
    rules.require(api.certificate.is_some() == api.key.is_some(), || {
        "api.certificate and api.key: go together".to_owned()
    });
    if let Some(url) = &api.public_url {
        rules.address_without_password("api.public_url", url, &["http", "https"], "no password");
    }
    let body = api.body_max;
    rules.require((16 << 10..=16 * MIB).contains(&body.0), || {
        format!("api.body_max = {}: allowed is 16KiB to 16MiB", body.redacted().unwrap_or_default())
    });
    rules.duration("api.timeout", api.timeout, SECOND..=10 * MINUTE, "1s to 10m");
    rules.number("api.requests_per_second", api.requests_per_second.into(), 1..=1_000_000);
    let short = api.operator_token.as_ref().is_some_and(|token| token.expose_secret().len() < 16);
    rules.require(!short, || "api.operator_token: has fewer than 16 characters".to_owned());
    let callbacks = &settings.callbacks;
    networks("callbacks.allow", &callbacks.allow, rules);
    rules.duration("callbacks.timeout", callbacks.timeout, SECOND..=2 * MINUTE, "1s to 2m");
    rules.number("callbacks.at_once", callbacks.at_once as u64, 1..=1000);
    rules.duration("callbacks.keep", callbacks.keep, HOUR..=10_000 * HOUR, "1h to 10000h");
    rules.duration("bridge.poll", settings.bridge.poll, 200..=MINUTE, "200ms to 60s");
    rules.duration("bridge.remove_rooms_after", settings.bridge.remove_rooms_after, SECOND..=24 * HOUR, "1s to 24h");
    rules.require(!settings.bridge.queue.is_empty(), || "bridge.queue = \"\": is empty".to_owned());
}

fn media(settings: &Settings, rules: &mut Rules) {
    let quota = settings.spool.quota;
    rules.require(quota.0 >= 100 * MIB, || {
        format!("spool.quota = {}: allowed is 100MiB and more", quota.redacted().unwrap_or_default())
    });
    rules.number("spool.admission_percent", u64::from(settings.spool.admission_percent), 1..=95);
    let buffer = settings.media.receive_buffer;
    rules.require((64 << 10..=1 << 30).contains(&buffer.0), || {
        format!("media.receive_buffer = {}: allowed is 64KiB to 1GiB", buffer.redacted().unwrap_or_default())
    });
    let capture = &settings.capture;
    rules.duration("capture.part", capture.part, 50..=SECOND, "50ms to 1s, for a dying process loses so much");
    rules.duration("capture.segment", capture.segment, SECOND..=MINUTE, "1s to 60s, for a dying machine loses so much");
    rules.duration("capture.video_hold", capture.video_hold, 0..=10 * SECOND, "0s to 10s");
    rules.duration("capture.audio_hold", capture.audio_hold, 0..=10 * SECOND, "0s to 10s");
    rules.duration("capture.stall", capture.stall, 500..=MINUTE, "500ms to 60s");
    let (least, most) = (capture.keyframe_interval_min, capture.keyframe_interval_max);
    rules.duration("capture.keyframe_interval_min", least, 100..=MINUTE, "100ms to 60s");
    rules.require(most.0.is_zero() || most.0 >= least.0, || {
        format!(
            "capture.keyframe_interval_max = {}: allowed is 0s, or keyframe_interval_min and more",
            most.redacted().unwrap_or_default()
        )
    });
    rules.number("capture.streams_max", capture.streams_max as u64, 1..=500);
}

fn limits(settings: &Settings, rules: &mut Rules) {
    rules.duration("pipelines.stall", settings.pipelines.stall, SECOND..=HOUR, "1s to 1h");
    let limits = &settings.limits;
    for (key, duration) in [
        ("limits.no_clients", limits.no_clients),
        ("limits.never_published", limits.never_published),
        ("limits.nobody_publishing", limits.nobody_publishing),
        ("limits.recorded_max", limits.recorded_max),
        ("limits.total_max", limits.total_max),
    ] {
        rules.duration(key, duration, SECOND..=30 * 24 * HOUR, "1s to 720h");
    }
}

/// Whether a text is a level, or a module with a level. The logger would take anything else for a module, and log nothing else.
fn is_directive(text: &str) -> bool {
    let level = text.trim().rsplit_once('=').map_or(text, |(_, level)| level).trim().to_lowercase();
    ["off", "error", "warn", "info", "debug", "trace"].contains(&level.as_str())
}
