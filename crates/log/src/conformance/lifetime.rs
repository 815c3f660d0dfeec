//! Closing, crashing, opening again, releasing.

use posthouse_frame::{FrameNo, Kind};

use super::script::scan;
use super::{Harness, Script, durable};
use crate::{Log, LogReader, LogState, Part, ReadError, SegmentNo};

pub(super) fn run<H: Harness>(make: &mut impl FnMut(&'static str) -> H) {
    what_is_durable_survives_a_close_and_a_crash(make("reopen"));
    what_is_not_durable_comes_back_as_a_prefix_or_not_at_all(make("crash with a backlog"));
    a_reader_outlives_its_log(make("reader outlives"));
    only_what_nobody_needs_is_released(make("release"));
    what_is_released_stays_released_and_the_rest_is_found(make("release and reopen"));
    segments_are_used_again_without_bringing_anything_back(make("recycling"));
}

fn what_is_durable_survives_a_close_and_a_crash<H: Harness>(mut harness: H) {
    let mut script = Script::new(21, 300);
    let mut known = FrameNo::ZERO;
    let mut epochs = Vec::new();
    for round in 0..6 {
        let mut log = harness.open(known);
        epochs.push((log.tail(), harness.epoch()));
        script.check(&log.reader(), FrameNo(1), log.tail());
        assert_eq!(durable(&log), log.tail());
        // Also a round in which nothing is written.
        script.submit(&mut log, 7 * (round % 3));
        harness.settle(&mut log);
        let tail = log.tail();
        match round % 2 {
            0 => assert_eq!(log.close(), LogState::Durable(tail)),
            _ => harness.crash(log),
        }
        if round > 3 {
            known = tail;
        }
    }
    let log = harness.open(known);
    assert!(epochs.windows(2).all(|two| two[0].1 < two[1].1), "{epochs:?}");
    let found = scan(&log.reader(), FrameNo(1), Part::Meta).unwrap();
    let begun = found.iter().filter(|frame| frame.header.kind == Kind::Epoch);
    let begun: Vec<_> = begun.map(|frame| (frame.header.frame_no, frame.header.epoch)).collect();
    assert_eq!(begun[..epochs.len()], epochs, "every epoch begins with a frame of its own");
    script.check(&log.reader(), FrameNo(1), log.tail());
}

fn what_is_not_durable_comes_back_as_a_prefix_or_not_at_all<H: Harness>(mut harness: H) {
    let mut script = Script::new(22, 300);
    for round in 0..8 {
        let mut log = harness.open(FrameNo::ZERO);
        script.submit(&mut log, round % 3);
        harness.settle(&mut log);
        harness.hold(&mut log);
        script.submit(&mut log, 5);
        let (least, most) = (log.reader().state().durable(), log.tail());
        harness.crash(log);
        let log = harness.open(FrameNo::ZERO);
        let found = log.tail().prev();
        assert!((least..=most).contains(&found), "{found} of {least} to {most}");
        script.forget_after(found);
        script.check(&log.reader(), FrameNo(1), log.tail());
        log.close();
    }
}

fn a_reader_outlives_its_log<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(23, 300);
    script.submit(&mut log, 30);
    harness.settle(&mut log);
    let (reader, tail) = (log.reader(), log.tail());
    let state = log.close();
    let other = reader.clone();
    drop(reader);
    assert_eq!(other.state(), state);
    script.check(&other, FrameNo(1), tail);
}

