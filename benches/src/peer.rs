//! The peer of the bench: a recorder as it is commonly written with GStreamer. One process, one `webrtcbin`
//! pipeline a stream, its packets taken apart and put into a WebM file, nothing decoded.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use archiver::model::session::RouterRoom;
use archiver::router::janus::{JanusConfig, JanusRouter};
use archiver::router::{MediaRouter, RoomEvent};
use clap::Parser;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_sdp::SDPMessage;
use gstreamer_webrtc as webrtc;

const READY: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(30);

/// Records the streams of a Janus room with webrtcbin until SIGTERM.
#[derive(Parser)]
struct Arguments {
    /// Janus's WebSocket.
    #[arg(long)]
    janus: String,
    /// Its api_secret.
    #[arg(long)]
    secret: String,
    /// The room.
    #[arg(long)]
    room: String,
    /// How many streams to record.
    #[arg(long)]
    streams: usize,
    /// Where the files go.
    #[arg(long)]
    out: PathBuf,
}

fn element(name: &str) -> Result<gst::Element> {
    gst::ElementFactory::make(name).build().with_context(|| format!("{name} is missing; `make setup` installs it"))
}

/// What takes a track's packets apart for the file. Made before anything flows: the muxer takes no further track
/// once it has written its header.
fn track(pipeline: &gst::Pipeline, mux: &gst::Element, elements: &[&str], to: &str) -> Result<gst::Pad> {
    let chain = elements.iter().map(|name| element(name)).collect::<Result<Vec<_>>>()?;
    pipeline.add_many(&chain)?;
    gst::Element::link_many(&chain)?;
    let into = mux.request_pad_simple(to).context("the muxer takes no more tracks")?;
    chain.last().and_then(|last| last.static_pad("src")).context("a source pad")?.link(&into)?;
    chain[0].static_pad("sink").context("a sink pad")
}

/// Calls one of webrtcbin's actions and waits for its answer.
fn ask(
    bin: &gst::Element,
    action: &str,
    description: Option<&webrtc::WebRTCSessionDescription>,
) -> Result<Option<gst::Structure>> {
    let (sender, answer) = std::sync::mpsc::channel();
    let promise = gst::Promise::with_change_func(move |reply| {
        // Nobody listens any more only when it took too long.
        sender.send(reply.map(|reply| reply.map(gst::StructureRef::to_owned))).unwrap_or_default();
    });
    match description {
        Some(description) => bin.emit_by_name::<()>(action, &[description, &promise]),
        None => bin.emit_by_name::<()>(action, &[&None::<gst::Structure>, &promise]),
    }
    match answer.recv_timeout(Duration::from_secs(10)) {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => bail!("{action}: {error:?}"),
        Err(_) => bail!("{action}: no answer"),
    }
}

