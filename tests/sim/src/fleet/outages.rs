//! Services that are away for long, in simulated time: ten minutes of the broker, ten of the catalog, thirty of the store.

use super::Millis;
use super::machine::{Service, Trouble};
use super::script::{Action, Disturbs, FaultSpan, MACHINES, Script};
use super::tests::simulate;

const MINUTE: Millis = 60_000;
/// When a service goes away.
const FROM: Millis = 30_000;

/// Sessions around an outage: one that goes on through it, one that ends in it, one of which all of it is in it, and one that begins in it and goes
/// on behind it.
fn sessions_around(until: Millis) -> Script {
    let mut script = Script::default();
    let middle = FROM + (until - FROM) / 2;
    for (name, from, to) in [
        ("through", 1_000, until + 40_000),
        ("ends", 2_000, middle),
        ("within", middle - MINUTE, middle + MINUTE),
        ("begins", until - 2 * MINUTE, until + 50_000),
    ] {
        let session = || name.to_owned();
        script.add(from, Action::StartSession { session: session() });
        script.add(from + 500, Action::Publish { session: session(), id: format!("{name}-a") });
        script.add(from + 5_000, Action::Publish { session: session(), id: format!("{name}-b") });
        script.add(to, Action::EndSession { session: session() });
        script.sessions.push(session());
    }
    script
}

/// The sessions that have an archive, and those whose archives say that they lack nothing. All promises hold.
fn made_and_complete(mut script: Script) -> (Vec<String>, Vec<String>) {
    script.steps.sort_by_key(|step| step.at);
    let outcome = simulate(&script);
    assert_eq!(outcome.violations, [], "{}", outcome.log.join("\n"));
    (outcome.made, outcome.complete)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A service is away for all machines.
fn away(service: Service, trouble: Trouble, disturbs: Disturbs, minutes: Millis) -> Script {
    let until = FROM + minutes * MINUTE;
    let mut script = sessions_around(until);
    script.faults.push(FaultSpan { disturbs, from: FROM, until });
    for machine in 0..MACHINES {
        script.add(FROM, Action::Trouble { machine, service, trouble });
        script.add(until, Action::Heal { machine, service });
    }
    script
}

#[test]
fn a_store_that_is_away_for_half_an_hour_keeps_no_session_from_being_recorded() {
    for trouble in [Trouble::Cut, Trouble::Hang] {
        let all = names(&["through", "ends", "within", "begins"]);
        let script = away(Service::Store, trouble, Disturbs::Delivery, 30);
        assert_eq!(made_and_complete(script), (all.clone(), all), "{trouble:?}");
    }
}

#[test]
fn a_catalog_that_is_away_for_ten_minutes_costs_no_running_session_anything() {
    let script = away(Service::Catalog, Trouble::Cut, Disturbs::Ownership, 10);
    // Nobody can take a new session meanwhile, and its archive says so. One that is over by then leaves none.
    let made = names(&["through", "ends", "begins"]);
    assert_eq!(made_and_complete(script), (made, names(&["through", "ends"])));
}

#[test]
fn a_broker_that_is_away_for_ten_minutes_costs_no_running_session_anything() {
    let until = FROM + 10 * MINUTE;
    let mut script = sessions_around(until);
    script.faults.push(FaultSpan { disturbs: Disturbs::Events, from: FROM, until });
    script.add(FROM, Action::StopBroker);
    script.add(until, Action::StartBroker);
    let made = names(&["through", "ends", "begins"]);
    assert_eq!(made_and_complete(script), (made, names(&["through", "ends"])));
}