fn only_what_nobody_needs_is_released<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(24, 300);
    script.submit(&mut log, 60);
    harness.settle(&mut log);
    let (reader, tail) = (log.reader(), log.tail());
    let held = reader.segments();
    let numbers: Vec<SegmentNo> = held.iter().map(|segment| segment.no).collect();
    log.release(tail, &[]).unwrap();
    assert_eq!(reader.segments(), held, "nothing was named");
    log.release(FrameNo(1), &numbers).unwrap();
    assert_eq!(reader.segments(), held, "nothing lies before the head");
    log.release(held[1].last, &numbers[1..]).unwrap();
    assert_eq!(reader.segments(), held, "the second holds the head");
    // The head may lie within a segment, or past the tail: the active one stays.
    log.release(held[1].last, &numbers).unwrap();
    assert_eq!(reader.segments(), held[1..], "the first lies before the head");
    script.check(&reader, held[1].first, tail);
    assert!(matches!(reader.scan(FrameNo(1), Part::Meta), Err(ReadError::Gone { .. })));
    for body in reader.bodies(&script.places(held[0].first, held[0].last)) {
        // A body that is still in memory may be served; what is not there is gone.
        assert!(matches!(body, Ok(_) | Err(ReadError::Gone { .. })), "{body:?}");
    }
    log.release(tail.next(), &[numbers[2]]).unwrap();
    if !log.limits().sparse_free {
        assert_eq!(reader.segments(), held[1..], "the second was not named");
        log.release(tail.next(), &numbers).unwrap();
        assert_eq!(reader.segments(), held[held.len() - 1..]);
        return script.check(&reader, held[held.len() - 1].first, tail);
    }
    let found: Vec<_> = reader.segments().iter().map(|segment| segment.no).collect();
    assert_eq!(found, [&numbers[1..2], &numbers[3..]].concat());
    for from in [held[1].first, held[2].first, held[2].last] {
        let found = scan(&reader, from, Part::Whole).unwrap();
        script.check_contents(Part::Whole, &found);
        let expected = (from.0..=tail.0)
            .filter(|no| !(held[2].first.0..=held[2].last.0).contains(no))
            .collect::<Vec<_>>();
        let numbers: Vec<u64> = found.iter().map(|frame| frame.header.frame_no.0).collect();
        assert_eq!(numbers, expected, "a gap where the segment was, and nowhere else");
    }
    log.release(tail.next(), &numbers).unwrap();
    assert_eq!(reader.segments(), held[held.len() - 1..], "the active one stays");
}

fn what_is_released_stays_released_and_the_rest_is_found<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(25, 300);
    script.submit(&mut log, 60);
    harness.settle(&mut log);
    let held = log.reader().segments();
    let sparse = log.limits().sparse_free;
    let free = if sparse { vec![held[0].no, held[2].no] } else { vec![held[0].no] };
    let known = log.tail();
    log.release(known, &free).unwrap();
    let left = log.reader().segments();
    log.close();
    let log = harness.open(known);
    let found = log.reader().segments();
    let (mut closed, open) = (found.clone(), left.last().unwrap());
    closed.retain(|segment| segment.no < open.no);
    assert_eq!(closed, left[..left.len() - 1]);
    let frames = scan(&log.reader(), FrameNo::ZERO, Part::Whole).unwrap();
    script.check_contents(Part::Whole, &frames);
    let freed = |no: u64| {
        let inside = |s: &crate::Segment| (s.first.0..=s.last.0).contains(&no);
        inside(&held[0]) || (sparse && inside(&held[2]))
    };
    let expected: Vec<u64> = (1..=log.tail().0).filter(|no| !freed(*no)).collect();
    let numbers: Vec<u64> = frames.iter().map(|frame| frame.header.frame_no.0).collect();
    assert_eq!(numbers, expected);
    let (first, last) = (left[0].first, left[0].last);
    for (place, body) in
        script.places(first, last).iter().zip(log.reader().bodies(&script.places(first, last)))
    {
        assert_eq!(&body.unwrap(), script.content(*place));
    }
}

fn segments_are_used_again_without_bringing_anything_back<H: Harness>(mut harness: H) {
    let mut script = Script::new(26, 300);
    let mut known = FrameNo::ZERO;
    for round in 0..12 {
        let mut log = harness.open(known);
        let first = log.reader().segments()[0].first;
        script.check(&log.reader(), first, log.tail());
        script.submit(&mut log, 25);
        harness.settle(&mut log);
        known = log.tail();
        let segments = log.reader().segments();
        let free: Vec<_> = segments.iter().map(|segment| segment.no).collect();
        log.release(known, &free).unwrap();
        script.submit(&mut log, 25);
        harness.settle(&mut log);
        let first = log.reader().segments()[0].first;
        script.check(&log.reader(), first, log.tail());
        if round % 3 == 0 {
            harness.hold(&mut log);
            script.submit(&mut log, 9);
            let last = log.tail();
            harness.crash(log);
            let log = harness.open(known);
            assert!(log.tail().prev() <= last);
            script.forget_after(log.tail().prev());
            log.close();
        } else {
            log.close();
        }
    }
}
