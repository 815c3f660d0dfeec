//! How the local log writes, keeps its spares, and stands a full disk.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{DIR, Rig, STORE, check, write};
use posthouse_frame::{FrameNo, Kind};
use posthouse_log::conformance::{Script, wait_settled, wait_until};
use posthouse_log::files::RealFiles;
use posthouse_log::files::sim::{ENOSPC, Fault, Op};
use posthouse_log::local::{Drive, Durability, LocalLog, LocalOptions, inspect, verify};
use posthouse_log::{Log, LogReader, LogState, Part, ReadError};

fn threads(rig: &mut Rig) {
    rig.options.drive = Drive::Threads;
}

#[test]
fn what_waits_goes_down_in_one_write_and_one_sync() {
    let rig = Rig::new(1);
    let mut script = Script::new(1, 100);
    let (mut log, _) = rig.open();
    let before = rig.disk.counts();
    script.submit(&mut log, 8);
    assert!(log.step());
    let after = rig.disk.counts();
    assert_eq!(log.backlog(), 0);
    assert_eq!(log.reader().segments().len(), 1, "another seed is needed");
    assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
    assert!(!log.step(), "nothing is left");
    assert_eq!(rig.disk.counts(), after);
}

#[test]
fn frames_that_come_during_a_sync_share_the_next_one() {
    let mut rig = Rig::new(1);
    threads(&mut rig);
    rig.options.segment_bytes = 1 << 20;
    rig.options.mark_after = Duration::from_secs(3600);
    let mut script = Script::new(1, 100);
    let (mut log, _) = rig.open();
    let before = rig.disk.counts().syncs;
    rig.disk.hold_syncs();
    script.submit(&mut log, 1);
    rig.disk.wait_for_held_sync();
    script.submit(&mut log, 100);
    assert_eq!(log.backlog(), 101);
    rig.disk.let_syncs(None);
    wait_settled(&log);
    assert_eq!(rig.disk.counts().syncs - before, 2);
    check(&log, &script);
}

#[test]
fn much_that_comes_during_a_sync_is_written_meanwhile_and_durable_after_the_next() {
    let mut rig = Rig::new(1);
    threads(&mut rig);
    rig.options.segment_bytes = 4 << 20;
    rig.options.max_frame_bytes = 1 << 20;
    rig.options.mark_after = Duration::from_secs(3600);
    let mut script = Script::new(1, 90_000);
    let (mut log, _) = rig.open();
    let before = rig.disk.counts().syncs;
    rig.disk.hold_syncs();
    script.submit(&mut log, 1);
    rig.disk.wait_for_held_sync();
    let (durable, written) = (log.reader().state().durable(), log.stats().written_bytes);
    script.submit(&mut log, 40);
    wait_until("it is written", || log.stats().written_bytes > written + (256 << 10));
    assert_eq!(log.reader().state(), LogState::Durable(durable), "no sync has ended");
    // One sync of the first, one of what was written meanwhile; then the next waits.
    rig.disk.let_syncs(Some(1));
    wait_until("the first is durable", || log.reader().state().durable() == durable.next());
    rig.disk.let_syncs(None);
    wait_settled(&log);
    let syncs = rig.disk.counts().syncs - before;
    assert!((2..=5).contains(&syncs), "{syncs} syncs");
    check(&log, &script);
}

#[test]
fn nothing_is_written_where_a_durable_frame_stands() {
    let rig = Rig::new(4);
    let mut script = Script::new(4, 300);
    let (mut log, _) = rig.open();
    let mut known: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for round in 0..60 {
        script.submit(&mut log, 1 + round % 3);
        log.step();
        if round % 5 == 0 {
            log.idle();
        }
        for (path, durable) in &known {
            assert_eq!(rig.disk.content(path)[..durable.len()], durable[..], "round {round}");
        }
        let last = rig.units().pop().unwrap();
        known.retain(|(path, _)| *path != last.file);
        let mut content = rig.disk.content(&last.file);
        content.truncate(last.end() as usize);
        known.push((last.file, content));
    }
    assert!(known.len() > 3);
}

