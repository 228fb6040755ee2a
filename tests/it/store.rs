//! One contract for every store: a directory, the in-process S3 server, moto, and garage where it was built.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use archiver::archive::delete::{mark, remove};
use archiver::archive::retention::{REMOVER_MAX, sweep_segments};
use archiver::catalog::{self, ArchiveRow, ArchiveStatus};
use archiver::model::archive_options::ArchiveOptions;
use archiver::model::cancellable::Cancellable;
use archiver::model::ids::{ArchiveId, JobId, SessionId};
use archiver::model::time::Wallclock;
use archiver::store::body::collect;
use archiver::store::dir::DirStore;
use archiver::store::download::{Download, DownloadError, download};
use archiver::store::keys::{Keys, Kind};
use archiver::store::s3::{S3Config, S3Store};
use archiver::store::streaming_upload::{self, GrowingFile};
use archiver::store::upload::{Upload, UploadError, upload};
use archiver::store::{Body, ByteRange, ObjectStore, PutOptions, StoreError};
use archiver_sim::{Calls, Fault, MemoryStore};
use archiver_testkit::s3::{ACCESS_KEY, BUCKET, S3Fault, S3Server, SECRET_KEY};
use archiver_testkit::s3_others::{garage, moto};
use archiver_testkit::wait::wait_for;
use base64::Engine;
use sha2::Digest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

fn s3(endpoint: &str, key: &str, secret: &str, region: &str, bucket: &str) -> S3Config {
    S3Config {
        bucket: bucket.to_owned(),
        region: region.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
        credentials: Some((key.to_owned(), secret.into())),
        checksums_always: false,
        encryption: None,
        kms_key: None,
    }
}

async fn read(store: &dyn ObjectStore, key: &str, range: Option<ByteRange>) -> Vec<u8> {
    collect(store.get(key, range).await.expect("get"), key, 64 * MIB).await.expect("body").to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(bytes))
}

async fn objects(store: &dyn ObjectStore) {
    let content: Vec<u8> = (0..100_000_u32).map(|n| u8::try_from(n % 251).expect("small")).collect();
    let options = PutOptions { sha256: Some(sha256(&content)), ..PutOptions::default() };
    store.put("app/a/one", Body::bytes(content.clone()), options).await.expect("put");
    let info = store.head("app/a/one").await.expect("head").expect("there");
    assert_eq!((info.size, info.sha256), (100_000, Some(sha256(&content))));
    assert_eq!(read(store, "app/a/one", None).await, content);
    assert_eq!(read(store, "app/a/one", Some(ByteRange { start: 1000, len: 50 })).await, content[1000..1050]);
    assert_eq!(store.head("app/a/none").await.expect("head"), None);
    assert!(matches!(store.get("app/a/none", None).await, Err(StoreError::NotFound { .. })));
    for key in ["app/b/3", "app/b/1", "app/b/2"] {
        store.put(key, Body::bytes("x"), PutOptions::default()).await.expect("put");
    }
    let listed: Vec<String> = store.list("app/b/").await.expect("list").into_iter().map(|o| o.key).collect();
    assert_eq!(listed, ["app/b/1", "app/b/2", "app/b/3"]);
    store.put("app/b/1", Body::bytes("new"), PutOptions::default()).await.expect("put again");
    assert_eq!(read(store, "app/b/1", None).await, b"new");
    store.delete("app/b/1").await.expect("delete");
    store.delete("app/b/1").await.expect("delete again");
    assert_eq!(store.head("app/b/1").await.expect("head"), None);
}

async fn multipart(store: &dyn ObjectStore, knows_gone_uploads: bool) {
    let id = store.create_upload("app/m/big", PutOptions::default()).await.expect("create");
    let first = store.upload_part("app/m/big", &id, 1, Body::bytes(vec![1; 5 * MIB])).await.expect("part");
    store.upload_part("app/m/big", &id, 2, Body::bytes(vec![9; 100])).await.expect("part");
    let second = store.upload_part("app/m/big", &id, 2, Body::bytes(vec![2; 1000])).await.expect("part again");
    assert_ne!(first.etag, second.etag);
    store.complete_upload("app/m/big", &id, &[first, second], false).await.expect("complete");
    let all = read(store, "app/m/big", None).await;
    assert!(all.len() == 5 * MIB + 1000 && all[5 * MIB..].iter().all(|b| *b == 2));
    let id = store.create_upload("app/m/given-up", PutOptions::default()).await.expect("create");
    store.upload_part("app/m/given-up", &id, 1, Body::bytes(vec![1; 1000])).await.expect("part");
    store.abort_upload("app/m/given-up", &id).await.expect("abort");
    if knows_gone_uploads {
        store.abort_upload("app/m/given-up", &id).await.expect("abort again");
    }
    assert_eq!(store.head("app/m/given-up").await.expect("head"), None);
}

