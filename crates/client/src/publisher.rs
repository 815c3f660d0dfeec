//! Publishing from many tasks, in batches, over one stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::proto::{self, OutgoingMessage, PublishRequest, PublishResponse};
use crate::{Client, Error, Message, Published};

/// How a [`Publisher`] works.
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    /// The most messages of a batch.
    pub batch_messages: usize,
    /// The most bytes of bodies of a batch; one message may be larger.
    pub batch_bytes: usize,
    /// Batches that may be under way without an answer.
    pub in_flight: usize,
    /// Messages that may wait for their batch; beyond it [`Publisher::publish`] waits.
    pub queue: usize,
    /// How long to go on trying when the server cannot be reached.
    pub retry_for: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        PublisherOptions {
            batch_messages: 1000,
            batch_bytes: 1 << 20,
            in_flight: 8,
            queue: 10_000,
            retry_for: Duration::from_secs(30),
        }
    }
}

type Answer = oneshot::Sender<Result<Published, Error>>;

struct Item {
    topic: String,
    message: OutgoingMessage,
    answer: Answer,
}

/// Publishes over one stream. What waits is sent together: batches size themselves, and
/// a message that comes alone does not wait for company.
///
/// Messages of one publisher to one topic are published in the order of their calls, as
/// long as the connection holds. When it breaks, messages whose outcome is not known are
/// sent again if they have a [`Message::dedupe_id`], and end with
/// [`Error::OutcomeUnknown`] if they do not.
#[derive(Clone, Debug)]
pub struct Publisher {
    items: mpsc::Sender<Item>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Item").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Client {
    /// A publisher over this connection. It works until its last clone is dropped, and
    /// what was handed to it is answered.
    pub fn publisher(&self, options: PublisherOptions) -> Publisher {
        let (tx, rx) = mpsc::channel(options.queue.max(1));
        tokio::spawn(Worker::new(self.clone(), options, rx).run());
        Publisher { items: tx }
    }
}

impl Publisher {
    /// Publishes a message, and waits until it is durable.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish(
        &self,
        topic: impl Into<String>,
        message: impl Into<Message>,
    ) -> Result<Published, Error> {
        self.send(topic, message).await?.await
    }

    /// Hands a message over, in the order of calls. What is returned waits until it is
    /// durable.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn send(
        &self,
        topic: impl Into<String>,
        message: impl Into<Message>,
    ) -> Result<Pending, Error> {
        let (answer, rx) = oneshot::channel();
        let item = Item { topic: topic.into(), message: message.into().0, answer };
        self.items.send(item).await.map_err(|_| Error::Closed)?;
        Ok(Pending(rx))
    }
}

/// A message that was handed over. Waits until it is durable; dropping it does not take
/// the message back.
#[derive(Debug)]
#[must_use = "a message is durable when this says so"]
pub struct Pending(oneshot::Receiver<Result<Published, Error>>);

impl Future for Pending {
    type Output = Result<Published, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(Error::Closed)))
    }
}

/// Messages under way together.
struct Batch {
    topic: String,
    /// Kept only if all can be sent again: then a break is no reason to give up.
    messages: Option<Vec<OutgoingMessage>>,
    answers: Vec<Answer>,
}

struct Worker {
    client: Client,
    options: PublisherOptions,
    items: mpsc::Receiver<Item>,
    /// Batches to send again, oldest first.
    again: VecDeque<Batch>,
    under_way: VecDeque<Batch>,
    /// What did not fit in the last batch.
    waiting: VecDeque<Item>,
    closed: bool,
}

/// Why a stream ended.
enum End {
    /// Everything is answered, and nothing will come.
    Done,
    Broken(Error),
}

impl Worker {
    fn new(client: Client, options: PublisherOptions, items: mpsc::Receiver<Item>) -> Self {
        Worker {
            client,
            options,
            items,
            again: VecDeque::new(),
            under_way: VecDeque::new(),
            waiting: VecDeque::new(),
            closed: false,
        }
    }