#[test]
fn an_idle_log_leaves_one_mark_and_then_nothing() {
    let mut rig = Rig::new(1);
    threads(&mut rig);
    rig.options.mark_after = Duration::from_millis(1);
    let mut script = Script::new(1, 100);
    let (mut log, _) = rig.open();
    let marks =
        |rig: &Rig| rig.units().iter().filter(|unit| unit.header.kind == Kind::Mark).count();
    wait_until("the opening is marked", || marks(&rig) == 1);
    script.submit(&mut log, 3);
    wait_until("the frames are marked", || marks(&rig) == 2);
    let mark = rig.units().pop().unwrap();
    assert_eq!((mark.header.kind, mark.header.durable_no), (Kind::Mark, FrameNo(4)));
    assert_eq!(mark.header.total, 512, "one block");
    let counts = rig.disk.counts();
    assert_eq!(log.close(), LogState::Durable(FrameNo(4)));
    assert_eq!(rig.disk.counts().writes, counts.writes, "it is marked already");
    assert_eq!(rig.disk.counts().syncs, counts.syncs);
}

#[test]
fn closing_writes_what_waits_and_a_mark() {
    let rig = Rig::new(1);
    let mut script = Script::new(1, 100);
    let (mut log, _) = rig.open();
    script.submit(&mut log, 5);
    let tail = log.tail();
    assert_eq!(log.close(), LogState::Durable(tail));
    assert_eq!(rig.units().pop().unwrap().header.durable_no, tail);
    let (log, recovery) = rig.open();
    assert!(recovery.clean);
    check(&log, &script);
    drop(log);
    assert!(!rig.open().1.clean);
}

#[test]
fn a_log_without_room_can_be_opened_a_few_times_and_its_end_mark_is_the_last_mark() {
    // A frame fills its segment as far as frames with records may. What is left is for
    // whoever opens the log while the disk is full.
    let rig = Rig::new(1);
    let (mut log, _) = rig.open();
    let mut script = Script::new(1, 100);
    while log.reserve().left_bytes > 512 * 6 {
        write(&mut log, &mut script, 1);
    }
    let left = log.reserve().left_bytes as usize;
    let mut frame = script.frame(log.tail().next());
    frame.meta = vec![1; left - 96 - frame.body_len as usize].into();
    script.frames.get_mut(&frame.no).unwrap().meta = frame.meta.clone();
    log.submit(frame).unwrap();
    log.step();
    assert_eq!(log.reserve().left_bytes, 0);
    log.idle();
    drop(log);
    rig.disk.set_room(0);
    for _ in 0..2 {
        let (mut log, _) = rig.open();
        log.idle();
    }
    rig.disk.set_room(1 << 40);
    // The last frame, which is an epoch's, is covered by nothing but the end mark.
    let last = rig.units().pop().unwrap();
    assert_eq!((last.header.kind, last.end()), (Kind::Epoch, (12 << 10) - 512));
    let damaged = rig.fork();
    damaged.flip(&last.file, last.offset + 40);
    assert!(damaged.try_open().is_err());
    // Opening the log, even if that is broken off, does not lose the end mark.
    let before = rig.disk.content(&last.file);
    rig.disk.cut_power_after(3);
    assert!(rig.try_open().is_err());
    let rig = Rig { disk: rig.disk.crash(), ..rig };
    assert_eq!(rig.disk.content(&last.file), before);
    let (mut log, recovery) = rig.open();
    assert_eq!(recovery.last, last.header.frame_no);
    write(&mut log, &mut script, 3);
    check(&log, &script);
    assert!(rig.verify().is_clean());
}

#[test]
fn the_spares_carry_a_log_on_a_full_disk_until_they_are_used_up() {
    let mut rig = Rig::new(1);
    rig.options.spares = 2;
    let mut script = Script::new(5, 300);
    let (mut log, _) = rig.open();
    while log.tend() {}
    let reserve = log.reserve();
    assert_eq!(reserve.spares, 2);
    assert_eq!(reserve.bytes, reserve.left_bytes + 2 * ((12 << 10) - 4096 - 5 * 512));
    let space = log.free_space().unwrap();
    rig.disk.set_room(space.total - space.available);
    assert_eq!(log.free_space().unwrap().available, 0);
    let mut written = 0;
    let mut last = reserve.bytes;
    while log.reader().state().is_open() {
        let before = log.stats().written_bytes;
        script.submit(&mut log, 1);
        log.step();
        written += log.stats().written_bytes - before;
        log.tend();
        let now = log.reserve().bytes;
        assert!(now <= last);
        last = now;
    }
    assert!(written > 2 * (8 << 10), "{written}");
    assert_eq!(log.reserve().spares, 0);
    let LogState::Failed { unknown_from, error } = log.reader().state() else { panic!() };
    assert_eq!(unknown_from, log.tail());
    assert!(error.contains("free some space"), "{error}");
    drop(log);
    // Opening needs no room for what fits in the segment there is; releasing gives
    // room without any.
    let (mut log, recovery) = rig.open();
    assert_eq!(recovery.last, unknown_from.prev());
    script.forget_after(recovery.last);
    check(&log, &script);
    let segments = log.reader().segments();
    log.release(segments[1].first, &[segments[0].no]).unwrap();
    write(&mut log, &mut script, 3);
    let (reader, tail) = (log.reader(), log.tail());
    script.check(&reader, segments[1].first, tail);
}

