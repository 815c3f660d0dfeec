//! Scans, bodies, bounds.

use posthouse_frame::{BodyRef, FrameNo};

use super::script::scan;
use super::{Harness, Script};
use crate::{Log, LogReader, Part, ReadError};

pub(super) fn run<H: Harness>(make: &mut impl FnMut(&'static str) -> H) {
    scans_are_inclusive_and_end_with_what_is_durable(make("scan bounds"));
    a_scan_sees_what_was_durable_when_it_began(make("scan snapshot"));
    what_is_not_durable_is_only_in_memory(make("not durable"));
    bodies_come_in_the_order_asked_for(make("bodies"));
    a_place_that_is_none_is_an_error_and_harms_no_other(make("wrong places"));
    segments_follow_each_other(make("segments"));
    readers_share_a_log_with_its_writer(make("readers"));
}

fn is_gone<T>(result: Result<T, ReadError>) -> bool {
    matches!(result, Err(ReadError::Gone { .. }))
}

fn scans_are_inclusive_and_end_with_what_is_durable<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(11, 300);
    script.submit(&mut log, 40);
    harness.settle(&mut log);
    let (reader, tail) = (log.reader(), log.tail());
    for part in [Part::Meta, Part::Whole] {
        for from in 1..=tail.0 {
            let found = scan(&reader, FrameNo(from), part).unwrap();
            script.check_frames(FrameNo(from), tail, part, &found);
        }
        let all = scan(&reader, FrameNo::ZERO, part).unwrap();
        script.check_frames(FrameNo(1), tail, part, &all);
        assert!(scan(&reader, tail.next(), part).unwrap().is_empty(), "just past the tail");
        assert!(is_gone(reader.scan(tail.next().next(), part)), "beyond the tail");
        assert!(is_gone(reader.scan(FrameNo(u64::MAX), part)), "far beyond the tail");
    }
}

fn a_scan_sees_what_was_durable_when_it_began<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(12, 300);
    script.submit(&mut log, 5);
    harness.settle(&mut log);
    let before = log.tail();
    let mut begun = log.reader().scan(FrameNo(1), Part::Whole).unwrap();
    let first = begun.next().unwrap().unwrap();
    script.submit(&mut log, 30);
    harness.settle(&mut log);
    let mut found = vec![first];
    found.extend(begun.map(Result::unwrap));
    script.check_frames(FrameNo(1), before, Part::Whole, &found);
}

fn what_is_not_durable_is_only_in_memory<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(13, 300);
    script.submit(&mut log, 3);
    harness.settle(&mut log);
    let durable = log.tail();
    if !harness.hold(&mut log) {
        return;
    }
    script.submit(&mut log, 5);
    let reader = log.reader();
    assert_eq!(log.backlog(), 5);
    assert_eq!(reader.state().durable(), durable);
    script.check(&reader, FrameNo(1), durable);
    assert!(is_gone(reader.scan(durable.next().next(), Part::Meta)));
    let places = script.places(durable.next(), log.tail());
    assert!(!places.is_empty());
    for (place, body) in places.iter().zip(reader.bodies(&places)) {
        assert!(is_gone(body), "{place} is not durable");
        assert_eq!(reader.cached(*place).as_ref(), Some(script.content(*place)), "{place}");
    }
    harness.settle(&mut log);
    script.check(&reader, FrameNo(1), log.tail());
}

fn bodies_come_in_the_order_asked_for<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(14, 700);
    script.submit(&mut log, 40);
    harness.settle(&mut log);
    let reader = log.reader();
    assert!(reader.bodies(&[]).is_empty());
    let mut places = script.places(FrameNo(1), log.tail());
    places.reverse();
    // A scattered order, with some asked for twice.
    let scattered: Vec<BodyRef> =
        (0..2 * places.len()).map(|n| places[n * 7919 % places.len()]).collect();
    for order in [places, scattered] {
        for (place, body) in order.iter().zip(reader.bodies(&order)) {
            assert_eq!(&body.unwrap(), script.content(*place), "{place}");
        }
    }
}

fn a_place_that_is_none_is_an_error_and_harms_no_other<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(15, 300);
    script.submit(&mut log, 20);
    harness.settle(&mut log);
    let reader = log.reader();
    let good = script.places(FrameNo(1), log.tail());
    let some = good[good.len() / 2];
    let wrong = [
        BodyRef { at: some.at + 1, ..some },
        BodyRef { len: some.len + 1, ..some },
        BodyRef { len: some.len - 1, ..some },
        BodyRef { len: 0, ..some },
        BodyRef { at: u32::MAX - 100, ..some },
        BodyRef { len: u32::MAX, ..some },
        // Frame 1 began the epoch, and has no bodies.
        BodyRef { frame: FrameNo(1), ..some },
    ];
    let gone = [
        BodyRef { frame: FrameNo::ZERO, ..some },
        BodyRef { frame: log.tail().next(), ..some },
        BodyRef { frame: FrameNo(u64::MAX), ..some },
    ];
    let all: Vec<BodyRef> = wrong.into_iter().chain(gone).chain(good.iter().copied()).collect();
    let mut found = reader.bodies(&all).into_iter();
    for place in wrong {
        let error = found.next().unwrap().unwrap_err();
        assert!(matches!(error, ReadError::Corrupt { .. }), "{place}: {error}");
        assert_eq!(reader.cached(place), None, "{place}");
    }
    for place in gone {
        assert!(is_gone(found.next().unwrap()), "{place}");
        assert_eq!(reader.cached(place), None, "{place}");
    }
    for (place, body) in good.iter().zip(found) {
        assert_eq!(&body.unwrap(), script.content(*place), "{place}");
    }
}

fn segments_follow_each_other<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(16, 300);
    for _ in 0..20 {
        script.submit(&mut log, 3);
        harness.settle(&mut log);
        let segments = log.reader().segments();
        let first = segments.first().unwrap();
        let last = segments.last().unwrap();
        assert_eq!((first.first, last.last), (FrameNo(1), log.tail()));
        assert!(segments.windows(2).all(|two| two[0].last.next() == two[1].first));
        assert!(segments.windows(2).all(|two| two[0].no < two[1].no));
        let active: Vec<bool> = segments.iter().map(|segment| segment.active).collect();
        assert!(active.iter().rev().enumerate().all(|(n, active)| *active == (n == 0)));
    }
    assert!(log.reader().segments().len() >= 4, "this harness has no small segments");
    script.check(&log.reader(), FrameNo(1), log.tail());
}

fn readers_share_a_log_with_its_writer<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(17, 300);
    script.submit(&mut log, 10);
    harness.settle(&mut log);
    let (reader, known, tail) = (log.reader(), script.clone(), log.tail());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let mut rounds = 0;
            while rounds == 0 || !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let found = scan(&reader, FrameNo(1), Part::Whole).unwrap();
                let known_only: Vec<_> =
                    found.into_iter().take_while(|f| f.header.frame_no <= tail).collect();
                known.check_frames(FrameNo(1), tail, Part::Whole, &known_only);
                let places = known.places(FrameNo(1), tail);
                assert!(reader.bodies(&places).iter().all(Result::is_ok));
                rounds += 1;
            }
        });
        for _ in 0..30 {
            script.submit(&mut log, 3);
            harness.settle(&mut log);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        reads.join().unwrap();
    });
    script.check(&reader, FrameNo(1), log.tail());
}
