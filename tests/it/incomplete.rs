//! Archives that lack something say so: in manifest, report, API object, event, command line and metrics.

use archiver::model::time::Wallclock;
use archiver_testkit::content::{Content, SeenFrame, Timeline};
use archiver_testkit::publisher::{AudioCodec, Options, Publisher, VideoCodec};
use archiver_testkit::wait::wait_for;
use archiver_testkit::world::{Downloaded, World};
use serde_json::{Value, json};

use crate::BINARY;

/// A world with a worker and a room, in which a session is recorded.
async fn recording(session: &str, room: Value, more: &str) -> World {
    recording_with(session, room, more, json!({ "outputMode": "individual" })).await
}

/// The same with the archive's options in the event.
async fn recording_with(session: &str, room: Value, more: &str, archive: Value) -> World {
    let mut world = World::start(BINARY, None, more).await.expect("world");
    world.janus.create_room(session, room).await.expect("room");
    world.start_worker().expect("worker");
    let mut started = world.started(session);
    started["data"]["archive"] = archive;
    world.publish(&started).expect("publish");
    world
}

/// Ends a session, and returns its archive's row and files.
async fn ended(world: &mut World, session: &str) -> (Value, Downloaded) {
    let ended = world.ended(session);
    world.publish(&ended).expect("publish");
    let row = world.archive(session, "available").await;
    let files = world.download(&row).expect("download");
    assert_eq!(files.manifest["complete"], files.report["complete"]);
    assert_eq!(files.manifest["missing"], files.report["missing"]);
    assert_eq!(row["missing"], files.manifest["missing"], "catalog and manifest");
    (row, files)
}

/// Waits for a line of a session's history.
async fn history(world: &World, text: &str) {
    wait_for(&format!("{text} in the history\n{}", world.log()), || async {
        let archive = std::fs::read_dir(world.data().join("spool")).ok()?.flatten().next()?;
        let history = std::fs::read_to_string(archive.path().join("history.jsonl")).ok()?;
        history.contains(text).then_some(())
    })
    .await;
}

/// What an archive lacks: kind and cause of each entry, in the order of their names. In the manifest, the longest gap comes first.
fn lacks(files: &Downloaded) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().expect("text").to_owned();
    let all = files.manifest["missing"].as_array().expect("missing");
    let mut lacks: Vec<_> = all.iter().map(|one| (text(&one["kind"]), text(&one["cause"]))).collect();
    lacks.sort();
    lacks
}

fn pair(kind: &str, cause: &str) -> (String, String) {
    (kind.to_owned(), cause.to_owned())
}

