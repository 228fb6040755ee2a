//! Which module may import which: layers between the folders of `src`, no circles between the files of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module's path, such as `["job", "driver"]`.
type Module = Vec<String>;

/// A file of the library, and the modules that it imports outside of its tests.
#[derive(Debug)]
struct Source {
    file: PathBuf,
    module: Module,
    /// Each with the path as it is written.
    imports: Vec<(Module, String)>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let module = |file: &Path| {
        let path = file.strip_prefix(&root).expect("below src").with_extension("");
        let mut parts: Module = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        parts.pop_if(|last| matches!(last.as_str(), "mod" | "lib" | "main"));
        parts
    };
    let known: BTreeSet<Module> = files.iter().map(|file| module(file)).collect();
    let source = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).expect("source");
        let module = module(&file);
        Source { imports: imports(&text, &module, &known), file, module }
    };
    files.into_iter().map(source).collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("folder").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            collect(&entry, files);
        } else if entry.extension().is_some_and(|e| e == "rs") && !entry.to_string_lossy().ends_with("tests.rs") {
            files.push(entry);
        }
    }
}

/// The modules that a file's text imports, each with the path as it is written.
fn imports(text: &str, module: &Module, known: &BTreeSet<Module>) -> Vec<(Module, String)> {
    let found = paths(text).into_iter().filter_map(|path| Some((resolve(&path, module, known)?, path)));
    found.filter(|(to, _)| to != module).collect()
}

/// All paths that begin with `crate`, `super` or `self`, outside of comments and tests; groups in braces are taken apart.
fn paths(text: &str) -> Vec<String> {
    let text = match text.find("\n#[cfg(test)]\n") {
        // Behind it are tests only, or else all of the file counts.
        Some(at) if is_tests(&text[at..]) => &text[..at],
        _ => text,
    };
    let text: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(root) {
            if !text[..at].ends_with(|c: char| is_name(c) || c == ':') {
                expand("", &text[at..], &mut paths);
            }
        }
    }
    paths
}

/// Whether what begins with `#[cfg(test)]` is modules of tests and nothing else: all later lines at the margin belong to one.
fn is_tests(text: &str) -> bool {
    let margin = text.lines().filter(|line| !line.is_empty() && !line.starts_with([' ', '/']));
    margin.into_iter().all(|line| line.starts_with("#[") || line.contains("mod ") || line == "}")
}

/// Reads one path, or a group of paths behind a common beginning. Returns what follows.
fn expand<'a>(before: &str, text: &'a str, paths: &mut Vec<String>) -> &'a str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (path, mut rest) = (format!("{before}{}", &text[..end]), &text[end..]);
    if !path.ends_with("::") || !rest.starts_with('{') {
        paths.push(path);
        return rest;
    }
    while let Some(inner) = rest.strip_prefix(['{', ',']) {
        rest = inner.trim_start();
        if rest.starts_with('}') {
            break;
        }
        rest = expand(&path, rest, paths).trim_start();
        // A new name, `as …`, is none of a module.
        rest = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

/// The module that has what a path names: the longest beginning of the path that is a module.
fn resolve(path: &str, from: &Module, known: &BTreeSet<Module>) -> Option<Module> {
    let mut parts = path.split("::").peekable();
    let mut at: Module = match parts.next()? {
        "crate" => Vec::new(),
        "self" => from.clone(),
        _ => from.split_last()?.1.to_vec(),
    };
    while parts.next_if_eq(&"super").is_some() {
        at.pop()?;
    }
    at.extend(parts.map(str::to_owned));
    while !at.is_empty() && !known.contains(&at) {
        at.pop();
    }
    (!at.is_empty()).then_some(at)
}

/// The order of the modules in `src/lib.rs`.
fn layers() -> Vec<String> {
    let text = include_str!("../../src/lib.rs");
    text.lines().filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned())).collect()
}

