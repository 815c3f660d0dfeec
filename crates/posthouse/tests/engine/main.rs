//! The loop of a shard, turn by turn: who is served when, what waits for what, and what one
//! turn may do.

mod world;

use std::sync::Arc;

use posthouse::shard::engine::{FRAME_BYTES, Rest};
use posthouse::shard::snapshots::{Progress, SnapshotStep};
use posthouse::shard::{Effect, EngineOptions, Mail, Ticket};
use posthouse::store::snapshot::{Begin, Taken};
use posthouse_core::catalog::{GroupConfig, Order, Subscription};
use posthouse_core::chunk::ChunkId;
use posthouse_core::index::block;
use posthouse_core::machine::Machine;
use posthouse_core::page::{Captured, PageId, TableId};
use posthouse_core::queue::Command;
use posthouse_core::queue::command::{Claim, Reply};
use posthouse_core::record::RecordError;
use posthouse_frame::FrameNo;
use posthouse_frame::varint::Malformed;
use posthouse_log::LogReader as _;
use posthouse_log::files::sim::SimFiles;
use posthouse_log::local::{Drive, Durability, LocalLog, LocalOptions};
use posthouse_log::{Log as _, memory::MemoryLog};
use tokio::sync::Semaphore;
use world::{Wants, World, came, refused};

const NOW: Wants = Wants { max: 10, wait_ms: 0 };
const LATER: Wants = Wants { max: 10, wait_ms: 1_000 };

fn by_text(filter: &str) -> GroupConfig {
    let subscriptions = vec![Subscription { topic: "t".into(), filter: filter.into() }];
    GroupConfig { subscriptions, ..GroupConfig::default() }
}

/// Answers the one question about the text of messages that was asked: none passes.
fn judge_none(world: &mut World<MemoryLog>) {
    let Some(Effect::Judge(peek, waiter)) = world.effects.pop_front() else {
        panic!("there is something to judge");
    };
    let claim = Claim {
        group: peek.group,
        partition: peek.partition,
        from: peek.from,
        upto: peek.upto,
        pass: Vec::new(),
        max: waiter.max,
        max_bytes: waiter.max_bytes,
        consumer: waiter.consumer.clone(),
        lease_ms: waiter.lease_ms,
        auto_ack: waiter.auto_ack,
    };
    world.send(Mail::Judged { claim, waiter });
}

// Whoever came while another consumer of the group waited was put behind that one, unasked:
// what is there of one topic did not come while somebody waited for another.
#[test]
fn who_waits_for_one_topic_does_not_keep_another_topic_from_others() {
    let mut world = World::new();
    let (a, b) = (world.topic("a"), world.topic("b"));
    let group = world.group("g", &[&a, &b], GroupConfig::default());
    let mut waits = world.receive(&group, Some(&a), LATER);
    world.settle();
    world.publish(&b, 2, "");
    let mut any = world.receive(&group, None, NOW);
    world.settle();
    assert_eq!(came(&mut any), Some(2));
    let mut one = world.receive(&group, Some(&b), NOW);
    world.settle();
    assert_eq!(came(&mut one), Some(0));
    assert_eq!(came(&mut waits), None);
    world.publish(&a, 1, "");
    world.settle();
    assert_eq!(came(&mut waits), Some(1));
}

#[test]
fn who_came_first_is_served_first() {
    let mut world = World::new();
    let topic = world.topic("t");
    let group = world.group("g", &[&topic], GroupConfig::default());
    let one = Wants { max: 1, wait_ms: 1_000 };
    let mut answers: Vec<_> = (0..3).map(|_| world.receive(&group, None, one)).collect();
    world.settle();
    world.publish(&topic, 2, "");
    world.settle();
    let came: Vec<_> = answers.iter_mut().map(came).collect();
    assert_eq!(came, [Some(1), Some(1), None]);
}

// Every judgement began the wait anew: with messages that do not pass coming now and then, a
// receive was never answered.
#[test]
fn a_wait_ends_when_it_should_however_often_messages_were_judged() {
    let mut world = World::new();
    let topic = world.topic("t");
    let group = world.group("g", &[&topic], by_text("/^wanted/"));
    let wants = Wants { max: 1, wait_ms: 5_000 };
    let mut answer = world.receive(&group, None, wants);
    world.settle();
    for _ in 0..4 {
        world.publish(&topic, 1, "other");
        world.settle();
        judge_none(&mut world);
        world.settle();
        world.advance(1_200);
        assert_eq!(came(&mut answer), None);
    }
    world.advance(200);
    world.settle();
    assert_eq!(came(&mut answer), Some(0));
}

