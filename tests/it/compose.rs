//! Composed archives of real sessions: each cell shows the right stream, at its time, and the sound fits.

use crate::BINARY;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::composed::{begin, fetch_log, finished, keys, settings};
use crate::support::fragments::changed_fragments;
use archiver::archive::retention::sweep_segments;
use archiver::compose::geometry::{Rect, Size};
use archiver::compose::layout::{LayoutStream, place};
use archiver::model::layout::Layout;
use archiver::recording::LogReader;
use archiver::recording::frames::LogItem;
use archiver::recording::history;
use archiver::store::keys::Kind;
use archiver_testkit::chromium::{ChromiumOptions, ChromiumPublisher};
use archiver_testkit::content::{Content, Part, SeenFrame, Timeline, percentile};
use archiver_testkit::publisher::{AudioCodec, Options, Publisher, VideoCodec, unix_seconds};
use archiver_testkit::wait::{deadline, wait_for};
use archiver_testkit::world::{Downloaded, World};
use serde_json::json;

/// Seconds of an output picture and of an input picture.
const INTERVALS: f64 = 1.0 / 30.0 + 1.0 / 25.0;
/// Sound may be this far from its picture, in seconds.
const OFFSET_MAX: f64 = 0.040;

/// Where the pictures of one stream were found in a part of the frame.
struct Seen {
    /// When each is shown, and how much later than it was sent, by the file's time zero.
    delays: Vec<(f64, f64)>,
    /// Pictures that show another stream, or nothing that can be read.
    others: Vec<f64>,
}

/// Looks at a part of the frame between two moments of the file.
fn seen(file: &Path, part: Part, code: u16, truth: &Timeline, from: f64, to: f64) -> Seen {
    let content = Content::read_part(file, Some(part)).expect("file");
    assert!(content.errors.is_empty(), "{:?}", content.errors);
    let sent = truth.first_frames();
    let mut seen = Seen { delays: Vec::new(), others: Vec::new() };
    for frame in content.frames.iter().filter(|f| (from..to).contains(&f.pts)) {
        match frame.number.filter(|_| frame.code == Some(code)).and_then(|n| sent.get(&u32::from(n))) {
            Some(sent) => seen.delays.push((frame.pts, frame.pts - sent)),
            None => seen.others.push(frame.pts),
        }
    }
    seen
}