#[test]
fn a_log_without_a_spare_reserves_a_file_and_fills_spares_later() {
    let mut rig = Rig::new(1);
    rig.options.spares = 3;
    let before = rig.disk.counts();
    let (mut log, _) = rig.open();
    let counts = rig.disk.counts();
    // Nothing of a segment's size is written before the first frame can be taken.
    assert_eq!(counts.writes - before.writes, 1);
    assert_eq!(rig.names(), ["seg-00000000000000000001.log"]);
    while log.tend() {}
    assert_eq!(log.reserve().spares, 3);
    assert_eq!(
        rig.names(),
        ["seg-00000000000000000001.log", "spare-1.log", "spare-2.log", "spare-3.log"]
    );
    log.close();
    let (log, _) = rig.open();
    assert_eq!(log.reserve().spares, 3, "they are found again");
}

#[test]
fn files_go_round_and_the_directory_does_not_grow() {
    let rig = Rig::new(1);
    let mut script = Script::new(1, 300);
    let (mut log, _) = rig.open();
    let mut most = 0;
    for _ in 0..100 {
        write(&mut log, &mut script, 4);
        let segments = log.reader().segments();
        let free: Vec<_> = segments.iter().map(|segment| segment.no).collect();
        log.release(log.tail(), &free).unwrap();
        log.tend();
        most = most.max(rig.names().len());
    }
    assert!(log.reader().segments()[0].no.0 > 30);
    assert!(most <= 6, "{most}");
}

#[test]
fn under_an_interval_frames_are_told_before_they_are_synced() {
    let mut rig = Rig::new(1);
    rig.options.durability = Durability::Interval(Duration::from_secs(3600));
    let mut script = Script::new(1, 100);
    let (mut log, _) = rig.open();
    let before = rig.disk.counts().syncs;
    write(&mut log, &mut script, 2);
    write(&mut log, &mut script, 2);
    assert_eq!(rig.disk.counts().syncs, before);
    assert_eq!(log.reader().synced(), FrameNo(1));
    // What a frame says is durable is what a sync has covered: after a power cut the
    // log must not call its own loss damage.
    assert!(rig.units().iter().all(|unit| unit.header.durable_no <= FrameNo(1)));
    log.idle();
    assert_eq!(log.reader().synced(), log.tail());
    check(&log, &script);
}

#[test]
fn a_segment_is_not_released_before_it_is_synced() {
    // Its file would be written over, or synced as something else.
    let mut rig = Rig::new(1);
    rig.options.durability = Durability::Interval(Duration::from_secs(3600));
    let mut script = Script::new(1, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 40);
    let segments = log.reader().segments();
    let free: Vec<_> = segments.iter().map(|segment| segment.no).collect();
    log.release(log.tail(), &free).unwrap();
    assert_eq!(log.reader().segments(), segments);
    log.idle();
    log.release(log.tail(), &free).unwrap();
    assert_eq!(log.reader().segments().len(), 1);
}

#[test]
fn under_an_interval_the_log_s_thread_syncs_in_time() {
    let mut rig = Rig::new(1);
    threads(&mut rig);
    rig.options.durability = Durability::Interval(Duration::from_millis(5));
    rig.options.mark_after = Duration::from_secs(3600);
    let mut script = Script::new(1, 100);
    let (mut log, _) = rig.open();
    script.submit(&mut log, 3);
    wait_settled(&log);
    let reader = log.reader();
    wait_until("it is synced", || reader.synced() == log.tail());
}

#[test]
fn left_to_the_system_a_segment_is_synced_when_it_is_full() {
    let mut rig = Rig::new(1);
    rig.options.durability = Durability::Os;
    let mut script = Script::new(1, 300);
    let (mut log, _) = rig.open();
    while log.reader().segments().len() < 3 {
        write(&mut log, &mut script, 1);
    }
    let segments = log.reader().segments();
    assert_eq!(log.reader().synced(), segments[1].last);
    let tail = log.tail();
    assert_eq!(log.close(), LogState::Durable(tail));
    rig.crash();
    assert_eq!(rig.open().1.last, tail, "closing syncs");
}

