//! A client for HTTP and JSON, and bare sockets.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// HTTP/1 to one node.
#[derive(Clone, Debug)]
pub struct Web {
    client: Client<HttpConnector, Body>,
    url: String,
    token: Option<String>,
}

/// An answer that has come whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        let read = serde_json::from_slice(&self.body);
        read.unwrap_or_else(|e| panic!("no JSON ({e}): {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of a refusal.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The JSON of an answer that is no refusal.
    pub fn done(&self) -> Value {
        assert!((200..300).contains(&self.status), "{} {:?}", self.status, self.body);
        self.json()
    }
}

impl Web {
    pub fn at(url: &str) -> Web {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Web { client, url: url.into(), token: None }
    }

    pub fn with_token(&self, token: &str) -> Web {
        Web { token: Some(token.into()), ..self.clone() }
    }

    /// Sends a request; an error says that no answer has come.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(body.into()).expect("a request");
        let response = self.client.request(request).await.map_err(|e| format!("{e:?}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| format!("{e:?}"))?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub async fn try_post(&self, path: &str, json: &Value) -> Result<Answer, String> {
        let kind = [("content-type", "application/json")];
        self.send(Method::POST, path, &kind, json.to_string()).await
    }

    pub async fn post(&self, path: &str, json: Value) -> Answer {
        self.try_post(path, &json).await.expect("an answer")
    }

    pub async fn put(&self, path: &str, json: Value) -> Answer {
        let kind = [("content-type", "application/json")];
        self.send(Method::PUT, path, &kind, json.to_string()).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Body::empty()).await.expect("an answer")
    }
}

/// A connection without anything on it.
pub async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("the port takes connections")
}

/// Sends bytes, and does not mind if nobody takes them.
pub async fn send(socket: &mut TcpStream, bytes: &[u8]) {
    let _ = socket.write_all(bytes).await;
}

/// Reads until the other side closes.
pub async fn read_to_end(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = vec![0; 4096];
    // A reset is an end, too.
    while let Ok(n @ 1..) = socket.read(&mut piece).await {
        all.extend_from_slice(&piece[..n]);
    }
    all
}
