//! Random histories of a session in simulated time: each second of each announced track is in the log or in one gap, never both,
//! never neither, and the cause is the true one.

mod chance;
mod events;
mod judgement;
mod log;
mod recorder;
mod truth;
mod worker;
mod world;

use std::collections::BTreeMap;

use super::coverage::of_log;
use crate::model::archive_options::ArchiveOptions;
use crate::model::intervals::{Interval, Intervals};
use crate::model::media::{Gap, GapCause};
use crate::model::time::{MediaSpan, MediaTime};
use crate::recording::history::{Event, EventKind};
use chance::Chance;
use recorder::{KINDS, track};
use truth::{Truth, step_at};
use world::World;

const HISTORIES: u64 = 1000;
/// Steps of a history: 80 seconds.
const STEPS: usize = 800;
/// A cause is judged where it lasts for so many steps before and after. It shows within 4 seconds: lost packets are waited for 1.5 s,
/// a stall is noticed after 2 s, and a tick or a report later it is noted.
const JUDGED_AFTER: usize = 40;
/// As `coverage` has them: a lost router is noticed within the first, frames may be the second apart, and what is missing at the
/// beginning or end for so many steps is no gap.
const NOTICE_MAX: MediaSpan = 30_000_000_000;
const FRAME_MAX: MediaSpan = 2_000_000_000;
const EDGE_MAX: u32 = 10;

/// How often each thing happened, and how many moments were judged: captured, or missing by one cause alone.
#[derive(Debug, Default)]
struct Counts {
    happened: BTreeMap<Chance, u64>,
    captured: u64,
    missing: BTreeMap<GapCause, u64>,
}

fn span(intervals: &Intervals) -> MediaSpan {
    intervals.iter().map(Interval::len).sum()
}

fn is_in(sorted: &[Interval], moment: MediaTime) -> bool {
    let after = sorted.partition_point(|one| one.from <= moment);
    after > 0 && moment < sorted[after - 1].to
}

/// Whether a lost router, or a lost connection to it, was noted soon after a moment.
fn router_is_lost_soon(history: &[Event], moment: MediaTime) -> bool {
    let is_loss = |kind: &EventKind| {
        matches!(kind, EventKind::RouterLost | EventKind::Capture { missing: Some(GapCause::Router), .. })
    };
    history.iter().any(|event| event.at >= moment && event.at - moment <= NOTICE_MAX && is_loss(&event.kind))
}

/// Whether what is true of a track lasts so long before and after a step that its cause is judged.
fn lasts(truths: &[[Truth; 2]], step: usize, kind: usize) -> bool {
    let truth = truths[step][kind];
    let (Some(from), to) = (step.checked_sub(JUDGED_AFTER), step + JUDGED_AFTER) else { return false };
    let all = |from: usize, to: usize, holds: &dyn Fn(Truth) -> bool| {
        truths.get(from..=to).is_some_and(|around| around.iter().all(|truths| holds(truths[kind])))
    };
    match truth {
        // A loss is exact.
        Truth::Missing(GapCause::Network) => {
            all(step - 1, step + 1, &|one| one == truth) && all(from, to, &|one| one == truth || one == Truth::Arrives)
        }
        _ => all(from, to, &|one| one == truth),
    }
}

/// What is wrong with the cause of a moment, if anything is.
fn judge(truth: Truth, cause: Option<GapCause>, in_log: bool, lost_soon: impl Fn() -> bool) -> Option<&'static str> {
    let right = match truth {
        Truth::Arrives => cause.is_none() && in_log,
        Truth::Absent => cause.is_none(),
        // It is announced no longer. What is missing until it is announced again is the router's.
        Truth::Forgotten => cause.is_none_or(|cause| cause == GapCause::Router),
        // Nobody knows whether the router was lost already when nothing was sent any more.
        Truth::Missing(GapCause::NotSent) | Truth::Either(GapCause::NotSent, _) if cause == Some(GapCause::Router) => {
            truth == Truth::Either(GapCause::NotSent, GapCause::Router) || lost_soon()
        }
        Truth::Missing(wanted) => cause == Some(wanted),
        Truth::Either(one, other) => cause == Some(one) || cause == Some(other),
        Truth::Open(_) | Truth::Unknown => true,
    };
    (!right).then_some(if cause.is_none() && !in_log { "neither in the log nor in a gap" } else { "a wrong cause" })
}

