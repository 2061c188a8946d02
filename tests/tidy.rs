//! The law of the code's layers, read from its text: who may import whom, and where the sharp tools may be.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// Which rooms a room may import from. Its own is always allowed.
const LAYERS: [(&str, &[&str]); 17] = [
    ("model", &[]),
    ("meters", &["model"]),
    ("sys", &["model"]),
    ("driver", &["sys", "model"]),
    ("store", &["meters", "model", "sys"]),
    ("engine", &["driver", "store", "logging", "meters", "model"]),
    ("service", &["engine", "driver", "store", "model"]),
    ("wire", &["service", "logging", "meters", "model", "sys::accounts"]),
    // Where shares are is pure text; the drivers themselves start from a checked config and not the other way round.
    ("config", &["logging", "model", "driver::path_template"]),
    ("output", &[]),
    ("pages", &[]),
    ("logging", &["model"]),
    ("daemon", ALL),
    ("fuzz", ALL),
    ("bin/growd", ALL),
    ("bin/growctl", &["wire::proto", "wire::client", "wire::json", "model", "output", "pages"]),
    ("bin/growapi", &["wire::proto", "wire::client", "wire::http", "config", "logging", "model", "output", "pages"]),
];
const ALL: &[&str] = &[
    "config", "daemon", "driver", "engine", "logging", "meters", "model", "output", "pages", "service", "store", "sys",
    "wire",
];

/// Where a crate may be named. A place is the start of a path below `src/`.
const CRATES: [(&str, &[&str]); 6] = [
    ("tonic", &["wire/", "bin/growctl/", "bin/growapi/nodes/"]),
    ("prost", &["wire/", "bin/growctl/", "store/record/", "fuzz.rs"]),
    ("sled", &["store/"]),
    ("nix", &["sys/", "driver/", "store/", "logging/", "daemon.rs", "fuzz.rs", "bin/"]),
    ("anyhow", &["bin/", "daemon"]),
    ("sd_notify", &["sys/"]),
];

const MOST_LINES: usize = 450;

#[derive(Debug, PartialEq)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// All that is wrong with a file, named from the root of the repository.
fn violations(file: &str, source: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line, rule: String| found.push(Violation { file: file.to_owned(), line, rule });
    if !source.starts_with("//!") {
        report(1, "a file starts with //! and what it is for".to_owned());
    }
    if source.lines().count() > MOST_LINES {
        report(MOST_LINES + 1, format!("a file has at most {MOST_LINES} lines"));
    }
    if let Some(place) = file.strip_prefix("src/") {
        let code = code_of(source);
        check_layers(place, &code, &mut report);
        check_crates(place, &code, &mut report);
        check_tools(place, source, &code, &mut report);
    }
    found.sort_by_key(|violation| violation.line);
    found
}

fn check_layers(place: &str, code: &str, report: &mut impl FnMut(usize, String)) {
    if place == "lib.rs" {
        return;
    }
    let parts: Vec<&str> = place.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect();
    let (room, root) = match parts.as_slice() {
        ["bin", name, ..] => (format!("bin/{name}"), "growd"),
        [name, ..] => ((*name).to_owned(), "crate"),
        [] => return,
    };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == room) else {
        return report(1, format!("room {room} is not in the law of layers"));
    };
    let mut imports = paths(code, root);
    if root == "crate" {
        // As many steps up as the file is deep, or more from a module inside it, lead to the root.
        imports.extend(paths(code, "super").into_iter().filter_map(|(line, path)| {
            let up = path.iter().take_while(|name| *name == "super").count();
            let rest: Vec<String> = path[up..].to_vec();
            (up + 1 >= parts.len() && rest.first().is_some_and(|name| ALL.contains(&name.as_str())))
                .then_some((line, rest))
        }));
    }
    for (line, path) in imports {
        let first = path.first().map_or("", String::as_str);
        let two = path.iter().take(2).map(String::as_str).collect::<Vec<_>>().join("::");
        if first != room && !allowed.contains(&first) && !allowed.contains(&two.as_str()) {
            let rule = match allowed {
                [] => format!("{room} imports nothing of the crate, and not {two}"),
                _ => format!("{room} imports only {}, and not {two}", allowed.join(", ")),
            };
            report(line, rule);
        }
    }
}

