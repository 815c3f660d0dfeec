//! Nodes and commands in processes of their own. Every wait has a bound, and what still
//! runs at the end of a test is killed.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, with nothing of our environment that it would listen to.
fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthouse"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("POSTHOUSE_")) {
        command.env_remove(name);
    }
    command
}

/// What a reader gives, once it ends, on a thread of its own.
fn collect(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth showing, too.
        let _ = from.read_to_end(&mut bytes);
        let _ = tx.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    rx
}

/// The lines that a reader gives, as they come.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if tx.send(line).is_err() {
                return;
            }
        }
    });
    rx
}

/// A child that is killed if nobody has waited for it.
pub struct Running {
    child: Child,
    pub stdout: Option<Receiver<String>>,
    stderr: Option<Receiver<String>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("the binary can be started");
        Running { child, stdout: None, stderr: None }
    }

    /// A stream of lines of stdout.
    fn by_lines(mut self) -> Running {
        self.stdout = Some(lines(self.child.stdout.take().expect("it is piped")));
        self.stderr = Some(lines(self.child.stderr.take().expect("it is piped")));
        self
    }

    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("it is taken once")
    }

    /// The next line of stdout.
    pub fn line(&mut self) -> String {
        let lines = self.stdout.as_ref().expect("it is read by lines");
        lines.recv_timeout(PATIENCE).expect("another line comes")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process has a number");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            std::thread::yield_now();
        }
    }

    /// Waits until it has said something on stderr.
    pub fn says(&mut self, part: &str) {
        let lines = self.stderr.as_ref().expect("it is read by lines");
        while !lines.recv_timeout(PATIENCE).expect("another line comes").contains(part) {}
    }

    /// What it says on stderr, to its end.
    pub fn stderr(&mut self) -> String {
        let lines = self.stderr.take().expect("it is asked for once");
        let mut all = Vec::new();
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => all.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return all.join("\n"),
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
            }
        }
    }
}

/// How a command has ended, and what it has printed.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// It went well; what it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "it said {}", self.stderr);
        self.stdout
    }

    /// It went well, and printed one object.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// It went well, and printed an object a line.
    #[track_caller]
    pub fn objects(self) -> Vec<Value> {
        let text = self.ok();
        let parsed: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        parsed.unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// It ended with `code`, and what it said has `part` in it.
    #[track_caller]
    pub fn failed(self, code: i32, part: &str) {
        assert_eq!(self.code, code, "it said {:?}, and printed {:?}", self.stderr, self.stdout);
        assert!(self.stderr.contains(part), "{part:?} is not in {:?}", self.stderr);
    }
}

/// Runs a command to its end with `input` on stdin.
pub fn run(command: &mut Command, input: &[u8]) -> Ended {
    let mut running = Running::start(command);
    let stdout = collect(running.child.stdout.take().expect("it is piped"));
    let stderr = collect(running.child.stderr.take().expect("it is piped"));
    let mut stdin = running.stdin();
    let input = input.to_vec();
    // It may end without reading all.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    let what = format!("{command:?} does not end");
    let stdout = stdout.recv_timeout(PATIENCE).expect(&what);
    let stderr = stderr.recv_timeout(PATIENCE).expect(&what);
    Ended { code: running.wait().code().unwrap_or(-1), stdout, stderr }
}

/// A command that needs no node.
pub fn alone(args: &[&str]) -> Ended {
    run(binary().args(args), b"")
}

/// A command that needs no node, with variables.
pub fn alone_with(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    run(binary().args(args).envs(variables.iter().copied()), b"")
}

/// A node in a process of its own.
pub struct Node {
    running: Running,
    pub url: String,
    dir: tempfile::TempDir,
}

impl Node {
    /// Starts one on an empty directory.
    pub fn start() -> Node {
        Node::start_with(&[])
    }

    /// Starts one with settings beside the usual ones.
    pub fn start_with(args: &[&str]) -> Node {
        let dir = tempfile::tempdir().expect("there is room");
        let (running, url) = listening(&dir.path().join("data"), args);
        Node { running, url, dir }
    }

    /// What a node says that does not start on the data directory `data`.
    pub fn refused_on(data: &Path) -> String {
        let (mut running, line) = serve(data, "127.0.0.1:0", &[]);
        assert_eq!(line, None, "it starts");
        assert!(!running.wait().success());
        running.stderr()
    }

    /// Asks a node that is started on the data directory `data`, and stopped again.
    pub fn ask_on(data: &Path, args: &[&str]) -> Ended {
        let (mut running, url) = listening(data, &[]);
        let ended = run(binary().env("POSTHOUSE_URL", url).args(args), b"");
        running.signal(Signal::TERM);
        assert!(running.wait().success(), "it said {}", running.stderr());
        ended
    }

