//! What tests of composed archives share: settings and capture logs of a world's archives.

use std::collections::BTreeMap;
use std::path::Path;

use archiver::config::Settings;
use archiver::model::cancellable::Cancellable;
use archiver::recording::restore::restore;
use archiver::store::keys::Keys;
use archiver_testkit::world::{Downloaded, World};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The configuration of a world's worker.
pub fn settings(world: &World) -> Settings {
    Settings::load(Some(world.config()), &BTreeMap::new()).expect("configuration")
}

/// Begins to record a session, in a room of its name, with these archive options.
pub async fn begin(world: &mut World, session: &str, archive: Value) {
    world.janus.create_room(session, json!({})).await.expect("room");
    let mut started = world.started(session);
    started["data"]["archive"] = archive;
    world.publish(&started).expect("publish");
}

/// Ends a session, and fetches its archive when it is available.
pub async fn finished(world: &mut World, session: &str) -> Downloaded {
    let ended = world.ended(session);
    world.publish(&ended).expect("publish");
    let archive = world.archive(session, "available").await;
    world.download(&archive).expect("download")
}

/// An archive's place in the store, by its manifest.
pub fn keys(manifest: &Value) -> Keys {
    let id = |key: &str| manifest[key].as_str().expect("id").to_owned();
    Keys::new(id("applicationId").parse().expect("id"), id("archiveId").parse().expect("id"))
}

/// Fetches an archive's capture log from the store.
pub async fn fetch_log(world: &World, manifest: &Value, to: &Path) {
    let store = archiver::app::services::store(&settings(world)).await.expect("store");
    let fetched = restore(store.as_ref(), &keys(manifest), to, None, &CancellationToken::new()).await.expect("restore");
    assert!(matches!(fetched, Cancellable::Done(1..)), "{fetched:?}");
}
