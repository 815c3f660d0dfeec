//! What opening a log does with what it finds: torn, damaged, missing, foreign.

mod common;

use common::{Rig, STORE, check, write};
use posthouse_frame::{FrameNo, Kind};
use posthouse_log::conformance::Script;
use posthouse_log::files::Files;
use posthouse_log::files::sim::{Fault, Op};
use posthouse_log::local::{LocalLog, LocalOptions, OpenError};
use posthouse_log::{Log, LogReader, LogState, Part, ReadError, SegmentNo};

/// A seed with which frame 4 has bodies.
const SEED: u64 = 10;

/// A log of one segment: an epoch and `n` frames, each in a batch of its own, and
/// no mark.
fn short_log(n: usize) -> (Rig, Script) {
    let rig = Rig::new(1);
    let mut script = Script::new(SEED, 300);
    let (mut log, _) = rig.open();
    for _ in 0..n {
        write(&mut log, &mut script, 1);
    }
    (rig, script)
}

/// A log of at least four segments, closed.
fn long_log() -> (Rig, Script) {
    let rig = Rig::new(2);
    let mut script = Script::new(8, 300);
    let (mut log, _) = rig.open();
    while log.reader().segments().len() < 4 {
        write(&mut log, &mut script, 2);
    }
    log.close();
    (rig, script)
}

#[test]
fn a_last_frame_torn_at_any_byte_is_cut_and_reported() {
    let (rig, script) = short_log(3);
    let last = rig.place(FrameNo(4));
    let whole = rig.disk.content(&last.file);
    let (from, to) = (last.offset as usize, last.end() as usize);
    let content = from + last.header.content_bytes() as usize;
    // What stood there before: nothing, or an earlier use of the file.
    for before in [0u8, 0x5a] {
        for torn in from..to {
            for begins_at_front in [true, false] {
                let rig = rig.fork();
                let mut bytes = whole.clone();
                let lost = if begins_at_front { torn..to } else { from..torn };
                bytes[lost].fill(before);
                let unharmed = bytes == whole;
                rig.disk.set_content(&last.file, bytes);
                let (log, recovery) = rig.open();
                let expected = if unharmed { 4 } else { 3 };
                assert_eq!(recovery.last, FrameNo(expected), "byte {torn} of {from}..{to}");
                let mut script = script.clone();
                script.forget_after(recovery.last);
                check(&log, &script);
                assert!(rig.verify().is_clean());
                // With its header whole, it is known for what it was.
                if !unharmed && begins_at_front && torn >= from + 96 && torn < content {
                    assert_eq!(recovery.cut.len(), 1, "byte {torn}");
                    let cut = &recovery.cut[0];
                    assert_eq!((cut.offset, cut.frame), (last.offset, FrameNo(4)));
                    assert_eq!(cut.bytes, u64::from(last.header.total));
                }
            }
        }
    }
}

#[test]
fn what_is_cut_can_be_found_in_the_copy() {
    let (rig, _) = short_log(3);
    let last = rig.place(FrameNo(4));
    let middle = last.offset + last.header.content_bytes() - 1;
    rig.flip(&last.file, middle);
    let damaged = rig.disk.content(&last.file);
    let (_log, recovery) = rig.open();
    let [cut] = &recovery.cut[..] else { panic!("{:?}", recovery.cut) };
    let copy = rig.disk.content(&cut.copy);
    assert_eq!(copy[4096..], damaged[last.offset as usize..last.end() as usize]);
    let words = String::from_utf8_lossy(&copy[..4096]);
    for line in ["store 0123456789abcdef", "shard 3", "first frame 4", "offset"] {
        assert!(words.contains(line), "{words}");
    }
    assert!(rig.names().contains(&"cut-4-0.bin".to_owned()), "{:?}", rig.names());
}

