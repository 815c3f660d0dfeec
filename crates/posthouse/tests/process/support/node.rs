//! The binary, as a process.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use posthouse_client::Client;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::web::Web;
use super::{until, within};

/// How long a start may take here, with everything else that this machine does.
const START_SECS: u64 = 60;

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Setup {
    data: PathBuf,
    listen: String,
    args: Vec<String>,
    ignores_size_signal: bool,
    /// A command that it is started by.
    under: Vec<OsString>,
}

/// A process that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    said: Arc<Mutex<String>>,
    hears: JoinHandle<()>,
    pub address: SocketAddr,
    pub url: String,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal has ended it.
    pub code: Option<i32>,
    /// The signal that has ended it.
    pub signal: Option<i32>,
    /// All that it said on stderr.
    pub said: String,
}

impl Setup {
    /// On the data directory `data`; small segments, and no part of the disk kept free.
    pub fn new(data: &Path) -> Setup {
        let args = ["--disk-reserve", "0", "--segment-size", "20MiB"];
        Setup {
            data: data.to_owned(),
            listen: "127.0.0.1:0".into(),
            args: args.map(str::to_owned).to_vec(),
            ignores_size_signal: false,
            under: Vec::new(),
        }
    }

    /// Adds a flag with its value, in place of one that was there.
    pub fn flag(mut self, flag: &str, value: &str) -> Setup {
        if let Some(at) = self.args.iter().position(|arg| arg == flag) {
            self.args.drain(at..at + 2);
        }
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    pub fn listen(mut self, address: &str) -> Setup {
        self.listen = address.into();
        self
    }

    /// The process learns from the write that a file may not be that large, and not by a
    /// signal that ends it: see [`Node::limit_file_size`].
    pub fn ignoring_size_signal(mut self) -> Setup {
        self.ignores_size_signal = true;
        self
    }

    /// It is started by a command, whose last word is a file; which has to become the
    /// node, so that it can be killed.
    pub fn under(mut self, command: &[&str], file: &Path) -> Setup {
        self.under = command.iter().map(OsString::from).collect();
        self.under.push(file.into());
        self
    }

    fn spawn(&self) -> Child {
        let binary = env!("CARGO_BIN_EXE_posthouse");
        let mut command = if let [first, rest @ ..] = &self.under[..] {
            let mut other = Command::new(first);
            other.args(rest).arg(binary);
            other
        } else if self.ignores_size_signal {
            let mut shell = Command::new("sh");
            shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", binary]);
            shell
        } else {
            Command::new(binary)
        };
        // The environment may have settings of somebody else's node.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("POSTHOUSE_") {
                command.env_remove(name);
            }
        }
        command
            .args(["serve", "--listen", &self.listen, "--data"])
            .arg(&self.data)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"))
    }

    /// Starts it, and waits until it listens.
    ///
    /// # Panics
    /// If it ends instead.
    pub async fn start(&self) -> Node {
        match self.try_start().await {
            Ok(node) => node,
            Err(ended) => panic!("it has ended instead of listening: {ended:#?}"),
        }
    }

    /// Starts it, and waits until it listens or has ended.
    pub async fn try_start(&self) -> Result<Node, Ended> {
        let mut starting = self.begin();
        match within("a start", START_SECS, starting.listening()).await {
            Some(url) => Ok(starting.into_node(url)),
            None => Err(starting.ended().await),
        }
    }

    /// Starts it, and expects that it ends instead of listening.
    ///
    /// # Panics
    /// If it listens.
    pub async fn refused(&self) -> Ended {
        match self.try_start().await {
            Err(ended) => ended,
            Ok(node) => panic!("it listens on {} instead of ending", node.url),
        }
    }

    /// Starts it, with nobody who reads what it says.
    pub fn begin_unheard(&self) -> Child {
        let mut child = self.spawn();
        drop((child.stdout.take(), child.stderr.take()));
        child
    }

    /// Starts it, and waits for nothing.
    pub fn begin(&self) -> Starting {
        let mut child = self.spawn();
        let said = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("stderr is piped");
        let hears = tokio::spawn(hear(stderr, said.clone()));
        let stdout = child.stdout.take().expect("stdout is piped");
        Starting { child, said, hears, stdout: BufReader::new(stdout) }
    }
}

/// A process that has not said where it listens.
#[derive(Debug)]
pub struct Starting {
    child: Child,
    said: Arc<Mutex<String>>,
    hears: JoinHandle<()>,
    stdout: BufReader<tokio::process::ChildStdout>,
}