fn check_crates(place: &str, code: &str, report: &mut impl FnMut(usize, String)) {
    for (name, places) in CRATES {
        if places.iter().any(|allowed| place.starts_with(allowed)) {
            continue;
        }
        for (at, word) in words(code) {
            // `tonic_health` is of tonic's family. A variable of the same name is none of it.
            let family = word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
            let after = &code[at + word.len()..];
            let used = after.starts_with("::") || after.starts_with('!') || code[..at].ends_with("use ");
            let is_outer = !code[..at].ends_with("::") || code[..at].ends_with(" ::");
            if family && used && is_outer {
                report(line_of(code, at), format!("{name} is only for {}", places.join(", ")));
            }
        }
    }
}

fn check_tools(place: &str, source: &str, code: &str, report: &mut impl FnMut(usize, String)) {
    for (at, word) in words(code) {
        let line = line_of(code, at);
        match word {
            "unsafe" if !place.starts_with("sys/") => report(line, "unsafe is only for sys/".to_owned()),
            "unsafe" => {
                let (comments, rule): (&[&str], _) = if declares_unsafe(code, at) {
                    (&["/// # Safety", "// SAFETY:"], "what is unsafe to call or to link says why, under # Safety")
                } else {
                    (&["// SAFETY:"], "unsafe has a // SAFETY: comment just above it")
                };
                if !has_comment(source, line, comments) {
                    report(line, rule.to_owned());
                }
            }
            "unbounded_channel" => report(line, "every channel has a bound: no unbounded_channel".to_owned()),
            "channel" if is_unbounded(code, at) => {
                report(line, "every channel has a bound: std has sync_channel".to_owned());
            }
            _ => {}
        }
    }
    if !place.starts_with("bin/") {
        for (line, path) in paths(code, "process") {
            if path.first().is_some_and(|name| name == "exit") {
                report(line, "process::exit is only for bin/: it skips what is to be closed".to_owned());
            }
        }
    }
}

/// Whether this `channel` is the one of std, which has no bound: tokio's takes its bound, a oneshot needs none.
fn is_unbounded(code: &str, at: usize) -> bool {
    let arguments = code[at + "channel".len()..].trim_start();
    let call = arguments.find('(').map_or("", |open| &arguments[open..]);
    call.starts_with("()") && code[..at].ends_with("mpsc::")
}

/// Whether this `unsafe` is a promise asked of others, `unsafe fn` or `#[unsafe(no_mangle)]`, and not one that is kept.
fn declares_unsafe(code: &str, at: usize) -> bool {
    let rest = &code[at + "unsafe".len()..];
    let head = &rest[..rest.find(['{', ';']).unwrap_or(rest.len())];
    code[..at].ends_with("#[") || words(head).any(|(_, word)| word == "fn")
}

/// Whether the comment that ends just above the line, attributes aside, has a line that starts so.
fn has_comment(source: &str, line: usize, starts: &[&str]) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).take(line - 1).collect();
    let mut comment = lines.iter().rev().skip_while(|line| line.starts_with("#[")).take_while(|l| l.starts_with("//"));
    comment.any(|line| starts.iter().any(|start| line.starts_with(start)))
}

