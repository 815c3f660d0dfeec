//! What a shard can be asked to do, and what it answers.

use std::sync::Arc;

use posthouse_frame::BodyBuf;

use super::clean::Candidate;
use crate::index::Found;
use crate::message::DeadReason;
use crate::record::{Draft, Pending, When};
use crate::words::{Fence, GroupId, PartitionId, Position, Seq, ShardMs, TopicId, UnixMs};

/// Messages for the end of one partition; now, or all of them later.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The partition.
    pub partition: PartitionId,
    /// Its topic.
    pub topic: TopicId,
    /// The sealed bodies, back to back.
    pub bodies: BodyBuf,
    /// One for each body.
    pub drafts: Vec<Draft>,
}

impl Batch {
    /// Whether its messages are to be scheduled.
    pub fn is_later(&self) -> bool {
        self.drafts.first().is_some_and(|draft| draft.later.is_some())
    }
}

/// A scheduled message, as users name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// By what its id says.
    Id(Pending),
    /// By the hash of the name that it has in a topic.
    Name(TopicId, u128),
}

/// When a scheduled message shall be due instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// At a time, or so long from now.
    To(When),
    /// So many milliseconds later, or earlier.
    By(i64),
}

/// What became of one scheduled message of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaterOutcome {
    /// It is as was asked.
    Done {
        /// Which message it was.
        of: Pending,
        /// When it is due now, or was due.
        due: UnixMs,
    },
    /// It has come into its partition.
    Fired {
        /// Which message it was.
        of: Pending,
        /// Where it is.
        position: Position,
    },
    /// It was called back before.
    Cancelled {
        /// Which message it was.
        of: Pending,
    },
    /// It waits for a transaction, which decides about it.
    Held {
        /// Which message it is.
        of: Pending,
    },
    /// There is no such message, or what became of it has been forgotten.
    Unknown,
}

/// A message that a consumer was given, as its receipt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// The group.
    pub group: GroupId,
    /// The partition.
    pub partition: PartitionId,
    /// The position.
    pub position: Position,
    /// The grant.
    pub fence: Fence,
}

/// A message given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenBack {
    /// The message.
    pub held: Held,
    /// How long to wait before it is granted again; `None`: as the group says.
    pub delay_ms: Option<u64>,
    /// Why.
    pub reason: Arc<str>,
}

/// Where a group begins, or goes on, on a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// With the oldest message.
    Earliest,
    /// Behind the newest.
    Latest,
    /// With the first message of this time or later.
    Time(UnixMs),
    /// At a position.
    Position(Position),
}

/// A message to be buried: its last attempt has failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Burial {
    /// The group that could not do it.
    pub group: GroupId,
    /// The partition it is on.
    pub partition: PartitionId,
    /// What the index knows of it.
    pub found: Found,
    /// The last grant.
    pub fence: Fence,
    /// How often it was granted.
    pub attempts: u16,
    /// Why.
    pub reason: DeadReason,
    /// What the last nack said.
    pub error: String,
}

/// A sealed body for a message that the system moves, and what the index shall hold.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    /// The sealed body.
    pub body: BodyBuf,
    /// The rest.
    pub draft: Draft,
}

/// One time at which a recurring message comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The number of the recurring message in the catalog.
    pub recurring: u32,
    /// The revision of it that says so.
    pub revision: u32,
    /// The time that its rule says.
    pub at: UnixMs,
}

