//! Users and the node.

use posthouse_client::proto;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, PublishQuota, Time};

/// What a user may do.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionName {
    /// Publish to topics.
    Publish,
    /// Consume as groups, and look at messages of topics.
    Consume,
    /// Make, change and delete topics and groups; with `*` for both, users too.
    Manage,
}

/// What a user may do, and on what.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// What.
    pub actions: Vec<ActionName>,
    /// Names or patterns of topics.
    #[serde(default)]
    pub topics: Vec<String>,
    /// Names or patterns of groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// The configuration of a user.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// What the user may do. The list replaces the one before.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// How fast the user may publish. Absent, it stays as it is; `{}` takes limits away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_quota: Option<PublishQuota>,
}

/// A user.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct User {
    /// The name.
    pub name: String,
    /// What the user may do.
    pub grants: Vec<Grant>,
    /// The user's tokens, without the tokens themselves.
    pub tokens: Vec<Token>,
    /// When the user was made.
    pub created_at: Time,
    /// How fast the user may publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_quota: Option<PublishQuota>,
}

/// A token of a user.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Token {
    /// What it is called.
    pub name: String,
    /// When it was made.
    pub created_at: Time,
}

/// All users.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Users {
    /// The users.
    pub users: Vec<User>,
}

/// What to call a new token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenName {
    /// The name.
    pub name: String,
    /// Whether clients of other protocols are to sign with it.
    #[serde(default)]
    pub access_key: bool,
}

/// A new token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct NewToken {
    /// The token. It is never shown again.
    pub token: String,
    /// What a client is known by that signs with the token, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<String>,
}

/// The node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Node {
    /// The release.
    pub version: String,
    /// What the store is named by.
    pub store: String,
    /// How many shards it has.
    pub shards: u32,
    /// How long it has run.
    pub uptime: Duration,
    /// When a message counts as durable: `sync`, `interval` or `os`.
    pub durability: String,
    /// How many topics there are.
    pub topics: u64,
    /// How many groups there are.
    pub groups: u64,
    /// How many users there are.
    pub users: u64,
    /// Whether topics and groups are made on first use.
    pub auto_create: bool,
    /// Bytes that are free on its disk.
    pub disk_free_bytes: u64,
    /// Whether publishes are refused because the disk is nearly full.
    pub disk_full: bool,
}

/// Where to copy a node to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupTo {
    /// An absolute path on the node's own file system: a directory that is empty or not
    /// there.
    pub directory: String,
}

/// A copy of a node's data.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Backup {
    /// Where it is.
    pub directory: String,
    /// What the store is named by.
    pub store: String,
    /// How many files it has.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Places that do not hold in it, and neither in the data that it was made from.
    pub damaged: u64,
    /// The first of them.
    pub damage: Vec<Damage>,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Byte offset in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What does not hold.
    pub what: String,
}

impl From<proto::Backup> for Backup {
    fn from(backup: proto::Backup) -> Self {
        let damage = |damage: proto::Damage| Damage {
            file: damage.file,
            offset: damage.offset,
            what: damage.what,
        };
        Backup {
            directory: backup.directory,
            store: backup.store,
            files: backup.files,
            bytes: backup.bytes,
            took: Duration(backup.took_ms),
            damaged: backup.damaged,
            damage: backup.damage.into_iter().map(damage).collect(),
        }
    }
}

impl From<Grant> for proto::AccessGrant {
    fn from(grant: Grant) -> Self {
        let action = |action: &ActionName| match action {
            ActionName::Publish => proto::Action::Publish.into(),
            ActionName::Consume => proto::Action::Consume.into(),
            ActionName::Manage => proto::Action::Manage.into(),
        };
        proto::AccessGrant {
            actions: grant.actions.iter().map(action).collect(),
            topics: grant.topics,
            groups: grant.groups,
        }
    }
}

impl From<proto::AccessGrant> for Grant {
    fn from(grant: proto::AccessGrant) -> Self {
        let action = |action| match action {
            proto::Action::Publish => Some(ActionName::Publish),
            proto::Action::Consume => Some(ActionName::Consume),
            proto::Action::Manage => Some(ActionName::Manage),
            proto::Action::Unspecified => None,
        };
        Grant {
            actions: grant.actions().filter_map(action).collect(),
            topics: grant.topics,
            groups: grant.groups,
        }
    }
}

impl From<proto::User> for User {
    fn from(user: proto::User) -> Self {
        let token =
            |token: proto::Token| Token { name: token.name, created_at: Time(token.created_at_ms) };
        User {
            name: user.name,
            grants: user.grants.into_iter().map(Into::into).collect(),
            tokens: user.tokens.into_iter().map(token).collect(),
            created_at: Time(user.created_at_ms),
            publish_quota: user.publish_quota.map(Into::into),
        }
    }
}

impl From<proto::ListUsersResponse> for Users {
    fn from(list: proto::ListUsersResponse) -> Self {
        Users { users: list.users.into_iter().map(Into::into).collect() }
    }
}

impl From<proto::Node> for Node {
    fn from(node: proto::Node) -> Self {
        Node {
            version: node.version,
            store: node.store,
            shards: node.shards,
            uptime: Duration(node.uptime_ms),
            durability: node.durability,
            topics: node.topics,
            groups: node.groups,
            users: node.users,
            auto_create: node.auto_create,
            disk_free_bytes: node.disk_free_bytes,
            disk_full: node.disk_full,
        }
    }
}
