//! The HTTP door, through hyper's client.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{Method, Request, header};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::door::{Args, Door, Node, Refusal, take};

pub struct Http {
    client: Client<HttpConnector, Body>,
    address: SocketAddr,
    token: Option<String>,
}

impl Http {
    pub fn at(address: SocketAddr) -> Http {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Http { client, address, token: None }
    }
}

/// The route of an operation; arguments that are not in its path are the body, or the
/// query where there is none.
fn route(operation: &str) -> (Method, &'static str) {
    match operation {
        "put-topic" => (Method::PUT, "/v1/topics/{topic}"),
        "get-topic" => (Method::GET, "/v1/topics/{topic}"),
        "list-topics" => (Method::GET, "/v1/topics"),
        "delete-topic" => (Method::DELETE, "/v1/topics/{topic}"),
        "purge-topic" => (Method::POST, "/v1/topics/{topic}/purge"),
        "publish" => (Method::POST, "/v1/topics/{topic}/messages"),
        "publish-many" => (Method::POST, "/v1/publish"),
        "browse" => (Method::GET, "/v1/topics/{topic}/messages"),
        "scheduled" => (Method::GET, "/v1/topics/{topic}/scheduled"),
        "scheduled-named" => (Method::GET, "/v1/topics/{topic}/scheduled/{name}"),
        "purge-scheduled" => (Method::DELETE, "/v1/topics/{topic}/scheduled"),
        "hours" => (Method::GET, "/v1/topics/{topic}/schedule"),
        "move" => (Method::POST, "/v1/schedule/move"),
        "cancel" => (Method::POST, "/v1/schedule/cancel"),
        "put-recurring" => (Method::PUT, "/v1/recurring/{name}"),
        "get-recurring" => (Method::GET, "/v1/recurring/{name}"),
        "list-recurring" => (Method::GET, "/v1/recurring"),
        "delete-recurring" => (Method::DELETE, "/v1/recurring/{name}"),
        "pause-recurring" => (Method::POST, "/v1/recurring/{name}/pause"),
        "resume-recurring" => (Method::POST, "/v1/recurring/{name}/resume"),
        "run-recurring" => (Method::POST, "/v1/recurring/{name}/run"),
        "message" => (Method::GET, "/v1/messages/{id}"),
        "history" => (Method::GET, "/v1/messages/{id}/history"),
        "prepare" => (Method::POST, "/v1/transactions"),
        "transactions" => (Method::GET, "/v1/transactions"),
        "transaction" => (Method::GET, "/v1/transactions/{id}"),
        "commit" => (Method::POST, "/v1/transactions/{id}/commit"),
        "rollback" => (Method::POST, "/v1/transactions/{id}/rollback"),
        "checks" => (Method::GET, "/v1/transactions/checks"),
        "put-group" => (Method::PUT, "/v1/groups/{group}"),
        "get-group" => (Method::GET, "/v1/groups/{group}"),
        "list-groups" => (Method::GET, "/v1/groups"),
        "delete-group" => (Method::DELETE, "/v1/groups/{group}"),
        "pause" => (Method::POST, "/v1/groups/{group}/pause"),
        "resume" => (Method::POST, "/v1/groups/{group}/resume"),
        "seek" => (Method::POST, "/v1/groups/{group}/seek"),
        "receive" => (Method::POST, "/v1/groups/{group}/receive"),
        "ack" => (Method::POST, "/v1/groups/{group}/ack"),
        "nack" => (Method::POST, "/v1/groups/{group}/nack"),
        "extend" => (Method::POST, "/v1/groups/{group}/extend"),
        "dead" => (Method::GET, "/v1/groups/{group}/dead"),
        "redrive" => (Method::POST, "/v1/groups/{group}/dead/redrive"),
        "purge-dead" => (Method::POST, "/v1/groups/{group}/dead/purge"),
        "put-user" => (Method::PUT, "/v1/users/{user}"),
        "get-user" => (Method::GET, "/v1/users/{user}"),
        "list-users" => (Method::GET, "/v1/users"),
        "delete-user" => (Method::DELETE, "/v1/users/{user}"),
        "create-token" => (Method::POST, "/v1/users/{user}/tokens"),
        "revoke-token" => (Method::DELETE, "/v1/users/{user}/tokens/{name}"),
        "node" => (Method::GET, "/v1/node"),
        other => panic!("there is no operation {other}"),
    }
}

fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

impl Door for Http {
    async fn open(node: &Node) -> Self {
        Http::at(node.address)
    }

    fn set_token(&mut self, token: Option<String>) {
        self.token = token;
    }

    async fn call(&mut self, operation: &str, mut args: Args) -> Result<Value, Refusal> {
        let (method, template) = route(operation);
        let path: Vec<String> = template
            .split('/')
            .map(|part| match part.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => escape(&take(&mut args, name)),
                None => part.to_owned(),
            })
            .collect();
        let mut uri = format!("http://{}{}", self.address, path.join("/"));
        let mut body = Body::empty();
        if method == Method::GET || method == Method::DELETE {
            let query: Vec<String> = args
                .iter()
                .map(|(name, value)| {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    format!("{name}={}", escape(&text))
                })
                .collect();
            uri = format!("{uri}?{}", query.join("&"));
        } else {
            body = Body::from(serde_json::to_vec(&args).unwrap());
        }
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = self.client.request(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE).cloned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json = match body.len() {
            0 => Value::Object(Args::new()),
            _ => serde_json::from_slice(&body).unwrap(),
        };
        if status.is_success() {
            return Ok(json);
        }
        assert_eq!(kind.unwrap(), "application/problem+json");
        assert_eq!(json["status"], status.as_u16());
        let code = json["code"].as_str().unwrap().to_owned();
        Err(Refusal { code, status: status.as_str().to_owned() })
    }

    fn status<'a>(http: &'a str, _grpc: &'a str) -> &'a str {
        http
    }
}