/// What a shard is asked.
#[derive(Debug)]
pub enum Command {
    /// To take messages in.
    Publish {
        /// The messages.
        batches: Vec<Batch>,
        /// Whether a message that cannot be taken in keeps no other out. Else it is
        /// all or none.
        apart: bool,
    },
    /// To be done with messages.
    Ack(Vec<Held>),
    /// To take messages back.
    Nack(Vec<GivenBack>),
    /// To let leases end at another time from now.
    Extend {
        /// Which.
        held: Vec<Held>,
        /// How long from now.
        lease_ms: u64,
    },
    /// To grant messages that were looked at: see [`super::Peek`].
    Claim(Claim),
    /// To give a partition to a group.
    Attach {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// Its topic.
        topic: TopicId,
        /// Where it begins.
        start: Target,
    },
    /// To take a partition from a group.
    Detach {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
    },
    /// To let a partition go.
    Drop {
        /// The partition.
        partition: PartitionId,
    },
    /// To let a group go on elsewhere.
    Seek {
        /// The group.
        group: GroupId,
        /// The partition.
        partition: PartitionId,
        /// Where.
        to: Target,
    },
    /// To let all messages of a partition go, or those before a position.
    Purge {
        /// The partition.
        partition: PartitionId,
        /// The first that stays; `None`: none does.
        before: Option<Position>,
    },
    /// To put a message to the dead letters.
    Bury {
        /// What the shard asked for.
        burial: Burial,
        /// The dead-letter partition of the group in this shard, and its topic.
        to: (PartitionId, TopicId),
        /// The body as the dead-letter topic shall hold it.
        copy: Copied,
    },
    /// To give dead letters another chance.
    Redrive {
        /// The dead-letter partition.
        from: PartitionId,
        /// The group that shall have them, with its retry partition in this shard and
        /// that one's topic.
        to: (GroupId, PartitionId, TopicId),
        /// The positions of the letters, and their bodies.
        letters: Vec<(Position, Copied)>,
    },
    /// To let dead letters go.
    PurgeDead {
        /// The dead-letter partition.
        from: PartitionId,
        /// Their positions; `None` for all.
        positions: Option<Vec<Position>>,
    },
    /// To let scheduled messages be due at another time.
    Reschedule(Vec<(Which, Shift)>),
    /// To call scheduled messages back.
    Cancel(Vec<Which>),
    /// To call everything back that is scheduled for a partition.
    PurgeScheduled {
        /// The partition.
        partition: PartitionId,
    },
    /// To take messages in that come when that is decided, together or not at all.
    Prepare(Preparation),
    /// To let the messages of a transaction come.
    Commit {
        /// The number of its first message.
        first: Seq,
    },
    /// To let the messages of a transaction go.
    Rollback {
        /// The number of its first message.
        first: Seq,
    },
    /// To be told which transactions may be asked about, so that they are.
    TakeChecks {
        /// Whose.
        producer: Arc<str>,
        /// Of which topic; `None`: of all.
        topic: Option<TopicId>,
        /// At most so many.
        most: usize,
    },
    /// To take in the message of a recurring one, once.
    Recur {
        /// Which time it is.
        occurrence: Occurrence,
        /// The message.
        batches: Vec<Batch>,
    },
    /// To forget what is known of recurring messages that are no more.
    ForgetRecurring(Vec<u32>),
    /// To carry bodies to the log's tail.
    Carry {
        /// See [`crate::index::Index::folds`]; when they were looked for.
        folds: u64,
        /// Whose bodies, and where they were found.
        items: Vec<Candidate>,
        /// The sealed bodies, back to back.
        bodies: BodyBuf,
    },
    /// To note the digest of a snapshot.
    NoteSnapshot {
        /// The frame it stands behind.
        frame: posthouse_frame::FrameNo,
        /// The digest.
        digest: u64,
    },
}

/// The answer to a [`Command`].
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To a publish: what became of each batch.
    Published(Vec<Published>),
    /// To an ack, a nack or an extend: what became of each message.
    Settled(Vec<Settled>),
    /// To a claim.
    Claimed(Vec<super::Delivery>),
    /// To a reschedule or a cancel: what became of each message.
    Later(Vec<LaterOutcome>),
    /// To a prepare.
    Prepared(Prepared),
    /// To a commit or a rollback.
    Ended(Ended),
    /// To who asks for checks.
    Checks(Vec<Check>),
    /// To a seek: where the group goes on.
    Position(Position),
    /// To a redrive or a purge: how many there were. To a carry: how many bytes.
    Count(u64),
    /// Done, and nothing to say.
    Done,
    /// Refused: nothing has changed.
    Refused(Refusal),
}

/// Messages to be prepared.
#[derive(Clone, Debug, Default)]
pub struct Preparation {
    /// The messages. None has a name: what comes under a name takes another's place, and
    /// that cannot wait.
    pub batches: Vec<Batch>,
    /// Who prepares them, and is asked about them.
    pub producer: Arc<str>,
    /// How long from now the producer is asked for the first time, in milliseconds;
    /// `None`: as the topic of the first message says.
    pub check_after_ms: Option<u64>,
    /// How often it is asked at most; `None`: as that topic says.
    pub checks: Option<u16>,
}

/// What became of a [`Preparation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The number of the first message: the transaction is known by it. Those of the
    /// others follow.
    pub first: Seq,
    /// Whether it had come before under the same publish ids. What has become of it since
    /// has to be asked for.
    pub is_duplicate: bool,
}

/// What was decided about a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether that had been decided before, perhaps otherwise.
    pub is_late: bool,
    /// The transaction with the decision.
    pub transaction: super::Transaction,
}

