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

/// Waits until all publishers are so far.
async fn all(publishers: &[Publisher], what: &str, is_so_far: impl Fn(&Publisher) -> bool) {
    wait_for(what, || async { publishers.iter().all(&is_so_far).then_some(()) }).await;
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
    all(&publishers, "thirty pictures", |p| p.frames_sent() >= 30).await;
    publishers.iter().for_each(|p| p.resize((160, 120)));
    all(&publishers, "sixty pictures", |p| p.frames_sent() >= 60).await;
    publishers.iter().for_each(|p| p.mute_video(true));
    all(&publishers, "a picture that is left out", |p| p.frames_left_out() >= 1).await;
    let muted: Vec<usize> = publishers.iter().map(Publisher::frames_sent).collect();
    all(&publishers, "half a second without pictures", |p| p.frames_left_out() >= 15).await;
    assert_eq!(muted, publishers.iter().map(Publisher::frames_sent).collect::<Vec<_>>());
    publishers.iter().for_each(|p| p.mute_video(false));
    all(&publishers, "ninety pictures and three beeps", |p| p.frames_sent() > 90 && p.truth().beeps.len() >= 3).await;
    for publisher in publishers {
        assert!(publisher.is_live());
        let truth = publisher.leave().await.expect("leave");
        // A beep a second of 100 ms, of which each 20 ms are a packet, and little in the silence between: 7.5 packets a second.
        let seconds = (truth.frames.len() + truth.frames_left_out) as f64 / 30.0;
        let expected = 7.5 * seconds;
        let packets = truth.audio_packets as f64;
        assert!((0.5 * expected..2.0 * expected).contains(&packets), "{packets} in {seconds} s");
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
    wait_for("packets of two streams through the network, some of them lost", || async {
        let up = proxy.up();
        let packets = up.rtp.values().map(|c| c.0).sum::<u64>();
        (up.rtp.len() >= 2 && packets > 120 && up.dropped > 0 && publisher.frames_sent() > 50).then_some(())
    })
    .await;
    publisher.crash();
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
    all(&publishers, "a hundred pictures of each", |p| p.frames_sent() > 100).await;
    let share = (cpu_seconds() - before.0) / before.1.elapsed().as_secs_f64();
    println!("50 publishers: {:.1} % of a core", share * 100.0);
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