/// A pipeline for one offer, and its answer.
fn recorder(offer: &str, file: &Path) -> Result<(Recorder, String)> {
    let pipeline = gst::Pipeline::new();
    let (bin, mux, sink) = (element("webrtcbin")?, element("webmmux")?, element("filesink")?);
    bin.set_property_from_str("bundle-policy", "max-bundle");
    sink.set_property("location", file.to_string_lossy().as_ref());
    sink.set_property("async", false);
    pipeline.add_many([&bin, &mux, &sink])?;
    mux.link(&sink)?;
    let (sender, ended) = std::sync::mpsc::channel();
    sink.static_pad("sink").context("a sink pad")?.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if info.event().is_some_and(|event| event.type_() == gst::EventType::Eos) {
            // Nobody listens only when the process ends anyway.
            sender.send(()).unwrap_or_default();
        }
        gst::PadProbeReturn::Ok
    });
    let video = track(&pipeline, &mux, &["queue", "rtpvp8depay"], "video_%u")?;
    // The muxer wants Opus described more fully than the depayloader does it.
    let audio = track(&pipeline, &mux, &["queue", "rtpopusdepay", "opusparse"], "audio_%u")?;
    bin.connect_pad_added(move |_, pad| {
        let caps = pad.current_caps();
        let media = caps.as_ref().and_then(|caps| caps.structure(0)?.get::<&str>("media").ok());
        let into = if media == Some("video") { &video } else { &audio };
        if pad.direction() == gst::PadDirection::Src {
            pad.link(into).expect("a track is linked once, to what takes it");
        }
    });
    pipeline.set_state(gst::State::Playing)?;
    let offer = webrtc::WebRTCSessionDescription::new(
        webrtc::WebRTCSDPType::Offer,
        SDPMessage::parse_buffer(offer.as_bytes())?,
    );
    ask(&bin, "set-remote-description", Some(&offer))?;
    let reply = ask(&bin, "create-answer", None)?.context("no answer was made")?;
    let answer = reply.get::<webrtc::WebRTCSessionDescription>("answer")?;
    ask(&bin, "set-local-description", Some(&answer))?;
    let until = Instant::now() + Duration::from_secs(60);
    while bin.property::<webrtc::WebRTCICEGatheringState>("ice-gathering-state")
        != webrtc::WebRTCICEGatheringState::Complete
    {
        ensure!(Instant::now() < until, "candidates were not gathered");
        std::thread::sleep(Duration::from_millis(5));
    }
    let local = bin.property::<webrtc::WebRTCSessionDescription>("local-description");
    Ok((Recorder { pipeline, ended }, local.sdp().as_text()?))
}

/// Errors of a pipeline end the bench: a recorder that stands costs nothing.
fn healthy(pipeline: &gst::Pipeline) -> Result<()> {
    let message = pipeline.bus().and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
    match message.as_ref().map(|m| m.view()) {
        Some(gst::MessageView::Error(e)) => bail!("{}: {:?}", e.error(), e.debug()),
        _ => Ok(()),
    }
}

/// A pipeline, and word of its file's end.
struct Recorder {
    pipeline: gst::Pipeline,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Recorder {
    /// Ends the file properly.
    fn end(&self) -> Result<()> {
        // webrtcbin hands no end of stream down: it is sent into what comes behind it. Nor does the pipeline tell
        // of the file's end, because webrtcbin's own sinks have none.
        for queue in self.pipeline.children().iter().filter(|e| e.factory().is_some_and(|f| f.name() == "queue")) {
            if let Some(pad) = queue.static_pad("sink").and_then(|pad| pad.peer()) {
                pad.push_event(gst::event::Eos::new());
            }
        }
        self.ended.recv_timeout(END).context("a file did not end")?;
        self.pipeline.set_state(gst::State::Null)?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    gst::init()?;
    let mut config = JanusConfig::new("peer", &arguments.janus);
    config.api_secret = Some(arguments.secret.into());
    let place = RouterRoom::shared("peer".parse()?, arguments.room.parse()?);
    let mut room = JanusRouter::new(config).join(&place).await?;
    let control = room.control();
    let (mut recorders, mut known) = (Vec::new(), std::collections::HashSet::new());
    let until = tokio::time::Instant::now() + READY;
    while recorders.len() < arguments.streams {
        let event = tokio::time::timeout_at(until, room.next_event()).await.context("too few streams came up")?;
        let Some(RoomEvent::StreamPresent(stream)) = event else { continue };
        // The same stream is announced again whenever something about it may be new.
        if !known.insert(stream.router_id.clone()) {
            continue;
        }
        let offer = control.subscribe(&stream.router_id, &stream.mids()).await?;
        let file = arguments.out.join(format!("{}.webm", stream.router_id));
        let (recorder, answer) = tokio::task::spawn_blocking(move || recorder(&offer.sdp, &file)).await??;
        control.answer(offer.subscription, answer).await?;
        recorders.push(recorder);
    }
    println!("ready");
    let mut look = tokio::time::interval(Duration::from_millis(500));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = look.tick() => recorders.iter().try_for_each(|r| healthy(&r.pipeline))?,
            event = room.next_event() => ensure!(event.is_some(), "the room is gone"),
        }
    }
    tokio::task::spawn_blocking(move || recorders.iter().try_for_each(Recorder::end)).await??;
    room.leave().await;
    Ok(())
}