#[test]
fn a_damaged_header_bars_the_way_to_its_own_bodies_only() {
    let mut rig = Rig::new(1);
    rig.options.segment_bytes = 64 << 10;
    let mut script = Script::new(5, 300);
    let (mut log, _) = rig.open();
    while log.reader().segments().len() < 2 {
        write(&mut log, &mut script, 1);
    }
    let tail = log.tail();
    log.close();
    rig.options.known_durable = tail;
    let victim = FrameNo(20);
    let place = rig.place(victim);
    assert!(place.file.ends_with("seg-00000000000000000001.log"));
    rig.flip(&place.file, place.offset + 30);
    // The damaged segment is vouched for, so its headers are read when first needed.
    let (log, _) = rig.open();
    let places = script.places(FrameNo(1), tail);
    for (place, body) in places.iter().zip(log.reader().bodies(&places)) {
        match body {
            Ok(body) => assert_eq!(&body, script.content(*place)),
            Err(ReadError::Corrupt { .. }) => assert_eq!(place.frame, victim),
            Err(other) => panic!("{other}"),
        }
    }
    let report = rig.verify();
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].offset, place.offset);
    let mut scan = log.reader().scan(FrameNo(1), Part::Meta).unwrap();
    let error = scan.find_map(Result::err).unwrap();
    assert!(matches!(&error, ReadError::Corrupt { offset, .. } if *offset == place.offset));
    assert!(scan.next().is_none(), "a scan ends with its first error");
}

#[test]
fn a_read_that_the_disk_refuses_is_no_corruption() {
    let rig = Rig::new(1);
    let mut script = Script::new(7, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 5);
    let places = script.places(FrameNo(1), log.tail());
    // What is young is in memory.
    write(&mut log, &mut script, 1);
    let reader = log.reader();
    rig.disk.fail(Fault { times: 100, ..Fault::next(Op::Read) });
    assert!(reader.bodies(&places).iter().all(|b| matches!(b, Err(ReadError::Io { .. }))));
    let mut scan = reader.scan(FrameNo(1), Part::Whole).unwrap();
    let error = scan.next().unwrap().unwrap_err();
    assert!(matches!(&error, ReadError::Io { file, .. } if file.contains("seg-")), "{error}");
}

#[test]
fn a_release_that_is_refused_leaves_the_segment() {
    let rig = Rig::new(1);
    let mut script = Script::new(7, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 40);
    let segments = log.reader().segments();
    let free: Vec<_> = segments.iter().map(|segment| segment.no).collect();
    rig.disk.fail(Fault { after: 1, errno: ENOSPC, ..Fault::next(Op::Rename) });
    let error = log.release(log.tail(), &free).unwrap_err();
    assert!(error.what.ends_with("seg-00000000000000000002.log"), "{error}");
    assert_eq!(log.reader().segments(), segments[1..]);
    script.check(&log.reader(), segments[1].first, log.tail());
    log.release(log.tail(), &free).unwrap();
    assert_eq!(log.reader().segments().len(), 1);
}

#[test]
fn a_verification_beside_the_owner_finds_nothing_wrong() {
    let mut rig = Rig::new(9);
    threads(&mut rig);
    rig.options.mark_after = Duration::from_micros(100);
    let mut script = Script::new(9, 300);
    let (mut log, _) = rig.open();
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let verifies = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let report = rig.verify();
                assert!(report.is_clean(), "{:?}", report.findings);
                rounds += 1;
            }
            rounds
        });
        for round in 0..600 {
            script.submit(&mut log, 1 + round % 4);
            wait_settled(&log);
            if round % 3 == 0 {
                let segments = log.reader().segments();
                let old = &segments[..segments.len().saturating_sub(4)];
                let free: Vec<_> = old.iter().map(|segment| segment.no).collect();
                log.release(log.tail(), &free).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        verifies.join().unwrap()
    });
    assert!(rounds > 5, "{rounds}");
}