// A judgement that was refused left its partition waiting for it.
#[test]
fn a_partition_goes_on_when_whoever_judged_its_messages_is_refused() {
    let mut world = World::new();
    let topic = world.topic("t");
    let group = world.group("g", &[&topic], by_text("/^wanted/"));
    world.publish(&topic, 1, "other");
    let mut first = world.receive(&group, None, LATER);
    world.settle();
    world.send(Mail::EndWaits);
    world.settle();
    judge_none(&mut world);
    world.settle();
    assert_eq!(refused(&mut first), "stopping");
    let pairs = world.engine.shard().pairs_of(group.id, u32::MAX);
    assert_eq!(pairs[0].lag, 0, "it was judged, and is passed over");
}

// All waiters of a group were served in one turn, whatever that put into its frame: the log
// refuses a frame that is too large by ending the process.
#[test]
fn many_consumers_that_take_much_share_several_frames() {
    let mut world = World::new();
    let topic = world.topic("t");
    let config = GroupConfig { order: Order::Key, ..GroupConfig::default() };
    let group = world.group("g", &[&topic], config);
    let wants = Wants { max: 10_000, wait_ms: 1_000 };
    let mut answers: Vec<_> = (0..60).map(|_| world.receive(&group, None, wants)).collect();
    world.settle();
    for round in 0..60u64 {
        let batch = world.batch(&topic, 5_000, |n| round << 32 | (n as u64 + 1));
        let (tx, _) = tokio::sync::oneshot::channel();
        let command = Command::Publish { batches: vec![batch], apart: false };
        world.send(Mail::Command { command, tx, room: None });
    }
    world.settle();
    let largest = world.largest_frame();
    assert!(largest < 2 * FRAME_BYTES as u64, "a frame has {largest} bytes");
    let all: usize = answers.iter_mut().filter_map(came).sum();
    assert_eq!(all, 300_000);
}

// A shard that found the ticket taken let go of its copy: when the other gave it back, nobody
// was left who waited here.
#[test]
fn who_is_looked_after_by_another_shard_goes_on_waiting_here() {
    let mut world = World::new();
    let topic = world.topic("t");
    let group = world.group("g", &[&topic], GroupConfig::default());
    let (again_tx, again) = std::sync::mpsc::channel();
    let ticket = Ticket::shared(move || again_tx.send(()).unwrap());
    let (mut waiter, mut answer) = world.waiter(&group, None, LATER);
    waiter.ticket = ticket.clone();
    assert!(ticket.take(), "another shard looks");
    world.send(Mail::Receive(waiter));
    world.settle();
    world.publish(&topic, 1, "");
    world.settle();
    assert_eq!(came(&mut answer), None);
    ticket.give_back();
    again.try_recv().expect("this one wanted it");
    world.send(Mail::LookAgain(group.id));
    world.settle();
    assert_eq!(came(&mut answer), Some(1));
}

#[test]
fn who_waits_as_a_group_that_is_deleted_is_told() {
    let mut world = World::new();
    let topic = world.topic("t");
    let group = world.group("g", &[&topic], GroupConfig::default());
    let mut answer = world.receive(&group, None, LATER);
    world.settle();
    world.delete_group("g");
    world.settle();
    assert_eq!(refused(&mut answer), "group_not_found");
}

// The room was given back when the client hung up, with the bodies still in the mailbox.
#[test]
fn bodies_hold_their_room_until_they_are_in_a_frame() {
    let mut world = World::new();
    let topic = world.topic("t");
    let room = Arc::new(Semaphore::new(5));
    let permit = Arc::new(room.clone().try_acquire_many_owned(5).unwrap());
    let (tx, rx) = tokio::sync::oneshot::channel();
    let batches = vec![world.batch(&topic, 1, |_| 0)];
    let command = Command::Publish { batches, apart: false };
    world.send(Mail::Command { command, tx, room: Some(permit) });
    drop(rx);
    assert_eq!(room.available_permits(), 0, "nobody waits for the answer, but it is there");
    world.turn();
    assert_eq!(room.available_permits(), 5);
}

// With a log that is synced now and then, a manifest could name a frame that a power cut
// takes: the store did not open any more.
#[test]
fn a_snapshot_waits_until_a_sync_has_covered_its_frame() {
    let disk = SimFiles::new(1);
    disk.shared().create_dir("/log".as_ref()).unwrap();
    let options =
        LocalOptions { durability: Durability::Os, drive: Drive::Steps, ..LocalOptions::new(1, 0) };
    let (log, _) = LocalLog::open(disk.shared(), "/log".as_ref(), options).unwrap();
    let reader = log.reader();
    let mut world = World::over(log, EngineOptions::default());
    let topic = world.topic("t");
    let batches = vec![world.batch(&topic, 1, |_| 0)];
    let mut answer = world.command(Command::Publish { batches, apart: false });
    let (stop, _) = tokio::sync::oneshot::channel();
    world.send(Mail::Stop(stop));
    let mut begun = None;
    for _ in 0..20 {
        world.engine.log_mut().step();
        let Rest { .. } = world.turn();
        while let Some(effect) = world.effects.pop_front() {
            match effect {
                Effect::Snapshot(SnapshotStep::Begin(begin)) => begun = Some(begin.frame),
                Effect::Snapshot(SnapshotStep::Finish) => {
                    let frame = begun.expect("it was begun");
                    assert!(reader.synced() >= frame, "{} is not synced", frame);
                    assert!(answer.try_recv().is_ok(), "which others do not wait for");
                    return;
                }
                _ => {}
            }
        }
    }
    panic!("it is never finished");
}

