//! Handing over, becoming durable, failing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use posthouse_frame::FrameNo;

use super::{Harness, Script, durable};
use crate::{Latched, Log, LogReader, LogState};

pub(super) fn run<H: Harness>(make: &mut impl FnMut(&'static str) -> H) {
    a_new_log_holds_its_first_epoch(make("new log"));
    frames_become_durable_and_the_watcher_hears_it_in_order(make("watcher"));
    frames_that_wait_share_a_sync(make("shared sync"));
    what_does_not_follow_or_fit_panics(make("panics"));
    the_largest_frame_fits(make("largest"));
    a_failure_latches(make("latch"));
}

fn a_new_log_holds_its_first_epoch<H: Harness>(mut harness: H) {
    let log = harness.open(FrameNo::ZERO);
    assert_eq!((log.tail(), durable(&log), log.backlog()), (FrameNo(1), FrameNo(1), 0));
    assert_eq!(harness.epoch(), 1);
    let segments = log.reader().segments();
    assert_eq!(segments.len(), 1);
    assert_eq!((segments[0].first, segments[0].last), (FrameNo(1), FrameNo(1)));
    assert!(segments[0].active);
    Script::new(1, 100).check(&log.reader(), FrameNo(1), FrameNo(1));
}

fn frames_become_durable_and_the_watcher_hears_it_in_order<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    log.watch(Box::new(move |state| hears.lock().unwrap().push(state.clone())));
    assert_eq!(*heard.lock().unwrap(), [LogState::Durable(FrameNo(1))], "told right away");
    let mut script = Script::new(2, 300);
    for _ in 0..10 {
        script.submit(&mut log, 3);
        harness.settle(&mut log);
        assert_eq!((durable(&log), log.backlog()), (log.tail(), 0));
    }
    let tail = log.tail();
    assert_eq!(tail, FrameNo(31));
    assert_eq!(log.close(), LogState::Durable(tail));
    let heard = heard.lock().unwrap();
    assert!(heard.windows(2).all(|two| two[0].durable() < two[1].durable()), "{heard:?}");
    assert_eq!(heard.last(), Some(&LogState::Durable(tail)));
}

fn frames_that_wait_share_a_sync<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(3, 20);
    if !harness.hold(&mut log) || harness.syncs().is_none() {
        return;
    }
    let before = harness.syncs();
    // A log with a thread of its own may have taken the first one alone; and some of
    // the others may lie in another file, which has a sync of its own.
    script.submit(&mut log, 6);
    harness.settle(&mut log);
    let syncs = harness.syncs().zip(before).map_or(0, |(now, before)| now - before);
    assert!((1..=3).contains(&syncs), "{syncs} syncs for 6 frames");
    script.check(&log.reader(), FrameNo(1), log.tail());
}

fn what_does_not_follow_or_fit_panics<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let most = log.limits().max_frame_bytes;
    let mut script = Script::new(4, 20);
    let mut large = script.frame(FrameNo(2));
    large.meta = vec![0; most].into();
    let panics = |log: &mut H::Log, frame| {
        let handed = catch_unwind(AssertUnwindSafe(|| log.submit(frame)));
        assert!(handed.is_err(), "the frame was taken");
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    panics(&mut log, large);
    panics(&mut log, script.frame(FrameNo(1)));
    panics(&mut log, script.frame(FrameNo(3)));
    std::panic::set_hook(hook);
    script.frames.clear();
    script.submit(&mut log, 1);
    harness.settle(&mut log);
    script.check(&log.reader(), FrameNo(1), FrameNo(2));
}

fn the_largest_frame_fits<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(5, 200);
    for _ in 0..4 {
        script.submit(&mut log, 1);
        let no = log.tail().next();
        let mut frame = script.frame(no);
        let room = log.limits().max_frame_bytes - frame.content_bytes();
        frame.meta = [&frame.meta[..], &vec![7; room]].concat().into();
        if let Some(written) = script.frames.get_mut(&no) {
            written.meta = frame.meta.clone();
        }
        assert_eq!(frame.content_bytes(), log.limits().max_frame_bytes);
        log.submit(frame).unwrap();
        harness.settle(&mut log);
    }
    script.check(&log.reader(), FrameNo(1), log.tail());
}

fn a_failure_latches<H: Harness>(mut harness: H) {
    let mut log = harness.open(FrameNo::ZERO);
    let mut script = Script::new(6, 200);
    script.submit(&mut log, 2);
    harness.settle(&mut log);
    let good = log.tail();
    if !harness.break_down(&mut log) {
        return;
    }
    script.submit(&mut log, 1);
    harness.settle(&mut log);
    let reader = log.reader();
    let failed = reader.state();
    assert!(
        matches!(&failed, LogState::Failed { unknown_from, .. } if *unknown_from == good.next()),
        "{failed:?}"
    );
    assert_eq!(failed.durable(), good);
    // An owner may go on before it has looked at the state.
    let next = log.tail().next();
    for number in [next, next.next()] {
        assert_eq!(log.submit(script.frame(number)), Err(Latched));
    }
    harness.settle(&mut log);
    script.check(&reader, FrameNo(1), good);
    assert_eq!(log.close(), failed, "nothing changes a failure");
    // What is found then may have the frame in doubt or not, and nothing else.
    let log = harness.open(good);
    let found = log.tail().prev();
    assert!(found == good || found == good.next(), "{found}");
    script.forget_after(found);
    script.check(&log.reader(), FrameNo(1), log.tail());
}
