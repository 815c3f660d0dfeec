//! The walls of the workspace and the house rules: what ARCHITECTURE.md says must never
//! happen, looked for in manifests and sources. A rule that has to give way gives way
//! here, with the reason beside it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The longest source file, in lines.
const FILE_LINES: usize = 800;

fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).expect("the crate lies two levels below the root").to_owned()
}

/// Files below `dir` whose names end with `.` and `extension`, by their path from the
/// root.
fn files(dir: &str, extension: &str) -> Vec<String> {
    let (root, mut found) = (root(), Vec::new());
    let mut dirs = vec![root.join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("a directory can be read to its end").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let path = path.strip_prefix(&root).expect("it was found below the root");
                found.push(path.to_str().expect("our names are UTF-8").to_owned());
            }
        }
    }
    assert!(!found.is_empty(), "there is no .{extension} file in {dir}: the rule checks nothing");
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What a source file does: its lines without comments and without its unit tests.
fn code(path: &str) -> Vec<(usize, String)> {
    if path.ends_with("tests.rs") {
        return Vec::new();
    }
    let text = read(path);
    let lines = (1..).zip(text.lines()).take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    let said = |line: &str| !line.trim_start().starts_with("//");
    lines.filter(|(_, line)| said(line)).map(|(n, line)| (n, line.to_owned())).collect()
}

/// Where the code below `dir` has one of `words`. A word is found where no letter,
/// digit or `_` stands before it.
fn mentions(dir: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(dir, "rs") {
        for (line, text) in code(&path) {
            for word in words.iter().filter(|word| has_word(&text, word)) {
                found.push(format!("{path}:{line} has {word}"));
            }
        }
    }
    found
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// The crates that `package` is built from, itself not counted; only those that it
/// names, if `direct`. What its tests need does not count.
fn dependencies(package: &str, direct: bool) -> BTreeSet<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--all-features", "--edges", "normal"]);
    cargo.args(["--prefix", "none", "--package", package]);
    if direct {
        cargo.args(["--depth", "1"]);
    }
    let output = cargo.current_dir(root()).output().expect("cargo can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree of {package} has failed: {told}");
    let tree = String::from_utf8(output.stdout).expect("names of crates are ASCII");
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| *name != package).map(str::to_owned).collect()
}

fn assert_none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

// ---- crates

#[test]
fn crates_see_only_those_that_the_architecture_lets_them_see() {
    let allowed: [(&str, &[&str]); 6] = [
        ("posthouse-frame", &[]),
        ("posthouse-core", &["posthouse-frame"]),
        ("posthouse-log", &["posthouse-frame"]),
        ("posthouse-client", &[]),
        ("posthouse", &["posthouse-client", "posthouse-core", "posthouse-frame", "posthouse-log"]),
        ("sim", &["posthouse", "posthouse-core", "posthouse-frame", "posthouse-log"]),
    ];
    for (package, ours) in allowed {
        let seen = dependencies(package, true);
        let seen: Vec<&str> =
            seen.iter().map(String::as_str).filter(|name| name.starts_with("posthouse")).collect();
        assert_eq!(seen, ours, "what {package} sees of this workspace");
    }
}

#[test]
fn the_core_and_the_log_are_built_without_what_they_must_not_use() {
    const NO_RUNTIME: [&str; 7] =
        ["tokio", "mio", "hyper", "axum", "tonic", "futures-util", "socket2"];
    const NO_WORLD: [&str; 7] = ["rustix", "libc", "getrandom", "rand", "jiff", "chrono", "time"];
    for (package, forbidden) in [
        ("posthouse-frame", [NO_RUNTIME, NO_WORLD].concat()),
        ("posthouse-core", [NO_RUNTIME, NO_WORLD].concat()),
        // The log has files and threads: that is what it is for.
        ("posthouse-log", NO_RUNTIME.to_vec()),
    ] {
        let built_from = dependencies(package, false);
        let found = forbidden.into_iter().filter(|name| built_from.contains(*name));
        assert_none(found.map(str::to_owned).collect(), &format!("{package} is built from"));
    }
}