// On a full disk a snapshot was asked for every second, and each wrote what made the next one
// seem of use.
#[test]
fn a_snapshot_that_would_let_nothing_go_is_not_taken() {
    let mut world = World::new();
    let topic = world.topic("t");
    world.publish(&topic, 1, "");
    world.send(Mail::WantSnapshot);
    world.settle();
    assert!(world.effects.is_empty(), "{:?}", world.effects);
    for _ in 0..200 {
        world.publish(&topic, 1, "");
        let (partition, before) = (topic.partitions[0].id, None);
        world.command(Command::Purge { partition, before });
        world.settle();
    }
    world.send(Mail::WantSnapshot);
    world.settle();
    let begun = world.effects.iter().any(|e| matches!(e, Effect::Snapshot(SnapshotStep::Begin(_))));
    assert!(begun, "segments with nothing live can go");
}

// Messages that came faster than snapshots were written took all the memory there was.
#[test]
fn publishes_wait_for_a_snapshot_that_is_written_more_slowly_than_they_come() {
    let few = EngineOptions { young_bytes: 500, ..EngineOptions::default() };
    let mut world = World::with(few);
    let topic = world.topic("t");
    let group = world.group("g", &[&topic], GroupConfig::default());
    let begun = |world: &mut World<MemoryLog>| {
        let effects = std::mem::take(&mut world.effects);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Snapshot(SnapshotStep::Begin(begin)) => Some(begin),
            _ => None,
        })
    };
    // One is being written, and what comes meanwhile has four times the room of one.
    world.publish(&topic, 500, "");
    world.settle();
    let begin = begun(&mut world).expect("one is due");
    world.publish(&topic, 500, "");
    let batches = vec![world.batch(&topic, 1, |_| 0)];
    let mut waits = world.command(Command::Publish { batches, apart: false });
    assert!(!world.turn().busy, "it waits for the snapshot");
    assert!(waits.try_recv().is_err());
    let mut answer = world.receive(&group, None, Wants { max: 3, wait_ms: 0 });
    world.turn();
    world.turn();
    assert_eq!(came(&mut answer), Some(3), "consumers do not wait");

    let id = ChunkId { epoch: 1, number: 1 };
    let chunk = block::build(&begin.frozen.expect("messages have come"), 1, id);
    let taken = Taken {
        frame: begin.frame,
        digest: 0,
        index: Some(chunk),
        folded: None,
        found: None,
        run: None,
        merged: None,
    };
    while world.turn().busy {}
    world.send(Mail::SnapshotTaken(Ok(taken)));
    world.settle();
    assert!(begun(&mut world).is_some(), "the next is due");
    assert!(matches!(waits.try_recv(), Ok(Ok(Reply::Published(_)))));
}

/// State of which every turn captures a MiB.
struct Heavy;

impl Machine for Heavy {
    fn apply(&mut self, _: FrameNo, _: &[u8]) -> Result<(), RecordError> {
        Ok(())
    }
    fn sealed(&mut self, _: FrameNo, _: usize) {}
    fn begin_snapshot(&mut self) {}
    fn walk(&mut self, _: usize) -> (Vec<Captured>, bool) {
        (vec![(PageId::of(TableId::Pairs, 0), Some(vec![0; 1 << 20]))], false)
    }
    fn touch_all(&mut self) {}
    fn restore_page(&mut self, _: PageId, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
    fn restored(&mut self) {}
    fn has_changes(&self) -> bool {
        true
    }
    fn digest(&self) -> u64 {
        0
    }
}

// Pages were captured as fast as the loop turned, and waited in memory for the disk.
#[test]
fn pages_are_captured_no_faster_than_they_are_written() {
    let now = posthouse_core::Now::default();
    let mut progress = Progress::new(FrameNo::ZERO);
    let begin = Begin {
        frame: FrameNo(1),
        wall_ms: 0,
        lease_ms: 0,
        epoch: 1,
        segments: Vec::new(),
        index: Vec::new(),
        cleaning: Default::default(),
        frozen: None,
        schedule: Default::default(),
        whole: false,
        keep: false,
    };
    progress.begin(&mut Heavy, begin);
    let mut waiting = Vec::new();
    while progress.is_walking() {
        waiting.extend(progress.step(&mut Heavy, FrameNo::ZERO));
        assert!(waiting.len() <= 17, "16 MiB and one more");
    }
    assert!(progress.look_again(now).is_some());
    assert!(progress.step(&mut Heavy, FrameNo::ZERO).is_empty());
    waiting.pop();
    assert!(progress.is_walking(), "one is written, and the next is captured");
}