/// A transaction whose producer is asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// The number of its first message.
    pub first: Seq,
    /// Which check it is, from 1.
    pub check: u16,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The partition.
    pub partition: PartitionId,
    /// The position of the first new message; the others follow. Of messages that were
    /// scheduled: the number of the first.
    pub first: Position,
    /// Whether they were scheduled.
    pub is_later: bool,
    /// When they came in.
    pub at: UnixMs,
    /// When each message of the batch is due, if they were scheduled.
    pub due: Vec<UnixMs>,
    /// Messages that had come before under the same publish id: which one of the
    /// batch, and where it went then.
    pub duplicates: Vec<Known>,
    /// Messages under whose publish id another message had come before. Only where
    /// messages are taken in apart: else one refuses all.
    pub conflicts: Vec<Known>,
    /// Messages that were not taken in because another one has their name, and stays.
    pub kept: Vec<Known>,
    /// Messages that are refused because another one has their name. Only where messages
    /// are taken in apart.
    pub taken: Vec<Known>,
}

impl Published {
    /// The messages of the batch that were not taken in, by their index, in order.
    pub fn left_out(&self) -> Vec<u32> {
        let lists = [&self.duplicates, &self.conflicts, &self.kept, &self.taken];
        let mut all: Vec<u32> = lists.into_iter().flatten().map(|known| known.index).collect();
        all.sort_unstable();
        all
    }
}

/// A message of a batch whose publish id or whose name is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which one of the batch.
    pub index: u32,
    /// The message that came before.
    pub before: Before,
}

/// A message that came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Where it went.
    pub partition: PartitionId,
    /// Its position there; its number, if it was scheduled.
    pub position: Position,
    /// Whether it was scheduled.
    pub is_later: bool,
}

/// What became of one message of an ack, a nack or an extend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is as was asked. For an extend: when the lease ends.
    Done {
        /// Which attempt it was.
        attempt: u16,
        /// When the message becomes visible, if it does.
        visible_at: Option<ShardMs>,
    },
    /// It was done before: acknowledged, skipped, moved to the dead letters, or
    /// passed over by a seek.
    Already,
    /// Another grant has followed.
    Regranted {
        /// Which attempt that is.
        attempt: u16,
        /// Its number.
        fence: Fence,
        /// Who has it.
        consumer: String,
    },
    /// It was given back, and waits.
    GivenBack,
    /// The group does not have the partition, or went back to before the message.
    NotHeld,
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The partition is no more.
    #[error("partition {0} is no more: its topic has been deleted")]
    NoPartition(PartitionId),
    /// The group does not have the partition.
    #[error("the group does not have partition {0}")]
    NotAttached(PartitionId),
    /// Another message has come under the same publish id.
    #[error("message {index} of the batch has the dedupe_id of another message")]
    Conflict {
        /// Which batch.
        batch: u32,
        /// Which message of it.
        index: u32,
        /// The other message.
        before: Before,
    },
    /// Another message that is scheduled has the name.
    #[error("message {index} of the batch has the name of another message that is scheduled")]
    NameTaken {
        /// Which batch.
        batch: u32,
        /// Which message of it.
        index: u32,
        /// The other message.
        before: Before,
    },
    /// There are no numbers left for scheduled messages.
    #[error("the shard has given all of its numbers for scheduled messages")]
    NumbersExhausted,
    /// Every position of the partition has been given.
    #[error("partition {0} is full: it has given all of its positions")]
    PartitionFull(PartitionId),
    /// There is no such transaction, or what was decided about it is forgotten.
    #[error("no such transaction is known")]
    NoTransaction,
    /// The time of a recurring message is decided already, or the recurring message is not
    /// what it was.
    #[error("recurring message {0} does not come at this time, or has come")]
    NotRecurring(u32),
    /// The message is not where it was.
    #[error("the message is not there any more")]
    Gone,
}

/// Which of the messages that were looked at shall be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The group.
    pub group: GroupId,
    /// The partition.
    pub partition: PartitionId,
    /// What was looked at: from here,
    pub from: Position,
    /// up to here.
    pub upto: Position,
    /// The positions that pass, in order.
    pub pass: Vec<Position>,
    /// The most messages.
    pub max: usize,
    /// The most bytes of sealed bodies.
    pub max_bytes: u64,
    /// Who asks.
    pub consumer: Arc<str>,
    /// How long the lease is.
    pub lease_ms: u64,
    /// Whether the messages are acknowledged with the grant.
    pub auto_ack: bool,
}
