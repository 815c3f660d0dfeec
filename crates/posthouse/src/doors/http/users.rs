//! `/v1/users`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use posthouse_client::proto;

use super::answer::{Answer, Refused, answer};
use super::ask::{At, Of, Who};
use crate::doors::calls::Calls;
use crate::json::{NewToken, Problem, TokenName, User, UserConfig, Users};

/// All users
#[utoipa::path(get, path = "/v1/users", tag = "users", responses(
    (status = 200, body = Users), (status = "default", body = Problem)))]
pub async fn list(State(calls): State<Calls>, Who(caller): Who) -> Answer<Users> {
    answer(calls.list_users(&caller, proto::ListUsersRequest {}).await)
}

/// Make a user, or change what the user may do
///
/// From the first user on, every request needs a token. The first user must be one who may
/// manage everything.
#[utoipa::path(put, path = "/v1/users/{user}", tag = "users",
    params(("user" = String, Path)), request_body = UserConfig, responses(
    (status = 200, body = User), (status = "default", body = Problem)))]
pub async fn put(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
    Of(UserConfig { grants, publish_quota }): Of<UserConfig>,
) -> Answer<User> {
    let grants = grants.into_iter().map(Into::into).collect();
    let publish_quota = publish_quota.map(Into::into);
    answer(calls.put_user(&caller, proto::PutUserRequest { name, grants, publish_quota }).await)
}

/// A user
#[utoipa::path(get, path = "/v1/users/{user}", tag = "users",
    params(("user" = String, Path)), responses(
    (status = 200, body = User), (status = "default", body = Problem)))]
pub async fn get(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Answer<User> {
    answer(calls.get_user(&caller, proto::GetUserRequest { name }).await)
}

/// Delete a user: all tokens of the user end
#[utoipa::path(delete, path = "/v1/users/{user}", tag = "users",
    params(("user" = String, Path)), responses(
    (status = 204), (status = "default", body = Problem)))]
pub async fn delete(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(name): At<String>,
) -> Result<StatusCode, Refused> {
    calls.delete_user(&caller, proto::DeleteUserRequest { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a token for a user
///
/// It is in the answer and never shown again: only its hash is kept. With `access_key` it can
/// be signed with, too, under the access key in the answer; then it follows from that key and
/// the secret of the store.
#[utoipa::path(post, path = "/v1/users/{user}/tokens", tag = "users",
    params(("user" = String, Path)), request_body = TokenName, responses(
    (status = 201, body = NewToken), (status = "default", body = Problem)))]
pub async fn create_token(
    State(calls): State<Calls>,
    Who(caller): Who,
    At(user): At<String>,
    Of(TokenName { name, access_key }): Of<TokenName>,
) -> Result<(StatusCode, Json<NewToken>), Refused> {
    let request = proto::CreateTokenRequest { user, name, access_key };
    let made = calls.create_token(&caller, request).await?;
    let made = NewToken { token: made.token, access_key: made.access_key };
    Ok((StatusCode::CREATED, Json(made)))
}

/// End a token
#[utoipa::path(delete, path = "/v1/users/{user}/tokens/{token}", tag = "users",
    params(("user" = String, Path), ("token" = String, Path, description = "Its name")),
    responses((status = 200, body = User), (status = "default", body = Problem)))]
pub async fn revoke_token(
    State(calls): State<Calls>,
    Who(caller): Who,
    At((user, name)): At<(String, String)>,
) -> Answer<User> {
    answer(calls.revoke_token(&caller, proto::RevokeTokenRequest { user, name }).await)
}
