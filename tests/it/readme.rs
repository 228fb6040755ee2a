//! README and glossary are true: commands, configuration, event, metrics, faults, compiler version and words are checked.

use crate::BINARY;
use std::collections::BTreeMap;
use std::process::Command;

use archiver::config::Settings;
use archiver::model::fault::FaultKind;

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    README.split(&format!("```{language}\n")).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn every_command_exists() {
    let words = ["ARCHIVE", "JOB", "URL", "WORKER"];
    let lines = blocks("sh").into_iter().flat_map(str::lines).filter_map(|l| l.strip_prefix("archiver "));
    let mut seen = 0;
    for line in lines {
        let names: Vec<&str> =
            line.split_whitespace().take_while(|w| !w.starts_with('-') && !words.contains(w)).collect();
        let names =
            if names[0] == "completions" || names[0] == "events" { &names[..names.len() - 1] } else { &names[..] };
        let out = Command::new(BINARY).args(names).arg("--help").output().expect("archiver");
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        let help = String::from_utf8_lossy(&out.stdout).into_owned();
        for option in line.split_whitespace().filter(|w| w.starts_with("--")) {
            assert!(help.contains(option), "{line}: no {option}");
        }
        seen += 1;
    }
    assert!(seen >= 10);
    let makefile = include_str!("../../Makefile");
    for target in README.split("`make ").skip(1).filter_map(|r| r.split('`').next()) {
        let target = target.split_whitespace().next().unwrap_or(target);
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}

#[test]
fn the_configuration_is_valid_and_enough_for_a_worker() {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), blocks("toml")[0]).expect("write");
    let settings = Settings::load(Some(file.path()), &BTreeMap::new()).expect("valid");
    settings.for_worker().expect("enough");
}

#[test]
fn the_event_is_read() {
    archiver::event::parse(blocks("json")[0].as_bytes()).expect("event");
}

#[test]
fn every_fault_and_every_metric_is_told() {
    for kind in FaultKind::ALL {
        assert!(README.contains(&format!("| `{kind}` |")), "{kind}");
        assert!(README.contains(kind.advice()), "{kind}: {}", kind.advice());
    }
    let rendered = archiver::runtime::metrics::render();
    for line in rendered.lines().filter_map(|l| l.strip_prefix("# HELP ")) {
        let name = line.split_whitespace().next().expect("a name");
        assert!(README.contains(&format!("| `{name}` |")), "{name}");
    }
}

#[test]
fn completions_and_help_can_be_printed_without_a_configuration() {
    for arguments in [&["completions", "bash"][..], &["--help"], &["jobs", "replay", "--help"], &["--version"]] {
        let out = Command::new(BINARY).args(arguments).output().expect("archiver");
        assert!(out.status.success() && !out.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_compiler_version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let files = [
        ("README.md", README, format!("Rust {version}")),
        ("Dockerfile", include_str!("../../Dockerfile"), format!("FROM rust:{version}-bookworm")),
        ("tests/image.sh", include_str!("../image.sh"), format!("rust:{version}-bookworm")),
        ("tests/fuzz/Cargo.toml", include_str!("../fuzz/Cargo.toml"), format!("rust-version = \"{version}\"")),
    ];
    for (name, text, wanted) in files {
        assert!(text.contains(&wanted), "{name} does not have {wanted:?}, as `rust-version` in Cargo.toml says");
    }
}

#[test]
fn the_glossary_is_sorted_and_explains_no_word_that_it_rejects() {
    let (mut words, mut rejected, mut last) = (Vec::new(), Vec::new(), String::new());
    for line in include_str!("../../docs/glossary.md").lines() {
        let Some(row) = line.strip_prefix("| ") else {
            if line.is_empty() {
                last.clear();
            }
            continue;
        };
        let cells: Vec<&str> = row.trim_end_matches('|').split(" |").map(str::trim).collect();
        let [word, meaning, not] = cells[..] else { panic!("not three columns: {line}") };
        if word == "word" || word == "name" {
            continue;
        }
        assert!(!meaning.is_empty(), "{word} has no meaning");
        let key = word.replace('`', "").to_lowercase();
        assert!(last < key, "{key:?} stands behind {last:?}: each table is sorted, and has a word once");
        words.push(key.clone());
        // Names in the source give way one place at a time: `Span` of the configuration, not every `Span`.
        rejected.extend(not.split(", ").filter(|not| !not.is_empty() && !not.contains('`')));
        last = key;
    }
    assert!(words.len() > 100 && rejected.len() > 10, "{} words, {} rejected", words.len(), rejected.len());
    for word in rejected {
        assert!(!words.iter().any(|known| known == word), "{word:?} is rejected, and explained as a word to use");
    }
}