impl Starting {
    /// Where it listens; `None` if it has ended.
    pub async fn listening(&mut self) -> Option<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).await.expect("stdout can be read");
        let (_, url) = line.trim_end().split_once(" listens on ")?;
        Some(url.to_owned())
    }

    fn into_node(self, url: String) -> Node {
        let address = url.split_once("://").expect("an address with a scheme").1;
        let address = address.parse().expect("an address");
        let Starting { child, said, hears, mut stdout } = self;
        // Whatever else it prints must not fill the pipe.
        tokio::spawn(async move {
            let mut rest = Vec::new();
            let _ = stdout.read_to_end(&mut rest).await;
        });
        Node { child, said, hears, address, url }
    }

    /// Kills it with signal 9.
    pub async fn kill(mut self) {
        self.child.start_kill().expect("a child can be killed");
        self.ended().await;
    }

    async fn ended(self) -> Ended {
        ended(self.child, self.said, self.hears, START_SECS).await
    }
}

async fn hear(mut stderr: tokio::process::ChildStderr, said: Arc<Mutex<String>>) {
    let mut piece = vec![0; 4096];
    while let Ok(n @ 1..) = stderr.read(&mut piece).await {
        let text = String::from_utf8_lossy(&piece[..n]);
        said.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    }
}

async fn ended(
    mut child: Child,
    said: Arc<Mutex<String>>,
    hears: JoinHandle<()>,
    secs: u64,
) -> Ended {
    let waited = tokio::time::timeout(Duration::from_secs(secs), child.wait()).await;
    let text = || said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Ok(status) = waited else {
        panic!("the process has not ended in {secs} s; it said:\n{}", text());
    };
    let status = status.expect("a child can be waited for");
    hears.await.expect("stderr was read to its end");
    Ended { code: status.code(), signal: status.signal(), said: text() }
}

impl Node {
    fn pid(&self) -> Pid {
        let pid = self.child.id().expect("it has not been waited for");
        Pid::from_raw(pid as i32).expect("a process has a number")
    }

    /// What it has said on stderr so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kills it with signal 9, which it cannot notice.
    pub async fn kill(mut self) -> Ended {
        self.child.start_kill().expect("a child can be killed");
        let ended = ended(self.child, self.said, self.hears, START_SECS).await;
        assert_eq!(ended.signal, Some(9), "it had ended before it was killed: {ended:#?}");
        ended
    }

    /// Kills it, or finds that it has ended by itself meanwhile.
    pub async fn kill_or_ended(mut self) -> Ended {
        self.child.start_kill().expect("a child can be killed");
        ended(self.child, self.said, self.hears, START_SECS).await
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child can be sent a signal");
    }

    /// Stops it with SIGSTOP; every thread stands still then.
    pub async fn hold_up(&self) {
        self.signal(Signal::STOP);
        let dir = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        until("every thread stands still", 20, || async {
            let mut tasks = std::fs::read_dir(&dir).expect("its threads");
            let is_still = |task: std::io::Result<std::fs::DirEntry>| {
                let file = task.expect("a thread").path().join("stat");
                let stat = std::fs::read_to_string(file).expect("a thread has a state");
                let (_, behind_name) = stat.rsplit_once(") ").expect("a name in brackets");
                behind_name.starts_with('T')
            };
            tasks.all(is_still).then_some(())
        })
        .await;
    }

    /// Sends it a signal, if it has not ended by itself.
    pub fn signal_if_alive(&self, signal: Signal) {
        // Until somebody waits for it, its number is nobody else's.
        let _ = kill_process(self.pid(), signal);
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it has not in `secs`.
    pub async fn ended(self, secs: u64) -> Ended {
        ended(self.child, self.said, self.hears, secs).await
    }

    /// Ends it with SIGTERM.
    ///
    /// # Panics
    /// If it does not end in order.
    pub async fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        let ended = self.ended(60).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        ended
    }

    /// From now on no file of the process can be written at byte `bytes` or behind it,
    /// as on a disk that refuses to be written to.
    pub fn limit_file_size(&self, bytes: u64) {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(Some(self.pid()), Resource::Fsize, limit).expect("a child can be limited");
    }

    /// A figure of `/proc/PID/status` that is in kB, in bytes.
    fn status(&self, name: &str) -> u64 {
        let file = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let text = std::fs::read_to_string(&file).expect("the process runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a known figure");
        let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        number.parse::<u64>().expect("a number") * 1024
    }

    /// The most memory that it has ever used, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM")
    }

    pub async fn client(&self) -> Client {
        let connected = within("a connection", START_SECS, Client::connect(self.url.clone())).await;
        connected.expect("the node can be reached")
    }

    pub fn web(&self) -> Web {
        Web::at(&self.url)
    }
}
