use super::*;
use crate::janus::Janus;
use crate::proxy::Conditions;
use crate::wait::wait_for;

async fn room() -> Janus {
    let janus = Janus::start().expect("janus");
    let codecs = json!({ "videocodec": "vp8,vp9,h264,av1", "audiocodec": "opus,pcmu,pcma", "pin": "p" });
    janus.create_room("r", codecs).await.expect("room");
    janus
}

fn options(janus: &Janus, id: &str) -> Options {
    Options { pin: Some("p".to_owned()), ..Options::new(janus, "r", id) }
}

/// What Janus says of the publishers in the room.
async fn listed(janus: &Janus) -> Value {
    let mut client = Client::connect(&janus.url()).await.expect("client");
    let join = json!({ "request": "join", "ptype": "publisher", "room": "r", "pin": "p" });
    client.message(join, None).await.expect("answer")["plugindata"]["data"]["publishers"].take()
}

/// Pictures are numbered in order, one each 1/30 s.
fn assert_even(truth: &Truth) {
    for pair in truth.frames.windows(2) {
        let (step, time) = (pair[1].0.wrapping_sub(pair[0].0) & 0xffff, pair[1].1 - pair[0].1);
        assert!(step >= 1, "{pair:?}");
        assert!((time.as_secs_f64() * 30.0 - (time.as_secs_f64() * 30.0).round()).abs() < 0.01, "{pair:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_pictures_of_every_codec_are_sent_resized_muted_and_described() {
    let janus = room().await;
    let mut publishers = Vec::new();
    for video in [VideoCodec::Vp8, VideoCodec::Vp9, VideoCodec::H264] {
        let mut options = options(&janus, video.janus());
        (options.video, options.live, options.dtx) = (Some(video), true, true);
        options.descriptions = (None, Some("screen".to_owned()));
        publishers.push(Publisher::start(options).await.expect("publish"));
    }
    let list = listed(&janus).await;
    assert_eq!(list.as_array().map(Vec::len), Some(3), "{list}");
    assert_eq!(list[0]["streams"][1]["description"], "screen", "{list}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    publishers.iter().for_each(|p| p.resize((160, 120)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    publishers.iter().for_each(|p| p.mute_video(true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let muted: Vec<usize> = publishers.iter().map(Publisher::frames_sent).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(muted, publishers.iter().map(Publisher::frames_sent).collect::<Vec<_>>());
    publishers.iter().for_each(|p| p.mute_video(false));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for publisher in publishers {
        assert!(publisher.is_live());
        let truth = publisher.leave().await.expect("leave");
        assert!(truth.frames.len() > 90, "{}", truth.frames.len());
        assert!(truth.beeps.len() >= 3, "{:?}", truth.beeps);
        // A beep a second of 100 ms, and little in the silence between.
        assert!((20..130).contains(&truth.audio_packets), "{}", truth.audio_packets);
        assert_even(&truth);
    }
    assert_eq!(listed(&janus).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_behind_a_bad_network_publishes_through_it() {
    let janus = room().await;
    let proxy = Arc::new(UdpProxy::start(Conditions::lossy(0.05, Duration::from_millis(40)), 3).expect("proxy"));
    let publisher = Publisher::start(Options { proxy: Some(Arc::clone(&proxy)), ..options(&janus, "far") }).await;
    let publisher = publisher.expect("publish");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let up = proxy.up();
    assert!(up.rtp.len() >= 2 && up.rtp.values().map(|c| c.0).sum::<u64>() > 120 && up.dropped > 0, "{up:?}");
    assert!(publisher.crash().frames.len() > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_publishers_of_one_process_send_evenly() {
    let janus = room().await;
    let start = async |n: u32| Publisher::start(options(&janus, &format!("p{n}"))).await.expect("publish");
    let mut publishers = Vec::new();
    for n in 0..50 {
        publishers.push(start(n).await);
    }
    let before = (cpu_seconds(), Instant::now());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let share = (cpu_seconds() - before.0) / before.1.elapsed().as_secs_f64();
    println!("50 publishers: {:.1} % of a core", share * 100.0);
    let least = || publishers.iter().map(Publisher::frames_sent).min();
    wait_for("a hundred pictures of each", || async { (least() > Some(100)).then_some(()) }).await;
    for publisher in publishers {
        assert_even(&publisher.crash());
    }
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_ascii_whitespace().collect();
    // utime and stime in hundredths of a second.
    (fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime")) / 100.0
}