#[test]
fn readers_of_segments_that_are_released_meanwhile_see_them_gone_and_not_corrupt() {
    let mut rig = Rig::new(10);
    threads(&mut rig);
    let mut script = Script::new(10, 300);
    let (mut log, _) = rig.open();
    let done = AtomicBool::new(false);
    let reader = log.reader();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let mut frames = 0;
            while !done.load(Ordering::Relaxed) {
                let Ok(scan) = reader.scan(FrameNo::ZERO, Part::Whole) else { continue };
                for frame in scan {
                    match frame {
                        Ok(_) => frames += 1,
                        Err(ReadError::Gone { .. }) => break,
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            frames
        });
        for _ in 0..500 {
            script.submit(&mut log, 4);
            wait_settled(&log);
            let free: Vec<_> = log.reader().segments().iter().map(|s| s.no).collect();
            log.release(log.tail(), &free).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reads.join().unwrap() > 100);
    });
}

#[test]
fn a_verification_tells_a_torn_end_from_damage_and_goes_on_behind_damage() {
    let rig = Rig::new(1);
    let mut script = Script::new(2, 300);
    let (mut log, _) = rig.open();
    for _ in 0..8 {
        write(&mut log, &mut script, 2);
    }
    drop(log);
    let tail = *script.frames.keys().last().unwrap();
    let report = rig.verify();
    assert!(report.is_clean() && report.torn.is_none());
    assert_eq!((report.first, report.last, report.total.frames), (FrameNo(1), tail, tail.0));
    // Torn: the last frame but one, with the last one whole behind it.
    let torn = rig.fork();
    let place = rig.place(tail.prev());
    torn.flip(&place.file, place.offset + 20);
    let report = torn.verify();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.torn, Some((place.file.display().to_string(), place.offset)));
    // Damage, at two places.
    for place in [3, 9].map(|no| rig.place(FrameNo(no))) {
        rig.flip(&place.file, place.offset + 20);
    }
    let report = rig.verify();
    assert_eq!(report.findings.len(), 2, "{:?}", report.findings);
    assert_eq!(report.last, tail);
    assert_eq!(report.total.frames, tail.0 - 2);
    assert!(report.findings.iter().all(|finding| finding.what.contains("checksum")));
}

// What is behind a segment was read to find out whether that ends as it should: a whole log
// was read twice.
#[test]
fn a_segment_that_ends_as_it_should_is_no_reason_to_read_the_next() {
    let reads_for = |segments: usize| {
        let rig = Rig::new(1);
        let mut script = Script::new(2, 300);
        let (mut log, _) = rig.open();
        while log.reader().segments().len() < segments {
            write(&mut log, &mut script, 1);
        }
        drop(log);
        let before = rig.disk.counts().reads;
        assert!(rig.verify().is_clean());
        rig.disk.counts().reads - before
    };
    // Its head, what is in it, and its end; two more are those of the next one's content.
    let each = reads_for(3) - reads_for(2);
    assert!(each <= 18, "{each} reads for one segment more");
}

#[test]
fn a_directory_can_be_looked_through_without_being_owned() {
    let rig = Rig::new(1);
    let mut script = Script::new(2, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 30);
    log.idle();
    let units = inspect(rig.disk.shared(), Path::new(DIR), STORE, Part::Whole).unwrap();
    let units: Vec<_> = units.map(Result::unwrap).collect();
    for unit in units.iter().filter(|unit| unit.header.kind == Kind::Data) {
        let written = &script.frames[&unit.header.frame_no];
        assert_eq!(unit.meta, written.meta);
        assert_eq!(unit.body.as_ref(), Some(&written.section));
    }
    let kinds = |kind| units.iter().filter(|unit| unit.header.kind == kind).count();
    assert_eq!((kinds(Kind::Epoch), kinds(Kind::Data), kinds(Kind::Mark)), (1, 30, 1));
}

#[test]
fn a_real_directory_is_opened_quickly_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let options = LocalOptions::new(STORE, 0);
    let (mut log, recovery) =
        LocalLog::open(RealFiles::shared(), dir.path(), options.clone()).unwrap();
    assert_eq!((recovery.last, recovery.bytes_read), (FrameNo::ZERO, 0));
    let mut script = Script::new(3, 1000);
    script.submit(&mut log, 100);
    wait_settled(&log);
    check(&log, &script);
    log.close();
    let (log, recovery) = LocalLog::open(RealFiles::shared(), dir.path(), options).unwrap();
    assert!(recovery.clean && recovery.cut.is_empty());
    check(&log, &script);
    let report = verify(RealFiles::shared(), dir.path(), STORE, |_| ()).unwrap();
    assert!(report.is_clean());
    assert_eq!(report.total.frames, 102);
}
