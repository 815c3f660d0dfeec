//! A node in a process of its own, to be killed and started again on the same port.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use posthouse_client::Client;

use crate::PATIENCE;

pub struct Process {
    child: Child,
    /// Held open: nobody reads on, but it is still there to be written to.
    #[allow(dead_code, reason = "it is only held")]
    stdout: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
    args: Vec<String>,
    /// Where it listens, like `127.0.0.1:7650`.
    pub address: String,
}

impl Process {
    pub fn start() -> Process {
        Process::start_with(&[])
    }

    /// Starts one on a free port, with these arguments besides.
    pub fn start_with(args: &[&str]) -> Process {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (child, stdout, address) = spawn(dir.path(), "127.0.0.1:0", &args);
        let address = address.expect("a node on a free port starts");
        Process { child, stdout, dir, args, address }
    }

    pub async fn client(&self) -> Client {
        Client::connect(format!("http://{}", self.address)).await.unwrap()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success(), "kill {signal}");
    }

    /// Stops it where it is, as if the machine were busy with something else.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Kills it (`kill -9`).
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to stop (SIGTERM), and waits until it has.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        assert!(self.child.wait().unwrap().success(), "it stops with exit code 0");
    }

    /// Starts it again, on the same directory and port.
    pub fn start_again(&mut self) {
        let began = Instant::now();
        loop {
            let (mut child, stdout, address) = spawn(self.dir.path(), &self.address, &self.args);
            if address.is_some() {
                (self.child, self.stdout) = (child, stdout);
                return;
            }
            // The port may have been somebody's for a moment.
            child.wait().unwrap();
            assert!(began.elapsed() < PATIENCE, "it does not start again");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a process, and waits until it says where it listens.
fn spawn(
    dir: &Path,
    listen: &str,
    args: &[String],
) -> (Child, BufReader<ChildStdout>, Option<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthouse"));
    command.arg("serve").arg("--data").arg(dir.join("data"));
    command.args(["--listen", listen, "--disk-reserve", "0", "--shards", "1", "--log", "error"]);
    command.args(args).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let address = line.split("://").nth(1).map(|address| address.trim().to_owned());
    (child, stdout, address)
}
