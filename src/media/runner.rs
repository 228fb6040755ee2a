//! Running one pipeline to its end: state changes with deadlines, errors from the bus, always back to Null.

use std::time::Duration;

use gstreamer as gst;
use gstreamer::prelude::*;
use tokio_util::sync::CancellationToken;

use super::MediaError;
use crate::model::cancellable::Cancellable;
use crate::runtime::stall::StallTimer;

/// A state change takes at most this long.
const STATE_MAX: Duration = Duration::from_secs(15);
/// Interval at which the bus is polled.
const POLL: Duration = Duration::from_millis(20);

/// A pipeline that is brought to Null on every path.
pub(super) struct Pipeline {
    pipeline: gst::Pipeline,
}

impl Pipeline {
    /// Makes a pipeline of a fragment's text.
    #[allow(clippy::disallowed_methods)] // The one place where launch text is parsed.
    pub fn parse(name: &str, text: &str) -> Result<Self, MediaError> {
        super::init()?;
        let bad = |what: String| MediaError::Fragment { name: name.to_owned(), what };
        let element = gst::parse::launch(text).map_err(|e| bad(e.to_string()))?;
        let pipeline = match element.downcast::<gst::Pipeline>() {
            Ok(pipeline) => pipeline,
            Err(single) => {
                let pipeline = gst::Pipeline::new();
                pipeline.add(&single).map_err(|e| bad(e.to_string()))?;
                pipeline
            }
        };
        Ok(Self { pipeline })
    }

    /// An element that the fragment names.
    pub fn named<T: IsA<gst::Object> + IsA<gst::Element>>(&self, name: &str) -> Result<T, MediaError> {
        let missing =
            || MediaError::Fragment { name: name.to_owned(), what: "the fragment has no such element".to_owned() };
        self.pipeline.by_name(name).and_then(|e| e.downcast::<T>().ok()).ok_or_else(missing)
    }

    pub const fn inner(&self) -> &gst::Pipeline {
        &self.pipeline
    }

    /// Starts it. Does not wait: a pipeline that is fed by the program cannot preroll before it is.
    pub fn start(&self) -> Result<(), MediaError> {
        match self.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.bus_error().unwrap_or(MediaError::Element {
                element: self.pipeline.name().to_string(),
                what: "it cannot be started".to_owned(),
            })),
        }
    }

    /// Pauses it, and waits until each sink has its first buffer, which does not pass it. What is behind waits.
    pub fn preroll(&self, stall: Duration, cancel: &CancellationToken) -> Result<Cancellable<()>, MediaError> {
        let stalled = |seconds| MediaError::Stalled { doing: "begin", seconds };
        let bus = self.pipeline.bus().expect("a pipeline has a bus");
        if self.pipeline.set_state(gst::State::Paused).is_err() {
            return Err(self.bus_error().unwrap_or_else(|| stalled(stall.as_secs())));
        }
        let mut stall_timer = StallTimer::of_this_process(stall);
        loop {
            let kinds = [gst::MessageType::Error, gst::MessageType::AsyncDone];
            let message = bus.timed_pop_filtered(gst::ClockTime::from_mseconds(POLL.as_millis() as u64), &kinds);
            if let Some(message) = message {
                return message_error(&message).map_or(Ok(Cancellable::Done(())), Err);
            }
            if cancel.is_cancelled() {
                return Ok(Cancellable::Cancelled);
            }
            if stall_timer.has_stalled() {
                return Err(stalled(stall_timer.elapsed().as_secs()));
            }
        }
    }

    fn bus_error(&self) -> Option<MediaError> {
        let bus = self.pipeline.bus()?;
        bus.pop_filtered(&[gst::MessageType::Error]).and_then(|m| message_error(&m))
    }

    /// Waits for the end of the stream. `progress` returns a number that grows while work is done; the deadline `stall`
    /// counts from its last growth.
    pub fn wait_end(
        &self,
        stall: Duration,
        cancel: &CancellationToken,
        progress: impl Fn(&gst::Pipeline) -> u64,
    ) -> Result<Cancellable<()>, MediaError> {
        let bus = self.pipeline.bus().expect("a pipeline has a bus");
        let (mut last, mut stall_timer) = (0, StallTimer::of_this_process(stall));
        loop {
            let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
            let message = bus.timed_pop_filtered(gst::ClockTime::from_mseconds(POLL.as_millis() as u64), &kinds);
            if let Some(message) = message {
                return message_error(&message).map_or(Ok(Cancellable::Done(())), Err);
            }
            if cancel.is_cancelled() {
                return Ok(Cancellable::Cancelled);
            }
            let now = progress(&self.pipeline);
            if now > last {
                last = now;
                stall_timer.progressed();
            } else if stall_timer.has_stalled() {
                return Err(MediaError::Stalled { doing: "go on", seconds: stall_timer.elapsed().as_secs() });
            }
        }
    }
}

pub(super) fn message_error(message: &gst::Message) -> Option<MediaError> {
    match message.view() {
        gst::MessageView::Error(error) => Some(MediaError::Element {
            element: error.src().map(|s| s.name().to_string()).unwrap_or_default(),
            what: format!("{} ({})", error.error(), error.debug().unwrap_or_default()),
        }),
        _ => None,
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if self.pipeline.set_state(gst::State::Null).is_err() {
            tracing::error!("a pipeline did not go to Null");
        }
        let (changed, ..) = self.pipeline.state(Some(gst::ClockTime::from_seconds(STATE_MAX.as_secs())));
        if changed.is_err() {
            tracing::error!("a pipeline did not reach Null in time");
        }
    }
}
