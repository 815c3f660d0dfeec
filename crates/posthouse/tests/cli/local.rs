//! Commands that need no node: `config`, `completions`, and what goes wrong before one is
//! reached.

use crate::harness::{alone, alone_with};

#[test]
fn settings_are_shown_with_where_they_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("posthouse.toml");
    std::fs::write(&file, "memory = \"1GiB\"\nmax_topics = 7\n").unwrap();
    let file = file.to_str().unwrap();
    let args = ["config", "--json", "--config", file, "--data", "/var/lib/x"];
    let variables = [("POSTHOUSE_MAX_TOPICS", "8"), ("POSTHOUSE_DATA", "/elsewhere")];
    let shown = alone_with(&args, &variables).json();
    let of = |name: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let found = settings.iter().find(|setting| setting["name"] == name).unwrap();
        (found["value"].as_str().unwrap().to_owned(), found["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(of("data"), ("/var/lib/x".into(), "flag".into()));
    assert_eq!(of("max_topics"), ("8".into(), "environment".into()));
    assert_eq!(of("memory"), ("1GiB".into(), file.into()));
    assert_eq!(of("listen"), ("127.0.0.1:7650".into(), "default".into()));
    assert_eq!(of("shards"), (String::new(), "default".into()));
    let table = alone_with(&["config"], &[("POSTHOUSE_CONFIG", file)]).ok();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found: Vec<_> = lines.filter(|words| words[0] == "max_topics").collect();
    assert_eq!(found, [["max_topics", "7", file]], "{table}");

    let wrong = alone(&["config", "--memory", "lots"]);
    assert!(wrong.stdout.contains("lots"), "it is shown all the same: {}", wrong.stdout);
    wrong.failed(2, "memory = \"lots\" (flag): a size like");
    alone(&["config", "--config", "/nosuch"]).failed(2, "/nosuch");
}

#[test]
fn completions_are_there_for_every_shell_and_know_our_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = alone(&["completions", shell]).ok();
        for word in ["redrive", "dedupe-prefix", "--segment-size"] {
            let word = if shell == "fish" { word.trim_start_matches("--") } else { word };
            assert!(script.contains(word), "{word} is not in that of {shell}");
        }
    }
    alone(&["completions", "tcsh"]).failed(2, "tcsh");
}

#[test]
fn without_a_node_it_says_so_and_how_to_get_one() {
    // The discard port: nobody listens there.
    let url = ["--url", "127.0.0.1:9"];
    let ended = alone(&[&["node"], &url[..]].concat());
    ended.failed(5, "no node answers at http://127.0.0.1:9: ");
    alone(&[&["topic", "list", "--json"], &url[..]].concat()).failed(5, "`posthouse serve`");
    // Something that listens, and is no node.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        use std::io::Write as _;
        for stream in other.incoming().map_while(Result::ok) {
            let mut stream: std::net::TcpStream = stream;
            drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"));
        }
    });
    alone(&["node", "--url", &address]).failed(5, "if it is no node, say where one is");
    alone(&["node", "--url", "what is this"]).failed(2, "is no address of a server");
    alone(&["node", "--ca", "/nosuch"]).failed(2, "the certificate /nosuch");
    alone(&["node", "--token", "a\nb"]).failed(2, "the token has characters");
    alone(&["nosuch"]).failed(2, "unrecognized subcommand");
    assert!(alone(&["--help"]).ok().contains("completions"));
}
