//! Topics, groups, messages, dead letters, users, and the node.

use std::sync::Arc;

use posthouse_client::proto::{self, seek_request};
use posthouse_core::UnixMs;
use posthouse_core::catalog::machine::Outcome;
use posthouse_core::catalog::{Group, Topic};
use posthouse_core::ident::MessageId;
use posthouse_core::queue::MessageState;

use super::{Calls, convert};
use crate::broker::inspect::Browse;
use crate::broker::letters::Which;
use crate::broker::manage::SeekTo;
use crate::broker::{Caller, bounds};
use crate::problem::Problem;

/// Entries of a page unless the client says otherwise.
const PAGE: usize = 100;

/// So many damaged places are named in the answer to a backup; all are counted.
const SHOWN_DAMAGE: usize = 100;

pub(super) fn page(limit: u32) -> usize {
    if limit == 0 { PAGE } else { (limit as usize).min(bounds::PAGE) }
}

/// The name that a page comes after. One that is not there any more stands nowhere.
fn after(name: &str, is_known: bool) -> Result<Option<&str>, Problem> {
    match name {
        "" => Ok(None),
        name if is_known => Ok(Some(name)),
        name => Err(Problem::invalid("after", name, "the last name of the page before")
            .with_hint("it may have been deleted meanwhile: begin with the first page")),
    }
}

fn which(ids: &[String], all: bool) -> Result<Which, Problem> {
    match (ids.is_empty(), all) {
        (true, true) => Ok(Which::All),
        (false, false) => {
            let ids: Result<Vec<MessageId>, _> = ids.iter().map(|id| id.parse()).collect();
            Ok(Which::Ids(ids?))
        }
        _ => Err(Problem::invalid("ids", ids.len(), "give message ids, or all, and not both")),
    }
}

impl Calls {
    // ---- topics

    async fn topic(&self, topic: &Topic) -> Result<proto::Topic, Problem> {
        Ok(convert::topic(topic, &self.broker.topic_stats(topic).await?))
    }

    pub(in crate::doors) async fn put_topic(
        &self,
        caller: &Caller,
        request: proto::PutTopicRequest,
    ) -> Result<proto::PutTopicResponse, Problem> {
        let patch = convert::topic_patch(request.config)?;
        let (topic, outcome) = self.broker.put_topic(caller, &request.name, patch).await?;
        Ok(proto::PutTopicResponse {
            topic: Some(self.topic(&topic).await?),
            created: outcome == Outcome::Created,
        })
    }

    pub(in crate::doors) async fn get_topic(
        &self,
        caller: &Caller,
        request: proto::GetTopicRequest,
    ) -> Result<proto::Topic, Problem> {
        let topic = self.broker.topic_for(caller, &request.name)?;
        self.topic(&topic).await
    }

    pub(in crate::doors) async fn list_topics(
        &self,
        caller: &Caller,
        request: proto::ListTopicsRequest,
    ) -> Result<proto::ListTopicsResponse, Problem> {
        let limit = page(request.limit);
        let is_known = self.broker.catalog().topic_named(&request.after).is_some();
        let after = after(&request.after, is_known)?;
        let topics = self.broker.topics(caller, &request.prefix, after, limit + 1);
        let mut list = Vec::with_capacity(topics.len());
        for topic in topics.iter().take(limit) {
            list.push(self.topic(topic).await?);
        }
        Ok(proto::ListTopicsResponse { more: topics.len() > limit, topics: list })
    }

    pub(in crate::doors) async fn delete_topic(
        &self,
        caller: &Caller,
        request: proto::DeleteTopicRequest,
    ) -> Result<proto::DeleteTopicResponse, Problem> {
        self.broker.delete_topic(caller, &request.name).await?;
        Ok(proto::DeleteTopicResponse {})
    }

    pub(in crate::doors) async fn purge_topic(
        &self,
        caller: &Caller,
        request: proto::PurgeTopicRequest,
    ) -> Result<proto::PurgeTopicResponse, Problem> {
        let before = match (request.partition, request.before) {
            (partition, Some(position)) => Some((partition.unwrap_or(0), position)),
            (None, None) => None,
            (Some(partition), None) => Some((partition, u64::MAX)),
        };
        let purged = self.broker.purge(caller, &request.name, before).await?;
        Ok(proto::PurgeTopicResponse { purged })
    }

    // ---- messages

    pub(in crate::doors) async fn browse(
        &self,
        caller: &Caller,
        request: proto::BrowseRequest,
    ) -> Result<proto::BrowseResponse, Problem> {
        let browse = Browse {
            partition: request.partition,
            from: request.from,
            since: request.since_ms.map(UnixMs),
            until: request.until_ms.map(UnixMs),
            key: request.key,
            limit: page(request.limit),
        };
        let browsed = self.broker.browse(caller, &request.topic, &browse).await?;
        let messages: Result<_, Problem> = browsed.messages.iter().map(convert::seen).collect();
        Ok(proto::BrowseResponse { messages: messages?, next: browsed.next })
    }

