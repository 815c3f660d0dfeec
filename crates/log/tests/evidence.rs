//! What opening a log takes for a proof, what not, and that no proof gets lost.

mod common;

use common::{DIR, Rig, STORE, check, write};
use posthouse_frame::{FrameNo, Header, Kind};
use posthouse_log::conformance::Script;
use posthouse_log::files::Files;
use posthouse_log::local::OpenError;
use posthouse_log::{Log, LogReader};

/// Two batches: frames 2 to 4, and 5 to 6, which nothing calls durable.
fn two_batches(rig: &Rig) -> Script {
    let mut script = Script::new(1, 300);
    let (mut log, _) = rig.open();
    write(&mut log, &mut script, 3);
    write(&mut log, &mut script, 2);
    drop(log);
    let bodies = [4, 5, 6].map(|no| rig.place(FrameNo(no)).header.body_len > 0);
    assert_eq!(bodies, [true, true, false], "another seed is needed");
    script
}

#[test]
fn units_that_were_copied_to_another_place_prove_nothing() {
    // A message may hold anything, also bytes of the log. Behind a torn frame they
    // would say that it was durable, and the log would not open any more.
    let rig = Rig::new(1);
    let mut script = two_batches(&rig);
    let units = rig.units();
    let (torn, last) = (rig.place(FrameNo(5)), rig.place(FrameNo(6)));
    let content = rig.disk.content(&last.file);
    rig.flip(&torn.file, torn.offset + 20);
    let mut at = last.end() + 512;
    for unit in &units {
        let bytes = &content[unit.offset as usize..unit.end() as usize];
        if at + (bytes.len() as u64) < content.len() as u64 {
            rig.patch(&last.file, at, bytes);
            at += bytes.len() as u64;
        }
    }
    let (log, recovery) = rig.open();
    assert_eq!(recovery.last, FrameNo(4));
    script.forget_after(FrameNo(4));
    check(&log, &script);
}

#[test]
fn units_of_another_store_prove_nothing_and_are_not_taken_in() {
    // The other store's log is longer, has a segment of the same number, and its
    // frames stand at the same places.
    let mut other = Rig::new(2);
    other.options.store = STORE + 1;
    let mut longer = Script::new(1, 300);
    let (mut log, _) = other.open();
    write(&mut log, &mut longer, 3);
    write(&mut log, &mut longer, 2);
    write(&mut log, &mut longer, 2);
    drop(log);
    let rig = Rig::new(1);
    let mut script = two_batches(&rig);
    let torn = rig.place(FrameNo(5));
    let name = torn.file.file_name().unwrap().to_string_lossy().into_owned();
    let foreign = other.disk.content(&other.path(&name)).split_off(torn.offset as usize);
    rig.patch(&torn.file, torn.offset, &foreign);
    let (log, recovery) = rig.open();
    assert_eq!(recovery.last, FrameNo(4));
    script.forget_after(FrameNo(4));
    check(&log, &script);
}

#[test]
fn a_frame_that_holds_in_itself_but_does_not_continue_the_log_is_not_taken_in() {
    type Change = fn(&mut Header);
    let changes: [(&str, Change); 7] = [
        ("another frame before it", |header| header.prev_header_crc ^= 1),
        ("a number left out", |header| header.frame_no = FrameNo(8)),
        ("a number again", |header| header.frame_no = FrameNo(5)),
        ("an epoch that nobody began", |header| header.epoch += 1),
        ("an epoch that is over", |header| header.epoch = 0),
        ("the same epoch begun again", |header| header.kind = Kind::Epoch),
        ("what is durable falls", |header| header.durable_no = FrameNo(0)),
    ];
    for (what, change) in changes {
        let rig = Rig::new(1);
        let mut script = two_batches(&rig);
        rig.rewrite_header(&rig.place(FrameNo(6)), change);
        let (log, recovery) = rig.open();
        assert_eq!(recovery.last, FrameNo(5), "{what}");
        script.forget_after(FrameNo(5));
        check(&log, &script);
    }
}

#[test]
fn a_unit_of_an_impossible_shape_is_not_taken_in_although_its_checksum_holds() {
    type Change = fn(&mut Header);
    let changes: [Change; 4] = [
        |header| header.total += 1,
        |header| header.total = 1 << 20,
        |header| header.kind = Kind::Mark,
        |header| header.frame_no = FrameNo(u64::MAX),
    ];
    for change in changes {
        let rig = Rig::new(1);
        let mut script = two_batches(&rig);
        rig.rewrite_header(&rig.place(FrameNo(6)), change);
        let (log, recovery) = rig.open();
        assert_eq!(recovery.last, FrameNo(5));
        script.forget_after(FrameNo(5));
        check(&log, &script);
    }
}