/// The source with comments and the contents of literals turned into spaces; lines stay where they are.
fn code_of(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let starts = |at: usize, text: &str| text.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c));
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = if starts(at, "//") {
            (at..chars.len()).find(|n| chars[*n] == '\n').unwrap_or(chars.len())
        } else if starts(at, "/*") {
            let (mut depth, mut n) = (1, at + 2);
            while depth > 0 && n < chars.len() {
                let step = if starts(n, "/*") { 1 } else { -i32::from(starts(n, "*/")) };
                depth += step;
                n += if step == 0 { 1 } else { 2 };
            }
            n.min(chars.len())
        } else if let Some(hashes) = raw_string(&chars, at) {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = at + hashes + 2;
            (start..chars.len()).find(|n| starts(*n, &close)).map_or(chars.len(), |n| n + close.len())
        } else if chars[at] == '"' || is_char_literal(&chars, at) {
            let mut n = at + 1;
            while n < chars.len() && chars[n] != chars[at] {
                n += if chars[n] == '\\' { 2 } else { 1 };
            }
            (n + 1).min(chars.len())
        } else {
            code.push(chars[at]);
            at += 1;
            continue;
        };
        code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// Number of hashes of the raw string that starts here.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let in_word = at > 0 && is_word(chars[at - 1]) && chars[at - 1] != 'b';
    if chars[at] != 'r' || in_word {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Tells `'a'` from the lifetime `'a`.
fn is_char_literal(chars: &[char], at: usize) -> bool {
    chars[at] == '\'' && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\''))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Every word of the code with its place.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = move |at: &usize| code[*at..].starts_with(is_word) && !code[..*at].ends_with(is_word);
    code.char_indices().map(|(at, _)| at).filter(start).map(|at| {
        let rest = &code[at..];
        (at, &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())])
    })
}

/// Every path that starts at the root, with its line: `root::{a::b, c}` gives `a::b` and `c`.
///
/// Of `super::super::a` it gives `super::super::a`, root and all, so that the steps can be counted.
fn paths(code: &str, root: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in words(code).filter(|(_, word)| *word == root) {
        let after_own = code[..at].ends_with("super::") && root == "super";
        if let Some(tree) = code[at + root.len()..].strip_prefix("::")
            && !after_own
        {
            let prefix = if root == "super" { vec![root.to_owned()] } else { Vec::new() };
            read_tree(tree, code, prefix, &mut found);
        }
    }
    found
}

/// Reads one path or group, and gives the text behind it.
fn read_tree<'c>(tree: &'c str, code: &str, prefix: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) -> &'c str {
    let tree = tree.trim_start();
    if let Some(mut rest) = tree.strip_prefix('{') {
        loop {
            rest = read_tree(rest, code, prefix.clone(), found);
            // A renaming, `as x`, is skipped.
            let next = rest.find([',', '}']).unwrap_or(rest.len());
            match rest[next..].strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => rest = more,
                Some(more) => return more.trim_start().strip_prefix('}').unwrap_or(""),
                None => return rest[next..].strip_prefix('}').unwrap_or(""),
            }
        }
    }
    let end = tree.find(|c| !is_word(c) && c != '*').unwrap_or(tree.len());
    let (name, rest) = tree.split_at(end);
    let mut path = prefix;
    path.push(name.to_owned());
    match rest.strip_prefix("::") {
        Some(more) if more.starts_with(|c: char| is_word(c) || c == '{' || c == '*') => {
            read_tree(more, code, path, found)
        }
        _ => {
            let at = name.as_ptr() as usize - code.as_ptr() as usize;
            found.push((line_of(code, at), path));
            rest
        }
    }
}

/// Every source file below the directory, named from the root of the repository.
fn rust_files(directory: &str) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory))? {
        let entry = entry?;
        let name = format!("{directory}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            found.extend(rust_files(&name)?);
        } else if name.ends_with(".rs") {
            found.push((name, fs::read_to_string(entry.path())?));
        }
    }
    Ok(found)
}

#[test]
fn the_code_keeps_the_law() {
    let mut files = ["src", "tests", "benches"].map(|directory| rust_files(directory).unwrap()).concat();
    assert!(files.iter().any(|(name, _)| name == "src/lib.rs"), "the sources were not found");
    files.sort();
    let broken = files.iter().flat_map(|(name, source)| violations(name, source)).map(|found| format!("\n{found}"));
    assert_eq!(broken.collect::<String>(), "");
}