    pub(in crate::doors) async fn get_message(
        &self,
        caller: &Caller,
        request: proto::GetMessageRequest,
    ) -> Result<proto::GetMessageResponse, Problem> {
        if let Some(found) = self.broker.scheduled_message(caller, &request.id).await? {
            let message = Some(convert::scheduled(&found)?);
            return Ok(proto::GetMessageResponse { message, groups: Vec::new() });
        }
        let (seen, states) = self.broker.message(caller, &request.id).await?;
        let mut groups = Vec::with_capacity(states.len());
        for of in &states {
            let left_ms = match of.state {
                MessageState::InFlight { until, .. } | MessageState::Waiting { until, .. } => {
                    Some(self.broker.lease_left(seen.shard, until).await?)
                }
                _ => None,
            };
            groups.push(convert::state(&of.group, &of.state, left_ms));
        }
        Ok(proto::GetMessageResponse { message: Some(convert::seen(&seen)?), groups })
    }

    pub(in crate::doors) async fn get_history(
        &self,
        caller: &Caller,
        request: proto::GetHistoryRequest,
    ) -> Result<proto::GetHistoryResponse, Problem> {
        let history = self.broker.history(caller, &request.id).await?;
        Ok(proto::GetHistoryResponse {
            events: history.events.iter().map(convert::event).collect(),
            complete: history.complete,
            gaps: history.gaps,
        })
    }

    // ---- groups

    async fn group(&self, group: &Arc<Group>) -> Result<proto::Group, Problem> {
        Ok(convert::group(group, &self.broker.group_stats(group).await?))
    }

    pub(in crate::doors) async fn put_group(
        &self,
        caller: &Caller,
        request: proto::PutGroupRequest,
    ) -> Result<proto::PutGroupResponse, Problem> {
        let patch = convert::group_patch(request.config)?;
        let (group, outcome) = self.broker.put_group(caller, &request.name, patch).await?;
        Ok(proto::PutGroupResponse {
            group: Some(self.group(&group).await?),
            created: outcome == Outcome::Created,
        })
    }

    pub(in crate::doors) async fn get_group(
        &self,
        caller: &Caller,
        request: proto::GetGroupRequest,
    ) -> Result<proto::Group, Problem> {
        let group = self.broker.group_for(caller, &request.name)?;
        self.group(&group).await
    }

    pub(in crate::doors) async fn list_groups(
        &self,
        caller: &Caller,
        request: proto::ListGroupsRequest,
    ) -> Result<proto::ListGroupsResponse, Problem> {
        let limit = page(request.limit);
        let is_known = self.broker.catalog().group_named(&request.after).is_some();
        let after = after(&request.after, is_known)?;
        let groups = self.broker.groups(caller, &request.prefix, after, limit + 1);
        let mut list = Vec::with_capacity(groups.len());
        for group in groups.iter().take(limit) {
            list.push(self.group(group).await?);
        }
        Ok(proto::ListGroupsResponse { more: groups.len() > limit, groups: list })
    }

    pub(in crate::doors) async fn delete_group(
        &self,
        caller: &Caller,
        request: proto::DeleteGroupRequest,
    ) -> Result<proto::DeleteGroupResponse, Problem> {
        self.broker.delete_group(caller, &request.name, request.force).await?;
        Ok(proto::DeleteGroupResponse {})
    }

    pub(in crate::doors) async fn pause_group(
        &self,
        caller: &Caller,
        request: proto::PauseGroupRequest,
    ) -> Result<proto::Group, Problem> {
        let group = self.broker.pause_group(caller, &request.name, true).await?;
        self.group(&group).await
    }

    pub(in crate::doors) async fn resume_group(
        &self,
        caller: &Caller,
        request: proto::ResumeGroupRequest,
    ) -> Result<proto::Group, Problem> {
        let group = self.broker.pause_group(caller, &request.name, false).await?;
        self.group(&group).await
    }

    pub(in crate::doors) async fn seek(
        &self,
        caller: &Caller,
        request: proto::SeekRequest,
    ) -> Result<proto::SeekResponse, Problem> {
        let to = match request.to {
            Some(seek_request::To::Earliest(_)) => SeekTo::Earliest,
            Some(seek_request::To::Latest(_)) => SeekTo::Latest,
            Some(seek_request::To::TimeMs(time)) => SeekTo::Time(UnixMs(time)),
            Some(seek_request::To::Position(at)) => {
                SeekTo::Position { partition: at.partition, position: at.position }
            }
            None => {
                let limit = "earliest, latest, a time or a position";
                return Err(Problem::invalid("to", "not given", limit));
            }
        };
        let topic = request.topic.as_deref();
        let sought = self.broker.seek(caller, &request.group, topic, to).await?;
        let sought = sought.into_iter().map(|sought| proto::seek_response::Sought {
            topic: sought.topic.to_string(),
            partition: sought.partition,
            position: sought.position,
        });
        Ok(proto::SeekResponse { sought: sought.collect() })
    }

    // ---- dead letters