    async fn run(mut self) {
        let mut pause = Duration::from_millis(20);
        let mut trying_since: Option<tokio::time::Instant> = None;
        loop {
            // No stream without something to send.
            if self.again.is_empty() && self.waiting.is_empty() {
                match self.items.recv().await {
                    Some(item) => self.waiting.push_back(item),
                    None => return,
                }
            }
            let answered_before = self.under_way.len();
            match self.stream(&mut trying_since).await {
                End::Done => return,
                End::Broken(error) => {
                    if trying_since.is_none() || self.under_way.len() < answered_before {
                        pause = Duration::from_millis(20);
                    }
                    let since = *trying_since.get_or_insert_with(tokio::time::Instant::now);
                    // What is refused as a whole, like a token, is refused again.
                    let is_refused = matches!(error, Error::Refused(_)) && !error.is_retryable();
                    let gives_up = is_refused || since.elapsed() > self.options.retry_for;
                    self.sort_out(&error, gives_up);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// What was under way when the stream broke: goes again, or ends.
    fn sort_out(&mut self, error: &Error, gives_up: bool) {
        let never_sent = matches!(error, Error::Unreachable(_));
        for batch in self.under_way.drain(..).rev() {
            if batch.messages.is_some() && !gives_up {
                self.again.push_front(batch);
            } else {
                let error = match error {
                    Error::Unreachable(_) | Error::Refused(_) => error.clone(),
                    other => Error::OutcomeUnknown(other.to_string()),
                };
                batch.answers.into_iter().for_each(|a| drop(a.send(Err(error.clone()))));
            }
        }
        if gives_up {
            let is_refused = matches!(error, Error::Refused(_));
            let error = match never_sent || is_refused {
                true => error.clone(),
                false => Error::Unreachable(error.to_string()),
            };
            for batch in self.again.drain(..) {
                batch.answers.into_iter().for_each(|a| drop(a.send(Err(error.clone()))));
            }
            let handed_over = std::iter::from_fn(|| self.items.try_recv().ok());
            for item in self.waiting.drain(..).chain(handed_over) {
                drop(item.answer.send(Err(error.clone())));
            }
        }
    }

    async fn stream(&mut self, trying_since: &mut Option<tokio::time::Instant>) -> End {
        let (tx, rx) = mpsc::channel::<PublishRequest>(self.options.in_flight.max(1));
        let mut raw = self.client.raw();
        // The first request goes before the answer's headers come: some servers send
        // them with the first answer only.
        if let Some(request) = self.next_request() {
            drop(tx.send(request).await);
        }
        let mut responses = match raw.publish_stream(ReceiverStream::new(rx)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return End::Broken(status.into()),
        };
        *trying_since = None;
        loop {
            let room = self.under_way.len() < self.options.in_flight;
            while room
                && self.under_way.len() < self.options.in_flight
                && let Some(request) = self.next_request()
            {
                if tx.send(request).await.is_err() {
                    return End::Broken(Error::OutcomeUnknown("the stream has ended".into()));
                }
            }
            if self.closed && self.under_way.is_empty() {
                return End::Done;
            }
            let has_room = self.under_way.len() < self.options.in_flight && !self.closed;
            tokio::select! {
                biased;
                response = responses.message(), if !self.under_way.is_empty() => match response {
                    Ok(Some(response)) => self.answer(response),
                    Ok(None) => {
                        return End::Broken(Error::OutcomeUnknown("the stream has ended".into()));
                    }
                    Err(status) => return End::Broken(status.into()),
                },
                item = self.items.recv(), if has_room => match item {
                    Some(item) => self.waiting.push_back(item),
                    None => self.closed = true,
                },
            }
        }
    }

    /// The next batch, and its request: one to be sent again, or what waits for the
    /// topic that has waited longest.
    fn next_request(&mut self) -> Option<PublishRequest> {
        if let Some(batch) = self.again.pop_front() {
            let request = PublishRequest {
                topic: batch.topic.clone(),
                messages: batch.messages.clone().unwrap_or_default(),
                apart: true,
            };
            self.under_way.push_back(batch);
            return Some(request);
        }
        while self.waiting.len() < self.options.batch_messages
            && let Ok(item) = self.items.try_recv()
        {
            self.waiting.push_back(item);
        }
        let topic = self.waiting.front()?.topic.clone();
        let mut batch = Batch { topic, messages: None, answers: Vec::new() };
        let mut messages = Vec::new();
        let mut bytes = 0;
        let mut others = VecDeque::new();
        while let Some(item) = self.waiting.pop_front() {
            let len = item.message.body.len();
            let full = messages.len() == self.options.batch_messages
                || (bytes + len > self.options.batch_bytes && !messages.is_empty());
            if item.topic != batch.topic || full {
                others.push_back(item);
                if full {
                    break;
                }
                continue;
            }
            bytes += len;
            messages.push(item.message);
            batch.answers.push(item.answer);
        }
        others.append(&mut self.waiting);
        self.waiting = others;
        let can_go_again = messages.iter().all(|message| message.dedupe_id.is_some());
        batch.messages = can_go_again.then(|| messages.clone());
        let request = PublishRequest { topic: batch.topic.clone(), messages, apart: true };
        self.under_way.push_back(batch);
        Some(request)
    }

    fn answer(&mut self, response: PublishResponse) {
        let Some(batch) = self.under_way.pop_front() else { return };
        if let Some(problem) = response.problem {
            let error = Error::Refused(problem.into());
            batch.answers.into_iter().for_each(|a| drop(a.send(Err(error.clone()))));
            return;
        }
        let mut messages = response.messages.into_iter();
        for answer in batch.answers {
            let result = match messages.next() {
                Some(proto::PublishedMessage { problem: Some(problem), .. }) => {
                    Err(Error::Refused(problem.into()))
                }
                Some(message) => Ok(message.into()),
                None => Err(Error::OutcomeUnknown("the answer is too short".into())),
            };
            drop(answer.send(result));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn worker(options: PublisherOptions) -> (Worker, mpsc::Sender<Item>) {
        let (tx, rx) = mpsc::channel(100);
        let client = Client::builder("http://127.0.0.1:1").connect_lazily().unwrap();
        (Worker::new(client, options, rx), tx)
    }

    fn item(topic: &str, body: &str) -> Item {
        let (answer, _) = oneshot::channel();
        Item { topic: topic.into(), message: Message::new(body.to_owned()).0, answer }
    }

    #[tokio::test]
    async fn batches_keep_the_order_of_each_topic_and_their_bounds() {
        let options = PublisherOptions { batch_messages: 3, batch_bytes: 10, ..Default::default() };
        let (mut worker, tx) = worker(options);
        for (topic, body) in [
            ("a", "1"),
            ("b", "2"),
            ("a", "3"),
            ("a", "4"),
            ("a", "5"),
            ("a", "a long body"),
            ("b", "6"),
        ] {
            tx.send(item(topic, body)).await.unwrap();
        }
        let mut sent: HashMap<String, Vec<OutgoingMessage>> = HashMap::new();
        let mut sizes = Vec::new();
        while let Some(request) = worker.next_request() {
            sizes.push((request.topic.clone(), request.messages.len()));
            sent.entry(request.topic).or_default().extend(request.messages);
        }
        let bodies = |topic: &str| -> Vec<String> {
            sent[topic].iter().map(|m| String::from_utf8_lossy(&m.body).into()).collect()
        };
        assert_eq!(bodies("a"), ["1", "3", "4", "5", "a long body"]);
        assert_eq!(bodies("b"), ["2", "6"]);
        assert!(sizes.iter().all(|(_, n)| *n <= 3), "{sizes:?}");
    }

    #[test]
    fn what_was_not_sent_is_refused_with_the_rest() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _inside = runtime.enter();
        let (mut worker, tx) = worker(PublisherOptions::default());
        let mut pending = Vec::new();
        for (id, sent) in [(Some("1"), true), (None, true), (None, false)] {
            let (answer, rx) = oneshot::channel();
            let mut message = Message::new("x").0;
            message.dedupe_id = id.map(str::to_owned);
            worker.waiting.push_back(Item { topic: "a".into(), message, answer });
            if sent {
                worker.next_request().unwrap();
            }
            pending.push(rx);
        }
        let (answer, rx) = oneshot::channel();
        tx.try_send(Item { topic: "b".into(), message: Message::new("y").0, answer }).unwrap();
        pending.push(rx);
        let problem = crate::Problem {
            code: "unauthenticated".into(),
            detail: "no user has this token".into(),
            hint: String::new(),
            retry_after: None,
            status: tonic::Code::Unauthenticated,
        };
        worker.sort_out(&Error::Refused(problem), true);
        for mut rx in pending {
            let error = rx.try_recv().expect("it is answered").unwrap_err();
            assert_eq!(error.code(), Some("unauthenticated"));
        }
    }
}
