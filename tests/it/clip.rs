//! Parts of composed archives that are cut out without encoding: the same samples, at the same times.

use crate::BINARY;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::composed::{begin, fetch_log, finished, keys, settings};
use archiver_testkit::chromium::ChromiumPublisher;
use archiver_testkit::content::Content;
use archiver_testkit::publisher::{Options, Publisher};
use archiver_testkit::world::World;
use serde_json::{Value, json};

/// Seconds of a picture.
const PICTURE: f64 = 1.0 / 30.0;
/// Sound may be this far from where it was, in seconds.
const OFFSET_MAX: f64 = 0.005;

/// A coded picture or frame of sound.
#[derive(Debug, Clone, PartialEq)]
struct Packet {
    at: f64,
    hash: String,
    keyframe: bool,
    /// It is there for others, and not played.
    hidden: bool,
}

fn run(program: &str, arguments: &[&str], file: &Path, more: &[&str]) -> String {
    let output = Command::new(program).args(arguments).arg(file).args(more).output().expect(program);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.is_empty(), "{}: {told}", file.display());
    String::from_utf8(output.stdout).expect("text")
}

fn packets(file: &Path, track: &str) -> Vec<Packet> {
    let arguments = ["-v", "error", "-select_streams", track, "-show_packets", "-show_data_hash", "MD5", "-of", "json"];
    let told: Value = serde_json::from_str(&run("ffprobe", &arguments, file, &[])).expect("JSON");
    let packet = |packet: &Value| {
        let text = |key: &str| packet[key].as_str().unwrap_or_else(|| panic!("{key} of {packet}"));
        let flags = text("flags");
        let at = text("pts_time").parse().expect("a time");
        Packet { at, hash: text("data_hash").to_owned(), keyframe: flags.contains('K'), hidden: flags.contains('D') }
    };
    told["packets"].as_array().expect("packets").iter().map(packet).collect()
}

/// The hash of each decoded picture.
fn pictures(file: &Path) -> Vec<String> {
    let more = ["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framemd5", "-"];
    let told = run("ffmpeg", &["-v", "error", "-xerror", "-i"], file, &more);
    let lines = told.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit(',').next().unwrap_or_default().trim().to_owned()).collect()
}

fn duration(file: &Path) -> f64 {
    let entries = ["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"];
    run("ffprobe", &entries, file, &[]).trim().parse().expect("a duration")
}