fn spread(delays: &[f64]) -> f64 {
    percentile(delays, 100.0).unwrap_or(0.0) - percentile(delays, 0.0).unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cell_shows_its_stream_at_its_time_and_the_sound_fits() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    begin(&mut world, "c1", json!({ "outputMode": "both", "resolution": "640x480" })).await;
    let alice = Publisher::start(Options::new(&world.janus, "c1", "alice")).await.expect("alice");
    world.recording(2).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let silent = Options { code: 2, audio: None, ..Options::new(&world.janus, "c1", "bob") };
    let bob = Publisher::start(silent).await.expect("bob");
    world.recording(3).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let bob = bob.leave().await.expect("leave").timeline();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let ended = world.ended("c1");
    world.publish(&ended).expect("publish");
    let end = Instant::now();
    let archive = world.archive("c1", "available").await;
    println!("{:.1} s from the session's end to available", end.elapsed().as_secs_f64());
    let alice = alice.crash().timeline();
    assert_eq!(archive["output_mode"].as_str().or(archive["outputMode"].as_str()), Some("both"), "{archive}");
    let archive = world.download(&archive).expect("download");
    let file = archive.dir.join("archive.mp4");
    let start = archive.manifest["composed"]["startMs"].as_f64().expect("start");
    let files = archive.manifest["files"].as_array().expect("files");
    let stream = archive.stream("bob").expect("bob")["streamId"].clone();
    let bobs = files.iter().find(|f| f["streamId"] == stream).expect("file");
    let at = |key: &str| (bobs[key].as_f64().expect("a time") - start) / 1000.0;
    let (joined, left) = (at("startMs"), at("endMs"));

    // Alone, alice fills the frame; then both stand side by side; then she is alone again.
    let whole = Part { x: 0, y: 0, width: 640, height: 480 };
    let cell = |n: u32| Part { x: 320 * n, y: 120, width: 320, height: 240 };
    let end = archive.manifest["durationS"].as_f64().expect("duration");
    let before = seen(&file, whole, 1, &alice, 0.5, joined - 0.1);
    let beside = seen(&file, cell(0), 1, &alice, joined + 0.1, left - 0.1);
    let other = seen(&file, cell(1), 2, &bob, joined + 0.1, left - 0.1);
    let after = seen(&file, whole, 1, &alice, left + 0.7, end - 0.1);
    let mut delays = Vec::new();
    for (name, part, least) in
        [("before", &before, 80), ("beside", &beside, 100), ("other", &other, 100), ("after", &after, 60)]
    {
        assert!(part.others.is_empty(), "{name}: {:?}", part.others);
        assert!(part.delays.len() > least, "{name}: {}", part.delays.len());
        delays.extend(part.delays.iter().map(|(_, delay)| *delay));
    }
    // No frame is older than one output and one input picture, in any cell.
    assert!(spread(&delays) <= INTERVALS + 0.005, "{:.4} s", spread(&delays));
    // The sound by the same time zero.
    let zero = percentile(&delays, 50.0).expect("pictures");
    let content = Content::read(&file).expect("file");
    let beeps = alice.first_beeps();
    let heard: Vec<f64> = content.beeps.iter().filter_map(|b| Some(b.at - beeps.get(&b.second)? - zero)).collect();
    let sound = percentile(&heard.iter().map(|o| o.abs()).collect::<Vec<_>>(), 99.0).unwrap_or(1.0);
    println!(
        "pictures within {:.1} ms, sound {:.1} ms from its picture (p99)",
        1000.0 * spread(&delays),
        1000.0 * sound
    );
    assert!(heard.len() >= 10, "{}", heard.len());
    assert!(heard.iter().all(|offset| offset.abs() <= OFFSET_MAX), "{heard:.4?}");
    assert!(
        (content.frames.len() as f64 / 30.0 - end).abs() <= 1.0 / 30.0,
        "{} pictures in {end} s",
        content.frames.len()
    );

    // A browser plays it from its link, and goes to any place.
    let id = archive.manifest["archiveId"].as_str().expect("id");
    let link = world.json(&["archives", "show", id, "--json"]).expect("show")["url"].as_str().expect("url").to_owned();
    let times = [end - 1.0, 0.5, end / 2.0];
    let played = ChromiumPublisher::play(&link, &times).await.expect("a browser plays it");
    assert_eq!((played.width, played.height), (640, 480));
    assert!((played.duration - end).abs() <= 1.0 / 30.0, "{} s of {end} s", played.duration);
    let apart = times.iter().zip(&played.seen).map(|(to, at)| (to - at).abs()).fold(0.0, f64::max);
    // The one before it, where the place is the edge of two pictures.
    assert!(played.seen.len() == 3 && apart <= 1.0 / 30.0 + 0.001, "{:?} instead of {times:?}", played.seen);

    // Made again of the log in the store, it is the same picture and sound that following the session gave.
    let log = tempfile::tempdir().expect("folder");
    fetch_log(&world, &archive.manifest, log.path()).await;
    let again = log.path().join("again.mp4");
    compose(log.path(), &again, &[]);
    let small = |name: &str, dir: &Path| std::fs::read(dir.join(name)).unwrap_or_default();
    for name in ["thumbnail.jpg", "sprite.jpg", "sprite.vtt"] {
        assert!(!small(name, &archive.dir).is_empty(), "{name}");
        assert_eq!(small(name, &archive.dir), small(name, log.path()), "{name}");
    }
    // A tile for each second, and the last one to the end.
    let index = String::from_utf8(small("sprite.vtt", &archive.dir)).expect("text");
    let pictures = archive.manifest["composed"]["pictures"].as_u64().expect("pictures");
    let (tiles, ms) = (index.matches("-->").count(), pictures * 1000 / 30);
    assert_eq!(tiles as u64, pictures.div_ceil(30), "{index}");
    assert!(index.contains(&format!("--> 00:00:{:02}.{:03}\n", ms / 1000, ms % 1000)), "{index}");
    clipped(&world, id, &alice, joined, zero);
    for (flag, kept) in [("--no-audio", "video"), ("--no-video", "audio")] {
        let part = log.path().join("part.mp4");
        compose(log.path(), &part, &[flag]);
        assert_eq!(kinds(&part), [kept], "{flag}");
    }
    for track in ["v", "a"] {
        let (first, second) = (hashes(&file, track), hashes(&again, track));
        assert!(first.lines().count() > 100 && first == second, "{track} differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn most_of_a_large_file_is_in_the_store_when_its_session_ends() {
    // A short limit keeps little room for the index, so that the file need not be long to be a long one.
    let limits = "[limits]\nrecorded_max = \"2m\"";
    let mut world = World::start(BINARY, None, limits).await.expect("world");
    let config = std::fs::read_to_string(world.config()).expect("config");
    let config = config.replace("[store]", "[store]\npart_size = \"5MiB\"");
    // And an operator's own encoder makes two megabytes of each second.
    let quality = "pass=qual quantizer=23 vbv-buf-capacity=0";
    let bits = "pass=cbr bitrate=16000 option-string=nal-hrd=cbr:filler=1";
    let folder = changed_fragments(&world, &[("compose-video.launch", quality, bits)]);
    let config = format!("{config}\n[pipelines]\ndir = \"{}\"\n", folder.display());
    std::fs::write(world.config(), config).expect("config");
    world.start_worker().expect("worker");
    begin(&mut world, "c9", json!({ "outputMode": "composed" })).await;
    let alice = Publisher::start(Options::new(&world.janus, "c9", "alice")).await.expect("alice");
    let id = world.archive("c9", "started").await["archive"].as_str().expect("id").to_owned();
    let journal = world.data().join("spool").join(&id).join("out/archive.mp4.upload.jsonl");
    wait_for("two parts in the store", || async {
        let text = std::fs::read_to_string(&journal).ok()?;
        (text.matches("\"part\"").count() >= 2).then_some(())
    })
    .await;
    let archive = finished(&mut world, "c9").await;
    let alice = alice.crash().timeline();
    let objects = archive.manifest["objects"].as_array().expect("objects");
    assert_eq!(objects[0]["partBytes"], 5 << 20, "{objects:?}");
    let verified = world.command(&["archives", "verify", &id]).expect("verify");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let (whole, end) = (Part { x: 0, y: 0, width: 640, height: 480 }, archive.manifest["durationS"].as_f64());
    let end = end.expect("duration") - 0.1;
    let shown = seen(&archive.dir.join("archive.mp4"), whole, 1, &alice, 0.5, end);
    println!("{} bytes, {} pictures", objects[0]["size"], shown.delays.len());
    assert!(shown.others.is_empty() && shown.delays.len() > 100, "{:?}", shown.others);
}

/// Waits until what is captured of the only picture is whole, 640 pixels wide, or a lower layer.
async fn becomes(world: &World, whole: bool) {
    wait_for(&format!("pictures that are whole: {whole}"), || async {
        let job = std::fs::read_dir(world.data().join("spool")).ok()?.flatten().next()?;
        let tracks = LogReader::open(&job.path()).ok()?.tracks;
        let formats = tracks.iter().flat_map(|track| track.frames()).filter_map(|item| match item {
            LogItem::Format(format) if format.width > 0 => Some(format.width),
            _ => None,
        });
        ((formats.last()? == 640) == whole).then_some(())
    })
    .await;
}

/// Half of a composed frame, in seconds.
const HALF_FRAME: f64 = 1.0 / 60.0;
/// How far outside of its time a picture may be seen, in seconds. Individual files have the clock of all sender reports. A composer that follows
/// the log knows fewer: on a busy machine its clock was 6 ms away.
const OFF_MAX: f64 = HALF_FRAME + 0.012;

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_s_layers_change_and_its_cell_shows_its_pictures() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    begin(&mut world, "c7", json!({ "outputMode": "both" })).await;
    let options = ChromiumOptions { code: 7, size: (640, 480), ..ChromiumOptions::new(&world.janus, "c7", "chromium") };
    let mut chrome = ChromiumPublisher::start(&options).await.expect("chromium");
    world.recording(2).await;
    // The highest layer is sent once the browser thinks that the network carries it; it goes, and comes back.
    for on in [true, false, true] {
        chrome.layer("h", on).await.expect("layer");
        becomes(&world, on).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    chrome.leave().await.expect("leave");
    let archive = finished(&mut world, "c7").await;
    let sizes = archive.track("chromium", "video").expect("track")["sizes"].as_array().expect("sizes").clone();
    assert!(sizes.len() >= 3, "the layer was not changed twice: {sizes:?}");
    let (captured, shown) = (captured(&archive, "chromium", 7), archive.dir.join("archive.mp4"));
    // Captured pictures that cannot be read are no truth to compare with: a failure says when there were any.
    let unread: Vec<f64> = captured.iter().filter(|(number, _)| number.is_none()).map(|(_, at)| *at).collect();
    let captured: Vec<(u32, f64)> = captured.iter().filter_map(|(number, at)| Some(((*number)?, *at))).collect();
    let shown = Content::read_part(&shown, Some(Part { x: 0, y: 0, width: 640, height: 480 })).expect("file");
    let end = archive.manifest["durationS"].as_f64().expect("duration") - 0.2;
    let (mut worst, mut pictures) = (0.0_f64, 0);
    let first = captured.first().expect("pictures").1;
    for frame in shown.frames.iter().filter(|f| (first + 0.2..end).contains(&f.pts)) {
        let next = captured.partition_point(|(_, at)| *at <= frame.pts);
        let (due_number, due) = captured[next.saturating_sub(1)];
        let Some(number) = frame.number.filter(|_| frame.code == Some(7)) else {
            // A picture without a successor goes after two seconds.
            assert!(
                frame.pts - due > 1.9,
                "another picture, or none, at {}, one was due at {due}; {unread:?}",
                frame.pts
            );
            continue;
        };
        // The one before and the one after it, too: of two pictures the nearer one is shown.
        let near = captured[next.saturating_sub(2)..].iter().find(|(n, _)| *n == u32::from(number));
        let taken = near.unwrap_or_else(|| panic!("{number} instead of {due_number} at {}; {unread:?}", frame.pts));
        let taken = taken.1;
        assert!(taken - frame.pts > -2.1, "{number} is still there at {}; {unread:?}", frame.pts);
        // A frame at t shows the newest picture of at most t + half a frame.
        let successor = captured.iter().map(|(_, at)| *at).find(|at| *at > taken).unwrap_or(f64::INFINITY);
        let off = (taken - HALF_FRAME - frame.pts).max(frame.pts + HALF_FRAME - successor);
        if off > OFF_MAX {
            println!("{number} is shown at {:.3}: captured at {taken:.3}, the next one at {successor:.3}", frame.pts);
        }
        worst = worst.max(off);
        pictures += 1;
    }
    println!("{sizes:?}, {pictures} pictures, at most {:.1} ms outside of their times", 1000.0 * worst);
    assert!(pictures > 200, "{pictures}");
    assert!(worst <= OFF_MAX, "{worst:.4} s");
}

/// The pictures in a stream's own file, each with its number if that can be read, and with its time in the composed file, in
/// seconds. What the worker captured is what can be composed, whatever the sender did.
fn captured(archive: &Downloaded, router_id: &str, code: u16) -> Vec<(Option<u32>, f64)> {
    let stream = archive.stream(router_id).expect("stream")["streamId"].clone();
    let files = archive.manifest["files"].as_array().expect("files");
    let file = files.iter().find(|f| f["streamId"] == stream).expect("file");
    let start = (file["startMs"].as_f64().expect("start")
        - archive.manifest["composed"]["startMs"].as_f64().expect("start"))
        / 1000.0;
    let content = Content::read(&archive.files(router_id)[0]).expect("file");
    let number = |f: &SeenFrame| f.number.filter(|_| f.code == Some(code)).map(u32::from);
    content.frames.iter().map(|f| (number(f), f.pts + start)).collect()
}

/// The files of a stream: from when to when, in seconds of the composed file, and whether they have pictures and sound.
fn spans_of(archive: &Downloaded, router_id: &str) -> Vec<(f64, f64, bool, bool)> {
    let stream = archive.stream(router_id).expect("stream")["streamId"].clone();
    let start = archive.manifest["composed"]["startMs"].as_f64().expect("start");
    let second = |value: &serde_json::Value| (value.as_f64().expect("milliseconds") - start) / 1000.0;
    let files = archive.manifest["files"].as_array().expect("files").iter().filter(|file| file["streamId"] == stream);
    files
        .map(|f| {
            assert_eq!(f["raw"], false, "{f}");
            (second(&f["startMs"]), second(&f["endMs"]), !f["video"].is_null(), !f["audio"].is_null())
        })
        .collect()
}

/// What an `archiver archives` command says.
fn asked(world: &World, arguments: &[&str]) -> String {
    let out = world.command(&[&["archives"], arguments].concat()).expect("command");
    String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout)
}

/// When something was noted in a session's history, in seconds of its composed file.
fn noted(log: &Path, manifest: &serde_json::Value, what: &str) -> f64 {
    let start = manifest["composed"]["startMs"].as_f64().expect("start") / 1000.0;
    let events = history::read(log).expect("history");
    let text = |event: &&history::Event| serde_json::to_string(event).expect("plain data").contains(what);
    let event = events.iter().find(text).unwrap_or_else(|| panic!("no {what} in {events:?}"));
    event.at.as_secs_f64() - start
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layout_and_classes_change_while_the_session_runs_and_again_over_the_finished_log() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    begin(&mut world, "c8", json!({ "outputMode": "composed" })).await;
    let alice = Publisher::start(Options::new(&world.janus, "c8", "alice")).await.expect("alice");
    world.recording(2).await;
    let silent = Options { code: 2, audio: None, ..Options::new(&world.janus, "c8", "bob") };
    let bob = Publisher::start(silent).await.expect("bob");
    world.recording(3).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let id = world.archive("c8", "started").await["archive"].as_str().expect("id").to_owned();
    assert!(asked(&world, &["layout", &id, "--layout", "custom"]).contains("stylesheet goes with type custom"));
    assert!(asked(&world, &["layout", &id, "--layout", "verticalPresentation"]).contains("heartbeat"));
    tokio::time::sleep(Duration::from_secs(4)).await;
    // The next owner goes on with it, and hears what was asked for while there was none.
    world.kill_worker();
    let session: archiver::model::ids::SessionId = "c8".parse().expect("id");
    let stream = archiver::model::ids::StreamId::of_router(&session, "bob").to_string();
    assert!(asked(&world, &["classes", &id, &stream, "two words"]).contains("without blanks"));
    assert!(asked(&world, &["classes", &id, &stream, "focus"]).contains("heartbeat"));
    world.start_worker().expect("worker");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let archive = finished(&mut world, "c8").await;
    let (alice, bob) = (alice.crash().timeline(), bob.crash().timeline());
    assert!(asked(&world, &["layout", &id, "--layout", "pip"]).contains("is not being recorded"));
    let (file, log) = (archive.dir.join("archive.mp4"), tempfile::tempdir().expect("folder"));
    fetch_log(&world, &archive.manifest, log.path()).await;
    let laid_out = noted(log.path(), &archive.manifest, "verticalPresentation");
    let focused = noted(log.path(), &archive.manifest, "focus");
    let end = archive.manifest["durationS"].as_f64().expect("duration");
    // Side by side; then four fifths for the first, then for the one that is in focus.
    let beside = Part { x: 0, y: 120, width: 320, height: 240 };
    let main = Part { x: 128, y: 48, width: 512, height: 384 };
    let before = seen(&file, beside, 1, &alice, laid_out - 1.5, laid_out - 0.05);
    let first = seen(&file, main, 1, &alice, laid_out + 0.05, laid_out + 2.0);
    let second = seen(&file, main, 2, &bob, focused + 2.0, end - 0.1);
    for (name, part, least) in [("before", &before, 30), ("first", &first, 40), ("second", &second, 30)] {
        assert!(part.others.is_empty(), "{name}: {:?}", part.others);
        assert!(part.delays.len() > least, "{name}: {}", part.delays.len());
    }
    // The same again over the finished log, unless one layout is asked for.
    let (again, other) = (log.path().join("again.mp4"), log.path().join("other.mp4"));
    compose(log.path(), &again, &[]);
    assert!(hashes(&file, "v") == hashes(&again, "v"), "the picture differs");
    compose(log.path(), &other, &["--layout", "bestFit"]);
    let still = seen(&other, beside, 1, &alice, laid_out + 0.05, laid_out + 2.0);
    assert!(still.others.is_empty() && still.delays.len() > 40, "{:?}", still.others);
}

/// Waits until the history of the only archive in the spool has a text: what was asked for counts from then on.
async fn history_says(world: &World, text: &str) {
    wait_for(&format!("{text} in the history"), || async {
        let archive = std::fs::read_dir(world.data().join("spool")).ok()?.flatten().next()?;
        let history = std::fs::read_to_string(archive.path().join("history.jsonl")).ok()?;
        history.contains(text).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manual_archive_shows_and_sounds_what_was_added_and_again_over_the_finished_log() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    begin(&mut world, "c10", json!({ "outputMode": "both", "streamMode": "manual" })).await;
    let alice = Publisher::start(Options::new(&world.janus, "c10", "alice")).await.expect("alice");
    world.recording(2).await;
    let silent = Options { code: 2, audio: None, ..Options::new(&world.janus, "c10", "bob") };
    let bob = Publisher::start(silent).await.expect("bob");
    world.recording(3).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let id = world.archive("c10", "started").await["archive"].as_str().expect("id").to_owned();
    let session: archiver::model::ids::SessionId = "c10".parse().expect("id");
    let stream = |name| archiver::model::ids::StreamId::of_router(&session, name).to_string();
    let (of_alice, of_bob) = (stream("alice"), stream("bob"));
    let streams = |world: &World, more: &[&str]| asked(world, &[&["streams", &id], more].concat());
    assert!(streams(&world, &["--add", &of_bob, "--remove", &of_bob]).contains("at once"));
    assert!(streams(&world, &["--add", &of_alice, "--add", &of_bob]).contains("heartbeat"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    // The next owner goes on with it, and hears what was asked for while there was none.
    let killed = unix_seconds(Instant::now());
    world.kill_worker();
    assert!(streams(&world, &["--remove", &of_bob, "--add", &of_alice, "--no-audio"]).contains("heartbeat"));
    world.start_worker().expect("worker");
    history_says(&world, r#""hasAudio":false,"hasVideo":false"#).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(streams(&world, &["--mode", "auto"]).contains("heartbeat"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(streams(&world, &["--add", &of_bob]).contains("stream mode manual only"));
    let archive = finished(&mut world, "c10").await;
    let (alice, bob) = (alice.crash().timeline(), bob.crash().timeline());
    let (file, log) = (archive.dir.join("archive.mp4"), tempfile::tempdir().expect("folder"));
    fetch_log(&world, &archive.manifest, log.path()).await;
    let when = |what| noted(log.path(), &archive.manifest, what);
    let added = when(r#""hasAudio":true,"hasVideo":true"#);
    let (removed, all) = (when(r#""hasAudio":false,"hasVideo":false"#), when(r#""mode":"auto""#));
    let end = archive.manifest["durationS"].as_f64().expect("duration");
    let whole = Part { x: 0, y: 0, width: 640, height: 480 };
    let [left, right] = [0, 320].map(|x| Part { x, y: 120, width: 320, height: 240 });
    // Nobody at first, then both, then alice without her sound, then both with it.
    let nobody = seen(&file, whole, 1, &alice, 0.0, added - 0.05);
    assert!(nobody.delays.is_empty() && nobody.others.len() > 60, "{:?}", nobody.delays);
    let mut delays = Vec::new();
    for (name, part, code, truth, from, to, least) in [
        ("alice is added", left, 1, &alice, added + 0.05, added + 2.0, 50),
        ("and bob", right, 2, &bob, added + 0.05, added + 2.0, 50),
        ("alice alone", whole, 1, &alice, removed + 2.0, all - 0.05, 30),
        ("alice again", left, 1, &alice, all + 0.05, end - 0.1, 50),
        ("bob again", right, 2, &bob, all + 0.05, end - 0.1, 50),
    ] {
        let part = seen(&file, part, code, truth, from, to);
        assert!(part.others.is_empty(), "{name}: {:?}", part.others);
        assert!(part.delays.len() > least, "{name}: {}", part.delays.len());
        delays.extend(part.delays.iter().map(|(_, delay)| *delay));
    }
    let zero = percentile(&delays, 50.0).expect("pictures");
    let beeps = Content::read(&file).expect("file").beeps;
    for (name, from, to, heard) in [
        ("before she is added", 0.0, added, false),
        ("added", added + 0.1, added + 2.5, true),
        ("without her sound", removed + 0.1, all, false),
        ("all streams", all + 0.1, end, true),
    ] {
        let beeps: Vec<f64> = beeps.iter().map(|beep| beep.at).filter(|at| (from..to).contains(at)).collect();
        assert_eq!(!beeps.is_empty(), heard, "{name}, {from:.2} to {to:.2}: {beeps:?}");
    }
    // The files of each stream have what was added, too: begun with a keyframe that was asked for, ended when it was removed.
    for (name, spans) in [
        ("alice", vec![(added, removed, true, true), (removed, all, true, false), (all, end, true, true)]),
        ("bob", vec![(added, removed, true, false), (all, end, true, false)]),
    ] {
        let files = spans_of(&archive, name);
        assert_eq!(files.len(), spans.len(), "{name}: {files:?}");
        for (file, span) in files.iter().zip(&spans) {
            assert!(file.0 > span.0 - 0.001 && file.0 < span.0 + 3.0, "{name} begins: {file:?}, {span:?}");
            // The first span goes on until the next worker lives, however long that takes. Its media end with the one that was killed.
            let least = if span.1 == removed { killed + zero - 1.0 } else { span.1 - 4.0 };
            assert!(file.1 < span.1 + 0.1 && file.1 > least, "{name} ends: {file:?}, {span:?}, {least}");
            assert_eq!((file.2, file.3), (span.2, span.3), "{name}: {file:?}, {span:?}");
        }
    }
    // What was captured does not depend on it.
    let captured = LogReader::open(log.path()).expect("log");
    let of_bob: archiver::model::ids::StreamId = of_bob.parse().expect("id");
    let bob = captured.tracks.iter().find(|track| track.track.stream == of_bob).and_then(|track| track.start());
    let start = archive.manifest["composed"]["startMs"].as_f64().expect("start") / 1000.0;
    assert!(bob.is_some_and(|bob| bob.as_secs_f64() - start < added - 1.0), "bob was not captured: {bob:?}");
    let again = log.path().join("again.mp4");
    compose(log.path(), &again, &[]);
    for track in ["v", "a"] {
        assert!(hashes(&file, track) == hashes(&again, track), "{track} differs");
    }
}

/// A hash of each decoded picture, or block of sound.
pub fn hashes(file: &Path, track: &str) -> String {
    let output = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(file)
        .args(["-map", &format!("0:{track}:0"), "-f", "framemd5", "-"])
        .output()
        .expect("ffmpeg");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The composers of a worker: its children that compose.
fn composers(worker: u32) -> Vec<u32> {
    let parent = |stat: &str| stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok();
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        parent(&read("stat")) == Some(worker) && read("cmdline").contains("\0compose\0")
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_composer_that_is_killed_again_and_again_makes_the_same_archive() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    begin(&mut world, "c2", json!({ "outputMode": "composed" })).await;
    let alice = Publisher::start(Options::new(&world.janus, "c2", "alice")).await.expect("alice");
    world.recording(2).await;
    for kill in 0..10 {
        if kill == 5 {
            // The next worker's composer begins anew.
            world.kill_worker();
            world.start_worker().expect("worker");
        }
        let worker = world.worker_pid().expect("a worker");
        let limit = Instant::now() + deadline();
        let composer = loop {
            match composers(worker).first() {
                Some(composer) => break *composer,
                None => assert!(Instant::now() < limit, "no composer before kill {kill}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..1500))).await;
        let status = std::process::Command::new("kill").args(["-KILL", &composer.to_string()]).status();
        assert!(status.expect("kill").success());
        while composers(worker).contains(&composer) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    alice.leave().await.expect("leave");
    let archive = finished(&mut world, "c2").await;
    let (file, log) = (archive.dir.join("archive.mp4"), tempfile::tempdir().expect("folder"));
    fetch_log(&world, &archive.manifest, log.path()).await;
    let again = log.path().join("again.mp4");
    compose(log.path(), &again, &[]);
    assert_eq!(archive.manifest["composed"]["errors"], json!([]));
    for track in ["v", "a"] {
        assert!(hashes(&file, track) == hashes(&again, track), "{track} differs");
    }
    // The bytes too: what is in the store already need not be sent again.
    assert!(media(&file) == media(&again), "the media differs");
    segments_are_kept_for_a_while(&world, &archive.manifest).await;
    let died = world.log().matches("the composer died").count();
    assert!(died >= 9, "{died} of 10 deaths are told");
}

/// The segments of an archive that lacks media are there until what it lacks will not come any more; its file stays.
async fn segments_are_kept_for_a_while(world: &World, manifest: &serde_json::Value) {
    let (keys, settings) = (keys(manifest), settings(world));
    let store = archiver::app::services::store(&settings).await.expect("store");
    let catalog = archiver::app::services::catalog(&settings).await.expect("catalog");
    let day = Duration::from_secs(24 * 3600);
    let now = archiver::model::time::Wallclock::now();
    for (moment, swept) in [(now, 0), (now + day + day, 0), (now + 8 * day, 1)] {
        let there = store.list(&keys.segments()).await.expect("list").len();
        assert!(there > 0, "kept for less than a week");
        let of = sweep_segments(store.as_ref(), catalog.as_ref(), day, moment).await.expect("sweep");
        assert_eq!(of, swept);
    }
    assert_eq!(store.list(&keys.segments()).await.expect("list").len(), 0);
    assert!(store.head(&keys.key(Kind::Mp4)).await.expect("head").is_some());
}

/// The media of an MP4 file, as it lies there.
fn media(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).expect("file");
    let at = bytes.windows(4).position(|four| four == b"mdat").expect("media");
    // Behind the box's name is its size.
    bytes[at + 12..].to_vec()
}

/// What kinds of tracks a file has.
fn kinds(file: &Path) -> Vec<String> {
    let mut probe = std::process::Command::new("ffprobe");
    probe.args(["-v", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0"]).arg(file);
    let output = probe.output().expect("ffprobe");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn compose(log: &Path, out: &Path, more: &[&str]) {
    let output = std::process::Command::new(BINARY).arg("compose").arg(log).arg("--out").arg(out).args(more).output();
    let output = output.expect("archiver compose");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A part of an archive, made again with another size and layout, is an archive of its own with just that part.
fn clipped(world: &World, archive: &str, alice: &Timeline, joined: f64, zero: f64) {
    let (from, to) = (joined + 0.5, joined + 3.5);
    let [from_text, to_text] = [from, to].map(|seconds| format!("{seconds:.3}"));
    let asked =
        ["archives", "recompose", archive, "--layout", "verticalPresentation", "--resolution", "1280x720", "--json"];
    let made = world.json(&[&asked[..], &["--from", &from_text, "--to", &to_text]].concat()).expect("recompose");
    let new = made["archive"].as_str().expect("id");
    assert_ne!(new, archive);
    assert_eq!(made["durationS"], 3);
    let clip = world.download(&made).expect("download");
    // The one who came first is large, at the right.
    let content =
        Content::read_part(&clip.dir.join("archive.mp4"), Some(Part { x: 288, y: 0, width: 960, height: 720 }));
    let frames = content.expect("file").frames;
    let sent = alice.first_frames();
    assert!(frames.len().abs_diff(90) <= 1, "{} pictures", frames.len());
    let delays: Vec<f64> = frames
        .iter()
        .filter(|f| f.code == Some(1))
        .filter_map(|f| Some(f.pts + from - sent.get(&u32::from(f.number?))? - zero))
        .collect();
    assert!(delays.len() >= 85, "alice is seen in {} of {} pictures", delays.len(), frames.len());
    assert!(delays.iter().all(|delay| delay.abs() <= INTERVALS), "{delays:.3?}");
    let nowhere = world.command(&["archives", "recompose", "00000000-0000-4000-8000-000000000000"]).expect("command");
    let why = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(!nowhere.status.success() && why.contains("no finished archive"), "{why}");
}

/// Who is in the picture between two moments of the file, in the order of priority.
struct Scene<'a> {
    from: f64,
    to: f64,
    shown: Vec<(u16, &'a Timeline)>,
}

/// Where each of so many pictures of 4:3 is drawn.
fn places(count: usize, frame: Size) -> Vec<Part> {
    let shown = LayoutStream { size: Some((320, 240)), ..LayoutStream::default() };
    let cells = place(&Layout::default(), frame, &vec![shown; count]);
    let part = |area: Rect| Part { x: area.x, y: area.y, width: area.width, height: area.height };
    cells.iter().map(|cell| part(cell.area.contain(Size::new(320, 240)))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn late_muted_shared_and_silent_streams_are_where_they_belong_when_they_should() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    let codecs = json!({ "audiocodec": "opus,pcma", "videocodec": "vp8,vp9,h264" });
    world.janus.create_room("c3", codecs).await.expect("room");
    let mut started = world.started("c3");
    started["data"]["archive"] = json!({ "outputMode": "composed", "resolution": "1280x720" });
    world.publish(&started).expect("publish");
    let quiet = |id: &str, code: u16, video: VideoCodec| Options {
        code,
        video: Some(video),
        audio: None,
        ..Options::new(&world.janus, "c3", id)
    };
    let alice = Publisher::start(quiet("alice", 1, VideoCodec::Vp8)).await.expect("alice");
    let voice = Options { video: None, audio: Some(AudioCodec::Pcma), ..Options::new(&world.janus, "c3", "carol") };
    let carol = Publisher::start(voice).await.expect("carol");
    world.recording(2).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let bob = Publisher::start(quiet("bob", 2, VideoCodec::H264)).await.expect("bob");
    world.recording(3).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let display = json!({ "name": "Slides", "videoType": "screen" }).to_string();
    let screen = Publisher::start(Options { display, ..quiet("screen", 3, VideoCodec::Vp9) }).await.expect("screen");
    world.recording(4).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = || unix_seconds(Instant::now());
    bob.mute_video(true);
    let muted = now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    bob.mute_video(false);
    let unmuted = now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let end = now();
    let archive = finished(&mut world, "c3").await;
    let [alice, bob, carol, screen] = [alice, bob, carol, screen].map(|publisher| publisher.crash().timeline());
    assert_eq!(archive.manifest["composed"]["errors"], json!([]));
    let file = archive.dir.join("archive.mp4");

    // When the file begins, by the publishers' clock: at first alice fills the frame.
    let alone = seen(&file, places(1, Size::new(1280, 720))[0], 1, &alice, 0.5, 2.5);
    let zero = -percentile(&alone.delays.iter().map(|(_, delay)| *delay).collect::<Vec<_>>(), 50.0).expect("pictures");
    let first = |of: &Timeline| of.frames.first().expect("pictures").1;
    let scenes = [
        Scene { from: zero + 0.7, to: first(&bob) - 0.2, shown: vec![(1, &alice)] },
        Scene { from: first(&bob) + 1.2, to: first(&screen) - 0.2, shown: vec![(1, &alice), (2, &bob)] },
        Scene { from: first(&screen) + 1.2, to: muted - 0.2, shown: vec![(3, &screen), (1, &alice), (2, &bob)] },
        // What has no further picture is held for two seconds.
        Scene { from: muted + 2.3, to: unmuted - 0.1, shown: vec![(3, &screen), (1, &alice)] },
        Scene { from: unmuted + 1.5, to: end - 0.3, shown: vec![(3, &screen), (1, &alice), (2, &bob)] },
    ];
    let mut delays = Vec::new();
    for (number, scene) in scenes.iter().enumerate() {
        assert!(scene.to - scene.from > 1.0, "scene {number} lasts {} s", scene.to - scene.from);
        for (part, (code, truth)) in places(scene.shown.len(), Size::new(1280, 720)).into_iter().zip(&scene.shown) {
            let seen = seen(&file, part, *code, truth, scene.from - zero, scene.to - zero);
            assert!(seen.others.is_empty(), "scene {number}, {code}: {:.2?}", seen.others);
            let least = ((scene.to - scene.from) * 30.0) as usize - 2;
            assert!(seen.delays.len() >= least, "scene {number}, {code}: {} of {least}", seen.delays.len());
            delays.extend(seen.delays.iter().map(|(_, delay)| *delay));
        }
    }
    println!("pictures of three codecs within {:.1} ms", 1000.0 * spread(&delays));
    assert!(spread(&delays) <= INTERVALS + 0.005, "{:.4} s", spread(&delays));
    let zero = percentile(&delays, 50.0).expect("pictures");
    let beeps = carol.first_beeps();
    let heard = Content::read(&file).expect("file").beeps;
    let heard: Vec<f64> = heard.iter().filter_map(|b| Some(b.at - beeps.get(&b.second)? - zero)).collect();
    assert!(heard.len() >= 15 && heard.iter().all(|offset| offset.abs() <= OFFSET_MAX), "{heard:.4?}");
}
