//! The node that a command talks to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use posthouse_client::{Client, Error, proto};

use super::{Failure, Output};
use crate::problem::Kind;

/// Where a node listens unless somebody says otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7650";

/// How long what listens may take to say that it is a node.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which node, as whom, and for whom to print.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Node")]
pub struct Remote {
    /// Where the node listens
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "POSTHOUSE_URL",
        default_value = DEFAULT_URL
    )]
    url: String,
    /// The token of a user; better given in the environment, which nobody else sees
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "POSTHOUSE_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// A certificate in PEM that the node's is trusted by; else those of the web
    #[arg(long, global = true, value_name = "FILE", env = "POSTHOUSE_CA")]
    ca: Option<PathBuf>,
    /// Print JSON, in the shapes of the HTTP interface
    #[arg(long, global = true)]
    json: bool,
}

impl Remote {
    /// A node that a command takes in its own way.
    pub fn to(url: String, token: Option<String>, ca: Option<PathBuf>, json: bool) -> Remote {
        Remote { url, token, ca, json }
    }

    /// The address with its scheme.
    fn address(&self) -> String {
        let url = self.url.trim_end_matches('/');
        if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
    }

    /// Connects.
    ///
    /// # Errors
    /// If there is no node, or the arguments make no sense.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let address = self.address();
        let mut builder = Client::builder(address.clone());
        // An empty variable is none.
        if let Some(token) = self.token.as_deref().filter(|token| !token.is_empty()) {
            builder = builder.token(token);
        }
        if let Some(file) = self.ca.as_ref().filter(|file| !file.as_os_str().is_empty()) {
            let pem = std::fs::read(file).map_err(|error| {
                Failure::usage(format!("the certificate {}: {error}", file.display()))
            })?;
            builder = builder.ca_certificate(pem);
        }
        let client = builder.connect().await.map_err(|error| no_node(&address, error))?;
        // Something may listen there that is no node, or not without TLS. Asked for nothing
        // that could be done or not done, it is found out here. A refusal is an answer.
        let mut raw = client.raw();
        let asked = raw.get_node(proto::GetNodeRequest {});
        match tokio::time::timeout(PATIENCE, asked).await.map(|asked| asked.map_err(Error::from)) {
            Ok(Ok(_) | Err(Error::Refused(_))) => Ok(client),
            Ok(Err(error)) => Err(no_node(&address, error)),
            Err(_) => {
                let what = format!("what listens there has not answered in {PATIENCE:?}");
                Err(no_node(&address, Error::OutcomeUnknown(what)))
            }
        }
    }

    /// Connects, and does `work` with what to print to.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn run(
        &self,
        work: impl AsyncFnOnce(Client, &mut Output) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        super::runtime()?.block_on(async {
            let mut out = Output::new(self.json);
            work(self.connect().await?, &mut out).await?;
            out.flush()
        })
    }
}

/// What a node was asked for, if it is there.
///
/// # Errors
/// Whatever else the node says.
pub fn if_there<T>(
    answer: Result<tonic::Response<T>, tonic::Status>,
) -> Result<Option<T>, Failure> {
    match answer {
        Ok(there) => Ok(Some(there.into_inner())),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

fn no_node(address: &str, error: Error) -> Failure {
    let (what, hint) = match error {
        Error::Unreachable(what) => (what, "start one with `posthouse serve`, or say"),
        Error::OutcomeUnknown(what) if address.starts_with("http://") => {
            (what, "if it has TLS the address begins with https://; if it is no node, say")
        }
        Error::OutcomeUnknown(what) => (what, "if it is no node, say"),
        other => return other.into(),
    };
    let text = format!(
        "no node answers at {address}: {what}; {hint} where one is with --url or POSTHOUSE_URL"
    );
    Failure::new(Kind::Unavailable, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_lack_its_scheme() {
        let address =
            |url: &str| Remote { url: url.into(), token: None, ca: None, json: false }.address();
        assert_eq!(address("10.0.0.7:7650"), "http://10.0.0.7:7650");
        assert_eq!(address("https://queue.example:7650/"), "https://queue.example:7650");
    }
}
