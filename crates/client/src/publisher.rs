//! Publishing from many tasks, in batches, over one stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
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
    /// The most bytes of messages that wait for their batch or an answer, together; a
    /// single message may be larger.
    pub queue_bytes: usize,
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
            queue_bytes: 64 << 20,
            retry_for: Duration::from_secs(30),
        }
    }
}

/// The most bytes of a message that are sent: with all that belongs to it, it has to fit
/// in a request, and a server takes 8 MiB of bodies at once.
const MESSAGE_BYTES: usize = 9 << 20;

type Answer = oneshot::Sender<Result<Published, Error>>;

struct Item {
    topic: String,
    message: OutgoingMessage,
    answer: Answer,
    /// Its part of the bytes that may wait.
    room: Option<OwnedSemaphorePermit>,
}

/// Publishes over one stream. What waits is sent together: batches size themselves, and
/// a message that comes alone does not wait for company.
///
/// Messages of one publisher to one topic are published in the order of their calls, as
/// long as the connection holds. When it breaks, or the server stops, messages that it
/// has not answered for are sent again if they have a [`Message::dedupe_id`], and end
/// with [`Error::OutcomeUnknown`] if they do not. What was never sent waits.
#[derive(Clone, Debug)]
pub struct Publisher {
    items: mpsc::Sender<Item>,
    room: Arc<Semaphore>,
    room_permits: u32,
}

/// A permit for so many bytes that wait.
const ROOM_BYTES: usize = 1024;

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
        let permits = (options.queue_bytes / ROOM_BYTES).clamp(1, 1 << 24);
        tokio::spawn(Worker::new(self.clone(), options, rx).run());
        let room = Arc::new(Semaphore::new(permits));
        Publisher { items: tx, room, room_permits: permits as u32 }
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
    /// [`Error::Invalid`] if it is larger than any server takes, [`Error::Closed`] if its
    /// runtime is going.
    pub async fn send(
        &self,
        topic: impl Into<String>,
        message: impl Into<Message>,
    ) -> Result<Pending, Error> {
        let (answer, rx) = oneshot::channel();
        let message = message.into().0;
        let bytes = bytes_of(&message);
        if bytes > MESSAGE_BYTES {
            // It would end the stream, and everything else on it.
            return Err(Error::Invalid(format!(
                "the message has {bytes} bytes with all that belongs to it; a server takes at \
                 most {MESSAGE_BYTES}"
            )));
        }
        let permits = u32::try_from(bytes.div_ceil(ROOM_BYTES)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(permits.min(self.room_permits)).await;
        let item = Item { topic: topic.into(), message, answer, room: room.ok() };
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
        let answer = ready!(Pin::new(&mut self.0).poll(context));
        // Nobody can say any more whether it was sent.
        let gone = || Err(Error::OutcomeUnknown("the publisher has ended".into()));
        Poll::Ready(answer.unwrap_or_else(|_| gone()))
    }
}

/// Messages under way together.
struct Batch {
    topic: String,
    entries: Vec<Entry>,
    /// Whether it was sent before, on a stream that broke.
    was_sent: bool,
}

/// A message that waits for its answer.
struct Entry {
    /// Kept if it can be sent again: it has a publish id, or the server has not seen it.
    message: Option<OutgoingMessage>,
    answer: Answer,
    _room: Option<OwnedSemaphorePermit>,
}

impl Entry {
    fn has_id(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.dedupe_id.is_some())
    }
}

impl Batch {
    /// Answers for all messages.
    fn fail(self, error: &Error) {
        let error = match error {
            // What was sent before may have been published then.
            Error::OutcomeUnknown(_) => error.clone(),
            error if self.was_sent => Error::OutcomeUnknown(error.to_string()),
            error => error.clone(),
        };
        for entry in self.entries {
            drop(entry.answer.send(Err(error.clone())));
        }
    }

    /// Splits off what can be sent again; answers for the rest.
    fn retain(mut self, again: impl Fn(&Entry) -> bool, error: &Error) -> Option<Batch> {
        let (again, over): (Vec<Entry>, Vec<Entry>) = self.entries.drain(..).partition(again);
        let rest = Batch { topic: String::new(), entries: over, was_sent: self.was_sent };
        rest.fail(error);
        self.entries = again;
        (!self.entries.is_empty()).then_some(self)
    }
}

