//! Recurring messages.

use posthouse_client::proto::{self, recurring_config};
use posthouse_core::UnixMs;
use posthouse_core::catalog::machine::Outcome;
use posthouse_core::catalog::{Missed, RecurringConfig, Recurs};

use super::{Calls, manage, publish};
use crate::broker::Caller;
use crate::broker::recurring::{RecurringPut, RecurringView};
use crate::problem::Problem;

fn put(config: proto::RecurringConfig) -> Result<RecurringPut, Problem> {
    use recurring_config::Recurs as Wire;
    let missed = match config.missed() {
        proto::Missed::Unspecified | proto::Missed::Once => Missed::Once,
        proto::Missed::Skip => Missed::Skip,
    };
    let recurs = match config.recurs {
        Some(Wire::Cron(cron)) => Recurs::Cron { cron: cron.expression, zone: cron.zone },
        Some(Wire::EveryMs(every_ms)) => Recurs::Every { every_ms },
        None => return Err(Problem::invalid("cron", "not given", "give cron or every")),
    };
    let keep_paused = config.paused.is_none();
    let config = RecurringConfig {
        topic: config.topic,
        key: config.key,
        tags: config.tags,
        headers: config.headers.into_iter().collect(),
        ttl_ms: config.ttl_ms,
        body: config.body.to_vec(),
        recurs,
        start: config.start_ms.map(UnixMs),
        end: config.end_ms.map(UnixMs),
        jitter_ms: config.jitter_ms,
        missed,
        paused: config.paused.unwrap_or_default(),
    };
    Ok(RecurringPut { config, keep_paused })
}

fn shown(view: &RecurringView) -> proto::Recurring {
    use recurring_config::{Cron, Recurs as Wire};
    let config = &view.recurring.config;
    let recurs = match &config.recurs {
        Recurs::Cron { cron, zone } => {
            Wire::Cron(Cron { expression: cron.clone(), zone: zone.clone() })
        }
        Recurs::Every { every_ms } => Wire::EveryMs(*every_ms),
    };
    let missed = match config.missed {
        Missed::Once => proto::Missed::Once,
        Missed::Skip => proto::Missed::Skip,
    };
    proto::Recurring {
        name: view.recurring.name.to_string(),
        config: Some(proto::RecurringConfig {
            topic: config.topic.clone(),
            body: config.body.clone().into(),
            key: config.key.clone(),
            tags: config.tags.clone(),
            headers: config.headers.clone().into_iter().collect(),
            ttl_ms: config.ttl_ms,
            recurs: Some(recurs),
            start_ms: config.start.map(|at| at.0),
            end_ms: config.end.map(|at| at.0),
            jitter_ms: config.jitter_ms,
            missed: missed as i32,
            paused: Some(config.paused),
        }),
        created_at_ms: view.recurring.created_at.0,
        next_ms: view.next.iter().map(|at| at.0).collect(),
        last_ms: view.last.map(|at| at.0),
    }
}

impl Calls {
    pub(in crate::doors) async fn put_recurring(
        &self,
        caller: &Caller,
        request: proto::PutRecurringRequest,
    ) -> Result<proto::PutRecurringResponse, Problem> {
        let put = put(request.config.unwrap_or_default())?;
        let (view, outcome) = self.broker.put_recurring(caller, &request.name, put).await?;
        let created = outcome == Outcome::Created;
        Ok(proto::PutRecurringResponse { recurring: Some(shown(&view)), created })
    }

    pub(in crate::doors) async fn get_recurring(
        &self,
        caller: &Caller,
        request: proto::GetRecurringRequest,
    ) -> Result<proto::Recurring, Problem> {
        self.broker.recurring(caller, &request.name).map(|view| shown(&view))
    }

    pub(in crate::doors) async fn list_recurring(
        &self,
        caller: &Caller,
        request: proto::ListRecurringRequest,
    ) -> Result<proto::ListRecurringResponse, Problem> {
        let limit = manage::page(request.limit);
        let proto::ListRecurringRequest { prefix, topic, after, .. } = request;
        let topic = Some(topic.as_str()).filter(|topic| !topic.is_empty());
        let found = self.broker.all_recurring(caller, topic, &prefix, &after, limit + 1);
        let recurring = found.iter().take(limit).map(shown).collect();
        Ok(proto::ListRecurringResponse { recurring, more: found.len() > limit })
    }

    pub(in crate::doors) async fn delete_recurring(
        &self,
        caller: &Caller,
        request: proto::DeleteRecurringRequest,
    ) -> Result<proto::DeleteRecurringResponse, Problem> {
        self.broker.delete_recurring(caller, &request.name).await?;
        Ok(proto::DeleteRecurringResponse {})
    }

    pub(in crate::doors) async fn pause_recurring(
        &self,
        caller: &Caller,
        request: proto::PauseRecurringRequest,
    ) -> Result<proto::Recurring, Problem> {
        let view = self.broker.pause_recurring(caller, &request.name, true).await?;
        Ok(shown(&view))
    }

    pub(in crate::doors) async fn resume_recurring(
        &self,
        caller: &Caller,
        request: proto::ResumeRecurringRequest,
    ) -> Result<proto::Recurring, Problem> {
        let view = self.broker.pause_recurring(caller, &request.name, false).await?;
        Ok(shown(&view))
    }

    pub(in crate::doors) async fn run_recurring(
        &self,
        caller: &Caller,
        request: proto::RunRecurringRequest,
    ) -> Result<proto::PublishedMessage, Problem> {
        let placed = self.broker.run_recurring(caller, &request.name).await?;
        Ok(publish::published(&placed))
    }
}
