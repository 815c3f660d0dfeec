//! A node, and what a door to it has to do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use posthouse::broker::{Broker, BrokerOptions};
use posthouse::doors;
use posthouse::doors::listen::{ListenOptions, Port};
use posthouse_log::files::RealFiles;
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The arguments of an operation.
pub type Args = Map<String, Value>;

/// A refusal: its code, and the status of the door.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: String,
    pub status: String,
}

/// A way in.
pub trait Door {
    /// Opens it.
    async fn open(node: &Node) -> Self;
    /// Shows a token from now on.
    fn set_token(&mut self, token: Option<String>);
    /// Does an operation.
    async fn call(&mut self, operation: &str, args: Args) -> Result<Value, Refusal>;
    /// Which of the two statuses of an expected refusal is this door's.
    fn status<'a>(http: &'a str, grpc: &'a str) -> &'a str;
}

/// A node on a directory of its own.
pub struct Node {
    pub address: SocketAddr,
    pub broker: Arc<Broker>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Node {
    pub async fn start() -> Node {
        Node::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut BrokerOptions)) -> Node {
        Node::listening(&ListenOptions::default(), change).await
    }

    pub async fn listening(
        options_of_port: &ListenOptions,
        change: impl FnOnce(&mut BrokerOptions),
    ) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let mut options = BrokerOptions::new(dir.path().to_owned());
        options.disk_reserve = Some(0);
        options.shards = Some(1);
        change(&mut options);
        let (broker, _) = Broker::start(RealFiles::shared(), options).await.unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let port = Port::bind(listen, options_of_port).await.unwrap();
        let address = port.address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let router = doors::router(&broker);
        let serving = tokio::spawn(async move {
            let stopped = async move { stopped.await.unwrap_or_default() };
            port.serve(router, stopped, Duration::from_secs(5)).await;
        });
        Node { address, broker, stop, serving, _dir: dir }
    }

    pub async fn stop(self) {
        self.broker.begin_stop();
        self.stop.send(()).unwrap();
        self.serving.await.unwrap();
        self.broker.stop(Duration::from_secs(20)).await.unwrap();
    }
}

/// Takes a text argument out.
pub fn take(args: &mut Args, name: &str) -> String {
    match args.remove(name) {
        Some(Value::String(text)) => text,
        other => panic!("argument {name} is {other:?}"),
    }
}