#[test]
fn the_core_has_no_clock_thread_file_socket_chance_or_order_of_a_hash_map() {
    let words = [
        "std::fs",
        "std::net",
        "std::thread",
        "std::process",
        "std::env",
        "std::io",
        "Instant",
        "SystemTime",
        "HashMap::new",
        "std::collections::HashMap",
        "std::collections::HashSet",
        "getrandom",
        "rand::",
        "async ",
        ".await",
    ];
    for dir in ["crates/core/src", "crates/frame/src"] {
        assert_none(mentions(dir, &words), "the core is told everything and asks nobody");
    }
}

#[test]
fn the_log_is_synchronous_and_knows_no_socket() {
    let words = ["async ", ".await", "std::net"];
    assert_none(mentions("crates/log/src", &words), "a log has threads of its own");
}

#[test]
fn planted_bugs_are_in_no_build_but_the_simulators() {
    for manifest in ["frame", "core", "log", "posthouse", "client", "sim"] {
        let path = format!("crates/{manifest}/Cargo.toml");
        let text = read(&path);
        let default = text.lines().find(|line| line.trim_start().starts_with("default "));
        assert!(default.is_none_or(|line| !line.contains("planted")), "{path} plants by default");
        // Dependencies that ask for it; the feature itself only hands it on.
        let asks = text.lines().filter(|line| line.contains("features = [\""));
        let asks: Vec<&str> = asks.filter(|line| line.contains("planted")).collect();
        assert!(asks.is_empty(), "{path} plants: {asks:?}");
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--edges", "features", "--package", "posthouse"]);
    let output = cargo.current_dir(root()).output().expect("cargo can be started");
    assert!(output.status.success(), "cargo tree has failed");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(!tree.contains("planted"), "the binary is built with planted bugs:\n{tree}");
    assert!(tree.contains("posthouse-core"), "the tree is that of the binary");
}

// ---- rooms of the binary

#[test]
fn doors_know_the_broker_and_nothing_behind_it() {
    let words = ["crate::store", "crate::shard", "posthouse_log", "posthouse_frame"];
    assert_none(mentions("crates/posthouse/src/doors", &words), "a door reaches past the broker");
}

#[test]
fn a_door_knows_no_other_door() {
    // What all doors share; it knows none of them either.
    const SHARED: &str = "calls";
    let dir = "crates/posthouse/src/doors";
    let doors: BTreeSet<String> = files(dir, "rs")
        .iter()
        .filter_map(|path| path[dir.len() + 1..].split_once('/').map(|(door, _)| door.to_owned()))
        .collect();
    for door in &doors {
        for other in doors.iter().filter(|other| *other != door && *other != SHARED) {
            let (long, short) = (format!("doors::{other}"), format!("super::super::{other}"));
            let found = mentions(&format!("{dir}/{door}"), &[&long, &short]);
            assert_none(found, "doors share what the broker offers, not each other");
        }
    }
}

#[test]
fn rooms_look_only_inwards() {
    for (room, words) in [
        ("store", &["crate::shard", "crate::broker", "crate::doors", "crate::cli"][..]),
        // A shard's attendant asks the directory for dead-letter topics: the only thing
        // of the broker that a shard knows.
        ("shard", &["crate::doors", "crate::cli", "crate::config"]),
        ("broker", &["crate::doors", "crate::cli", "crate::config"]),
    ] {
        let found = mentions(&format!("crates/posthouse/src/{room}"), words);
        assert_none(found, &format!("{room} looks outwards"));
    }
    let allowed = "use crate::broker::directory::Directory;";
    for path in files("crates/posthouse/src/shard", "rs") {
        let of_broker = code(&path).into_iter().filter(|(_, text)| text.contains("crate::broker"));
        let found = of_broker.filter(|(_, text)| text != allowed);
        assert_none(
            found.map(|(n, _)| format!("{path}:{n}")).collect(),
            "a shard knows the broker",
        );
    }
}

// ---- house rules

#[test]
fn every_source_file_says_what_it_is_for_and_is_short() {
    for path in files("crates", "rs") {
        let text = read(&path);
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES, "{path} has {lines} lines; the most is {FILE_LINES}");
        let is_test_of_a_module = path.ends_with("/tests.rs");
        let says = text.starts_with("//!") || is_test_of_a_module;
        assert!(says, "{path} does not begin with //! and what it is for");
    }
}