/// Seconds of a track's gaps with a cause.
fn gap(files: &Downloaded, stream: &str, kind: &str, cause: &str) -> f64 {
    let track = files.track(stream, kind).unwrap_or_else(|| panic!("no {kind} of {stream}: {}", files.report));
    let gaps = track["gaps"].as_array().expect("gaps");
    let second = |v: &Value| v.as_f64().expect("a number") / 1e9;
    gaps.iter().filter(|g| g["cause"] == cause).map(|g| second(&g["to"]) - second(&g["from"])).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn h264_in_a_profile_that_the_library_does_not_know_is_recorded() {
    let mut world = recording("safari", json!({ "videocodec": "h264", "h264_profile": "640c1f" }), "").await;
    let options = Options {
        video: Some(VideoCodec::H264),
        h264_profile: Some(0x64_0c1f),
        ..Options::new(&world.janus, "safari", "alice")
    };
    let publisher = Publisher::start(options).await.expect("publisher");
    world.recording(2).await;
    publisher.pictures_pass(150).await;
    let truth = publisher.leave().await.expect("left").timeline();
    let (_, files) = ended(&mut world, "safari").await;
    assert_eq!((lacks(&files), files.manifest["complete"].clone()), (vec![], json!(true)), "{}", files.report);
    let content = Content::read(&files.files("alice")[0]).expect("file");
    let matched = content.against(&truth);
    assert!(matched.frames.len() > 100, "{} pictures", matched.frames.len());
    assert_eq!(matched.strange, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_codec_that_cannot_be_received_is_named_beside_what_is_recorded() {
    let mut world = recording("g722", json!({ "audiocodec": "g722", "videocodec": "vp8" }), "").await;
    let options = |id: &str| Options { audio: Some(AudioCodec::G722), ..Options::new(&world.janus, "g722", id) };
    let seen = Publisher::start(options("seen")).await.expect("publisher");
    let heard = Publisher::start(Options { video: None, ..options("heard") }).await.expect("publisher");
    world.recording(1).await;
    history(&world, "none of the stream's formats is supported").await;
    seen.pictures_pass(120).await;
    drop((seen.leave().await.expect("left"), heard.leave().await.expect("left")));
    let (row, files) = ended(&mut world, "g722").await;
    let unsupported: Vec<_> = lacks(&files).into_iter().filter(|(_, cause)| cause == "unsupported").collect();
    assert_eq!(unsupported, [pair("audio", "unsupported"), pair("audio", "unsupported")], "{}", files.manifest);
    assert_eq!(files.manifest["complete"], false);
    for stream in ["seen", "heard"] {
        let track = files.track(stream, "audio").expect("the track that never came");
        assert_eq!((&track["codecs"], &track["announcedCodec"]), (&json!([]), &json!("g722")), "{track}");
        assert!(track["details"].to_string().contains("G722"), "{track}");
        assert!(gap(&files, stream, "audio", "unsupported") > 3.0, "{track}");
    }
    assert_eq!(files.files("seen").len(), 1, "the picture is there");
    // Whoever looks at the job's log, the command line or the metrics hears it too.
    let log = world.log();
    assert_eq!(log.matches("not subscribed, trying again").count(), 1, "told once: {log}");
    let shown = world.command(&["archives", "show", row["archive"].as_str().expect("id")]).expect("command");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("unsupported") && shown.contains("G722"), "{shown}");
    let metrics = world.metrics().expect("metrics");
    assert!(metrics.contains("archiver_archives_incomplete_total 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_beyond_the_limit_is_named_and_recorded_as_soon_as_a_place_is_free() {
    let mut world = recording("many", json!({}), "[capture]\nstreams_max = 1").await;
    let first = Publisher::start(Options::new(&world.janus, "many", "first")).await.expect("publisher");
    world.recording(2).await;
    let second = Publisher::start(Options::new(&world.janus, "many", "second")).await.expect("publisher");
    history(&world, "\"missing\":\"limit\"").await;
    second.pictures_pass(120).await;
    drop(first.leave().await.expect("left"));
    world.recording(4).await;
    second.pictures_pass(90).await;
    let truth = second.leave().await.expect("left").timeline();
    let (_, files) = ended(&mut world, "many").await;
    assert_eq!(files.manifest["complete"], false);
    for kind in ["audio", "video"] {
        let beyond = gap(&files, "second", kind, "limit");
        assert!((3.5..15.0).contains(&beyond), "{beyond:.1} s of {kind}: {}", files.report);
        assert!(gap(&files, "first", kind, "limit") < 0.001, "the first one was recorded");
    }
    let details = files.track("second", "video").expect("track")["details"].to_string();
    assert!(details.contains("capture.streams_max = 1"), "{details}");
    let content = Content::read(&files.files("second")[0]).expect("file");
    let matched = content.against(&truth);
    assert!(matched.frames.len() > 50 && matched.strange == 0, "{} pictures", matched.frames.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_router_refuses_is_named_and_recorded_as_soon_as_it_allows_it() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    let (pin, with_pin) = ("of the recorder", "api_secret = \"api-secret\"\npin = \"of the recorder\"");
    world.configure(&[("api_secret = \"api-secret\"", with_pin)], "").expect("configuration");
    world.janus.create_room("refused", json!({ "pin": pin })).await.expect("room");
    world.start_worker().expect("worker");
    let started = world.started("refused");
    world.publish(&started).expect("publish");
    let options =
        |id: &str, pin: &str| Options { pin: Some(pin.to_owned()), ..Options::new(&world.janus, "refused", id) };
    let alice = Publisher::start(options("alice", pin)).await.expect("alice");
    world.recording(2).await;
    // The recorder is in the room, but may subscribe to nobody else.
    world.janus.change_pin("refused", "another").await.expect("pin");
    let bob = Publisher::start(options("bob", "another")).await.expect("bob");
    history(&world, "\"missing\":\"refused\"").await;
    bob.pictures_pass(120).await;
    world.janus.change_pin("refused", pin).await.expect("pin");
    world.recording(4).await;
    bob.pictures_pass(60).await;
    drop(alice.leave().await.expect("left"));
    drop(bob.leave().await.expect("left"));
    let log = world.log();
    let (_, files) = ended(&mut world, "refused").await;
    let missing = lacks(&files);
    assert_eq!(missing, [pair("audio", "refused"), pair("video", "refused")]);
    for kind in ["audio", "video"] {
        let refused = gap(&files, "bob", kind, "refused");
        assert!(refused > 3.0, "{refused:.1} s of {kind}: {}", files.report);
    }
    let details = files.track("bob", "video").expect("track")["details"].to_string();
    assert!(details.contains("Unauthorized"), "{details}");
    // It is tried again and again, and told once.
    assert_eq!(log.matches("not subscribed, trying again").count(), 1, "{log}");
    assert_eq!(files.files("bob").len(), 1, "{}", files.manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_camera_that_is_never_switched_on_makes_no_archive_incomplete() {
    let mut world = recording("off", json!({}), "").await;
    let publisher = Publisher::start(Options::new(&world.janus, "off", "alice")).await.expect("publisher");
    publisher.mute_video(true);
    world.recording(1).await;
    publisher.pictures_pass(180).await;
    drop(publisher.leave().await.expect("left"));
    let (_, files) = ended(&mut world, "off").await;
    assert!(gap(&files, "alice", "video", "not_sent") > 4.0, "{}", files.report);
    assert_eq!((lacks(&files), files.manifest["complete"].clone()), (vec![], json!(true)), "{}", files.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_picture_of_a_publisher_is_a_stream_of_its_own() {
    let mut world = recording("screen", json!({}), "").await;
    let options = Options { screen: Some(77), ..Options::new(&world.janus, "screen", "alice") };
    let publisher = Publisher::start(options).await.expect("publisher");
    world.recording(3).await;
    publisher.pictures_pass(120).await;
    let truth = publisher.leave().await.expect("left");
    let (_, files) = ended(&mut world, "screen").await;
    assert_eq!((lacks(&files), files.manifest["complete"].clone()), (vec![], json!(true)), "{}", files.report);
    let streams = files.report["streams"].as_array().expect("streams");
    let screen = streams.iter().find(|stream| stream["name"] == "screen").expect("the screen");
    assert_eq!(streams.len(), 2, "{streams:?}");
    for (router_id, code, timeline) in
        [("alice", 1, truth.timeline()), (screen["routerId"].as_str().expect("id"), 77, truth.screen_timeline())]
    {
        let content = Content::read(&files.files(router_id)[0]).expect("file");
        assert!(content.frames.iter().all(|frame| frame.code == Some(code)), "a picture of another stream");
        let matched = content.against(&timeline);
        assert_eq!((matched.missing.len(), matched.strange), (0, 0), "{router_id}");
        assert!(matched.frames.len() > 100, "{router_id}: {} pictures", matched.frames.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_publishers_with_one_stream_id_are_both_recorded() {
    let mut world = recording("twice", json!({}), "").await;
    let display = json!({ "name": "Alice", "streamId": "11111111-1111-4111-8111-111111111111" }).to_string();
    let options =
        |id: &str, code| Options { display: display.clone(), code, ..Options::new(&world.janus, "twice", id) };
    let first = Publisher::start(options("first", 1)).await.expect("publisher");
    world.recording(2).await;
    first.pictures_pass(90).await;
    // The same client comes again, beside its ghost.
    let second = Publisher::start(options("second", 2)).await.expect("publisher");
    world.recording(4).await;
    second.pictures_pass(90).await;
    let ghost = first.leave().await.expect("left").timeline();
    // The one that is there goes on when the ghost goes.
    second.pictures_pass(120).await;
    let truth = second.leave().await.expect("left").timeline();
    let (_, files) = ended(&mut world, "twice").await;
    let mut seen = Vec::new();
    for stream in files.report["streams"].as_array().expect("streams") {
        let id = &stream["streamId"];
        let list = files.manifest["files"].as_array().expect("files");
        for file in list.iter().filter(|file| file["streamId"] == *id) {
            let path = files.dir.join(file["name"].as_str().expect("name"));
            let content = Content::read(&path).expect("file");
            assert_eq!(content.errors, Vec::<String>::new());
            seen.extend(content.frames);
        }
    }
    let (of_ghost, of_last) = (since_seen(&ghost, &seen, 1), since_seen(&truth, &seen, 2));
    let before = ghost.frames.len() + truth.frames.len() - of_ghost - of_last;
    assert!(before < 120, "{before} pictures were sent before the recorder was there");
    // The ghost's change of its id takes the time of a subscription.
    let sent = of_ghost + of_last;
    let seen = seen.len();
    assert!(seen + 60 > sent && seen <= sent, "{seen} of {sent} pictures: {}", files.report);
    // The id is that of the one that came last, with all that was sent since it was there.
    let path = files.dir.join("11111111-1111-4111-8111-111111111111.webm");
    let content = Content::read(&path).expect("file");
    let of_second = content.frames.iter().filter(|frame| frame.code == Some(2)).count();
    let last = since_seen(&truth, &content.frames, 2);
    assert!(of_second + 30 > last, "{of_second} of {last} pictures of the one that came last");
    assert_eq!(content.frames.last().expect("pictures").code, Some(2));
}

/// Pictures that a publisher sent since the first of its pictures that was seen. The recorder's way to a publisher takes time, too.
fn since_seen(truth: &Timeline, seen: &[SeenFrame], code: u16) -> usize {
    let is_seen =
        |number: u32| seen.iter().any(|frame| frame.code == Some(code) && frame.number.map(u32::from) == Some(number));
    truth.frames.iter().skip_while(|(number, _)| !is_seen(*number)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_camera_that_goes_and_comes_by_renegotiation_costs_no_sound() {
    let mut world = recording("camera", json!({}), "").await;
    let publisher = Publisher::start(Options::new(&world.janus, "camera", "alice")).await.expect("publisher");
    world.recording(2).await;
    for _ in 0..2 {
        publisher.pictures_pass(90).await;
        publisher.add_video(false).await;
        publisher.pictures_pass(60).await;
        publisher.add_video(true).await;
    }
    publisher.pictures_pass(120).await;
    let truth = publisher.leave().await.expect("left").timeline();
    let (_, files) = ended(&mut world, "camera").await;
    assert_eq!((lacks(&files), files.manifest["complete"].clone()), (vec![], json!(true)), "{}", files.report);
    let sound = files.track("alice", "audio").expect("track");
    assert_eq!(sound["gaps"], json!([]), "{sound}");
    let [file] = files.files("alice").try_into().expect("one file");
    let content = Content::read(&file).expect("file");
    assert_eq!(content.errors, Vec::<String>::new());
    let matched = content.against(&truth);
    assert_eq!(
        matched.strange,
        0,
        "{}\n{:?}",
        files.report,
        content.frames.iter().map(|f| (f.number, (f.pts * 1000.0) as i64)).collect::<Vec<_>>()
    );
    // Each time the camera comes, the first pictures are sent before the recorder has it.
    assert!(matched.missing.len() < 60, "{} of {} pictures are missing", matched.missing.len(), truth.frames.len());
    let last = matched.frames.last().expect("pictures").sent;
    assert!(truth.frames.last().expect("pictures").1 - last < 0.5, "the camera that came last is not in the file");
    // The recorder joins while the publisher beeps already; from then on only the last beep may be cut.
    let first = matched.beeps.first().expect("beeps").sent;
    let sent = truth.beeps.iter().filter(|(_, at)| *at >= first).count();
    assert!(matched.beeps.len() + 1 >= sent, "{} of {sent} beeps", matched.beeps.len());
}

/// After such a change Janus's reports of the picture are wrong for as long as the camera was off, and by as much.
#[tokio::test(flavor = "multi_thread")]
async fn a_camera_that_was_off_for_long_is_in_step_with_its_sound() {
    let both = json!({ "outputMode": "both", "resolution": "640x480" });
    let mut world = recording_with("camera-off", json!({}), "", both).await;
    let publisher = Publisher::start(Options::new(&world.janus, "camera-off", "alice")).await.expect("publisher");
    world.recording(2).await;
    publisher.pictures_pass(90).await;
    publisher.add_video(false).await;
    publisher.pictures_pass(15 * 30).await;
    publisher.add_video(true).await;
    publisher.pictures_pass(13 * 30).await;
    let truth = publisher.leave().await.expect("left").timeline();
    let (_, files) = ended(&mut world, "camera-off").await;
    let [file] = files.files("alice").try_into().expect("one file");
    for file in [file, files.dir.join("archive.mp4")] {
        let matched = Content::read(&file).expect("file").against(&truth);
        let late = matched.sound_after_picture();
        assert!(late.len() > 12, "{} beeps have pictures beside them", late.len());
        assert!(late.iter().all(|late| late.abs() < 0.06), "{}: {late:?}", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_while_the_event_waited_is_missing() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.janus.create_room("late", json!({})).await.expect("room");
    // The first worker makes the queue. Then there is none.
    world.start_worker().expect("worker");
    wait_for("the queue", || async { world.log().contains("source=Events").then_some(()) }).await;
    assert!(world.stop_worker(), "{}", world.log());
    let mut started = world.started("late");
    started["time"] = json!(Wallclock::now().to_rfc3339());
    world.publish(&started).expect("publish");
    let publisher = Publisher::start(Options::new(&world.janus, "late", "alice")).await.expect("publisher");
    publisher.pictures_pass(30 * 12).await;
    world.start_worker().expect("worker");
    world.recording(2).await;
    publisher.pictures_pass(60).await;
    let truth = publisher.crash().timeline();
    let (row, files) = ended(&mut world, "late").await;
    assert_eq!(files.manifest["complete"], false, "{}", files.report);
    assert_eq!(lacks(&files), [pair("audio", "worker"), pair("video", "worker")], "{row}");
    let matched = Content::read(&files.files("alice")[0]).expect("file").against(&truth);
    let sent = truth.frames.len();
    let (before, told) = (matched.before as f64 / 30.0, gap(&files, "alice", "video", "worker"));
    println!("{before:.1} s of {sent} pictures are missing, {told:.1} s are told");
    // The publisher takes a moment to connect: nobody knows that it was not there with the event.
    assert!(
        before > 11.0 && told >= before - 0.1 && told < before + 4.0,
        "{before:.1} s are missing, {told:.1} s are told"
    );
}
