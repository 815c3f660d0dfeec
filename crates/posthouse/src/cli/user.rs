//! `posthouse user`: who may do what on a node.

use clap::{Args, Subcommand};
use posthouse_client::{Client, proto};

use super::args::{QuotaArgs, show_quota};
use super::output::{Table, confirm, note};
use super::remote::Remote;
use super::{Failure, Output};
use crate::json::{self, ActionName, Grant};
use crate::units;

/// Make users and tokens, and say what they may do
#[derive(Debug, Args)]
pub struct User {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a user, or give one other grants
    Put {
        /// The name
        name: String,
        #[command(flatten)]
        grants: Grants,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// List users
    #[command(visible_alias = "ls")]
    List,
    /// Show a user
    Show {
        /// The name
        name: String,
    },
    /// Delete a user with all tokens
    Delete {
        /// The name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Make a token for a user, and print it: it is never shown again
    Token {
        /// The user
        user: String,
        /// What to call it
        #[arg(long, value_name = "NAME", default_value = "default")]
        name: String,
        /// Make an access key with it, for RocketMQ clients: it is printed before the token, which
        /// is its secret
        #[arg(long)]
        access_key: bool,
    },
    /// Revoke a token, at once
    Revoke {
        /// The user
        user: String,
        /// What it is called
        name: String,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Grants {
    /// What the user may do, and on what: actions (publish, consume, manage), then topics=
    /// and groups= with names or patterns, like 'publish,consume topics=orders.*
    /// groups=billing'. Can be repeated; the list replaces the one before
    #[arg(long = "grant", value_name = "GRANT", value_parser = grant)]
    grants: Vec<Grant>,
    /// Everything on everything, users too
    #[arg(long)]
    admin: bool,
    /// Nothing
    #[arg(long, conflicts_with_all = ["grants", "admin"])]
    no_grants: bool,
}

fn grant(text: &str) -> Result<Grant, String> {
    let mut grant = Grant { actions: Vec::new(), topics: Vec::new(), groups: Vec::new() };
    let list = |names: &str| names.split(',').map(str::to_owned).collect::<Vec<_>>();
    for word in text.split_whitespace() {
        if let Some(names) = word.strip_prefix("topics=") {
            grant.topics.extend(list(names));
        } else if let Some(names) = word.strip_prefix("groups=") {
            grant.groups.extend(list(names));
        } else {
            for action in word.split(',') {
                grant.actions.push(match action {
                    "publish" => ActionName::Publish,
                    "consume" => ActionName::Consume,
                    "manage" => ActionName::Manage,
                    other => {
                        return Err(format!(
                            "{other:?}: publish, consume, manage, topics= or groups= is expected"
                        ));
                    }
                });
            }
        }
    }
    if grant.actions.is_empty() || (grant.topics.is_empty() && grant.groups.is_empty()) {
        return Err("actions, and topics= or groups=, are expected, like 'publish \
                    topics=orders.*'"
            .into());
    }
    Ok(grant)
}

impl Grants {
    fn all(self) -> Vec<Grant> {
        let mut grants = self.grants;
        if self.admin {
            grants.push(Grant {
                actions: vec![ActionName::Publish, ActionName::Consume, ActionName::Manage],
                topics: vec!["*".into()],
                groups: vec!["*".into()],
            });
        }
        grants
    }
}

impl User {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.remote.run(async |client, out| match command {
            Command::Put { name, grants, quota } => {
                let grants = grants.all().into_iter().map(Into::into).collect();
                let publish_quota = quota.into_json().map(Into::into);
                let request = proto::PutUserRequest { name, grants, publish_quota };
                let user = client.raw().put_user(request).await?.into_inner();
                out.show(&json::User::from(user), |out, user| {
                    let grants = units::counted(user.grants.len() as u64, "grant");
                    out.line(format_args!("user {} has {grants}", user.name))
                })
            }
            Command::List => list(&client, out).await,
            Command::Show { name } => {
                let user = client.raw().get_user(proto::GetUserRequest { name }).await?;
                out.show(&json::User::from(user.into_inner()), show)
            }
            Command::Delete { name, yes } => {
                confirm(&format!("Delete user {name:?} with all tokens?"), yes)?;
                let request = proto::DeleteUserRequest { name: name.clone() };
                client.raw().delete_user(request).await?;
                out.show(&serde_json::json!({ "deleted": name }), |out, _| {
                    out.line(format_args!("deleted user {name}"))
                })
            }
            Command::Token { user, name, access_key } => {
                let request = proto::CreateTokenRequest { user, name, access_key };
                token(&client, request, out).await
            }
            Command::Revoke { user, name } => {
                let request = proto::RevokeTokenRequest { user, name: name.clone() };
                let user = client.raw().revoke_token(request).await?.into_inner();
                out.show(&json::User::from(user), |out, user| {
                    out.line(format_args!("revoked token {name} of user {}", user.name))
                })
            }
        })
    }
}

async fn token(
    client: &Client,
    request: proto::CreateTokenRequest,
    out: &mut Output,
) -> Result<(), Failure> {
    let (user, name) = (request.user.clone(), request.name.clone());
    let made = client.raw().create_token(request).await?.into_inner();
    let made = json::NewToken { token: made.token, access_key: made.access_key };
    // The token alone, so that it can be put into a variable.
    out.show(&made, |out, made| {
        if let Some(key) = &made.access_key {
            out.line(key)?;
        }
        out.line(&made.token)
    })?;
    out.flush()?;
    if !out.is_json() {
        note(format_args!("token {name} of user {user}; it is never shown again"));
    }
    Ok(())
}

async fn list(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let users = client.raw().list_users(proto::ListUsersRequest {}).await?.into_inner();
    out.show(&json::Users::from(users), |out, users| {
        let mut table = Table::new("NAME >TOKENS GRANTS");
        for user in &users.users {
            let grants: Vec<String> = user.grants.iter().map(described).collect();
            table.row([user.name.clone(), user.tokens.len().to_string(), grants.join("; ")]);
        }
        out.table(&table)
    })
}

/// A grant as it is given.
fn described(grant: &Grant) -> String {
    let actions: Vec<&str> = grant
        .actions
        .iter()
        .map(|action| match action {
            ActionName::Publish => "publish",
            ActionName::Consume => "consume",
            ActionName::Manage => "manage",
        })
        .collect();
    let mut text = actions.join(",");
    for (name, list) in [("topics", &grant.topics), ("groups", &grant.groups)] {
        if !list.is_empty() {
            text += &format!(" {name}={}", list.join(","));
        }
    }
    text
}

fn show(out: &mut Output, user: &json::User) -> Result<(), Failure> {
    let mut facts = super::output::Facts::default();
    facts.add("name", &user.name);
    facts.add("created", units::show_second(user.created_at.0));
    for grant in &user.grants {
        facts.add("grant", described(grant));
    }
    facts.add_some("publish quota", user.publish_quota.map(show_quota));
    for token in &user.tokens {
        let made = units::show_second(token.created_at.0);
        facts.add("token", format!("{}, made {made}", token.name));
    }
    facts.print(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_shown_as_it_is_given() {
        let text = "publish,consume topics=orders.*,payments groups=billing";
        assert_eq!(described(&grant(text).unwrap()), text);
        assert!(grant("publish").unwrap_err().contains("topics= or groups="));
        assert!(grant("topics=a").is_err());
        assert!(grant("fly topics=a").unwrap_err().starts_with("\"fly\": publish"));
    }
}
