//! What a viewer of a cell's archive sees and hears, against what was sent. Pure.
//!
//! Each picture and each beep that was sent is in the individual file once, in order and at its time, and in the composed file; or
//! a gap that has a cause covers its time, or, of the last pictures before a pause, comes right behind the pause. A picture that is missing from both is what the matrix is there to find.

use std::collections::{BTreeMap, BTreeSet};

use archiver_testkit::content::percentile;

/// A gap covers what was sent this long before it begins or after it ends, in seconds: a frame's way to the log.
const GAP_EDGE: f64 = 0.15;
/// No picture is sent for longer than this, in seconds: a pause. Beeps come each second.
const PAUSE_MIN: f64 = 1.5;
/// Two pictures before a pause are at most so far apart, in seconds.
const STEP_MAX: f64 = 0.04;
/// A recorder subscribes to a track that has begun within this; the archive's own rule (`EDGE_MAX` in `src/archive/coverage.rs`).
const LEAD_MAX: f64 = 1.0;
/// The room tells a recorder of a sender within this, in seconds. What is sent before is nothing that a recorder can know of.
const ANNOUNCED_WITHIN: f64 = 1.0;
/// A picture or beep that is this far from its place in the file, in seconds, is at another one.
const PLACE_MAX: f64 = 0.25;
/// A beep that begins within this before the sender is interrupted may be cut, in seconds.
const BEEP: f64 = 0.25;
/// The composed file has a picture so often, in seconds.
const COMPOSED_STEP: f64 = 1.0 / 30.0;
/// Times in logs and files are rounded: two pictures may seem this much nearer to each other, in seconds.
const ROUNDING: f64 = 0.003;
/// Sound that may be missing without a gap: a few packets of 20 ms, in seconds.
const SOUND_MISSING_MAX: f64 = 0.2;

/// A picture or beep: the publisher's life (a publisher that comes back has a second one), number, and seconds on one clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    pub life: u16,
    pub number: u32,
    pub at: f64,
}

/// A gap that the report has, in seconds on the same clock.
#[derive(Debug, Clone, PartialEq)]
pub struct GapSpan {
    pub from: f64,
    pub to: f64,
    pub cause: String,
}

impl GapSpan {
    fn is_at(&self, at: f64) -> bool {
        (self.from - GAP_EDGE..=self.to + GAP_EDGE).contains(&at)
    }

    /// Of pictures right before a pause: sequence numbers tell a recorder, behind the pause, how many packets it lacks, and not on which side
    /// of the pause these were sent. The gap is as long as what is missing.
    fn is_behind_the_pause_after(&self, mark: &Mark, sent: &[Mark]) -> bool {
        let of_life: Vec<f64> = sent.iter().filter(|one| one.life == mark.life).map(|one| one.at).collect();
        let before = 0.0..=(self.to - self.from + STEP_MAX).min(GAP_EDGE);
        let is_pause = |pair: &&[f64]| pair[1] - pair[0] > PAUSE_MIN && before.contains(&(pair[0] - mark.at));
        self.cause == "network" && of_life.windows(2).filter(is_pause).any(|pair| self.is_at(pair[1]))
    }
}

/// One kind of track: what was sent, what is in the files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Flow {
    pub sent: Vec<Mark>,
    /// In the individual files, in their order.
    pub decoded: Vec<Mark>,
    /// In the composed file, in its order; a picture comes as often as it is shown.
    pub shown: Vec<Mark>,
    pub gaps: Vec<GapSpan>,
}

/// A sender begins to send a track.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Begin {
    pub at: f64,
    /// When the room had told the recorder of it.
    pub announced: f64,
}

impl Begin {
    /// What is sent until then may be missing without a gap: a recorder needs some time to subscribe.
    fn lead_until(self) -> f64 {
        self.announced.clamp(self.at, self.at + ANNOUNCED_WITHIN) + LEAD_MAX
    }
}

/// What is known of a cell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    pub pictures: Flow,
    pub beeps: Flow,
    /// Pictures are not sent in the order in which they are shown.
    pub has_b_frames: bool,
    /// When pictures that were sent without a number are in the individual files: the black ones of a browser's muted track.
    pub blanks: Vec<f64>,
    /// When pictures without a number are in the individual files.
    pub unreadable: Vec<f64>,
    /// When the sender began to send a track, for the first time and again.
    pub begins: Vec<Begin>,
    /// When the sender was interrupted.
    pub cuts: Vec<f64>,
    /// From then on the sender was killed before it told what it sent.
    pub unknown_after: Option<f64>,
    /// Seconds of sound that were sent and that are in the individual files.
    pub sound: Option<(f64, f64)>,
    /// Pictures that are in some layers of a simulcast only: which layer comes is the router's choice.
    pub partial: Vec<Mark>,
    /// What decoders complained about.
    pub errors: Vec<String>,
}