/// A file sent in parts by two uploads: the first is called off, the second sends only what is missing.
async fn resumed(store: &dyn ObjectStore) {
    let dir = tempfile::tempdir().expect("dir");
    let content: Vec<u8> = (0..23 * MIB).map(|n| u8::try_from(n / 1000 % 256).expect("small")).collect();
    let path = dir.path().join("file");
    std::fs::write(&path, &content).expect("write");
    let file = Upload {
        key: "app/u/file".to_owned(),
        path,
        size: content.len() as u64,
        sha256: sha256(&content),
        parts: None,
        content_type: "application/octet-stream",
        part_bytes: 5 * MIB as u64,
        journal: dir.path().join("journal"),
    };
    let (cancel, sent) = (CancellationToken::new(), AtomicU64::new(0));
    let call_off = |bytes: u64| {
        if bytes > 0 && sent.fetch_add(1, Ordering::Relaxed) == 1 {
            cancel.cancel();
        }
    };
    let ended = upload(store, &file, &cancel, &call_off).await;
    assert!(matches!(ended, Ok(Cancellable::Cancelled)), "it was cancelled after two parts: {ended:?}");
    let again = AtomicU64::new(0);
    let (count, calm) = (
        |_: u64| {
            again.fetch_add(1, Ordering::Relaxed);
        },
        CancellationToken::new(),
    );
    let info = upload(store, &file, &calm, &count).await.expect("upload").done().expect("not cancelled");
    assert_eq!(info.size, content.len() as u64);
    // One call for what was sent before, one for each part that was missing.
    assert!(again.load(Ordering::Relaxed) <= 4, "{} of 5 parts were sent again", again.load(Ordering::Relaxed) - 1);
    assert_eq!(read(store, "app/u/file", None).await, content);
    // A third time: it is there.
    let again = upload(store, &file, &calm, &|_| panic!("nothing is to be sent")).await;
    assert!(matches!(again, Ok(Cancellable::Done(_))), "{again:?}");
}

/// Bytes of the beginning of [`growing`] that change in the end.
const HEAD: u64 = MIB as u64;

/// A file that grows, and whoever begins it.
fn growing(dir: &std::path::Path) -> (GrowingFile, watch::Sender<u32>) {
    let begun = watch::Sender::new(1);
    let file = GrowingFile {
        key: "app/g/file".to_owned(),
        path: dir.join("file"),
        content_type: "application/octet-stream",
        part_bytes: 5 * MIB as u64,
        journal: dir.join("journal"),
        final_range: Box::new(|len| (len > HEAD).then_some(HEAD..len)),
        starts: begun.subscribe(),
    };
    (file, begun)
}

/// Waits until the journal names so many parts of the upload that it began last.
async fn parts_sent(journal: &std::path::Path, count: usize) {
    wait_for(&format!("{count} parts"), || async {
        let text = std::fs::read_to_string(journal).ok()?;
        let last = text.rsplit("\"begun\"").next()?.matches("\"part\"").count();
        (last == count).then_some(())
    })
    .await;
}