#[test]
fn the_same_damage_is_torn_or_corrupt_by_what_is_known_to_be_durable() {
    let last_frame = FrameNo(4);
    let log_and = |then: fn(&mut LocalLog, &mut Script)| {
        let rig = Rig::new(1);
        let mut script = Script::new(SEED, 300);
        let (mut log, _) = rig.open();
        for _ in 0..3 {
            write(&mut log, &mut script, 1);
        }
        then(&mut log, &mut script);
        rig
    };
    let alone = log_and(|_, _| ());
    let marked = log_and(|log, _| log.idle());
    let followed = log_and(|log, script| write(log, script, 1));
    let mut vouched_for = log_and(|_, _| ());
    vouched_for.options.known_durable = last_frame;
    let header = alone.place(last_frame).header;
    assert!(header.body_len > 0, "another seed is needed");
    // In its header, its meta, its body. Bodies behind good headers are looked at in
    // the last two batches only, and not in what the manifest vouches for; there a
    // reader finds the damage later.
    for (byte, found_at_opening) in [(10, true), (96, true), (header.content_bytes() - 1, false)] {
        let damaged = |rig: &Rig| {
            let (rig, place) = (rig.fork(), rig.place(last_frame));
            rig.flip(&place.file, place.offset + byte);
            rig
        };
        assert_eq!(damaged(&alone).open().1.last, FrameNo(3), "torn");
        for rig in [&marked, &followed, &vouched_for].map(damaged) {
            match rig.try_open() {
                Err(OpenError::Corrupt { frame, .. }) => {
                    assert!(found_at_opening || rig.options.known_durable == FrameNo::ZERO);
                    assert_eq!(frame, last_frame);
                }
                Err(other) => panic!("{other}"),
                Ok((log, _)) => {
                    assert!(!found_at_opening);
                    let mut scan = log.reader().scan(FrameNo(1), Part::Whole).unwrap();
                    assert!(scan.any(|f| matches!(f, Err(ReadError::Corrupt { .. }))));
                }
            }
        }
    }
}

#[test]
fn a_damaged_mark_with_something_after_it_is_corrupt() {
    // A mark is synced alone, so it cannot be torn once a frame follows; the frame
    // after it says only that the frame before the mark was durable.
    let rig = Rig::new(3);
    let mut script = Script::new(9, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 1);
    log.idle();
    write(&mut log, &mut script, 1);
    drop(log);
    let mark = rig.units().into_iter().find(|u| u.header.kind == Kind::Mark).unwrap();
    rig.flip(&mark.file, mark.offset + 50);
    let error = rig.try_open().unwrap_err();
    assert!(
        matches!(&error, OpenError::Corrupt { offset, .. } if *offset == mark.offset),
        "{error}"
    );
    // The same damage to a mark at the end is a torn mark at worst.
    let rig = Rig::new(3);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 1);
    log.idle();
    drop(log);
    let mark = rig.units().pop().unwrap();
    assert_eq!(mark.header.kind, Kind::Mark);
    rig.flip(&mark.file, mark.offset + 50);
    assert_eq!(rig.open().1.last, FrameNo(2));
}

#[test]
fn frames_of_a_torn_batch_do_not_come_back_when_the_torn_one_is_written_anew() {
    // Three frames in one batch, the first of them torn: the other two are valid in
    // themselves, and none was acknowledged. The next owner writes other frames under
    // their numbers, so that new frames end where old ones begin.
    for seed in 0..40 {
        let rig = Rig::new(seed);
        let mut first = Script::new(seed, 100);
        let (mut log, _) = rig.open();
        write(&mut log, &mut first, 1);
        write(&mut log, &mut first, 3);
        drop(log);
        let torn = rig.place(FrameNo(3));
        rig.flip(&torn.file, torn.offset + 20);
        let (mut log, recovery) = rig.open();
        assert_eq!(recovery.last, FrameNo(2));
        let [cut] = &recovery.cut[..] else { panic!("{:?}", recovery.cut) };
        assert!(cut.bytes > u64::from(torn.header.total), "the valid ones are in the copy, too");
        first.forget_after(FrameNo(2));
        let mut second = Script::new(seed + 1000, 400);
        second.frames.clone_from(&first.frames);
        check(&log, &second);
        for _ in 0..4 {
            let before = rig.fork();
            write(&mut log, &mut second, 1);
            check(&log, &second);
            // Whatever of the new frame is on the disk, no old one follows it.
            let tail = log.tail();
            let place = rig.place(tail);
            let new = rig.disk.content(&place.file);
            for sectors in 0..=place.header.total / 512 {
                let (rig, mut known) = (before.fork(), second.clone());
                let (from, to) =
                    (place.offset as usize, place.offset as usize + sectors as usize * 512);
                if !rig.segments().contains(&place.file) {
                    continue;
                }
                rig.patch(&place.file, place.offset, &new[from..to]);
                let (log, recovery) = rig.open();
                assert!(recovery.last == tail || recovery.last == tail.prev(), "{recovery:?}");
                known.forget_after(recovery.last);
                check(&log, &known);
            }
        }
    }
}