impl Evidence {
    /// Whether the sender began or was interrupted while a beep lasted.
    fn cuts_beep(&self, beep: &Mark) -> bool {
        let interrupted = self.cuts.iter().copied().chain(self.begins.iter().map(|begin| begin.at));
        interrupted.into_iter().any(|cut| (cut - BEEP..cut + BEEP).contains(&beep.at))
    }
}

/// What came of a cell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// What is wrong; nothing if all is well.
    pub problems: Vec<String>,
    /// Pictures and beeps that are missing and excused, by the cause of their gap. `lead` is the time to subscribe.
    pub excused: BTreeMap<String, usize>,
}

/// Judges a cell.
pub fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { problems: evidence.errors.clone(), ..Verdict::default() };
    let zero = zero(evidence);
    for (name, flow) in [("picture", &evidence.pictures), ("beep", &evidence.beeps)] {
        verdict.decoded(name, flow, evidence, zero);
        verdict.shown(name, flow, evidence);
    }
    verdict.unreadable(evidence);
    if let Some((sent, there)) = evidence.sound {
        let gaps: f64 = evidence.beeps.gaps.iter().filter(|g| g.cause != "not_sent").map(|gap| gap.to - gap.from).sum();
        let lead: f64 = evidence.begins.iter().map(|begin| begin.lead_until() - begin.at).sum();
        if there + gaps + lead + SOUND_MISSING_MAX < sent {
            verdict.problems.push(format!("{there:.2} s of sound of {sent:.2} s, gaps of {gaps:.2} s"));
        }
    }
    verdict
}

/// How much later than it was sent what is in the files comes, in the middle.
fn zero(evidence: &Evidence) -> f64 {
    let late = |flow: &Flow| {
        let sent: BTreeMap<_, _> = flow.sent.iter().map(|mark| ((mark.life, mark.number), mark.at)).collect();
        let late = |mark: &Mark| Some(mark.at - sent.get(&(mark.life, mark.number))?);
        flow.decoded.iter().filter_map(late).collect::<Vec<_>>()
    };
    percentile(&late(&evidence.pictures), 50.0).or_else(|| percentile(&late(&evidence.beeps), 50.0)).unwrap_or(0.0)
}

/// A few of many, to be read by people.
fn some(list: &[String]) -> String {
    let more = if list.len() > 6 { format!(" and {} more", list.len() - 6) } else { String::new() };
    format!("{}{more}", list[..list.len().min(6)].join(", "))
}

fn named(mark: &Mark) -> String {
    format!("{}/{} at {:.3}", mark.life, mark.number, mark.at)
}

impl Verdict {
    fn problem(&mut self, what: &str, of: &[String]) {
        if !of.is_empty() {
            self.problems.push(format!("{} {what}: {}", of.len(), some(of)));
        }
    }