    pub(in crate::doors) async fn list_dead_letters(
        &self,
        caller: &Caller,
        request: proto::ListDeadLettersRequest,
    ) -> Result<proto::ListDeadLettersResponse, Problem> {
        let from = match request.after.as_str() {
            "" => Default::default(),
            after => after.parse()?,
        };
        let limit = page(request.limit);
        let letters = self.broker.letters(caller, &request.group, from, limit).await?;
        let list: Result<_, Problem> = letters.letters.iter().map(convert::seen).collect();
        Ok(proto::ListDeadLettersResponse {
            letters: list?,
            next: letters.next.map_or_else(String::new, |next| next.to_string()),
        })
    }

    pub(in crate::doors) async fn redrive_dead_letters(
        &self,
        caller: &Caller,
        request: proto::RedriveDeadLettersRequest,
    ) -> Result<proto::RedriveDeadLettersResponse, Problem> {
        let which = which(&request.ids, request.all)?;
        let done = self.broker.redrive(caller, &request.group, &which, request.rate).await?;
        Ok(proto::RedriveDeadLettersResponse { redriven: done.redriven, left: done.left })
    }

    pub(in crate::doors) async fn purge_dead_letters(
        &self,
        caller: &Caller,
        request: proto::PurgeDeadLettersRequest,
    ) -> Result<proto::PurgeDeadLettersResponse, Problem> {
        let which = which(&request.ids, request.all)?;
        let purged = self.broker.purge_letters(caller, &request.group, &which).await?;
        Ok(proto::PurgeDeadLettersResponse { purged })
    }

    // ---- users and the node

    pub(in crate::doors) async fn put_user(
        &self,
        caller: &Caller,
        request: proto::PutUserRequest,
    ) -> Result<proto::User, Problem> {
        let grants = convert::grants(request.grants)?;
        let quota = request.publish_quota.map(convert::quota);
        let user = self.broker.put_user(caller, &request.name, grants, quota).await?;
        Ok(convert::user(&user))
    }

    pub(in crate::doors) async fn get_user(
        &self,
        caller: &Caller,
        request: proto::GetUserRequest,
    ) -> Result<proto::User, Problem> {
        Ok(convert::user(&*self.broker.user(caller, &request.name)?))
    }

    pub(in crate::doors) async fn list_users(
        &self,
        caller: &Caller,
        _request: proto::ListUsersRequest,
    ) -> Result<proto::ListUsersResponse, Problem> {
        let users = self.broker.users(caller)?;
        let users = users.iter().map(|user| convert::user(user)).collect();
        Ok(proto::ListUsersResponse { users })
    }

    pub(in crate::doors) async fn delete_user(
        &self,
        caller: &Caller,
        request: proto::DeleteUserRequest,
    ) -> Result<proto::DeleteUserResponse, Problem> {
        self.broker.delete_user(caller, &request.name).await?;
        Ok(proto::DeleteUserResponse {})
    }

    pub(in crate::doors) async fn create_token(
        &self,
        caller: &Caller,
        request: proto::CreateTokenRequest,
    ) -> Result<proto::CreateTokenResponse, Problem> {
        let (user, name) = (&request.user, &request.name);
        if request.access_key {
            let key = self.broker.make_access_key(caller, user, name).await?;
            return Ok(proto::CreateTokenResponse { token: key.secret, access_key: Some(key.id) });
        }
        let token = self.broker.make_token(caller, user, name).await?;
        Ok(proto::CreateTokenResponse { token, access_key: None })
    }

    pub(in crate::doors) async fn revoke_token(
        &self,
        caller: &Caller,
        request: proto::RevokeTokenRequest,
    ) -> Result<proto::User, Problem> {
        self.broker.revoke_token(caller, &request.user, &request.name).await?;
        Ok(convert::user(&*self.broker.user(caller, &request.user)?))
    }

    pub(in crate::doors) async fn get_node(
        &self,
        _caller: &Caller,
        _request: proto::GetNodeRequest,
    ) -> Result<proto::Node, Problem> {
        let node = self.broker.node();
        Ok(proto::Node {
            version: node.version.into(),
            store: node.store,
            shards: node.shards.into(),
            uptime_ms: node.uptime.as_millis() as u64,
            durability: node.durability.into(),
            topics: node.topics,
            groups: node.groups,
            users: node.users,
            auto_create: node.auto_create,
            disk_free_bytes: node.disk_free_bytes,
            disk_full: node.disk_full,
        })
    }

    pub(in crate::doors) async fn backup(
        &self,
        caller: &Caller,
        request: proto::BackupRequest,
    ) -> Result<proto::Backup, Problem> {
        let backup = self.broker.backup(caller, &request.directory).await?;
        Ok(proto::Backup {
            directory: backup.directory.display().to_string(),
            store: backup.store,
            files: backup.copied.files as u64,
            bytes: backup.copied.bytes,
            took_ms: backup.took.as_millis() as u64,
            damaged: backup.copied.found as u64,
            damage: backup
                .copied
                .findings
                .into_iter()
                .take(SHOWN_DAMAGE)
                .map(|found| proto::Damage {
                    file: found.file,
                    offset: found.offset,
                    what: found.what,
                })
                .collect(),
        })
    }
}