/// Makes a clip, which must be of these pictures of the archive in `file`, and returns its row.
fn clip_is_right(world: &World, of: &Value, file: &Path, arguments: &[&str], from: usize, to: usize) -> Value {
    let id = of["archiveId"].as_str().expect("id");
    let made = world.json(&[&["archives", "clip", id, "--json"], arguments].concat()).expect("clip");
    let clip = world.download(&made).expect("download");
    let out = clip.dir.join("archive.mp4");
    let (begin, end) = (from as f64 * PICTURE, to as f64 * PICTURE);

    // It is an archive of its own.
    let new = made["archive"].as_str().expect("id");
    assert!(new != id && clip.manifest["archiveId"] == new, "{made}");
    assert_eq!(clip.manifest["composed"]["pictures"], to - from);
    let start = |manifest: &Value| manifest["composed"]["startMs"].as_f64().expect("start") / 1000.0;
    assert!((start(&clip.manifest) - start(of) - begin).abs() <= 0.001);
    assert!(clip.report["archiveId"] == new);
    let verified = world.command(&["archives", "verify", new]).expect("verify");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));

    // The same pictures in the same order; what is beyond the end is not shown.
    assert!((duration(&out) - (end - begin)).abs() <= PICTURE, "{} s", duration(&out));
    let (all, copied) = (packets(file, "v:0"), packets(&out, "v:0"));
    let inside = |packet: &&Packet| (begin - 0.001..end - 0.001).contains(&packet.at);
    let hashes = |packets: &mut dyn Iterator<Item = &Packet>| packets.map(|p| p.hash.clone()).collect::<Vec<_>>();
    let shown = hashes(&mut copied.iter().filter(|p| !p.hidden));
    assert_eq!(shown, hashes(&mut all.iter().filter(inside)));
    let hidden = copied.iter().filter(|p| p.hidden).count();
    let decoded = pictures(&out);
    assert_eq!(decoded.len(), to - from);
    assert!(decoded == pictures(file)[from..to], "a decoded picture differs");

    // The same frames of sound, as far from their pictures as they were.
    let (sound, copied_sound) = (packets(file, "a:0"), packets(&out, "a:0"));
    let mut worst = 0.0_f64;
    for (all, copied) in [(&all, &copied), (&sound, &copied_sound)] {
        for packet in copied {
            let near = all.iter().filter(|p| p.hash == packet.hash).map(|p| (p.at - begin - packet.at).abs());
            worst = worst.max(near.fold(f64::INFINITY, f64::min));
        }
    }
    assert!(worst <= OFFSET_MAX, "{worst} s");
    let lasts = 1024.0 / 48_000.0;
    let heard = sound.iter().filter(|p| p.at + lasts > begin + 0.0001 && p.at < end - 0.0001);
    assert!(heard.clone().all(|p| copied_sound.iter().any(|c| c.hash == p.hash)), "sound is missing");
    assert!(copied_sound.len() <= heard.count() + 1, "{} frames of sound", copied_sound.len());
    let (content, whole) = (Content::read(&out).expect("file"), Content::read(file).expect("file"));
    assert!(content.errors.is_empty(), "{:?}", content.errors);
    let beeps: HashMap<u32, f64> = whole.beeps.iter().map(|b| (b.second, b.at - begin)).collect();
    let off: Vec<f64> = content.beeps.iter().filter_map(|b| Some(b.at - beeps.get(&b.second)?)).collect();
    assert!(!off.is_empty() && off.iter().all(|off| off.abs() <= OFFSET_MAX), "{off:?}");
    println!(
        "pictures {from}..{to}: {hidden} not shown, samples {:.3} ms and beeps {off:.4?} s from their times",
        1000.0 * worst
    );
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_from_a_keyframe_on_has_the_samples_of_its_archive_when_the_segments_are_gone() {
    let mut world = World::start(BINARY, None, "").await.expect("world");
    world.start_worker().expect("worker");
    begin(&mut world, "c10", json!({ "outputMode": "composed" })).await;
    let alice = Publisher::start(Options::new(&world.janus, "c10", "alice")).await.expect("alice");
    world.recording(2).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    alice.leave().await.expect("leave");
    let archive = finished(&mut world, "c10").await;
    let (file, id) = (archive.dir.join("archive.mp4"), archive.manifest["archiveId"].as_str().expect("id"));

    // What a re-composition needs is gone.
    let log = tempfile::tempdir().expect("folder");
    fetch_log(&world, &archive.manifest, log.path()).await;
    let (store, keys) =
        (archiver::app::services::store(&settings(&world)).await.expect("store"), keys(&archive.manifest));
    for object in store.list(&keys.segments()).await.expect("list") {
        store.delete(&object.key).await.expect("delete");
    }
    let gone = world.command(&["archives", "recompose", id]).expect("recompose");
    assert!(String::from_utf8_lossy(&gone.stderr).contains("not kept any more"));

    let all = packets(&file, "v:0");
    let number = |at: f64| (at / PICTURE).round() as usize;
    let keyframes: Vec<usize> = all.iter().filter(|p| p.keyframe).map(|p| number(p.at)).collect();
    println!("{} pictures, keyframes {keyframes:?}", all.len());
    let (first, second) = (keyframes[1], keyframes[2]);
    // Ends at which the last picture leans on one that is shown behind it.
    let leans = |end: &usize| {
        let last = all.iter().position(|p| number(p.at) + 1 == *end);
        last.is_some_and(|last| all[..last].iter().any(|p| number(p.at) >= *end))
    };
    let splits = (second + 50..all.len() - 5).find(leans).expect("pictures in another order");
    let time = |picture: usize| format!("{:.3}", picture as f64 * PICTURE);
    let (from, to) = (time(first), time(splits));
    let made = clip_is_right(&world, &archive.manifest, &file, &["--from", &from, "--to", &to], first, splits);
    clip_is_right(&world, &archive.manifest, &file, &["--to", &to], 0, splits);
    clip_is_right(&world, &archive.manifest, &file, &["--from", &time(second)], second, all.len());

    // Beside a keyframe it says what can be done, and does the nearest when asked.
    let beside = time(first + 10);
    let refused = world.command(&["archives", "clip", id, "--from", &beside]).expect("clip");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{why}");
    println!("{why}");
    let nearest = format!("the nearest are at {} s and {} s", time(first), time(second));
    for part in [&nearest, &format!("recompose {id} --from"), "--at-keyframe"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    let asked = ["--from", &beside, "--to", &to, "--at-keyframe"];
    clip_is_right(&world, &archive.manifest, &file, &asked, first, splits);
    let behind = world.command(&["archives", "clip", id, "--from", "3600"]).expect("clip");
    assert!(String::from_utf8_lossy(&behind.stderr).contains("there is no picture between"));

    // A part of a part, and a browser that plays one.
    let clip = world.download(&made).expect("download");
    let again = (second - first, splits - first - 1);
    let (from, to) = (time(again.0), time(again.1));
    let of = clip.dir.join("archive.mp4");
    clip_is_right(&world, &clip.manifest, &of, &["--from", &from, "--to", &to], again.0, again.1);
    let shown = world.json(&["archives", "show", made["archive"].as_str().expect("id"), "--json"]).expect("show");
    let end = (splits - first) as f64 * PICTURE;
    let times = [end - 0.5, 0.5, end / 2.0];
    let played =
        ChromiumPublisher::play(shown["url"].as_str().expect("url"), &times).await.expect("a browser plays it");
    // Chromium counts the pictures behind the end, which it is told not to show.
    let counted = packets(&of, "v:0").iter().map(|p| p.at + PICTURE).fold(end, f64::max);
    assert!((end - PICTURE..counted + 0.001).contains(&played.duration), "{} s of {end} s", played.duration);
    let apart = times.iter().zip(&played.seen).map(|(to, at)| (to - at).abs()).fold(0.0, f64::max);
    assert!(played.seen.len() == 3 && apart <= PICTURE + 0.001, "{:?} instead of {times:?}", played.seen);
}
