//! What happens in the random histories, when it happens.

use super::chance::Chance;
use super::recorder::FRAME;
use super::world::{HEARD, Outage, Path, Source, World};
use crate::model::media::GapCause;

/// Of so many steps, something happens in one.
const CALM: i64 = 40;

impl World {
    /// Something happens now and then. Most of the time, somebody is there.
    pub fn chance(&mut self) {
        let (calm, any) = (self.random.below(CALM) > 0, usize::try_from(self.random.below(14)).expect("few"));
        let chance = match (self.present, self.random.below(40)) {
            (false, 0) if any == 0 => Chance::Limit,
            (false, 0) => Chance::Announce,
            // A track that is taken away comes back.
            (true, 0) if self.sources.iter().any(|source| !source.added) => Chance::AddOrRemoveTrack,
            _ if calm => return,
            _ => Chance::ALL[2 + any],
        };
        let kind = usize::from(self.random.below(2) == 1);
        if self.happens(chance, kind) {
            *self.happened.entry(chance).or_default() += 1;
        }
    }

    /// Returns whether it can happen now.
    fn happens(&mut self, chance: Chance, kind: usize) -> bool {
        let until = self.in_the_next(3_000, 20_000);
        match chance {
            Chance::Announce => self.announce(),
            Chance::Limit => {
                self.limited_until = until;
                self.announce();
            }
            Chance::Leave if self.present => (self.present, self.published) = (false, false),
            Chance::Mute if self.published => self.sources[kind].muted_until = until,
            Chance::Silence if self.published => self.sources[kind].silent_until = until,
            Chance::AddOrRemoveTrack if self.published => {
                let lacking = self.sources.iter().position(|source| !source.added);
                self.sources[lacking.unwrap_or(kind)].added = lacking.is_some();
            }
            Chance::ChangeCodec if self.published && self.outage.is_none() => {
                let unsupported = self.sources.iter().position(|source| !source.supported);
                self.change_codec(unsupported.unwrap_or(kind));
            }
            Chance::Refuse if self.receives() => {
                // Only who subscribes is refused.
                self.break_connection();
                self.refuses_until = until;
            }
            Chance::BreakConnection if self.receives() => self.break_connection(),
            Chance::LosePackets if self.receives() => self.path = Path::Lossy(self.in_the_next(200, 10_000)),
            Chance::ReportsAlone if self.receives() => self.blocked_until = until,
            Chance::LoseSignalling if self.outage.is_none() => self.lose_signalling(false),
            Chance::RestartRouter if self.outage.is_none() => self.lose_signalling(true),
            Chance::KillWorker if self.recorder.worker.is_some() => self.end_worker(true),
            Chance::HandOver if self.recorder.worker.is_some() => self.end_worker(false),
            Chance::FailDisk if self.receives() => self.disk_fails_until = until,
            _ => return false,
        }
        true
    }

    /// A time from now on, in milliseconds: that of a step.
    fn in_the_next(&mut self, from: i64, to: i64) -> i64 {
        let at = self.now() + from + self.random.below(to - from);
        at - at % FRAME
    }

    fn announce(&mut self) {
        let now = self.now();
        (self.present, self.publishes_at) = (true, now);
        // Both tracks, or now and then one of them.
        let lacks = self.random.below(10);
        for kind in 0..2 {
            let muted_until = if self.random.below(4) == 0 { self.in_the_next(2_000, 10_000) } else { now };
            let (added, supported) = (lacks != i64::try_from(kind).expect("two"), self.random.below(12) > 0);
            self.sources[kind] = Source { added, supported, muted_until, silent_until: now, packets: 0, sequence: 7 };
        }
    }

    fn break_connection(&mut self) {
        self.path = Path::Broken(self.in_the_next(0, 6_000));
    }

    /// The publisher negotiates again. The connection takes a new format; for one that it does not, another connection is made.
    fn change_codec(&mut self, kind: usize) {
        self.sources[kind].supported ^= true;
        let Some(worker) = self.recorder.worker.as_ref().filter(|worker| worker.is_subscribed()) else { return };
        let mut unsupported = worker.unsupported;
        unsupported[kind] = false;
        if self.sources[kind].supported {
            self.recorder.note_unsupported(unsupported);
        } else {
            self.recorder.unlink(GapCause::Worker, true);
        }
    }

    fn lose_signalling(&mut self, restarted: bool) {
        let noticed_at = self.in_the_next(0, 3_000);
        let back_at = noticed_at + self.random.below(8_000);
        let late_room = self.random.below(2) == 0;
        self.outage = Some(Outage { restarted, noticed_at, back_at, late_room });
        if restarted {
            self.forgot |= self.published;
            self.published = false;
            self.publishes_at = back_at + self.random.below(8_000);
        }
    }

    fn end_worker(&mut self, killed: bool) {
        self.starts_at = if killed { self.in_the_next(1_000, 12_000) } else { self.in_the_next(100, 2_000) };
        if let Some(joined) = self.recorder.worker.as_ref().and_then(|worker| worker.joined) {
            self.heard_all = self.starts_at - joined > HEARD;
        }
        self.recorder.end(killed);
        self.unwritten();
    }
}
