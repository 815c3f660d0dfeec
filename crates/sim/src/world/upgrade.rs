//! A data directory of an older format: the node goes on with it, and what was in it stays
//! as it was.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use posthouse::broker::inspect::Browse;
use posthouse::broker::{Broker, Caller};
use posthouse::problem::Problem;
use posthouse_log::files::Files as _;
use serde::Deserialize;

use super::World;
use super::life::DATA;
use crate::check::Violation;

/// The oldest format, as a release wrote it.
const FIXTURE: &str = include_str!("../../../posthouse/tests/fixtures/format-1.json");

/// See the tests that make fixtures and open them.
#[derive(Deserialize)]
struct Fixture {
    files: Vec<Packed>,
    topics: Vec<(String, u32)>,
    messages: Vec<Message>,
    scheduled: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Packed {
    path: String,
    bytes: u64,
    pieces: Vec<(u64, String)>,
}

#[derive(Deserialize)]
struct Message {
    topic: String,
    partition: u32,
    position: u64,
    body: String,
}

/// A message: its topic, partition and position, and its body.
type Was = (String, u32, u64, Vec<u8>);

/// What was there before a run.
#[derive(Debug)]
pub(super) struct Old {
    topics: Vec<(String, u32)>,
    messages: Vec<Was>,
    /// Messages that do not come as long as a run lasts.
    pub(super) scheduled: u64,
}

impl World {
    /// Puts the old data directory onto the disk.
    ///
    /// # Errors
    /// If the disk does not take it, which no fault excuses yet.
    pub(super) fn install_old(&mut self) -> Result<(), Violation> {
        self.strike("old format");
        let broken = |what: String| Violation::new(14, "recovery", what);
        let fixture: Fixture =
            serde_json::from_str(FIXTURE).map_err(|error| broken(error.to_string()))?;
        let bytes = |text: &str| BASE64.decode(text).map_err(|error| broken(error.to_string()));
        for Packed { path, bytes: len, pieces } in &fixture.files {
            let mut content = vec![0; *len as usize];
            for (at, piece) in pieces {
                let (at, piece) = (*at as usize, bytes(piece)?);
                content[at..at + piece.len()].copy_from_slice(&piece);
            }
            let path = Path::new(DATA).join(path);
            let mut dirs: Vec<&Path> = path.ancestors().skip(1).collect();
            dirs.reverse();
            for dir in dirs {
                self.disk.create_dir(dir).map_err(|error| broken(error.to_string()))?;
                let up = dir.parent().unwrap_or(dir);
                self.disk.sync_dir(up).map_err(|error| broken(error.to_string()))?;
            }
            self.disk.set_content(&path, content);
        }
        let mut messages = Vec::new();
        for of in fixture.messages {
            messages.push((of.topic, of.partition, of.position, bytes(&of.body)?));
        }
        let scheduled = fixture.scheduled.len() as u64;
        self.old = Some(Old { topics: fixture.topics, messages, scheduled });
        Ok(())
    }

    /// Whether what was there before is there.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn look_at_old(&mut self) -> Result<(), Violation> {
        let Some(Old { topics, messages, .. }) = &self.old else { return Ok(()) };
        let (topics, expected) = (topics.clone(), messages.clone());
        let found = self.ask(move |broker, _| async move { browse(&broker, &topics).await });
        match found {
            Some(Ok(found)) if found == expected => Ok(()),
            found => {
                let what = format!("of an older format there were {expected:?}, and are {found:?}");
                Err(Violation::new(14, "recovery", what))
            }
        }
    }
}

async fn browse(broker: &Arc<Broker>, topics: &[(String, u32)]) -> Result<Vec<Was>, Problem> {
    let mut found = Vec::new();
    for (topic, partitions) in topics {
        for partition in 0..*partitions {
            let browse = Browse { partition, from: Some(0), limit: 500, ..Browse::default() };
            for seen in broker.browse(&Caller::Node, topic, &browse).await?.messages {
                let (_, payload) = seen.parts()?;
                found.push((topic.clone(), partition, seen.found.position, payload.to_vec()));
            }
        }
    }
    Ok(found)
}