/// What is reported for a file with this behind its first line.
fn reported(file: &str, body: &str) -> Vec<String> {
    violations(file, &format!("//! A file.\n{body}\n")).iter().map(Violation::to_string).collect()
}

#[test]
fn imports_against_the_law_are_caught() {
    for (file, body, broken) in [
        ("src/model/a.rs", "use crate::sys::x;", "2: model imports nothing of the crate, and not sys::x"),
        ("src/sys/a.rs", "use crate::driver::X;", "2: sys imports only model, and not driver::X"),
        ("src/driver/a.rs", "\nuse crate::{model::A,\n store};", "4: driver imports only sys, model, and not store"),
        ("src/store/a.rs", "{ crate::engine::a() }", "2: store imports only meters, model, sys, and not engine::a"),
        (
            "src/engine.rs",
            "use super::service;",
            "2: engine imports only driver, store, logging, meters, model, and not service",
        ),
        (
            "src/engine/a/b.rs",
            "use super::super::super::{x, wire::Y};",
            "2: engine imports only driver, store, logging, meters, model, and not wire::Y",
        ),
        (
            "src/engine/mod.rs",
            "mod tests {\n use super::super::sys;\n}",
            "3: engine imports only driver, store, logging, meters, model, and not sys",
        ),
        ("src/service/a.rs", "use crate::sys;", "2: service imports only engine, driver, store, model, and not sys"),
        (
            "src/wire/a.rs",
            "pub use crate::engine as e;",
            "2: wire imports only service, logging, meters, model, sys::accounts, and not engine",
        ),
        (
            "src/config.rs",
            "type A = crate::sys::B<u8>;",
            "2: config imports only logging, model, driver::path_template, and not sys::B",
        ),
        (
            "src/config/a.rs",
            "use crate::driver::{path_template::PathTemplate, fake};",
            "2: config imports only logging, model, driver::path_template, and not driver::fake",
        ),
        ("src/config.rs", "use crate::*;", "2: config imports only logging, model, driver::path_template, and not *"),
        (
            "src/bin/growctl/main.rs",
            "use growd::wire::{client::{A as B, C}, handlers, json};",
            "2: bin/growctl imports only wire::proto, wire::client, wire::json, model, output, pages, and not wire::handlers",
        ),
        ("src/attic/a.rs", "", "1: room attic is not in the law of layers"),
    ] {
        assert_eq!(reported(file, body), [format!("{file}:{broken}")], "{body}");
    }
}

