//! HTTP and JSON.
//!
//! Every route is a call of [`Calls`] behind two small steps: JSON or headers in, JSON
//! out. The description at `/openapi.json` is made from the same annotations that make
//! the routes.

mod answer;
mod ask;
mod bulk;
mod consume;
mod groups;
mod letters;
mod messages;
mod metrics;
mod node;
mod page;
mod publish;
mod recurring;
mod schedule;
mod stream;
mod topics;
mod transactions;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::calls::Calls;
use crate::broker::Broker;
use crate::problem::{Kind, Problem};
use answer::Refused;

/// The most bytes of one request that is read as a whole: the largest publish there
/// may be, in base64, with room for what is around it.
const REQUEST_BYTES: usize = 16 << 20;

/// The same of a request that brings no messages.
const OTHER_REQUEST_BYTES: usize = 4 << 20;

/// The description of the interface.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Posthouse",
        description = "Publish, receive, acknowledge. Durations are texts like `30s`, times RFC \
                       3339 or Unix milliseconds. Errors are `application/problem+json`."
    ),
    tags(
        (name = "publish", description = "Taking messages in"),
        (name = "consume", description = "Giving messages out, and what consumers say of them"),
        (name = "topics", description = "Where messages are"),
        (name = "groups", description = "Who gets them"),
        (name = "dead letters", description = "Messages that a group has given up"),
        (name = "schedule", description = "Messages that come later"),
        (name = "transactions", description = "Messages that come together when that is decided, or not at all"),
        (name = "recurring", description = "Messages that come again and again"),
        (name = "messages", description = "Looking at messages, without effect on anyone"),
        (name = "users", description = "Who may do what"),
        (name = "node", description = "How the node is"),
    ),
    modifiers(&Tokens),
    security((), ("token" = []))
)]
struct Description;

struct Tokens;

impl Modify for Tokens {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        description.components.get_or_insert_default().add_security_scheme("token", token);
    }
}

fn described() -> OpenApiRouter<Calls> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(publish::to_topic, messages::browse))
        .routes(routes!(publish::to_many))
        .routes(routes!(topics::list))
        .routes(routes!(topics::put, topics::get, topics::delete))
        .routes(routes!(topics::purge))
        .routes(routes!(messages::get, schedule::reschedule, schedule::cancel))
        .routes(routes!(messages::history))
        .routes(routes!(schedule::list, schedule::purge))
        .routes(routes!(schedule::hours))
        .routes(routes!(schedule::by_name, schedule::move_by_name, schedule::cancel_by_name))
        .routes(routes!(schedule::move_many))
        .routes(routes!(schedule::cancel_many))
        .routes(routes!(transactions::prepare, transactions::list))
        .routes(routes!(transactions::checks))
        .routes(routes!(transactions::get))
        .routes(routes!(transactions::commit))
        .routes(routes!(transactions::rollback))
        .routes(routes!(recurring::list))
        .routes(routes!(recurring::put, recurring::get, recurring::delete))
        .routes(routes!(recurring::pause))
        .routes(routes!(recurring::resume))
        .routes(routes!(recurring::run))
        .routes(routes!(groups::list))
        .routes(routes!(groups::put, groups::get, groups::delete))
        .routes(routes!(groups::seek))
        .routes(routes!(groups::pause))
        .routes(routes!(groups::resume))
        .routes(routes!(consume::receive))
        .routes(routes!(consume::ack))
        .routes(routes!(consume::nack))
        .routes(routes!(consume::extend))
        .routes(routes!(stream::stream))
        .routes(routes!(letters::list))
        .routes(routes!(letters::redrive))
        .routes(routes!(letters::purge))
        .routes(routes!(users::list))
        .routes(routes!(users::put, users::get, users::delete))
        .routes(routes!(users::create_token))
        .routes(routes!(users::revoke_token))
        .routes(routes!(node::node))
        .routes(routes!(node::backup))
        .routes(routes!(node::healthz))
        .routes(routes!(node::readyz))
        .routes(routes!(metrics::metrics))
}

/// All routes of the interface.
pub fn router(broker: &Arc<Broker>) -> Router {
    let (router, description) = described().split_for_parts();
    let description = Arc::new(description);
    router
        .route("/openapi.json", get(move || page::description(description.clone())))
        .route("/", get(page::page))
        .method_not_allowed_fallback(no_method)
        .with_state(Calls { broker: broker.clone() })
}

/// A refusal before any route.
pub fn refuse(problem: Problem) -> Response {
    Refused(problem).into_response()
}

/// What is answered where there is no route.
pub async fn no_route(request: Request) -> Response {
    let path = request.uri().path();
    let problem = Problem::new(Kind::NotFound, "no_such_route", format!("there is no {path}"))
        .with_hint("GET /openapi.json has all routes; GET / shows them as a page");
    refuse(problem)
}

async fn no_method(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let detail = format!("{path} knows no {method}");
    let problem = Problem::new(Kind::Invalid, "method_not_allowed", detail)
        .with_hint("GET /openapi.json has all routes; GET / shows them as a page");
    answer::with_status(&problem, StatusCode::METHOD_NOT_ALLOWED)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_description_names_every_route_and_the_problems() {
        let description = super::described().into_openapi();
        let json: serde_json::Value = serde_json::to_value(&description).unwrap();
        let paths = json["paths"].as_object().unwrap();
        for path in ["/v1/topics/{topic}/messages", "/v1/groups/{group}/stream", "/metrics"] {
            assert!(paths.contains_key(path), "{path}");
        }
        for (path, operations) in paths {
            for (method, operation) in operations.as_object().unwrap() {
                assert!(operation["summary"].is_string(), "{method} {path} has no summary");
                let tags = operation["tags"].as_array().unwrap();
                assert_eq!(tags.len(), 1, "{method} {path}");
            }
        }
        let schemas = json["components"]["schemas"].as_object().unwrap();
        assert!(schemas.contains_key("Problem") && schemas.contains_key("Message"));
    }
}
