//! The shapes of everything in JSON: what the HTTP interface takes and gives, and what
//! the command line prints with `--json`.
//!
//! Each shape is made from a message of the native interface or turned into one, so
//! there is one meaning and two spellings. Durations are texts like `"30s"`, times RFC
//! 3339 in UTC; a time may also come in as Unix milliseconds.

mod group;
mod message;
mod node;
mod problem;
mod recurring;
mod scalar;
mod schedule;
mod settle;
mod topic;
mod transaction;

pub use group::{
    Consumer, DeadLetterName, Group, GroupConfig, GroupPartition, Groups, OrderName, Seek, Sought,
    SoughtList, StartName, Subscription,
};
pub use message::{
    Browsed, Event, GroupState, History, Letters, LettersDone, Message, MessageInfo, NameTaken,
    Origin, Outgoing, Publish, Published, PublishedMessage, Purged, Receive, Received, Select,
};
pub use node::{
    ActionName, Backup, BackupTo, Damage, Grant, NewToken, Node, Token, TokenName, User,
    UserConfig, Users,
};
pub use problem::Problem;
pub use recurring::{MissedName, Recurring, RecurringConfig, RecurringList};
pub use scalar::{Duration, Time};
pub use schedule::{
    Change, ChangeStatus, Changes, Hour, Hours, Move, Moves, ScheduledList, Shift, Target, Targets,
};
pub use settle::{Ack, Extend, Nack, Settled, SettledReceipt, Verdict};
pub use topic::{
    Accepts, Partition, PublishQuota, PurgeTopic, Retention, Topic, TopicConfig, Topics,
};
pub use transaction::{
    Prepare, Transaction, TransactionCheck, TransactionChecks, TransactionMessage,
    TransactionState, Transactions,
};

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