#[test]
fn tools_outside_of_their_places_are_caught() {
    for (file, body, broken) in [
        ("src/service/a.rs", "use tonic::Status;", "2: tonic is only for wire/, bin/growctl/, bin/growapi/nodes/"),
        ("src/store/a.rs", "tonic_health::a();", "2: tonic is only for wire/, bin/growctl/, bin/growapi/nodes/"),
        ("src/store/a.rs", "use prost::A;", "2: prost is only for wire/, bin/growctl/, store/record/, fuzz.rs"),
        ("src/engine/a.rs", "fn f(db: sled::Db) {}", "2: sled is only for store/"),
        ("src/wire/a.rs", "nix::a;", "2: nix is only for sys/, driver/, store/, logging/, daemon.rs, fuzz.rs, bin/"),
        ("src/store/a.rs", "let a = anyhow!();", "2: anyhow is only for bin/, daemon"),
        ("src/driver/a.rs", "// SAFETY: no.\nunsafe { f() }", "3: unsafe is only for sys/"),
        ("src/sys/a.rs", "unsafe { f() }", "2: unsafe has a // SAFETY: comment just above it"),
        ("src/sys/a.rs", "// SAFETY: a.\nf();\nunsafe { g() }", "4: unsafe has a // SAFETY: comment just above it"),
        ("src/sys/a.rs", "/// # Safety\nunsafe { f() }", "3: unsafe has a // SAFETY: comment just above it"),
        ("src/sys/a.rs", "unsafe impl Send for A {}", "2: unsafe has a // SAFETY: comment just above it"),
        ("src/sys/a.rs", "unsafe fn f() {}", "2: what is unsafe to call or to link says why, under # Safety"),
        ("src/sys/a.rs", "#[unsafe(no_mangle)]", "2: what is unsafe to call or to link says why, under # Safety"),
        ("src/store/a.rs", "std::process::exit(1)", "2: process::exit is only for bin/: it skips what is to be closed"),
        ("src/fuzz.rs", "use process::{A, exit};", "2: process::exit is only for bin/: it skips what is to be closed"),
        ("src/store/a.rs", "let (a, b) = mpsc::channel();", "2: every channel has a bound: std has sync_channel"),
        ("src/store/a.rs", "std::sync::mpsc::channel::<u8>()", "2: every channel has a bound: std has sync_channel"),
        ("src/wire/a.rs", "mpsc::unbounded_channel()", "2: every channel has a bound: no unbounded_channel"),
    ] {
        assert_eq!(reported(file, body), [format!("{file}:{broken}")], "{body}");
    }
    for file in ["src/model/a.rs", "tests/a.rs", "tests/lab/a.rs"] {
        let long = "\n".repeat(MOST_LINES);
        assert_eq!(reported(file, &long), [format!("{file}:451: a file has at most 450 lines")]);
        let bare: Vec<_> = violations(file, "use std::fmt;").iter().map(Violation::to_string).collect();
        assert_eq!(bare, [format!("{file}:1: a file starts with //! and what it is for")]);
    }
}

#[test]
fn what_is_lawful_passes() {
    for (file, body) in [
        ("src/lib.rs", "pub mod wire;"),
        (
            "src/model/a.rs",
            "use super::Bytes;\nuse crate::model::Job;\n// crate::sys and sled::Db\n/* a /* unsafe */ nix:: */",
        ),
        (
            "src/model/a.rs",
            "const A: &str = \"unsafe \\\" sled::\"; const B: &str = r#\"\"nix::\"#; const C: char = '\"';",
        ),
        ("src/model/a.rs", "fn f<'a>(x: &'a str) -> &'a str { x } // unsafe\nconst D: char = '\\'';"),
        ("src/model/a.rs", "fn unsafe_op(sled: u8, tonic: u8) -> u8 { sled + tonic }\nmod tests { use super::*; }"),
        ("src/config.rs", "use crate::driver::path_template::PathTemplate;\nmod tests { use super::*; }"),
        (
            "src/sys/a.rs",
            "/// # Safety\n/// Any.\n#[unsafe(no_mangle)]\n\
             pub unsafe extern \"C\" fn f() {}\n/// # Safety\nunsafe fn g();",
        ),
        ("src/sys/a.rs", "// SAFETY: it is, because\n// of this.\n#[inline]\nunsafe fn f() {}"),
        ("src/store/record/mod.rs", "use prost::Message;"),
        ("src/store/a.rs", "mpsc::channel(8); mpsc::channel::<u8>(8); oneshot::channel(); oneshot::channel::<u8>()"),
        ("src/daemon.rs", "use crate::{config, wire};\nuse anyhow::Context;"),
        ("src/wire/a.rs", "use crate::{service, wire::proto};\nuse tonic::Status;"),
        ("src/bin/growd.rs", "use growd::daemon;\nfn f() { std::process::exit(1) }"),
        (
            "src/bin/growctl/out.rs",
            "use crate::table;\nuse growd::{model::Bytes, wire::{proto::v1::Job, client, json,},};",
        ),
        ("tests/a.rs", "use growd::engine; fn f() { unsafe { std::process::exit(1) } }"),
    ] {
        assert_eq!(reported(file, body), [""; 0], "{body}");
    }
}