#[test]
fn recovery_that_is_broken_off_anywhere_ends_the_same_when_run_again() {
    // A torn batch over several segments, with a good end mark and good frames behind.
    let rig = Rig::new(5);
    let mut script = Script::new(5, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 4);
    let segments = log.reader().segments().len();
    script.submit(&mut log, 30);
    log.step();
    assert!(log.reader().segments().len() > segments + 1);
    drop(log);
    let torn = rig.place(FrameNo(8));
    rig.flip(&torn.file, torn.offset + 40);
    script.forget_after(FrameNo(7));
    let calls = {
        let rig = rig.fork();
        let before = rig.disk.counts().changes();
        let (log, recovery) = rig.open();
        assert_eq!(recovery.last, FrameNo(7));
        assert!(recovery.cut.len() > 1, "{:?}", recovery.cut);
        check(&log, &script);
        rig.disk.counts().changes() - before
    };
    assert!(calls > 10, "{calls}");
    for cut_after in 1..=calls {
        for seed in 0..10 {
            let mut rig = rig.fork();
            rig.disk.reseed(seed * 1000 + cut_after);
            rig.disk.cut_power_after(cut_after);
            assert!(rig.try_open().is_err());
            rig.crash();
            let (log, recovery) = rig.open();
            // The epoch frame of the recovery that was broken off may have got through.
            let last = recovery.last;
            assert!(last == FrameNo(7) || last == FrameNo(8), "cut {cut_after}: {last}");
            check(&log, &script);
            assert!(rig.verify().is_clean());
        }
    }
}

#[test]
fn what_a_failed_sync_left_in_memory_is_not_taken_for_durable() {
    // The system forgets what it could not write, shows it all the same, and calls
    // the next sync of the file a success. An owner that is started again must not
    // build on such a frame: it would vanish at the next power cut, with an
    // acknowledged one after it.
    let mut lost = 0;
    for seed in 0..30 {
        let mut rig = Rig::new(seed);
        let mut script = Script::new(seed, 300);
        let (mut log, _) = rig.open();
        write(&mut log, &mut script, 2);
        rig.disk.fail(Fault::next(Op::Sync));
        script.submit(&mut log, 3);
        log.step();
        assert!(matches!(log.reader().state(), LogState::Failed { .. }));
        drop(log);
        let (mut log, recovery) = rig.open();
        lost += u32::from(recovery.last < FrameNo(6));
        script.forget_after(recovery.last);
        write(&mut log, &mut script, 3);
        let tail = log.tail();
        drop(log);
        rig.crash();
        let (log, recovery) = rig.open();
        assert_eq!(recovery.last, tail, "seed {seed}: acknowledged");
        check(&log, &script);
    }
    assert!(lost > 5, "{lost}");
}

#[test]
fn after_a_failed_sync_the_file_is_never_synced_again() {
    let rig = Rig::new(1);
    let mut script = Script::new(1, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 2);
    rig.disk.fail(Fault::next(Op::Sync));
    script.submit(&mut log, 1);
    log.step();
    let state = log.reader().state();
    let LogState::Failed { unknown_from, error } = &state else { panic!("{state:?}") };
    assert_eq!(*unknown_from, FrameNo(4));
    assert!(error.contains("seg-00000000000000000001.log"), "{error}");
    let counts = rig.disk.counts();
    log.idle();
    log.step();
    assert_eq!(log.close(), state);
    let after = rig.disk.counts();
    assert_eq!((after.syncs, after.writes), (counts.syncs, counts.writes));
}

#[test]
fn a_failed_write_latches_like_a_failed_sync() {
    let rig = Rig::new(1);
    let mut script = Script::new(1, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 2);
    rig.disk.fail(Fault::next(Op::Write));
    script.submit(&mut log, 1);
    log.step();
    assert!(matches!(log.reader().state(), LogState::Failed { .. }));
    drop(log);
    let (log, recovery) = rig.open();
    assert_eq!(recovery.last, FrameNo(3));
    script.forget_after(FrameNo(3));
    check(&log, &script);
}

#[test]
fn an_error_of_the_disk_is_neither_torn_nor_corrupt() {
    let (rig, script) = long_log();
    let reads = {
        let rig = rig.fork();
        let before = rig.disk.counts().reads;
        rig.open();
        rig.disk.counts().reads - before
    };
    for nth in 0..reads {
        let failing = rig.fork();
        failing.disk.fail(Fault { after: nth, ..Fault::next(Op::Read) });
        match failing.try_open() {
            Err(OpenError::File(error)) => {
                assert_eq!(error.what, "Input/output error (os error 5)")
            }
            Err(other) => panic!("read {nth}: {other}"),
            // Reads after all was found: the log opens, and looks again when needed.
            Ok((log, _)) => check(&log, &script),
        }
        assert!(failing.segments() == rig.segments() || failing.try_open().is_ok());
        let (log, recovery) = failing.open();
        assert!(recovery.cut.is_empty());
        check(&log, &script);
    }
}