#[test]
fn a_durable_frame_is_not_cut_when_the_batch_that_calls_it_durable_is() {
    // Only the last batch says that frame 4 was durable, and that batch is torn. A
    // recovery that cut it without looking at frame 4, and was broken off before it
    // wrote anything, would leave no proof to the next one, which would find frame 4
    // bad and cut it, too.
    let rig = Rig::new(1);
    two_batches(&rig);
    for no in [FrameNo(4), FrameNo(5)] {
        let place = rig.place(no);
        rig.flip(&place.file, place.offset + place.header.content_bytes() - 1);
    }
    let before = rig.disk.content(&rig.segments()[0]);
    for _ in 0..2 {
        let error = rig.try_open().unwrap_err();
        let OpenError::Corrupt { frame, evidence, .. } = &error else { panic!("{error}") };
        assert_eq!(*frame, FrameNo(4));
        assert!(evidence.contains("frame 4"), "{evidence}");
    }
    assert_eq!(rig.disk.content(&rig.segments()[0]), before, "and nothing is touched");
    assert!(rig.names().iter().all(|name| !name.starts_with("cut-")));
}

#[test]
fn an_end_mark_is_a_proof_that_no_broken_off_recovery_loses() {
    // The last frames of a full segment, which only its end mark calls durable.
    let rig = Rig::new(1);
    let mut script = Script::new(4, 300);
    let (mut log, _) = rig.open();
    while log.reader().segments().len() < 2 {
        write(&mut log, &mut script, 1);
    }
    drop(log);
    // The next segment was never begun, for all that the disk knows.
    rig.disk.unlink(&rig.segments()[1]).unwrap();
    rig.disk.sync_dir(std::path::Path::new(DIR)).unwrap();
    let last = rig.units().pop().unwrap();
    let proven = |rig: &Rig| {
        let end_mark = last.header.frame_no;
        let rig = rig.fork();
        rig.flip(&last.file, last.offset + 40);
        match rig.try_open() {
            Err(OpenError::Corrupt { frame, .. }) => frame == end_mark,
            _ => false,
        }
    };
    // The end mark was written before its own frame was synced, so it proves what was
    // before that; make it say what an idle log's says.
    let end = (12 << 10) - 512;
    let mut mark = common::Place { offset: end, ..last.clone() };
    mark.header = Header {
        kind: Kind::Mark,
        total: 512,
        meta_len: 0,
        body_len: 0,
        records: 0,
        frame_no: last.header.frame_no.next(),
        durable_no: last.header.frame_no,
        prev_header_crc: crc_of(&rig, &last),
        meta_crc: posthouse_frame::Salt { store: STORE, segment: 1, offset: end }.crc(&[]),
        ..last.header
    };
    rig.rewrite_header(&mark, |_| ());
    assert!(proven(&rig));
    let mut opened = false;
    for cut_after in 1..40 {
        for seed in 0..4 {
            let mut rig = rig.fork();
            rig.disk.reseed(seed);
            rig.disk.cut_power_after(cut_after);
            opened |= rig.try_open().is_ok();
            rig.crash();
            assert!(proven(&rig), "cut after {cut_after}, seed {seed}");
        }
    }
    assert!(opened, "the last cuts came after the opening");
}

/// The checksum that a unit's header carries.
fn crc_of(rig: &Rig, place: &common::Place) -> u32 {
    let at = place.offset as usize + 4;
    let bytes = &rig.disk.content(&place.file)[at..at + 4];
    u32::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn the_last_blocks_of_a_segment_are_kept_for_epochs_and_marks() {
    let rig = Rig::new(3);
    let mut script = Script::new(3, 40);
    let (mut log, _) = rig.open();
    while log.reader().segments().len() < 6 {
        write(&mut log, &mut script, 1);
        if log.tail().0 % 7 == 0 {
            log.idle();
        }
    }
    let data_end = (12 << 10) - 5 * 512;
    let ends = rig.units().into_iter().filter(|unit| unit.header.kind == Kind::Data);
    let highest = ends.map(|unit| unit.end()).max();
    assert_eq!(highest, Some(data_end), "as far as that, and no further");
}
