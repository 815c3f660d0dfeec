//! What a consumer says that its group gets: for doors whose consumers bring their
//! subscriptions along.

use std::sync::Arc;

use posthouse_core::catalog::{Action, Group, GroupConfig, Subscription};
use posthouse_core::name;

use super::{Broker, Caller, On};
use crate::problem::Problem;

impl Broker {
    /// Lets a group get a topic through `filter` from now on; what else it gets stays. A
    /// group that is not there is made where the node makes groups on first use, and with
    /// it the topic.
    ///
    /// # Errors
    /// See [`Problem`]. What a group gets is only changed by whoever may manage it, or
    /// where the node makes groups on first use.
    pub async fn subscribe(
        &self,
        caller: &Caller,
        group: &str,
        topic: &str,
        filter: &str,
    ) -> Result<Arc<Group>, Problem> {
        caller.check(Action::Consume, On::Group(group))?;
        if let Some(known) = self.subscribed(group, topic, filter) {
            return Ok(known);
        }
        // Two consumers that bring two topics: each must see what the other one did.
        let _turn = self.subscribing.lock().await;
        let Ok(known) = self.group(group) else {
            return self.make_group(caller, group, Some(topic), filter).await;
        };
        if let Some(known) = self.subscribed(group, topic, filter) {
            return Ok(known);
        }
        if !self.auto_creates() {
            caller.check(Action::Manage, On::Group(group))?;
        }
        self.topic_for(caller, topic)?;
        let mut config = known.config.clone();
        let of_topic = config.subscriptions.iter_mut().find(|of| of.topic == topic);
        match of_topic {
            Some(subscription) => subscription.filter = filter.into(),
            None => config
                .subscriptions
                .push(Subscription { topic: topic.into(), filter: filter.into() }),
        }
        Ok(self.directory.put_group(group, known.parent, config, false).await?.0)
    }

    /// The group, if it gets the topic through just this filter.
    fn subscribed(&self, group: &str, topic: &str, filter: &str) -> Option<Arc<Group>> {
        let group = self.group(group).ok()?;
        let gets = |of: &Subscription| of.topic == topic && of.filter == filter;
        group.config.subscriptions.iter().any(gets).then_some(group)
    }

    /// Makes a group on its first use, and its topic if that is not there either.
    pub(super) async fn make_group(
        &self,
        caller: &Caller,
        group: &str,
        topic: Option<&str>,
        filter: &str,
    ) -> Result<Arc<Group>, Problem> {
        let (true, Some(topic)) = (self.auto_creates(), topic) else {
            return Err(Problem::no_group(group).with_hint(
                "create it with PUT /v1/groups/NAME; a receive that names a topic makes it \
                 where auto_create is on",
            ));
        };
        name::check(group)?;
        // Who makes a group must be allowed to see what it gets, here as with PUT.
        if self.topic(topic).is_ok() {
            self.topic_for(caller, topic)?;
        } else {
            caller.check(Action::Publish, On::Topic(topic))?;
            self.directory.put_topic(topic, Default::default(), true).await?;
        }
        let config = GroupConfig {
            subscriptions: vec![Subscription { topic: topic.into(), filter: filter.into() }],
            ..GroupConfig::default()
        };
        Ok(self.directory.put_group(group, None, config, true).await?.0)
    }
}