#[test]
fn a_log_has_one_owner() {
    let rig = Rig::new(1);
    let (log, _) = rig.open();
    let error = rig.try_open().unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains("in use"), "{error}");
    drop(log);
    rig.open();
}

#[test]
fn a_newer_layout_is_refused_with_words_and_left_alone() {
    let newer_frame = |rig: &Rig, place: common::Place| {
        // A header of version 2, with a checksum that holds.
        let mut bytes = rig.disk.content(&place.file)[place.offset as usize..][..96].to_vec();
        bytes[8] = 2;
        let mut salted = Vec::new();
        for part in [STORE, 1, place.offset] {
            salted.extend_from_slice(&part.to_le_bytes());
        }
        let crc = posthouse_frame::crc32c_of(&[&salted, &bytes[8..]]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        rig.patch(&place.file, place.offset, &bytes);
    };
    // The last frame, which nothing calls durable, and one in the middle.
    for no in [4, 2] {
        let (rig, _) = short_log(3);
        newer_frame(&rig, rig.place(FrameNo(no)));
        refused_as_newer(&rig);
    }
    let (rig, _) = short_log(3);
    let file = rig.segments().pop().unwrap();
    let mut block = rig.disk.content(&file)[..4096].to_vec();
    block[8] = 2;
    let crc = posthouse_frame::crc32c(&block[8..]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
    rig.patch(&file, 0, &block);
    refused_as_newer(&rig);
}

fn refused_as_newer(rig: &Rig) {
    let before: Vec<_> = rig.segments().iter().map(|file| rig.disk.content(file)).collect();
    let error = rig.try_open().unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("newer release"), "{error}");
    let after: Vec<_> = rig.segments().iter().map(|file| rig.disk.content(file)).collect();
    assert_eq!(before, after);
}

#[test]
fn a_missing_segment_is_a_loss_unless_the_manifest_allows_for_it() {
    let (rig, script) = long_log();
    let tail = rig.units().last().unwrap().header.frame_no.prev();
    let segments = rig.segments();
    for (n, file) in segments.iter().enumerate() {
        let rig = rig.fork();
        rig.disk.unlink(file).unwrap();
        match rig.try_open() {
            // The last one may never have been begun, for all that is known.
            Ok((_, recovery)) => {
                assert_eq!(n, segments.len() - 1);
                assert!(recovery.last < tail);
            }
            Err(OpenError::Missing { first, .. }) => {
                assert!(n < segments.len() - 1);
                assert!(script.frames.contains_key(&first) || first == FrameNo(1));
            }
            Err(other) => panic!("segment {n}: {other}"),
        }
    }
    for (n, file) in segments.iter().enumerate() {
        let mut rig = rig.fork();
        rig.options.known_durable = tail;
        rig.disk.unlink(file).unwrap();
        match (n == segments.len() - 1, rig.try_open()) {
            (true, Err(OpenError::Missing { .. })) => {}
            // May have been freed; only the manifest can know.
            (false, Ok((_, recovery))) => assert_eq!(recovery.last, tail),
            (_, other) => panic!("segment {n}: {other:?}"),
        }
        rig.options.must_have = Some(vec![SegmentNo(1), SegmentNo(2), SegmentNo(3)]);
        match (n < 3, rig.try_open()) {
            (true, Err(error @ OpenError::MissingSegment { .. })) => {
                assert!(error.to_string().contains("put it back"), "{error}");
            }
            (false, Err(OpenError::Missing { .. }) | Ok(_)) => {}
            (_, other) => panic!("segment {n}: {other:?}"),
        }
    }
}

#[test]
fn an_empty_directory_is_a_loss_if_the_manifest_knows_of_frames() {
    let mut rig = Rig::new(1);
    rig.options.known_durable = FrameNo(7);
    let error = rig.try_open().unwrap_err();
    assert!(
        matches!(error, OpenError::Missing { first: FrameNo(1), last: FrameNo(7), .. }),
        "{error}"
    );
}

#[test]
fn files_that_were_renamed_or_exchanged_are_refused() {
    let (rig, _) = long_log();
    let segments = rig.segments();
    let exchange = |rig: &Rig, a: usize, b: usize| {
        let (one, other) = (rig.disk.content(&segments[a]), rig.disk.content(&segments[b]));
        rig.disk.set_content(&segments[a], other);
        rig.disk.set_content(&segments[b], one);
    };
    for a in 0..segments.len() {
        for b in 0..a {
            let rig = rig.fork();
            exchange(&rig, a, b);
            let error = rig.try_open().unwrap_err();
            assert!(matches!(error, OpenError::Exchanged { .. }), "{a} {b}: {error}");
            assert!(!rig.verify().is_clean());
        }
    }
    // Under a higher number, as if it had been recycled: but it cannot have been
    // released yet.
    let rig = rig.fork();
    let last = segments.last().unwrap();
    rig.disk.rename(last, &rig.path("seg-00000000000000000099.log")).unwrap();
    let error = rig.try_open().unwrap_err();
    assert!(matches!(error, OpenError::Exchanged { .. }), "{error}");
}

#[test]
fn segments_of_another_store_or_shard_are_refused() {
    let (rig, _) = long_log();
    for options in [
        LocalOptions { store: STORE + 1, ..rig.options.clone() },
        LocalOptions { shard: 4, ..rig.options.clone() },
    ] {
        let rig = Rig { disk: rig.disk.fork(), options };
        let error = rig.try_open().unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("another log"), "{error}");
    }
}

