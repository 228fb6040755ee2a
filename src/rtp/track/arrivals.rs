//! Whether media that does not become frames is sent at all. Pure.

use crate::model::media::GapCause;
use crate::model::time::{MediaSpan, MediaTime};

/// What a track's source sent, and what came of it, since the last frame.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// When the last frame left, or the source began.
    since: MediaTime,
    /// Packets since then.
    packets: u64,
    /// Of them, those that are no valid payload of the codec.
    malformed: u64,
    /// Packets that the sender sent in all, as it reported last; wraps.
    sent: Option<u32>,
    /// Whether a packet came since that report.
    came_since_report: bool,
    /// When that report came.
    reported: MediaTime,
    /// Packets that were sent between two reports, of which none came.
    unseen: u64,
    /// When none of them had been sent yet, by the reports.
    unseen_since: Option<MediaTime>,
}

impl Arrivals {
    /// Of a source that begins now.
    pub const fn new(now: MediaTime) -> Self {
        Self {
            since: now,
            packets: 0,
            malformed: 0,
            sent: None,
            came_since_report: false,
            reported: now,
            unseen: 0,
            unseen_since: None,
        }
    }

    /// A packet came.
    pub const fn packet(&mut self, valid: bool) {
        self.packets += 1;
        self.malformed += !valid as u64;
        self.came_since_report = true;
    }

    /// A frame left.
    pub const fn frame(&mut self, now: MediaTime) {
        self.since = now;
        self.packets = 0;
        self.malformed = 0;
        self.unseen = 0;
        self.unseen_since = None;
    }

    /// The sender reported how many packets it has sent.
    pub fn reported(&mut self, sent: u32, now: MediaTime) {
        if let Some(before) = self.sent
            && !self.came_since_report
        {
            let more = sent.wrapping_sub(before);
            // A count that goes back is another source's.
            if (1..u32::MAX / 2).contains(&more) {
                self.unseen += u64::from(more);
                self.unseen_since.get_or_insert(self.reported);
            }
        }
        self.sent = Some(sent);
        self.reported = now;
        self.came_since_report = false;
    }

    /// For how long no frame has left.
    pub fn silent_for(&self, now: MediaTime) -> MediaSpan {
        now - self.since
    }

    /// The cause of a gap, if packets were sent that did not come.
    pub fn unseen(&self) -> Option<GapCause> {
        (self.unseen > 0).then_some(GapCause::NotReceived)
    }

    /// Up to when nothing was sent, before packets were sent that did not come.
    pub const fn unseen_since(&self) -> Option<MediaTime> {
        self.unseen_since
    }

    /// Why there is no frame although something was sent; `None` if nothing was, as far as is known.
    pub fn lack(&self) -> Option<GapCause> {
        match (self.packets, self.malformed) {
            (0, _) => self.unseen(),
            (packets, malformed) if packets == malformed => Some(GapCause::Unsupported),
            // A decoder cannot begin with them: no keyframe comes, or each is damaged.
            _ => Some(GapCause::NotReceived),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(act: impl FnOnce(&mut Arrivals)) -> Option<GapCause> {
        let mut arrivals = Arrivals::new(MediaTime::ZERO);
        act(&mut arrivals);
        arrivals.lack()
    }

    #[test]
    fn media_that_is_sent_and_does_not_come_is_told_from_silence() {
        assert_eq!(arrivals(|_| {}), None, "nothing is known");
        assert_eq!(arrivals(|a| a.reported(7, MediaTime::ZERO)), None, "one report says nothing of the time before");
        assert_eq!(
            arrivals(|a| [7, 7, 7].map(|n| a.reported(n, MediaTime::ZERO)).into_iter().collect()),
            None,
            "a camera that is off"
        );
        let lost = |a: &mut Arrivals| [7, 20].map(|n| a.reported(n, MediaTime::ZERO)).into_iter().collect();
        assert_eq!(arrivals(lost), Some(GapCause::NotReceived));
        let back = |a: &mut Arrivals| [900, 3].map(|n| a.reported(n, MediaTime::ZERO)).into_iter().collect();
        assert_eq!(arrivals(back), None, "a count that goes back");
        let wraps = |a: &mut Arrivals| [u32::MAX, 3].map(|n| a.reported(n, MediaTime::ZERO)).into_iter().collect();
        assert_eq!(arrivals(wraps), Some(GapCause::NotReceived));
        assert_eq!(arrivals(|a| a.packet(true)), Some(GapCause::NotReceived), "packets without a keyframe");
        assert_eq!(arrivals(|a| a.packet(false)), Some(GapCause::Unsupported), "packets of another format");
        let frame = |a: &mut Arrivals| {
            lost(a);
            a.packet(true);
            a.frame(MediaTime::from_millis(5));
        };
        assert_eq!(arrivals(frame), None, "frames come");
        let came = |a: &mut Arrivals| {
            a.reported(7, MediaTime::ZERO);
            a.packet(true);
            a.frame(MediaTime::from_millis(5));
            a.reported(20, MediaTime::ZERO);
        };
        assert_eq!(arrivals(came), None, "packets came between the reports");
    }
}
