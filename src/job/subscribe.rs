//! Subscribing to one stream: the requests to the router and to the engine, and why they fail.

use super::link::Live;
use super::stage::bug;
use super::{Context, JobFailure};
use crate::model::archive_options::ArchiveOptions;
use crate::model::fault::{FaultKind, chain};
use crate::model::ids::StreamId;
use crate::model::media::GapCause;
use crate::router::{RoomControl, StreamInfo, SubscriptionId};
use crate::webrtc::{CaptureKey, PeerError, PeerKey, UnsupportedTrack};

/// A subscription that was made, and the tracks of it that were refused.
pub(super) struct Made {
    pub live: Live,
    pub unsupported: Vec<UnsupportedTrack>,
}

/// Why a stream is not subscribed to.
pub(super) struct NotSubscribed {
    pub cause: GapCause,
    pub failure: JobFailure,
    pub unsupported: Vec<UnsupportedTrack>,
}

impl NotSubscribed {
    fn unsupported(unsupported: Vec<UnsupportedTrack>) -> Self {
        let formats: Vec<&str> = unsupported.iter().map(|track| track.formats.as_str()).collect();
        let detail = format!("none of the stream's formats is supported: {}", formats.join(", "));
        let failure = JobFailure { kind: FaultKind::RouterProtocol, detail };
        Self { cause: GapCause::Unsupported, failure, unsupported }
    }
}

impl From<JobFailure> for NotSubscribed {
    fn from(failure: JobFailure) -> Self {
        let cause = match failure.kind {
            FaultKind::RouterRefused => GapCause::Refused,
            FaultKind::Bug => GapCause::Worker,
            _ => GapCause::Router,
        };
        Self { cause, failure, unsupported: Vec::new() }
    }
}

/// The mids of the tracks that are archived: the first of each kind that is wanted.
pub(super) fn wanted_tracks(options: &ArchiveOptions, info: &StreamInfo) -> Vec<String> {
    info.first_tracks().filter(|track| options.has(track.kind)).map(|track| track.mid.clone()).collect()
}

/// Subscribes to a stream, and gives the router's offer to a new peer of the engine. `tracks` are the mids that are wanted.
pub(super) async fn subscribe(
    control: &dyn RoomControl,
    context: &Context,
    capture: CaptureKey,
    router_id: &str,
    id: StreamId,
    options: &ArchiveOptions,
    tracks: Vec<String>,
) -> Result<Made, NotSubscribed> {
    let mut offer = control.subscribe(router_id, &tracks).await.map_err(|e| JobFailure::of(&e))?;
    let subscription = offer.subscription;
    offer.mids.retain(|(_, kind)| options.has(*kind));
    let offered = offer.mids.len();
    let (peer, answer) = match context.engine.add_peer(capture, id, offer.sdp, offer.mids).await {
        Ok(added) => added,
        Err(PeerError::EngineGone(gone)) => return Err(bug(&gone).into()),
        Err(error) => {
            control.unsubscribe(subscription).await;
            return Err(JobFailure::of(&error).into());
        }
    };
    // A connection without anything to receive would not come up, and would be made again and again.
    if offered > 0 && answer.unsupported.len() == offered {
        hang_up(control, context, subscription, peer).await;
        return Err(NotSubscribed::unsupported(answer.unsupported));
    }
    // Some routers send their candidates after the offer.
    control.on_candidate(subscription, context.engine.candidate_sink(peer));
    if let Err(error) = control.answer(subscription, answer.sdp).await {
        hang_up(control, context, subscription, peer).await;
        return Err(JobFailure::of(&error).into());
    }
    // A lower layer is better than none.
    if let Err(error) = control.prefer_highest_layer(subscription).await {
        tracing::warn!("the highest layer cannot be requested: {}", chain(&error));
    }
    let live = Live { subscription, peer, tracks, encrypted: offer.encrypted };
    Ok(Made { live, unsupported: answer.unsupported })
}

/// Ends what was begun of a subscription.
async fn hang_up(control: &dyn RoomControl, context: &Context, subscription: SubscriptionId, peer: PeerKey) {
    if let Err(gone) = context.engine.remove_peer(peer, GapCause::Router) {
        tracing::error!(fault.kind = "bug", "{gone}");
    }
    control.unsubscribe(subscription).await;
}