    /// Each is there once, in order, at its time, or excused.
    fn decoded(&mut self, name: &str, flow: &Flow, evidence: &Evidence, zero: f64) {
        let places: BTreeMap<_, _> =
            flow.sent.iter().enumerate().map(|(place, mark)| ((mark.life, mark.number), place)).collect();
        let mut found = BTreeSet::new();
        let (mut strange, mut twice, mut back, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut last: BTreeMap<u16, usize> = BTreeMap::new();
        for mark in &flow.decoded {
            let Some(&place) = places.get(&(mark.life, mark.number)) else {
                // Of a beep that the sender began in its middle, the other half is heard.
                let is_half = name == "beep" && evidence.cuts_beep(mark);
                if !is_half && evidence.unknown_after.is_none_or(|after| mark.at - zero < after) {
                    strange.push(named(mark));
                }
                continue;
            };
            if !found.insert(place) {
                twice.push(named(mark));
            } else if last.get(&mark.life).is_some_and(|last| *last > place) {
                back.push(named(mark));
            }
            let last = last.entry(mark.life).or_default();
            *last = place.max(*last);
            if (mark.at - zero - flow.sent[place].at).abs() > PLACE_MAX {
                elsewhere.push(format!("{} instead of {:.3}", named(mark), flow.sent[place].at + zero));
            }
        }
        self.problem(&format!("{name}s in the file that were never sent"), &strange);
        self.problem(&format!("{name}s twice in the file"), &twice);
        self.problem(&format!("{name}s out of order in the file"), &back);
        self.problem(&format!("{name}s at another time in the file"), &elsewhere);
        let mut silent = Vec::new();
        for (place, mark) in flow.sent.iter().enumerate().filter(|(place, _)| !found.contains(place)) {
            match excuse(mark, place, &found, flow, evidence, name == "beep") {
                Some(cause) => *self.excused.entry(cause).or_default() += 1,
                None => silent.push(named(mark)),
            }
        }
        self.problem(&format!("{name}s missing without a gap"), &silent);
    }

    /// What is in the individual file is in the composed one, in order. Of pictures that are nearer to each other than the composed
    /// file's, the next one may be there instead.
    fn shown(&mut self, name: &str, flow: &Flow, evidence: &Evidence) {
        let places: BTreeMap<_, _> =
            flow.decoded.iter().enumerate().map(|(place, mark)| ((mark.life, mark.number), place)).collect();
        let (mut shown, mut last) = (BTreeSet::new(), BTreeMap::<u16, usize>::new());
        let (mut back, mut strange) = (Vec::new(), Vec::new());
        for mark in &flow.shown {
            let Some(&place) = places.get(&(mark.life, mark.number)) else {
                // Half a beep may be heard in one file and not in the other.
                if name != "beep" || !evidence.cuts_beep(mark) {
                    strange.push(named(mark));
                }
                continue;
            };
            if last.get(&mark.life).is_some_and(|last| *last > place) {
                back.push(named(mark));
            }
            last.insert(mark.life, place);
            shown.insert(place);
        }
        self.problem(&format!("{name}s in the composed file that are not in the individual one"), &strange);
        self.problem(&format!("{name}s out of order in the composed file"), &back);
        let near = |a: usize, b: usize| {
            let (a, b) = (&flow.decoded[a], &flow.decoded[b]);
            a.life == b.life && (a.at - b.at).abs() < COMPOSED_STEP + ROUNDING
        };
        let instead = |place: usize| {
            let next = place + 1;
            if name == "beep" {
                return evidence.cuts_beep(&flow.decoded[place]);
            }
            [place.checked_sub(1), (next < flow.decoded.len()).then_some(next)]
                .into_iter()
                .flatten()
                .any(|other| near(place, other) && shown.contains(&other))
        };
        let hidden = flow.decoded.iter().enumerate().filter(|(place, _)| !shown.contains(place) && !instead(*place));
        let hidden: Vec<String> = hidden.map(|(_, mark)| named(mark)).collect();
        self.problem(&format!("{name}s not in the composed file"), &hidden);
    }

    /// Pictures that cannot be read are those that were sent blank.
    fn unreadable(&mut self, evidence: &Evidence) {
        let mut blanks: Vec<f64> = evidence.blanks.clone();
        let mut strange = Vec::new();
        for at in &evidence.unreadable {
            match blanks.iter().position(|blank| (at - blank).abs() < ROUNDING) {
                Some(place) => drop(blanks.remove(place)),
                None => strange.push(format!("{at:.3}")),
            }
        }
        self.problem("pictures in the file that cannot be read", &strange);
    }
}

/// Why something that was sent may be missing.
fn excuse(
    mark: &Mark,
    place: usize,
    found: &BTreeSet<usize>,
    flow: &Flow,
    evidence: &Evidence,
    is_beep: bool,
) -> Option<String> {
    // With B-frames, a picture that is shown later was sent before.
    let is_last = || {
        let of_life = flow.sent.iter().enumerate().skip(place).take_while(|(_, one)| one.life == mark.life);
        let mut until_pause = of_life.take_while(|(_, one)| one.at <= mark.at + GAP_EDGE);
        evidence.has_b_frames || until_pause.all(|(place, _)| !found.contains(&place))
    };
    let is_behind_pause = |gap: &&GapSpan| !is_beep && gap.is_behind_the_pause_after(mark, &flow.sent) && is_last();
    let covers = |gap: &&GapSpan| gap.is_at(mark.at) || is_behind_pause(gap);
    if let Some(gap) = flow.gaps.iter().find(covers) {
        return Some(gap.cause.clone());
    }
    let begun = evidence.begins.iter().filter(|begin| begin.at <= mark.at + 0.02).max_by(|a, b| a.at.total_cmp(&b.at));
    if let Some(begun) = begun.filter(|begun| mark.at < begun.lead_until()) {
        // Nothing that was sent since then is there.
        let since =
            flow.sent.iter().enumerate().take(place).filter(|(_, m)| m.life == mark.life && m.at + 0.02 >= begun.at);
        if since.into_iter().all(|(earlier, _)| !found.contains(&earlier)) {
            return Some("lead".to_owned());
        }
    }
    if is_beep && evidence.cuts_beep(mark) {
        return Some("cut".to_owned());
    }
    let is_partial = evidence.partial.iter().any(|one| (one.life, one.number) == (mark.life, mark.number));
    (!is_beep && is_partial).then(|| "layer".to_owned())
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
