//! Many clients that are there and say nothing.

use posthouse::doors::rocketmq::pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::support::node::Setup;
use crate::support::within;

/// Clients, each on a connection of its own.
const CLIENTS: usize = 10_000;

/// What they may cost the node together, in MiB: what they do cost is in docs/testing.md.
const MOST_MB: u64 = 1_000;

/// How many begin at once.
const AT_ONCE: usize = 100;

/// A stream of commands that has said what it is, and was answered.
async fn talk(url: String, id: usize) -> impl Sized {
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut service = pb::messaging_service_client::MessagingServiceClient::new(channel);
    let topics = vec![pb::Resource { name: "orders".into(), ..Default::default() }];
    let publishing = pb::Publishing { topics, ..Default::default() };
    let settings = pb::Settings {
        client_type: Some(pb::ClientType::Producer.into()),
        pub_sub: Some(pb::settings::PubSub::Publishing(publishing)),
        ..Default::default()
    };
    let command = pb::telemetry_command::Command::Settings(settings);
    let (say, said) = mpsc::channel(1);
    say.send(pb::TelemetryCommand { status: None, command: Some(command) }).await.unwrap();
    let mut request = tonic::Request::new(ReceiverStream::new(said));
    request.metadata_mut().insert("x-mq-client-id", format!("host@{id}@0@0").parse().unwrap());
    let mut commands = service.telemetry(request).await.unwrap().into_inner();
    commands.message().await.unwrap().expect("settings come");
    (say, commands, service)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten thousand connections; .ci/run slow runs it"]
async fn ten_thousand_idle_streams_of_commands_cost_little() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path()).flag("--max-connections", "11000");
    let node = setup.start().await;
    talk(node.url.clone(), CLIENTS).await;
    let before = node.peak_memory();
    let mut streams = Vec::with_capacity(CLIENTS);
    for first in (0..CLIENTS).step_by(AT_ONCE) {
        let some = (first..first + AT_ONCE).map(|id| tokio::spawn(talk(node.url.clone(), id)));
        for stream in some.collect::<Vec<_>>() {
            streams.push(within("a stream is answered", 60, stream).await.unwrap());
        }
    }
    let took_mb = (node.peak_memory() - before) >> 20;
    println!("{CLIENTS} idle streams take {took_mb} MiB");
    assert!(took_mb <= MOST_MB, "{took_mb} MiB; the most is {MOST_MB} MiB");
    drop(streams);
    node.kill().await;
}