#[test]
fn a_file_that_was_cut_short_or_grew_is_refused() {
    let (rig, _) = long_log();
    for file in rig.segments() {
        for change in [-512i64, 512] {
            let rig = rig.fork();
            let mut content = rig.disk.content(&file);
            content.resize((content.len() as i64 + change) as usize, 0);
            rig.disk.set_content(&file, content);
            let error = rig.try_open().unwrap_err();
            assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        }
    }
}

#[test]
fn what_the_manifest_vouches_for_is_not_read_at_opening() {
    let mut rig = Rig::new(4);
    rig.options.segment_bytes = 1 << 20;
    let mut script = Script::new(4, 300);
    let (mut log, _) = rig.open();
    while log.reader().segments().len() < 12 {
        write(&mut log, &mut script, 200);
    }
    log.close();
    let all = rig.fork().open().1;
    rig.options.known_durable = all.last;
    let (log, known) = rig.open();
    assert_eq!(known.last, all.last);
    assert!(all.bytes_read > 11 << 20, "{}", all.bytes_read);
    assert!(known.bytes_read < 5 << 20, "{}", known.bytes_read);
    assert_eq!(known.segments, all.segments);
    check(&log, &script);
}

#[test]
fn options_may_change_between_two_openings() {
    let rig = Rig::new(6);
    let mut script = Script::new(6, 300);
    for (segment_bytes, align) in [(12 << 10, 512), (32 << 10, 4096), (16 << 10, 1024)] {
        let mut rig = rig.clone();
        rig.options.segment_bytes = segment_bytes;
        rig.options.align = align;
        let (mut log, _) = rig.open();
        check(&log, &script);
        write(&mut log, &mut script, 40);
        while log.tend() {}
        check(&log, &script);
        log.close();
        assert!(rig.verify().is_clean());
    }
}

#[test]
fn a_damaged_end_mark_is_harmless_while_the_next_segment_says_as_much() {
    let (rig, script) = long_log();
    let file = &rig.segments()[1];
    let end = rig.disk.content(file).len() as u64 - 512;
    rig.flip(file, end + 30);
    assert!(!rig.verify().is_clean());
    let (log, _) = rig.open();
    check(&log, &script);
    assert!(rig.verify().is_clean(), "it was written anew");
}

#[test]
fn the_last_frames_before_a_freed_segment_cannot_vanish_unseen() {
    // The segment after them is gone, so only the end mark tells how far they go.
    let (mut rig, script) = long_log();
    let (mut log, recovery) = rig.open();
    let segments = recovery.segments.clone();
    rig.options.known_durable = log.tail();
    log.release(log.tail(), &[segments[1].no]).unwrap();
    let last = segments[0].last;
    log.close();
    let place = rig.place(last);
    rig.flip(&place.file, place.offset + 8);
    let (log, _) = rig.fork().open();
    let scanned: Vec<_> = log.reader().scan(FrameNo(1), Part::Meta).unwrap().collect();
    assert!(matches!(scanned.last(), Some(Err(ReadError::Corrupt { .. }))), "{scanned:?}");
    let places = script.places(last, last);
    assert!(log.reader().bodies(&places).iter().all(Result::is_err));
    let end = rig.disk.content(&place.file).len() as u64 - 512;
    rig.flip(&place.file, end + 30);
    let error = rig.try_open().unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}