    /// A node whose topic `orders` has messages with these bodies, and whose group `g`, made
    /// with these options, gets them.
    pub fn with_messages(group: &[&str], bodies: &[&str]) -> Node {
        let node = Node::start();
        node.cli(&["topic", "create", "orders"]).ok();
        node.cli(&[&["group", "create", "g", "--subscribe", "orders"], group].concat()).ok();
        for body in bodies {
            node.cli(&["publish", "orders", body]).ok();
        }
        node
    }

    /// What there is to know of the group `g`.
    pub fn group(&self) -> Value {
        self.cli(&["group", "show", "g", "--json"]).json()
    }

    /// Stops it, and starts it again where it was, after something else.
    pub fn restart_after(self, between: impl FnOnce()) -> Node {
        let url = self.url.clone();
        let address = url.strip_prefix("http://").expect("it has no certificate");
        let dir = self.stop();
        between();
        let began = Instant::now();
        loop {
            // Somebody else may have the port for a while.
            if let (running, Some(_)) = serve(&dir.path().join("data"), address, &[]) {
                return Node { running, url, dir };
            }
            assert!(began.elapsed() < PATIENCE, "it does not start again on {address}");
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A place for files of a test.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("there is room");
        path.to_str().expect("our names are UTF-8").to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command.env("POSTHOUSE_URL", &self.url).args(args);
        command
    }

    /// Runs a command against it.
    pub fn cli(&self, args: &[&str]) -> Ended {
        run(&mut self.command(args), b"")
    }

    /// Runs a command with something on stdin.
    pub fn cli_with(&self, args: &[&str], input: impl AsRef<[u8]>) -> Ended {
        run(&mut self.command(args), input.as_ref())
    }

    /// Runs a command as the user who has a token.
    pub fn cli_as(&self, token: &str, args: &[&str]) -> Ended {
        run(self.command(args).env("POSTHOUSE_TOKEN", token), b"")
    }

    /// Starts a command whose stdout is read by lines.
    pub fn begin(&self, args: &[&str]) -> Running {
        Running::start(&mut self.command(args)).by_lines()
    }

    /// Starts a command whose stdout nobody reads yet.
    pub fn begin_unread(&self, args: &[&str]) -> (Running, impl Read + use<>) {
        let mut running = Running::start(&mut self.command(args));
        let stdout = running.child.stdout.take().expect("it is piped");
        running.stderr = Some(lines(running.child.stderr.take().expect("it is piped")));
        (running, stdout)
    }

    /// Stops it well, and leaves its directory.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.running.signal(Signal::TERM);
        let status = self.running.wait();
        assert!(status.success(), "it said {}", self.running.stderr());
        self.dir
    }

    /// Kills it, and leaves its directory.
    pub fn kill(mut self) -> tempfile::TempDir {
        self.running.signal(Signal::KILL);
        assert!(!self.running.wait().success());
        self.dir
    }

    /// Waits until `holds` is true of what a command prints as JSON.
    #[track_caller]
    pub fn until(&self, args: &[&str], holds: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let value = self.cli(args).json();
            if holds(&value) {
                return value;
            }
            assert!(began.elapsed() < PATIENCE, "it does not come to it: {value}");
        }
    }
}

/// Starts a node on any port, and waits until it says where it listens.
fn listening(data: &Path, args: &[&str]) -> (Running, String) {
    let (running, line) = serve(data, "127.0.0.1:0", args);
    let line = line.expect("it says where it listens");
    let url = line.split(" listens on ").nth(1).expect("it says where it listens").to_owned();
    (running, url)
}

/// Starts a node, and waits for its first line; none if it ends instead.
fn serve(data: &Path, address: &str, args: &[&str]) -> (Running, Option<String>) {
    let mut command = binary();
    command.args(["serve", "--listen", address, "--disk-reserve", "0"]);
    command.args(["--segment-size", "20MiB", "--log", "warn"]);
    command.arg("--data").arg(data).args(args);
    let running = Running::start(&mut command).by_lines();
    let lines = running.stdout.as_ref().expect("it is read by lines");
    let line = match lines.recv_timeout(PATIENCE) {
        Ok(line) => Some(line),
        Err(mpsc::RecvTimeoutError::Disconnected) => None,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the node says nothing"),
    };
    (running, line)
}

/// Every file below `dir` whose name begins so.
pub fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("it is there") {
        let path = entry.expect("it can be read to its end").path();
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path, prefix));
        } else if name.starts_with(prefix) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Texts of a field, in order.
pub fn texts(objects: &[Value], field: &str) -> Vec<String> {
    objects.iter().map(|object| object[field].as_str().unwrap_or_default().to_owned()).collect()
}