/// What stands above the module that imports it.
fn climbing(sources: &[Source], layers: &[String]) -> Vec<String> {
    let height = |module: &Module| layers.iter().position(|layer| Some(layer) == module.first());
    let mut found = Vec::new();
    for source in sources {
        for (to, path) in &source.imports {
            if height(&source.module).is_some_and(|from| height(to).is_none_or(|to| to > from)) {
                found.push(format!("{} imports {path}, which stands above it", source.file.display()));
            }
        }
    }
    found
}

/// A circle of imports between files, if there is one. A folder's `mod.rs` is left out: it has what its files share, and offers what
/// they make.
fn circle(sources: &[Source]) -> Option<Vec<String>> {
    let is_shared = |source: &&Source| !source.file.ends_with("mod.rs") && !source.module.is_empty();
    let mut left: BTreeMap<&Module, BTreeSet<&Module>> = sources
        .iter()
        .filter(is_shared)
        .map(|source| (&source.module, source.imports.iter().map(|(to, _)| to).collect()))
        .collect();
    // What imports nothing that is left is in no circle.
    loop {
        let done: Vec<&Module> = left
            .iter()
            .filter(|(_, imports)| imports.iter().all(|import| !left.contains_key(import)))
            .map(|(module, _)| *module)
            .collect();
        if done.is_empty() {
            break;
        }
        done.iter().for_each(|module| drop(left.remove(module)));
    }
    let mut at = *left.keys().next()?;
    let mut way = vec![at];
    loop {
        at = left[at].iter().find(|import| left.contains_key(**import)).copied()?;
        if let Some(begin) = way.iter().position(|module| *module == at) {
            return Some(way[begin..].iter().map(|module| module.join("::")).collect());
        }
        way.push(at);
    }
}

#[test]
fn a_module_imports_only_what_stands_before_it() {
    let layers = layers();
    assert!(layers.len() > 15 && layers[0] == "model", "{layers:?}");
    let climbing = climbing(&sources(), &layers);
    assert!(
        climbing.is_empty(),
        "change the import, or the order in src/lib.rs with a reason:\n{}",
        climbing.join("\n")
    );
}

#[test]
fn the_files_of_a_folder_import_each_other_in_no_circle() {
    let circle = circle(&sources());
    assert!(circle.is_none(), "what they share belongs into a file of its own: {circle:?}");
}

#[test]
fn an_import_that_climbs_and_a_circle_are_found() {
    let known: BTreeSet<Module> =
        [vec!["low", "a"], vec!["low", "b"], vec!["high"]].map(|m| m.into_iter().map(str::to_owned).collect()).into();
    let source = |file: &str, module: &[&str], text: &str| {
        let module: Module = module.iter().map(|part| (*part).to_owned()).collect();
        Source { imports: imports(text, &module, &known), file: file.into(), module }
    };
    let sources = [
        source(
            "low/a.rs",
            &["low", "a"],
            "use super::b::{self, B as C};\nfn f() { crate::high::run() } // crate::other",
        ),
        source(
            "low/b.rs",
            &["low", "b"],
            "use crate::low::{a::{A, Z}, b};\n#[cfg(test)]\nmod tests {\n    use crate::high::Test;\n}",
        ),
        source("high.rs", &["high"], "fn run() {}"),
    ];
    let layers = ["low".to_owned(), "high".to_owned()];
    assert_eq!(climbing(&sources, &layers), ["low/a.rs imports crate::high::run, which stands above it"]);
    assert_eq!(circle(&sources), Some(vec!["low::a".to_owned(), "low::b".to_owned()]));
    assert_eq!(circle(&sources[1..]), None);
    let behind_a_test =
        source("low/b.rs", &["low", "b"], "fn b() {}\n#[cfg(test)]\nuse crate::low::b;\nuse crate::high::run;");
    assert_eq!(climbing(&[behind_a_test], &layers).len(), 1, "a single item for tests hides nothing");
}