fn check(seed: u64, counts: &mut Counts) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.recorder.session_ended();
    let tracks = world.recorder.tracks();
    let history = &world.recorder.history;
    let coverage = of_log(&tracks, history, &ArchiveOptions::default(), None);
    for (kind, log) in tracks.iter().enumerate() {
        let id = track(KINDS[kind]);
        let gaps: &[Gap] = coverage.get(&id).map_or(&[], |covered| &covered.gaps);
        let context = || {
            let events: Vec<String> = history.iter().map(|event| format!("{event:?}")).collect();
            format!("seed {seed}, {id}\n{}\nlogged {:#?}\ngaps {gaps:#?}", events.join("\n"), log.missing())
        };
        let frames = world.recorder.frames(kind);
        let missing: Vec<Interval> = gaps.iter().map(|gap| Interval::new(gap.from, gap.to)).collect();
        let (in_log, in_gaps): (Intervals, Intervals) =
            (frames.iter().copied().collect(), missing.iter().copied().collect());
        assert_eq!(span(&in_gaps.intersection(&in_log)), 0, "a time is in the log and in a gap: {}", context());
        assert_eq!(
            span(&in_gaps),
            missing.iter().map(|one| one.len()).sum::<MediaSpan>(),
            "a time is in two gaps: {}",
            context()
        );
        // Never neither, at any time. What is missing for less than a second at an edge is the time that signalling takes.
        let covered: Vec<Interval> = in_log.union(&in_gaps).bridged(FRAME_MAX).iter().collect();
        let mut uncovered = 0;
        for (step, truths) in world.truths.iter().enumerate() {
            let is_announced = matches!(truths[kind], Truth::Arrives | Truth::Missing(_) | Truth::Either(..));
            uncovered = if is_announced && !is_in(&covered, step_at(step)) { uncovered + 1 } else { 0 };
            assert!(uncovered <= EDGE_MAX, "{:?} is neither in the log nor in a gap: {}", step_at(step), context());
        }
        // Frames may be 2 s apart: the earlier one lasts as long, unless a gap says otherwise.
        let in_log: Vec<Interval> = in_log.bridged(FRAME_MAX).iter().collect();
        for step in 0..world.truths.len() {
            let truth = world.truths[step][kind];
            if !lasts(&world.truths, step, kind) {
                continue;
            }
            let moment = step_at(step);
            let cause = gaps.iter().find(|gap| gap.from <= moment && moment < gap.to).map(|gap| gap.cause);
            let wrong = judge(truth, cause, is_in(&in_log, moment), || router_is_lost_soon(history, moment));
            if let Some(wrong) = wrong {
                panic!("{wrong} at {moment:?}: {truth:?}, and the gap is {cause:?}: {}", context());
            }
            match truth {
                Truth::Arrives => counts.captured += 1,
                Truth::Missing(cause) => *counts.missing.entry(cause).or_default() += 1,
                _ => {}
            }
        }
    }
    for (what, often) in world.happened {
        *counts.happened.entry(what).or_default() += often;
    }
}

#[test]
fn each_second_of_a_thousand_random_histories_is_in_the_log_or_in_one_gap() {
    let mut counts = Counts::default();
    for seed in 1..=HISTORIES {
        check(seed, &mut counts);
    }
    println!("{counts:#?}");
    // What does not happen proves nothing.
    assert!(
        Chance::ALL.iter().all(|chance| counts.happened.get(chance).is_some_and(|often| *often >= 100)),
        "{counts:?}"
    );
    assert!(
        GapCause::ALL.iter().all(|cause| counts.missing.get(cause).is_some_and(|often| *often >= 500)),
        "{counts:?}"
    );
    assert!(counts.captured >= 10_000, "{counts:?}");
}