#[test]
fn nothing_is_left_to_be_done_and_nothing_is_unsafe() {
    // Put together, so that this file does not break its own rule.
    let words = ["TO-DO", "FIX-ME", "to-do!(", "unimplemented-!(", "dbg-!(", "un-safe "];
    let words: Vec<String> = words.iter().map(|word| word.replace('-', "")).collect();
    let sources = [files("crates", "rs"), files("crates", "proto")].concat();
    let found = sources.iter().flat_map(|path| {
        let text = read(path);
        let of_path = words.iter().filter(|word| has_word(&text, word));
        of_path.map(|word| format!("{path} has {word}")).collect::<Vec<_>>()
    });
    assert_none(found.collect(), "left to be done");
}

#[test]
fn tests_do_not_sleep_and_are_not_skipped_without_a_reason() {
    let (sleeps, skip) = (["thread::sl-eep", "time::sl-eep"], "#[ig-nore");
    let sleeps: Vec<String> = sleeps.iter().map(|word| word.replace('-', "")).collect();
    let skip = skip.replace('-', "");
    let mut found = Vec::new();
    for path in files("crates", "rs") {
        let text = read(&path);
        let is_test = path.contains("/tests/") || path.ends_with("/tests.rs");
        let tests = if is_test { Some(0) } else { text.find("#[cfg(test)]") };
        let Some(tests) = tests.map(|at| &text[at..]) else { continue };
        let naps = sleeps.iter().filter(|word| tests.contains(word.as_str()));
        found.extend(naps.map(|word| format!("{path} has {word}")));
        // What takes long has to say so; `.ci/run slow` runs it.
        let skipped = tests.matches(&skip).count();
        let reasons = tests.matches(&format!("{skip} = \"")).count();
        if skipped != reasons {
            found.push(format!("{path} skips a test and does not say why"));
        }
    }
    assert_none(found, "a test waits for a condition, and is run");
}

// ---- documents

/// Documents for people, by their path from the root.
fn documents() -> Vec<String> {
    let at_root = fs::read_dir(root()).expect("the root can be read");
    let names = at_root.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut documents: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    documents.extend(files("docs", "md"));
    documents
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = read(&document);
        let dir = Path::new(&document).parent().unwrap_or(Path::new(""));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") {
                continue;
            }
            let target = if file.is_empty() { PathBuf::from(&document) } else { dir.join(file) };
            let target = target.to_str().expect("our names are UTF-8").to_owned();
            if !root().join(&target).exists() {
                broken.push(format!("{document}: {link}"));
            } else if !heading.is_empty() && !headings(&target).contains(heading) {
                broken.push(format!("{document}: {link} (no such heading)"));
            }
        }
    }
    assert_none(broken, "broken links");
}

/// What the headings of a document are linked by.
fn headings(document: &str) -> BTreeSet<String> {
    let text = read(document);
    let titles = text.lines().filter(|line| line.starts_with('#'));
    let link = |title: &str| -> String {
        let plain = title.trim_start_matches('#').trim().to_lowercase();
        let kept = plain.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    titles.map(link).collect()
}

/// The blocks of code of a document.
fn blocks(text: &str) -> Vec<&str> {
    text.split("\n```").skip(1).step_by(2).collect()
}

/// Where the links of a document lead to, but for its own headings and other languages.
fn targets(text: &str) -> Vec<&str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.filter(|link| !link.starts_with('#') && !link.starts_with("README")).collect()
}