/// A file whose parts are sent while it grows, and whose beginning is made last.
async fn sent_ahead(store: &dyn ObjectStore) {
    let dir = tempfile::tempdir().expect("dir");
    let (file, begun) = growing(dir.path());
    let mut content: Vec<u8> = (0..23 * MIB).map(|n| u8::try_from(n / 1000 % 251).expect("small")).collect();
    let end = CancellationToken::new();
    let write = |bytes: &[u8]| std::fs::write(&file.path, bytes).expect("write");
    let growth = async {
        write(&content[..7 * MIB]);
        // The second part is not whole yet, and the first is not settled.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!file.journal.exists());
        write(&content[..12 * MIB]);
        parts_sent(&file.journal, 1).await;
        // Begun anew: what was sent does not count.
        begun.send_modify(|begun| *begun += 1);
        write(&content[..16 * MIB]);
        parts_sent(&file.journal, 2).await;
        write(&content);
        parts_sent(&file.journal, 3).await;
        end.cancel();
    };
    tokio::join!(streaming_upload::send(store, &file, &end), growth);
    content[..MIB].fill(7);
    write(&content);
    let parts = streaming_upload::parts(&file.journal, &file.path).expect("parts").expect("it was sent");
    assert_eq!(parts.sha256.len(), 5);
    let whole = Upload {
        key: file.key.clone(),
        path: file.path.clone(),
        size: content.len() as u64,
        sha256: parts.composite(),
        parts: Some(parts.clone()),
        content_type: file.content_type,
        part_bytes: file.part_bytes,
        journal: file.journal.clone(),
    };
    let (calm, sent) = (CancellationToken::new(), std::sync::Mutex::new(Vec::new()));
    let tell = |bytes: u64| sent.lock().expect("lock").push(bytes);
    let info = upload(store, &whole, &calm, &tell).await.expect("upload").done().expect("not cancelled");
    let mut sent = sent.into_inner().expect("lock");
    assert_eq!(sent.remove(0), 15 * MIB as u64, "sent while it grew");
    sent.sort_unstable();
    assert_eq!(sent, [3 * MIB as u64, 5 * MIB as u64], "the end and the beginning");
    assert_eq!(info.size, whole.size);
    assert_eq!(read(store, &whole.key, None).await, content);
    let again = upload(store, &whole, &calm, &|_| panic!("nothing is to be sent")).await;
    assert!(matches!(again, Ok(Cancellable::Done(_))), "{again:?}");
    let to = dir.path().join("fetched");
    let (sha256, part_bytes) = (whole.sha256.clone(), Some(parts.part_bytes));
    let wanted = Download { key: whole.key.clone(), size: whole.size, sha256, part_bytes, path: to.clone() };
    assert_eq!(download(store, &wanted, &calm, &|_| {}).await.expect("download"), Cancellable::Done(()));
    assert_eq!(std::fs::read(&to).expect("read"), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_of_a_file_that_is_another_in_the_end_does_not_count() {
    let dir = tempfile::tempdir().expect("dir");
    let store = DirStore::open(&dir.path().join("store")).expect("store");
    let (file, _begun) = growing(dir.path());
    let mut content: Vec<u8> = (0..23 * MIB).map(|n| u8::try_from(n / 1000 % 251).expect("small")).collect();
    std::fs::write(&file.path, &content).expect("write");
    let end = CancellationToken::new();
    tokio::join!(streaming_upload::send(&store, &file, &end), async {
        parts_sent(&file.journal, 3).await;
        end.cancel();
    });
    // It was moved in the end.
    content.insert(0, 2);
    std::fs::write(&file.path, &content).expect("write");
    assert_eq!(streaming_upload::parts(&file.journal, &file.path).expect("parts"), None);
    for part_bytes in [5 * MIB as u64, 64 * MIB as u64] {
        let whole = Upload {
            key: file.key.clone(),
            path: file.path.clone(),
            size: content.len() as u64,
            sha256: sha256(&content),
            parts: None,
            content_type: file.content_type,
            part_bytes,
            journal: file.journal.clone(),
        };
        assert_eq!(send(&store, &whole).await, whole.size);
        assert_eq!(read(&store, &file.key, None).await, content);
        assert_eq!(store.pending_uploads("").await.expect("list"), [], "nothing waits for the sweeper");
        store.delete(&file.key).await.expect("delete");
    }
}

async fn contract(store: &dyn ObjectStore, knows_gone_uploads: bool) {
    let can = store.probe("probe/").await.expect("probe");
    objects(store).await;
    multipart(store, knows_gone_uploads).await;
    resumed(store).await;
    sent_ahead(store).await;
    if can.conditional_put {
        let options = || PutOptions { if_absent: true, ..PutOptions::default() };
        store.put("app/c", Body::bytes("1"), options()).await.expect("put");
        let second = store.put("app/c", Body::bytes("2"), options()).await;
        assert!(matches!(second, Err(StoreError::Exists { .. })), "{second:?}");
        assert_eq!(read(store, "app/c", None).await, b"1");
    }
    if can.list_uploads {
        let id = store.create_upload("app/pending", PutOptions::default()).await.expect("create");
        let found = store.pending_uploads("app/").await.expect("list");
        assert!(found.iter().any(|p| p.upload_id == id && p.key == "app/pending"), "{found:?}");
        store.abort_upload("app/pending", &id).await.expect("abort");
    }
    println!("{}: {can:?}", store.describe());
}

/// What only a server can refuse, and its links.
async fn server(config: S3Config) {
    let store = S3Store::new(config.clone()).await;
    let link =
        store.presign_get("app/a/one", Duration::from_secs(60), "my \"file\".zip").await.expect("sign").expect("link");
    let out = std::process::Command::new("python3")
        .args(["-c", "import sys,urllib.request as u; r=u.urlopen(u.Request(sys.argv[1],headers={'Range':'bytes=10-19'})); print(r.status,len(r.read()))"])
        .arg(&link)
        .output()
        .expect("python3");
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "206 10", "{}", String::from_utf8_lossy(&out.stderr));
    let nobody = S3Config { endpoint: Some("http://127.0.0.1:9".to_owned()), ..config };
    let away = S3Store::new(nobody).await.put("x", Body::bytes("x"), PutOptions::default()).await;
    assert!(matches!(away, Err(StoreError::Unavailable { .. })), "{away:?}");
}

/// s3s-fs makes a bucket of any name, so only the others can be asked.
async fn refuses_other_buckets(config: S3Config) {
    let bucket = S3Config { bucket: "no-such-bucket".to_owned(), ..config };
    let refused = S3Store::new(bucket).await.put("x", Body::bytes("x"), PutOptions::default()).await;
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    contract(&MemoryStore::new(), true).await;
}

/// The server's faults, and those that a server of ours does not have; the back-off takes no time.
#[tokio::test(start_paused = true)]
async fn an_upload_passes_through_every_fault_of_the_store_in_memory() {
    for (fault, operation) in [
        (Fault::Unavailable, "create_upload"),
        (Fault::Unavailable, "upload_part"),
        (Fault::LostAnswer, "upload_part"),
        (Fault::Slow(Duration::from_secs(5)), "upload_part"),
        (Fault::Unavailable, "complete_upload"),
        (Fault::LostAnswer, "complete_upload"),
        (Fault::Unavailable, "head"),
    ] {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().expect("dir"));
        let (content, file) = file_of_five_parts(dir.path());
        store.faults().inject(fault, Calls::of(operation).times(3));
        send(&store, &file).await;
        assert_eq!(read(&store, &file.key, None).await, content, "{fault:?} {operation}");
        assert_eq!(store.pending_uploads("").await.expect("list"), [], "{fault:?} {operation}: nothing is left over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("dir");
    let store = DirStore::open(dir.path()).expect("store");
    contract(&store, true).await;
    for key in ["../x", "/x", "a/../../x", "", "a/./b/../c", ".meta/x", "a//b", "a/", "a/.b", "a\0b"] {
        assert!(store.put(key, Body::bytes("x"), PutOptions::default()).await.is_err(), "{key:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_s3_server_of_the_demo_keeps_the_contract() {
    let s3_server = S3Server::start().await.expect("server");
    let config = s3(&s3_server.endpoint(), ACCESS_KEY, SECRET_KEY, "us-east-1", BUCKET);
    // s3s-fs answers AccessDenied for an upload that is gone, as if it were somebody else's.
    contract(&S3Store::new(config.clone()).await, false).await;
    server(config.clone()).await;
    let wrong = S3Config { credentials: Some((ACCESS_KEY.to_owned(), "wrong".into())), ..config };
    let refused = S3Store::new(wrong).await.put("x", Body::bytes("x"), PutOptions::default()).await;
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_keeps_the_contract() {
    let server_process = tokio::task::spawn_blocking(moto).await.expect("task").expect("moto");
    let made = std::process::Command::new("python3")
        .args(["-c", "import sys,urllib.request as u; u.urlopen(u.Request(sys.argv[1],method='PUT'))"])
        .arg(format!("{}/{BUCKET}", server_process.endpoint))
        .status();
    assert!(made.is_ok_and(|s| s.success()), "the bucket was not made");
    let config = s3(
        &server_process.endpoint,
        &server_process.access_key,
        &server_process.secret_key,
        &server_process.region,
        BUCKET,
    );
    contract(&S3Store::new(config.clone()).await, true).await;
    server(config.clone()).await;
    refuses_other_buckets(config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garage_keeps_the_contract() {
    let Some(garage) = tokio::task::spawn_blocking(garage).await.expect("task").expect("garage") else {
        assert!(std::env::var_os("CI").is_none(), "continuous integration builds garage first: .ci/run");
        return println!("garage is not there: `make garage` builds it once");
    };
    let config = s3(&garage.endpoint, &garage.access_key, &garage.secret_key, &garage.region, BUCKET);
    let store = S3Store::new(config.clone()).await;
    // The server answers before its bucket is there.
    wait_for("garage's bucket", || async { store.list("x").await.ok() }).await;
    contract(&store, true).await;
    server(config.clone()).await;
    refuses_other_buckets(config).await;
}

/// A file of 23 MiB, which is five parts.
fn file_of_five_parts(dir: &std::path::Path) -> (Vec<u8>, Upload) {
    let content: Vec<u8> = (0..23 * MIB).map(|n| u8::try_from(n / 1000 % 256).expect("small")).collect();
    let path = dir.join("file");
    std::fs::write(&path, &content).expect("write");
    let file = Upload {
        key: "app/f/file".to_owned(),
        path,
        size: content.len() as u64,
        sha256: sha256(&content),
        parts: None,
        content_type: "application/octet-stream",
        part_bytes: 5 * MIB as u64,
        journal: dir.join("journal"),
    };
    (content, file)
}

/// Sends the file and returns how many bytes were sent anew, those of earlier parts included.
async fn send(store: &dyn ObjectStore, file: &Upload) -> u64 {
    let sent = AtomicU64::new(0);
    let count = |bytes: u64| {
        sent.fetch_add(bytes, Ordering::Relaxed);
    };
    let calm = CancellationToken::new();
    let sending = upload(store, file, &calm, &count);
    let sent_in_time = tokio::time::timeout(Duration::from_secs(60), sending).await.expect("in time");
    let info = sent_in_time.expect("upload").done().expect("not cancelled");
    assert_eq!((info.size, info.sha256.as_ref()), (file.size, Some(&file.sha256)));
    sent.into_inner()
}

/// Calls the upload off when `bytes` have been sent.
async fn send_a_little(store: &dyn ObjectStore, file: &Upload, bytes: u64) {
    let (cancel, sent) = (CancellationToken::new(), AtomicU64::new(0));
    let call_off = |more: u64| {
        if sent.fetch_add(more, Ordering::Relaxed) + more >= bytes {
            cancel.cancel();
        }
    };
    let ended = upload(store, file, &cancel, &call_off).await;
    assert!(matches!(ended, Ok(Cancellable::Cancelled)), "{ended:?}");
}

async fn faulty() -> (S3Server, S3Store) {
    let server = S3Server::start().await.expect("server");
    let store = S3Store::new(s3(&server.endpoint(), ACCESS_KEY, SECRET_KEY, "us-east-1", BUCKET)).await;
    (server, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_passes_through_every_fault_of_a_server() {
    for (fault, matching) in [
        (S3Fault::Unavailable, ""),
        (S3Fault::Cut, "partNumber=3"),
        (S3Fault::LostAnswer, "partNumber=2"),
        (S3Fault::LostAnswer, "POST /archives/app/f/file?uploadId"),
        (S3Fault::ErrorIn200, "POST /archives/app/f/file?uploadId"),
        (S3Fault::Unavailable, "HEAD"),
    ] {
        let (server, store) = faulty().await;
        let dir = tempfile::tempdir().expect("dir");
        let (content, file) = file_of_five_parts(dir.path());
        // More often than the SDK tries by itself.
        server.inject(fault, matching, 3);
        assert_eq!(send(&store, &file).await, file.size, "{fault:?} {matching}: no part was sent for nothing");
        assert_eq!(read(&store, &file.key, None).await, content, "{fault:?} {matching}");
        assert!(file.path.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_in_mid_upload_gets_only_what_it_has_not() {
    let (mut server, store) = faulty().await;
    let dir = tempfile::tempdir().expect("dir");
    let (content, file) = file_of_five_parts(dir.path());
    send_a_little(&store, &file, 10 * MIB as u64).await;
    server.stop().await;
    let away = store.head(&file.key).await;
    assert!(matches!(away, Err(StoreError::Unavailable { .. })), "{away:?}");
    let (server, ()) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            server.restart().await.expect("restart");
            server
        },
        async {
            send(&store, &file).await;
        }
    );
    assert_eq!(read(&store, &file.key, None).await, content);
    // begin, five parts of which one or two were under way when it was called off, complete, and some looks.
    println!("{} requests for an upload with a restart in it", server.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_store_has_lost_begins_anew() {
    let dir = tempfile::tempdir().expect("dir");
    let stores: [(&str, Box<dyn ObjectStore>, Option<S3Server>); 2] = {
        let (server, store) = faulty().await;
        let local = DirStore::open(&dir.path().join("store")).expect("store");
        [("dir", Box::new(local), None), ("s3s-fs", Box::new(store), Some(server))]
    };
    for (name, store, _server) in stores {
        let dir = tempfile::tempdir().expect("dir");
        let (content, file) = file_of_five_parts(dir.path());
        send_a_little(store.as_ref(), &file, 10 * MIB as u64).await;
        let begun = archiver::store::upload::unfinished(&file.journal).expect("journal");
        let [(key, upload_id)] = begun.as_slice() else { panic!("{name}: {begun:?}") };
        store.abort_upload(key, upload_id).await.expect("abort");
        send(store.as_ref(), &file).await;
        assert_eq!(read(store.as_ref(), &file.key, None).await, content, "{name}");
        assert_eq!(archiver::store::upload::unfinished(&file.journal).expect("journal"), [], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_made_again_is_sent_from_its_beginning_and_the_old_upload_is_given_up() {
    let dir = tempfile::tempdir().expect("dir");
    let store = DirStore::open(&dir.path().join("store")).expect("store");
    let (mut content, mut file) = file_of_five_parts(dir.path());
    send_a_little(&store, &file, 10 * MIB as u64).await;
    content.reverse();
    std::fs::write(&file.path, &content).expect("write");
    file.sha256 = sha256(&content);
    assert_eq!(send(&store, &file).await, file.size);
    assert_eq!(read(&store, &file.key, None).await, content);
    assert_eq!(store.pending_uploads("").await.expect("list"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_or_lies_is_not_proved() {
    let dir = tempfile::tempdir().expect("dir");
    let store = DirStore::open(&dir.path().join("store")).expect("store");
    let (_, file) = file_of_five_parts(dir.path());
    let (calm, lie) = (CancellationToken::new(), sha256(b"something else"));
    let short = Upload { size: file.size - 1, ..file.clone() };
    let ended = upload(&store, &short, &calm, &|_| {}).await;
    assert!(matches!(ended, Err(UploadError::Changed(_))), "{ended:?}");
    for part_bytes in [5 * MIB as u64, 64 * MIB as u64] {
        let lying = Upload { sha256: lie.clone(), part_bytes, ..file.clone() };
        let ended = upload(&store, &lying, &calm, &|_| {}).await;
        assert!(matches!(ended, Err(UploadError::Store(StoreError::Corrupt { .. }))), "{ended:?}");
        assert_eq!(store.head(&file.key).await.expect("head"), None);
    }
    assert_eq!(store.pending_uploads("").await.expect("list"), [], "nothing waits for the sweeper");
    let left: Vec<_> = std::fs::read_dir(dir.path().join("store/.uploads")).expect("folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_broke_off_and_is_checked() {
    let (server, store) = faulty().await;
    let dir = tempfile::tempdir().expect("dir");
    let (content, file) = file_of_five_parts(dir.path());
    send(&store, &file).await;
    let path = dir.path().join("fetched");
    let wanted = Download {
        key: file.key.clone(),
        size: file.size,
        sha256: file.sha256.clone(),
        part_bytes: None,
        path: path.clone(),
    };
    let calm = CancellationToken::new();
    // What an earlier run left.
    std::fs::write(dir.path().join("fetched.download"), &content[..7 * MIB]).expect("write");
    server.inject(S3Fault::Cut, "GET", 3);
    let told = std::sync::Mutex::new(Vec::new());
    let tell = |bytes: u64| told.lock().expect("lock").push(bytes);
    assert_eq!(download(&store, &wanted, &calm, &tell).await.expect("download"), Cancellable::Done(()));
    assert_eq!(std::fs::read(&path).expect("read"), content);
    let told = told.into_inner().expect("lock");
    assert_eq!((told[0], told.iter().sum::<u64>()), (7 * MIB as u64, file.size), "only the rest was fetched");
    // A damaged beginning is found out, and the next call begins anew.
    std::fs::write(dir.path().join("fetched.download"), vec![0; MIB]).expect("write");
    let ended = download(&store, &wanted, &calm, &|_| {}).await;
    assert!(matches!(ended, Err(DownloadError::Store(StoreError::Corrupt { .. }))), "{ended:?}");
    assert_eq!(download(&store, &wanted, &calm, &|_| {}).await.expect("download"), Cancellable::Done(()));
    let none = Download { key: "app/none".to_owned(), ..wanted };
    let ended = download(&store, &none, &calm, &|_| {}).await;
    assert!(matches!(ended, Err(DownloadError::Store(StoreError::NotFound { .. }))), "{ended:?}");
}

/// The store is away when an archive is deleted whose segments were swept long ago: sweeping removes its file, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_removed_of_a_deleted_archive_is_swept() {
    let server = S3Server::start().await.expect("server");
    let store = S3Store::new(s3(&server.endpoint(), ACCESS_KEY, SECRET_KEY, "us-east-1", BUCKET)).await;
    let dir = tempfile::tempdir().expect("folder");
    let catalog = catalog::open(&format!("sqlite:{}", dir.path().join("catalog.sqlite").display())).await;
    let catalog = catalog.expect("catalog");
    let session: SessionId = "s".parse().expect("id");
    let job = JobId::of_event(&session, &"e".parse().expect("id"));
    let begun = Wallclock::now();
    let row = ArchiveRow {
        archive: ArchiveId::of_job(job),
        job,
        session,
        application: "app".parse().expect("id"),
        name: None,
        status: ArchiveStatus::Available,
        reason: String::new(),
        output_mode: "composed".to_owned(),
        created_at: begun,
        updated_at: begun,
        duration_s: 60,
        size: 1,
        sha256: String::new(),
        object_key: None,
        revision: 1,
        log_read: None,
        missing: None,
        options: ArchiveOptions::default(),
    };
    let keys = Keys::new(row.application.clone(), row.archive);
    let segment = format!("{}1.tar", keys.segments());
    for key in [&segment, &keys.key(Kind::Mp4), &keys.key(Kind::Manifest)] {
        store.put(key, Body::bytes("x"), PutOptions::default()).await.expect("put");
    }
    assert!(catalog.put_archive(&row).await.expect("put"));
    let keep = Duration::from_secs(7 * 24 * 3600);
    let sweep = async |now: Wallclock| sweep_segments(&store, catalog.as_ref(), keep, now).await;
    assert_eq!(sweep(begun + keep + Duration::from_secs(1)).await.expect("sweep"), 1);
    let left = async || store.list(&keys.prefix()).await.expect("list").len();
    assert_eq!(left().await, 2, "its segments are gone");

    server.inject(S3Fault::Unavailable, "DELETE", u64::MAX);
    mark(catalog.as_ref(), &row).await.expect("marked");
    remove(catalog.as_ref(), &store, &row).await.expect_err("the store is away");
    let marked = Wallclock::now();
    assert_eq!(sweep(marked).await.expect("sweep"), 0, "whoever deletes it may be at it");
    let after = marked + REMOVER_MAX;
    sweep(after).await.expect_err("the store is away");
    server.heal();
    assert_eq!(left().await, 2);
    assert_eq!(sweep(after).await.expect("sweep"), 1);
    assert_eq!((left().await, sweep(after).await.expect("sweep")), (0, 0));
}
