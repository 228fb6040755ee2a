//! The log thread writes frames into the tracks' logs; the sync thread fsyncs sealed segments, which may
//! take as long as a disk likes without a frame waiting for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::engine::{CaptureEvent, CaptureKey, CaptureOptions};
use super::media::tell;
use crate::capture::log::{SealedSegment, TrackLog, UnsyncedSegment};
use crate::capture::spool::Spool;
use crate::capture::track::Output;
use crate::capture::types::TrackStats;
use crate::ids::TrackId;

/// How often parts are looked at for their age.
const TICK: Duration = Duration::from_millis(50);

/// One thing for a track's log.
pub(super) struct Item {
    pub capture: CaptureKey,
    pub track: TrackId,
    pub what: What,
}

pub(super) enum What {
    Output(Output),
    Stats(TrackStats),
}

pub(super) enum LogCommand {
    Open { key: CaptureKey, options: Box<CaptureOptions>, events: mpsc::Sender<CaptureEvent> },
    Items(Vec<Item>),
    Close { key: CaptureKey, done: oneshot::Sender<()> },
}

pub(super) enum SyncCommand {
    Sync { segments: Vec<UnsyncedSegment>, events: mpsc::Sender<CaptureEvent> },
    Done(oneshot::Sender<()>),
}