struct Worker {
    client: Client,
    options: PublisherOptions,
    items: mpsc::Receiver<Item>,
    /// Batches to send again, oldest first.
    again: VecDeque<Batch>,
    /// Batches that a server which stops has not taken; older than all others.
    refused: VecDeque<Batch>,
    under_way: VecDeque<Batch>,
    /// What did not fit in the last batch.
    waiting: VecDeque<Item>,
    closed: bool,
    /// The server takes nothing more on this stream.
    is_ending: bool,
    /// Something was published since the last break.
    has_moved: bool,
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
            refused: VecDeque::new(),
            under_way: VecDeque::new(),
            waiting: VecDeque::new(),
            closed: false,
            is_ending: false,
            has_moved: false,
        }
    }

    async fn run(mut self) {
        const PAUSE: Duration = Duration::from_millis(20);
        let mut pause = PAUSE;
        let mut trying_since: Option<tokio::time::Instant> = None;
        loop {
            // No stream without something to send.
            if self.again.is_empty() && self.waiting.is_empty() {
                match self.items.recv().await {
                    Some(item) => self.waiting.push_back(item),
                    None => return,
                }
                (pause, trying_since) = (PAUSE, None);
            }
            let error = match self.stream().await {
                End::Done => return,
                End::Broken(error) => error,
            };
            if std::mem::take(&mut self.has_moved) {
                (pause, trying_since) = (PAUSE, None);
            }
            let since = *trying_since.get_or_insert_with(tokio::time::Instant::now);
            // What is refused as a whole, like a token, is refused again.
            let is_refused = matches!(error, Error::Refused(_)) && !error.is_retryable();
            let gives_up = is_refused || since.elapsed() > self.options.retry_for;
            self.sort_out(&error, gives_up);
            if gives_up {
                // Who comes later has tried for no time yet.
                trying_since = None;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// What was under way when the stream broke: goes again, or ends.
    fn sort_out(&mut self, error: &Error, gives_up: bool) {
        // On a stream that was open nobody knows; else it never was, and nothing was sent.
        let never_sent = !matches!(error, Error::OutcomeUnknown(_));
        for batch in self.under_way.drain(..).rev() {
            let goes = |entry: &Entry| !gives_up && (entry.has_id() || never_sent);
            let Some(mut batch) =
                batch.retain(|entry| entry.message.is_some() && goes(entry), error)
            else {
                continue;
            };
            batch.was_sent |= !never_sent;
            self.again.push_front(batch);
        }
        for batch in self.refused.drain(..).rev() {
            self.again.push_front(batch);
        }
        if gives_up {
            let error = match error {
                Error::Unreachable(_) | Error::Refused(_) => error.clone(),
                other => Error::Unreachable(other.to_string()),
            };
            for batch in self.again.drain(..) {
                batch.fail(&error);
            }
            let handed_over = std::iter::from_fn(|| self.items.try_recv().ok());
            for item in self.waiting.drain(..).chain(handed_over) {
                drop(item.answer.send(Err(error.clone())));
            }
        }
    }

    async fn stream(&mut self) -> End {
        self.is_ending = false;
        let (tx, rx) = mpsc::channel::<PublishRequest>(self.options.in_flight.max(1));
        let mut raw = self.client.raw();
        // The first request goes before the answer's headers come: some servers send
        // them with the first answer only. It is kept whole: the server may not be there.
        if let Some(request) = self.next_request(true) {
            drop(tx.send(request).await);
        }
        let mut responses = match raw.publish_stream(ReceiverStream::new(rx)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return End::Broken(status.into()),
        };
        let broken = |text: String| End::Broken(Error::OutcomeUnknown(text));
        loop {
            while self.has_room()
                && let Some(request) = self.next_request(false)
            {
                if tx.send(request).await.is_err() {
                    return broken("the stream has ended".into());
                }
            }
            if self.under_way.is_empty() {
                if self.is_ending {
                    return broken("the server is stopping".into());
                }
                if self.closed && self.again.is_empty() && self.waiting.is_empty() {
                    return End::Done;
                }
            }
            let has_room = self.has_room() && !self.closed;
            tokio::select! {
                biased;
                // With nothing under way too: a stream that has ended is to be noticed
                // before something is lost on it.
                response = responses.message() => match response {
                    Ok(Some(response)) => self.answer(response),
                    Ok(None) => return broken("the stream has ended".into()),
                    Err(status) => return broken(status.message().to_owned()),
                },
                item = self.items.recv(), if has_room => match item {
                    Some(item) => self.waiting.push_back(item),
                    None => self.closed = true,
                },
            }
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < self.options.in_flight.max(1) && !self.is_ending
    }

    /// The next batch, and its request: one to be sent again, or what waits for the
    /// topic that has waited longest. All its messages are kept if `keeps` says so, else
    /// those that have an id.
    fn next_request(&mut self, keeps: bool) -> Option<PublishRequest> {
        if let Some(batch) = self.again.pop_front() {
            let messages = batch.entries.iter().filter_map(|entry| entry.message.clone());
            let request = PublishRequest {
                topic: batch.topic.clone(),
                messages: messages.collect(),
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
        let mut batch = Batch { topic, entries: Vec::new(), was_sent: false };
        let mut messages = Vec::new();
        let mut bytes = 0;
        let mut others = VecDeque::new();
        while let Some(item) = self.waiting.pop_front() {
            let len = bytes_of(&item.message);
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
            let is_kept = keeps || item.message.dedupe_id.is_some();
            let message = is_kept.then(|| item.message.clone());
            messages.push(item.message);
            batch.entries.push(Entry { message, answer: item.answer, _room: item.room });
        }
        others.append(&mut self.waiting);
        self.waiting = others;
        let request = PublishRequest { topic: batch.topic.clone(), messages, apart: true };
        self.under_way.push_back(batch);
        Some(request)
    }

    fn answer(&mut self, response: PublishResponse) {
        let Some(mut batch) = self.under_way.pop_front() else { return };
        if let Some(problem) = response.problem {
            let error = Error::Refused(problem.into());
            let is_unknown = error.is_outcome_unknown();
            if !is_unknown && !error.is_unavailable() {
                return batch.fail(&error);
            }
            // The server goes. What it has taken before is still answered.
            self.is_ending = true;
            batch.was_sent |= is_unknown;
            self.refused.extend(batch.retain(Entry::has_id, &error));
            return;
        }
        self.has_moved = true;
        let mut messages = response.messages.into_iter();
        for entry in batch.entries {
            let result = match messages.next() {
                Some(proto::PublishedMessage { problem: Some(problem), .. }) => {
                    Err(Error::Refused(problem.into()))
                }
                Some(message) => Ok(message.into()),
                None => Err(Error::OutcomeUnknown("the answer is too short".into())),
            };
            drop(entry.answer.send(result));
        }
    }
}

/// What a message takes of a request, about.
fn bytes_of(message: &OutgoingMessage) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let tags: usize = message.tags.iter().map(|tag| tag.len() + 2).sum();
    let headers: usize = message.headers.iter().map(|(n, v)| n.len() + v.len() + 6).sum();
    message.body.len() + text(&message.key) + text(&message.dedupe_id) + tags + headers + 32
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
        let message = Message::new(body.to_owned()).0;
        Item { topic: topic.into(), message, answer, room: None }
    }

    #[tokio::test]
    async fn batches_keep_the_order_of_each_topic_and_their_bounds() {
        let options = PublisherOptions { batch_messages: 3, batch_bytes: 70, ..Default::default() };
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
        while let Some(request) = worker.next_request(false) {
            sizes.push((request.topic.clone(), request.messages.len()));
            sent.entry(request.topic).or_default().extend(request.messages);
        }
        let bodies = |topic: &str| -> Vec<String> {
            sent[topic].iter().map(|m| String::from_utf8_lossy(&m.body).into()).collect()
        };
        assert_eq!(bodies("a"), ["1", "3", "4", "5", "a long body"]);
        assert_eq!(bodies("b"), ["2", "6"]);
        let expected = [("a", 2), ("b", 1), ("a", 2), ("a", 1), ("b", 1)];
        assert_eq!(sizes, expected.map(|(topic, n)| (topic.to_owned(), n)));
    }

    fn send(worker: &mut Worker, id: Option<&str>) -> oneshot::Receiver<Result<Published, Error>> {
        let (answer, rx) = oneshot::channel();
        let mut message = Message::new("x").0;
        message.dedupe_id = id.map(str::to_owned);
        worker.waiting.push_back(Item { topic: "a".into(), message, answer, room: None });
        rx
    }

    #[tokio::test]
    async fn after_a_break_what_has_an_id_goes_again_and_the_rest_is_unknown() {
        let (mut worker, _tx) = worker(PublisherOptions::default());
        let (mut one, mut two) = (send(&mut worker, Some("1")), send(&mut worker, None));
        // The server was not there: all of it waits.
        worker.next_request(true).unwrap();
        worker.sort_out(&Error::Unreachable("refused".into()), false);
        assert_eq!(worker.next_request(true).unwrap().messages.len(), 2);
        // It broke in the middle.
        worker.sort_out(&Error::OutcomeUnknown("reset".into()), false);
        assert!(two.try_recv().unwrap().unwrap_err().is_outcome_unknown());
        let again = worker.next_request(true).unwrap();
        assert_eq!(again.messages.len(), 1);
        assert_eq!(again.messages[0].dedupe_id.as_deref(), Some("1"));
        // It cannot be reached for too long: it may have been published all the same.
        worker.sort_out(&Error::Unreachable("refused".into()), true);
        assert!(one.try_recv().unwrap().unwrap_err().is_outcome_unknown());
    }

    #[tokio::test]
    async fn a_server_that_stops_gets_the_rest_when_it_is_back() {
        let options = PublisherOptions { batch_messages: 2, ..Default::default() };
        let (mut worker, _tx) = worker(options);
        let (mut one, mut two) = (send(&mut worker, Some("1")), send(&mut worker, None));
        worker.next_request(false).unwrap();
        let mut three = send(&mut worker, Some("3"));
        worker.next_request(false).unwrap();
        let problem = proto::Problem {
            code: "stopping".into(),
            status: tonic::Code::Unavailable as i32,
            ..Default::default()
        };
        worker.answer(PublishResponse { problem: Some(problem), ..Default::default() });
        assert_eq!(two.try_recv().unwrap().unwrap_err().code(), Some("stopping"));
        assert!(!worker.has_room(), "nothing more goes there");
        worker.sort_out(&Error::OutcomeUnknown("the stream has ended".into()), false);
        let ids: Vec<Option<String>> = std::iter::from_fn(|| worker.next_request(true))
            .flat_map(|request| request.messages.into_iter().map(|message| message.dedupe_id))
            .collect();
        assert_eq!(ids, [Some("1".into()), Some("3".into())], "in their order");
        assert!(one.try_recv().is_err() && three.try_recv().is_err(), "they wait");
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
            worker.waiting.push_back(Item { topic: "a".into(), message, answer, room: None });
            if sent {
                worker.next_request(false).unwrap();
            }
            pending.push(rx);
        }
        let (answer, rx) = oneshot::channel();
        let message = Message::new("y").0;
        tx.try_send(Item { topic: "b".into(), message, answer, room: None }).unwrap();
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

    /// Ten thousand messages of nine megabytes could wait.
    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_in_bytes_and_a_large_message_still_goes() {
        let client = Client::builder("http://127.0.0.1:1").connect_lazily().unwrap();
        let (items, mut rx) = mpsc::channel(100);
        let publisher = Publisher { items, room: Arc::new(Semaphore::new(4)), room_permits: 4 };
        let pending = publisher.send("a", vec![0; 3000]).await.unwrap();
        let more = Duration::from_secs(1);
        let second = publisher.send("a", vec![0; 10_000]);
        let mut second = Box::pin(second);
        assert!(tokio::time::timeout(more, &mut second).await.is_err(), "there is no room");
        let first = rx.recv().await.unwrap();
        let mut worker = Worker::new(client, PublisherOptions::default(), rx);
        worker.waiting.push_back(first);
        worker.next_request(false).unwrap();
        assert!(tokio::time::timeout(more, &mut second).await.is_err(), "it has no answer yet");
        let placed = proto::PublishedMessage::default();
        worker.answer(PublishResponse { messages: vec![placed], problem: None });
        pending.await.unwrap();
        let second = second.await.unwrap();
        drop(worker);
        assert!(second.await.unwrap_err().is_outcome_unknown(), "the publisher has gone");
    }
}
