//! The description of the interface, and a page that shows it.

use std::sync::Arc;

use axum::Json;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use utoipa::openapi::OpenApi;

/// `/openapi.json`.
pub async fn description(description: Arc<OpenApi>) -> Json<OpenApi> {
    Json(OpenApi::clone(&description))
}

/// `/`: the description for people. It loads nothing from anywhere else.
pub async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(include_str!("page.html")))
}
