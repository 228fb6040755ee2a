//! Pictures that are encoded when they are due: keyframes only when they are asked for, as a real client does.

use anyhow::{Context, Result, bail};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::{AppSink, AppSrc};

use super::media::{VideoCoding, picture};
use crate::wait::deadline;

/// A running encoder.
#[derive(Debug)]
pub(super) struct LiveEncoder {
    pipeline: gst::Pipeline,
    source: AppSrc,
    sink: AppSink,
    coding: VideoCoding,
    pictures: u64,
}

impl LiveEncoder {
    /// Starts an encoder.
    ///
    /// # Errors
    /// When GStreamer lacks it.
    #[allow(clippy::disallowed_methods)]
    pub fn new(coding: VideoCoding) -> Result<Self> {
        gst::init()?;
        let text = format!(
            "appsrc name=in format=time is-live=false caps=\"{}\" ! {} ! appsink name=out sync=false",
            coding.caps(),
            coding.encoder(u32::from(u16::MAX))
        );
        let pipeline = gst::parse::launch(&text)?.downcast::<gst::Pipeline>().ok().context("no pipeline")?;
        let source = pipeline.by_name("in").and_then(|e| e.downcast::<AppSrc>().ok()).context("no appsrc")?;
        let sink = pipeline.by_name("out").and_then(|e| e.downcast::<AppSink>().ok()).context("no appsink")?;
        pipeline.set_state(gst::State::Playing)?;
        Ok(Self { pipeline, source, sink, coding, pictures: 0 })
    }

    /// Encodes the picture with a number.
    ///
    /// # Errors
    /// When the encoder gives nothing within [`deadline`].
    pub fn encode(&mut self, number: u32, keyframe: bool) -> Result<Vec<u8>> {
        if keyframe {
            // What gst-video's `ForceKeyUnit` event is made of.
            let force = gst::Structure::builder("GstForceKeyUnit").field("all-headers", true).build();
            self.source.send_event(gst::event::CustomDownstream::new(force));
        }
        let mut buffer = gst::Buffer::from_mut_slice(picture(self.coding.size, number, self.coding.code));
        if let Some(buffer) = buffer.get_mut() {
            let step = 1_000_000_000 / u64::from(self.coding.fps);
            buffer.set_pts(gst::ClockTime::from_nseconds(self.pictures * step));
            buffer.set_duration(gst::ClockTime::from_nseconds(step));
        }
        self.pictures += 1;
        self.source.push_buffer(buffer)?;
        let Some(sample) = self.sink.try_pull_sample(gst::ClockTime::from_seconds(deadline().as_secs())) else {
            bail!("the encoder gives no picture within {:?}", deadline());
        };
        Ok(sample.buffer().context("no buffer")?.map_readable()?.to_vec())
    }
}

impl Drop for LiveEncoder {
    fn drop(&mut self) {
        self.pipeline.set_state(gst::State::Null).map(drop).unwrap_or_default();
    }
}