#[test]
fn the_readme_begins_with_two_commands_and_leads_to_every_document() {
    let text = read("README.md");
    let first: Vec<&str> = blocks(&text).into_iter().take(2).collect();
    assert_eq!(first, ["sh\ncargo run --release -- serve", "sh\ncargo test --workspace"]);
    let linked = targets(&text);
    let documents = documents().into_iter().filter(|name| !name.starts_with("README"));
    let missing = documents.filter(|name| !linked.contains(&name.as_str()));
    assert_none(missing.collect(), "documents that README.md does not lead to");
    assert!(linked.contains(&"LICENSE"));
}

#[test]
fn the_readme_says_the_same_in_every_language() {
    let english = read("README.md");
    let levels = |text: &str| -> Vec<usize> {
        let titles = text.lines().filter(|line| line.starts_with('#'));
        titles.map(|title| title.bytes().take_while(|byte| *byte == b'#').count()).collect()
    };
    let rows = |text: &str| text.lines().filter(|line| line.starts_with('|')).count();
    let languages: Vec<String> = documents()
        .into_iter()
        .filter(|name| name.starts_with("README.") && name != "README.md")
        .collect();
    assert!(!languages.is_empty(), "there is another language");
    for language in &languages {
        let text = read(language);
        assert!(english.contains(&format!("]({language})")), "README.md leads to {language}");
        assert!(text.contains("](README.md)"), "{language} leads back");
        assert_eq!(blocks(&text), blocks(&english), "the commands and answers of {language}");
        assert_eq!(levels(&text), levels(&english), "the headings of {language}");
        assert_eq!(targets(&text), targets(&english), "the links of {language}");
        assert_eq!(rows(&text), rows(&english), "the tables of {language}");
    }
}

#[test]
fn files_that_documents_name_are_there() {
    let mut missing = Vec::new();
    for document in documents() {
        // Only what is named whole, from the root.
        for named in read(&document).split('`').skip(1).step_by(2) {
            let is_path = ["crates/", "docs/", ".ci/"].iter().any(|dir| named.starts_with(dir));
            if is_path && !named.contains(['*', ' ', '<', '{']) && !root().join(named).exists() {
                missing.push(format!("{document}: {named}"));
            }
        }
    }
    assert_none(missing, "documents name files that are not there");
}

#[test]
fn every_setting_is_in_the_table_of_the_operations_document() {
    let text = read("docs/operations.md");
    let missing = posthouse::config::SETTINGS
        .iter()
        .filter(|setting| !text.contains(&format!("| `{}` |", setting.name)))
        .map(|setting| setting.name.to_owned());
    assert_none(missing.collect(), "settings that docs/operations.md does not have");
}

#[test]
fn every_code_of_a_problem_is_in_a_table_of_the_documents() {
    let text: String = files("docs", "md").iter().map(|document| read(document)).collect();
    let mut missing = BTreeSet::new();
    for path in files("crates/posthouse/src", "rs") {
        let code: String = code(&path).into_iter().map(|(_, line)| line + "\n").collect();
        for call in code.split("Problem::new(").skip(1) {
            // `Kind::Some, "some_code", ...`; a call with a variable says nothing here.
            let kind = call.split(',').next().unwrap_or_default().trim();
            let rest = call[call.find(',').unwrap_or(0)..].trim_start_matches([',', ' ', '\n']);
            let code = rest.strip_prefix('"').and_then(|rest| rest.split('"').next());
            if let (true, Some(code)) = (kind.contains("Kind::"), code)
                && !text.contains(&format!("| `{code}` |"))
            {
                missing.insert(format!("{code} ({path})"));
            }
        }
    }
    assert_none(
        missing.into_iter().collect(),
        "codes that no table in docs has (docs/grpc.md has those of all doors)",
    );
}
