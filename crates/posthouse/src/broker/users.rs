//! Users, their tokens and their grants.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use posthouse_core::catalog::machine::{Command, Reply};
use posthouse_core::catalog::{AccessGrant, Action, Quota, Token, User, UserConfig};
use tokio::sync::OwnedMutexGuard;

use super::access::{is_manager, is_open, token_hash};
use super::access_keys::AccessKey;
use super::{Broker, Caller, On};
use crate::problem::{Kind, Problem};

/// Before every token, so that one can be told when it is found where it should not be.
pub(super) const TOKEN_PREFIX: &str = "ph_";

/// Bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Problem::internal(format!("the system gives no random numbers: {e}")))?;
    Ok(bytes)
}

/// The most users of a node.
const USERS: usize = 10_000;

impl Broker {
    /// All users, for who may manage the node.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn users(&self, caller: &Caller) -> Result<Vec<Arc<User>>, Problem> {
        caller.check(Action::Manage, On::Node)?;
        Ok(self.catalog().users().cloned().collect())
    }

    /// One user, for who may manage the node.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn user(&self, caller: &Caller, name: &str) -> Result<Arc<User>, Problem> {
        caller.check(Action::Manage, On::Node)?;
        self.catalog().user_named(name).cloned().ok_or_else(|| no_user(name))
    }

    /// Makes a user, or gives one other grants, and another quota if there is one. The node
    /// stays open until somebody who may manage it has a token.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn put_user(
        &self,
        caller: &Caller,
        name: &str,
        grants: Vec<AccessGrant>,
        quota: Option<Quota>,
    ) -> Result<Arc<User>, Problem> {
        caller.check(Action::Manage, On::Node)?;
        let turn = self.turn_of_users().await;
        let known = self.catalog().user_named(name).map(|user| user.config.clone());
        let base = match known {
            Some(config) => config,
            None if self.catalog().counts().2 < USERS => UserConfig::default(),
            None => {
                let detail = format!("there are {USERS} users already, and no more are taken");
                return Err(Problem::new(Kind::Exhausted, "too_many", detail)
                    .with_hint("delete users that nobody needs"));
            }
        };
        let publish_quota = quota.unwrap_or(base.publish_quota);
        let config = UserConfig { grants, publish_quota, ..base };
        self.check_managers(name, Some(&config))?;
        self.set_user(turn, name, config).await
    }

    /// Waits for the changes of users that are under way. Whoever looks at users and
    /// then changes one holds it until the change can be seen: else two could each take
    /// away what the other has found, and bring back a token that was revoked.
    async fn turn_of_users(&self) -> OwnedMutexGuard<()> {
        self.user_changes.clone().lock_owned().await
    }

    /// Changes users. It goes on, and keeps its turn, if whoever asked goes away.
    async fn change_users(
        &self,
        turn: OwnedMutexGuard<()>,
        command: Command,
    ) -> Result<Reply, Problem> {
        let directory = self.directory.clone();
        let changing = tokio::spawn(async move {
            let _turn = turn;
            directory.meta(command).await
        });
        changing.await.unwrap_or_else(|error| Err(Problem::internal(error.to_string())))
    }

    async fn set_user(
        &self,
        turn: OwnedMutexGuard<()>,
        name: &str,
        config: UserConfig,
    ) -> Result<Arc<User>, Problem> {
        let put = Command::PutUser { name: name.into(), config };
        match self.change_users(turn, put).await? {
            Reply::User(user, _) => Ok(user),
            other => Err(Problem::internal(format!("a user was answered by {other:?}"))),
        }
    }

    /// Once somebody can manage the node, somebody must be left who can, with user `name`
    /// as `config` says (`None`: gone): else it would be open again, or locked. Only with
    /// the last user gone it is open on purpose, and not even then where anyone could
    /// reach it.
    fn check_managers(&self, name: &str, config: Option<&UserConfig>) -> Result<(), Problem> {
        let catalog = self.catalog();
        if is_open(&catalog) || config.is_some_and(is_manager) {
            return Ok(());
        }
        let mut others = catalog.users().filter(|user| *user.name != *name).peekable();
        let is_last = others.peek().is_none() && config.is_none();
        let nobody = is_last && !self.options.keeps_manager;
        if nobody || others.any(|user| is_manager(&user.config)) {
            return Ok(());
        }
        let detail = "nobody would be left who may manage this node and has a token";
        Err(Problem::new(Kind::Conflict, "no_manager", detail).with_hint(
            "give another user a grant with action manage, topics [\"*\"] and groups [\"*\"], \
             and a token",
        ))
    }

    /// Deletes a user.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn delete_user(&self, caller: &Caller, name: &str) -> Result<(), Problem> {
        caller.check(Action::Manage, On::Node)?;
        let turn = self.turn_of_users().await;
        self.check_managers(name, None)?;
        self.change_users(turn, Command::DeleteUser { name: name.into() }).await.map(drop)
    }

    /// Makes a token for a user. It is returned here, and never shown again: only its
    /// hash is kept.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn make_token(
        &self,
        caller: &Caller,
        user: &str,
        token: &str,
    ) -> Result<String, Problem> {
        let text = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()?));
        self.add_token(caller, user, token, &text).await?;
        Ok(text)
    }

    /// Makes an access key for a user: a token that clients can sign with. It is listed and
    /// revoked as a token of this name.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn make_access_key(
        &self,
        caller: &Caller,
        user: &str,
        token: &str,
    ) -> Result<AccessKey, Problem> {
        let key = AccessKey::new(&self.secret)?;
        self.add_token(caller, user, token, &key.secret).await?;
        Ok(key)
    }

    async fn add_token(
        &self,
        caller: &Caller,
        user: &str,
        token: &str,
        text: &str,
    ) -> Result<(), Problem> {
        caller.check(Action::Manage, On::Node)?;
        posthouse_core::name::check(token)?;
        let turn = self.turn_of_users().await;
        let mut config = self.user(caller, user)?.config.clone();
        if config.tokens.iter().any(|known| known.name == token) {
            let detail = format!("user {user:?} has a token {token:?} already");
            return Err(Problem::new(Kind::Conflict, "token_exists", detail)
                .with_hint("revoke it first, or give this one another name"));
        }
        config.tokens.push(Token {
            name: token.into(),
            sha256: token_hash(text),
            created_at: self.now(),
        });
        self.set_user(turn, user, config).await.map(drop)
    }

    /// Revokes a token of a user.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn revoke_token(
        &self,
        caller: &Caller,
        user: &str,
        token: &str,
    ) -> Result<(), Problem> {
        caller.check(Action::Manage, On::Node)?;
        let turn = self.turn_of_users().await;
        let mut config = self.user(caller, user)?.config.clone();
        let before = config.tokens.len();
        config.tokens.retain(|known| known.name != token);
        if config.tokens.len() == before {
            let detail = format!("user {user:?} has no token {token:?}");
            return Err(Problem::new(Kind::NotFound, "token_not_found", detail));
        }
        self.check_managers(user, Some(&config))?;
        self.set_user(turn, user, config).await.map(drop)
    }
}

fn no_user(name: &str) -> Problem {
    Problem::new(Kind::NotFound, "user_not_found", format!("there is no user {name:?}"))
}
