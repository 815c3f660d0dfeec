//! What is due, and what was missed, at any time one cares to name.

use posthouse::broker::recurring::plan::{LATE_MS, Occurrence, Plan, Step};
use posthouse_core::UnixMs;
use posthouse_core::catalog::{Missed, RecurringConfig, Recurs};

const T0: u64 = 1_900_000_000_000;

fn config(recurs: Recurs) -> RecurringConfig {
    RecurringConfig {
        topic: "t".into(),
        key: None,
        tags: Vec::new(),
        headers: Default::default(),
        ttl_ms: None,
        body: Vec::new(),
        recurs,
        start: None,
        end: None,
        jitter_ms: 0,
        missed: Missed::Once,
        paused: false,
    }
}

fn every(every_ms: u64) -> RecurringConfig {
    config(Recurs::Every { every_ms })
}

fn plan(config: &RecurringConfig) -> Plan {
    Plan::of("name", UnixMs(T0), config).unwrap()
}

fn at(ms: u64) -> Occurrence {
    Occurrence { at: UnixMs(T0 + ms), comes: UnixMs(T0 + ms) }
}

#[test]
fn an_interval_counts_from_when_it_was_made_or_from_its_start() {
    let plan_of = plan(&every(60_000));
    let step =
        |last: u64, now: u64| plan_of.step(UnixMs(T0 + last), UnixMs(T0 + now), Missed::Once);
    assert_eq!(step(0, 0), Step::Wait(Some(UnixMs(T0 + 60_000))));
    assert_eq!(step(0, 60_000), Step::Publish(at(60_000)));
    assert_eq!(step(60_000, 60_000), Step::Wait(Some(UnixMs(T0 + 120_000))));
    let started = plan(&RecurringConfig { start: Some(UnixMs(T0 + 7_000)), ..every(60_000) });
    assert_eq!(started.next(UnixMs(T0)), Some(at(7_000)));
    assert_eq!(started.next(UnixMs(T0 + 7_000)), Some(at(67_000)));
    // Started long ago, it goes on in step.
    let old = plan(&RecurringConfig { start: Some(UnixMs(T0 - 90_000)), ..every(60_000) });
    assert_eq!(old.next(UnixMs(T0)), Some(at(30_000)));
}

#[test]
fn it_comes_up_to_its_end_and_that_time_too() {
    let plan = plan(&RecurringConfig { end: Some(UnixMs(T0 + 120_000)), ..every(60_000) });
    assert_eq!(plan.ahead(UnixMs(T0), 10), [UnixMs(T0 + 60_000), UnixMs(T0 + 120_000)]);
    assert_eq!(
        plan.step(UnixMs(T0 + 120_000), UnixMs(T0 + 999_000), Missed::Once),
        Step::Wait(None)
    );
}

#[test]
fn what_was_missed_comes_once_or_not_at_all_and_what_is_a_little_late_comes() {
    let plan = plan(&every(1_000));
    let hour = 3_600_000;
    let now = UnixMs(T0 + hour);
    // All that is older than LATE_MS is one message, or none; the rest comes one by one.
    let missed = at(hour - LATE_MS - 1_000);
    assert_eq!(plan.step(UnixMs(T0), now, Missed::Once), Step::Publish(missed));
    assert_eq!(plan.step(UnixMs(T0), now, Missed::Skip), Step::Skip(missed));
    let mut last = missed.at;
    for late in 0..=LATE_MS / 1_000 {
        let comes = at(hour - LATE_MS + late * 1_000);
        for missed in [Missed::Once, Missed::Skip] {
            assert_eq!(plan.step(last, now, missed), Step::Publish(comes));
        }
        last = comes.at;
    }
    assert_eq!(plan.step(last, now, Missed::Once), Step::Wait(Some(UnixMs(T0 + hour + 1_000))));
    // A clock that was set back makes nothing come twice.
    let before = UnixMs(T0 + hour / 2);
    assert_eq!(plan.step(last, before, Missed::Once), Step::Wait(Some(UnixMs(T0 + hour + 1_000))));
}

#[test]
fn after_years_the_last_time_that_was_missed_is_found_as_counting_finds_it() {
    for cron in ["0 0 0 29 2 *", "0 0 9 * * MON-FRI", "*/7 * * * * *", "0 30 2 * * *"] {
        let recurs = Recurs::Cron { cron: cron.into(), zone: "Europe/Berlin".into() };
        let plan = plan(&config(recurs));
        let now = UnixMs(T0 + 5 * 366 * 86_400_000 + 12_345);
        let edge = now.0 - LATE_MS;
        let Step::Skip(latest) = plan.step(UnixMs(T0), now, Missed::Skip) else {
            panic!("{cron}: nothing was missed");
        };
        assert!(latest.comes.0 < edge, "{cron}");
        let following = plan.next(latest.at).unwrap();
        assert!(following.comes.0 >= edge, "{cron}: {following:?} was missed, too");
    }
}

#[test]
fn jitter_is_the_same_for_the_same_time_differs_and_keeps_the_order() {
    let jittered = RecurringConfig { jitter_ms: 86_400_000, ..every(10_000) };
    let plan_of = plan(&jittered);
    let other = Plan::of("other", UnixMs(T0), &jittered).unwrap();
    let mut last = UnixMs(T0);
    let mut offsets = std::collections::BTreeSet::new();
    let mut differs = 0;
    for _ in 0..1000 {
        let of = plan_of.next(last).unwrap();
        assert_eq!(plan(&jittered).next(last), Some(of), "the same every time");
        assert!(of.comes >= of.at && of.comes.0 < of.at.0 + 10_000, "before the next");
        offsets.insert(of.comes.0 - of.at.0);
        differs += u32::from(other.next(last) != Some(of));
        last = of.at;
    }
    assert!(offsets.len() > 900 && differs > 900, "it spreads: {} {differs}", offsets.len());
    let small = plan(&RecurringConfig { jitter_ms: 100, ..every(10_000) });
    for of in std::iter::successors(small.next(UnixMs(T0)), |o| small.next(o.at)).take(200) {
        assert!(of.comes.0 - of.at.0 <= 100);
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let refused = |config: &RecurringConfig| {
        let problem = Plan::of("name", UnixMs(T0), config).unwrap_err();
        problem.about.unwrap().field.clone()
    };
    assert_eq!(refused(&every(999)), "every");
    assert_eq!(refused(&RecurringConfig { jitter_ms: 86_400_001, ..every(1_000) }), "jitter");
    let turned = RecurringConfig { start: Some(UnixMs(2)), end: Some(UnixMs(1)), ..every(1_000) };
    assert_eq!(refused(&turned), "end");
    let cron =
        |cron: &str, zone: &str| config(Recurs::Cron { cron: cron.into(), zone: zone.into() });
    assert_eq!(refused(&cron("0 0 25 * * *", "UTC")), "cron");
    assert_eq!(refused(&cron("0 0 5 * * *", "Europe/Nowhere")), "zone");
}
