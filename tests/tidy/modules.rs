//! Which module of a crate uses which, read from its sources without their tests: `use` trees and paths in code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Module = Vec<String>;

/// A crate's modules by their path (`["network", "tunnel"]`), each with the paths it mentions.
pub(crate) struct Graph {
    sources: BTreeMap<Module, String>,
}

impl Graph {
    /// `files`: paths below the crate's `src` and their texts.
    pub(crate) fn new(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut sources = BTreeMap::new();
        let mut tests = BTreeSet::new();
        for (path, text) in files {
            let module = module(&path);
            let (text, only_tests) = without_tests(&text);
            for name in only_tests {
                let mut test = module.clone();
                test.push(name);
                tests.insert(test);
            }
            sources.insert(module, text);
        }
        sources.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        Self { sources }
    }

    /// Modules as `network::tunnel`, with their code.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (String, &str)> {
        self.sources
            .iter()
            .map(|(module, text)| (module.join("::"), text.as_str()))
    }

    /// Groups of modules beside each other that use one another in a circle, as `parent: a b c`, in order.
    pub(crate) fn circles(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (parent, edges) in &self.levels() {
            let mut seen = BTreeSet::new();
            for start in edges.keys() {
                let there = reach(edges, start);
                let circle: Vec<String> = there
                    .into_iter()
                    .filter(|other| reach(edges, other).contains(start))
                    .collect();
                if circle.len() > 1 && seen.insert(circle.clone()) {
                    found.push(format!("{}: {}", parent.join("::"), circle.join(" ")));
                }
            }
        }
        found
    }

    /// Which of the modules in `parent` uses which of the others.
    pub(crate) fn beside(&self, parent: &str) -> Vec<(String, String)> {
        let parent: Module = parent.split("::").map(str::to_owned).collect();
        let level = self.levels().remove(&parent).unwrap_or_default();
        let pairs = |(from, to): (String, BTreeSet<String>)| {
            to.into_iter().map(move |to| (from.clone(), to))
        };
        level.into_iter().flat_map(pairs).collect()
    }

    /// By parent: who uses whom.
    fn levels(&self) -> BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> {
        let mut levels: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for (from, text) in &self.sources {
            for to in self.uses(from, text) {
                let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if let (Some(here), Some(there)) = (from.get(same), to.get(same)) {
                    let level = levels.entry(from[..same].to_vec()).or_default();
                    level.entry(here.clone()).or_default().insert(there.clone());
                }
            }
        }
        levels
    }

    /// The modules that the code of one mentions.
    fn uses(&self, from: &Module, text: &str) -> BTreeSet<Module> {
        let mut found = BTreeSet::new();
        for (at, _) in text.match_indices("::") {
            let first = &text[..at];
            let begin = first
                .rfind(|c: char| !c.is_alphanumeric() && c != '_')
                .map_or(0, |before| before + 1);
            let word = &text[begin..at];
            // The middle of a path, `<T>::`, a method's type arguments.
            if word.is_empty() || first[..begin].ends_with("::") {
                continue;
            }
            let mut paths = Vec::new();
            tree(&text[begin..], &mut Vec::new(), &mut paths);
            for path in paths {
                found.extend(self.resolve(from, &path));
            }
        }
        found
    }

    /// The deepest module that a path leads to.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" => Module::new(),
            "self" => from.clone(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            child => {
                let mut module = from.clone();
                module.push(child.to_owned());
                self.sources.contains_key(&module).then_some(module)?
            }
        };
        for name in rest {
            if name == "super" {
                module.pop()?;
                continue;
            }
            module.push(name.clone());
            if !self.sources.contains_key(&module) {
                module.pop();
                break;
            }
        }
        Some(module)
    }
}

/// All that `start` leads to, itself only by a circle.
fn reach(edges: &BTreeMap<String, BTreeSet<String>>, start: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next = vec![start];
    while let Some(at) = next.pop() {
        for to in edges.get(at).into_iter().flatten() {
            if found.insert(to.clone()) {
                next.push(to);
            }
        }
    }
    found
}

/// The paths of `a::b::{c, d::e}`, from the beginning of `text`; returns what is behind them.
fn tree<'a>(text: &'a str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let mut rest = text.trim_start();
    let depth = prefix.len();
    loop {
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end > 0 {
            prefix.push(rest[..end].to_owned());
            rest = &rest[end..];
        }
        match rest.strip_prefix("::") {
            Some(after) if after.starts_with('{') => {
                rest = after[1..].trim_start();
                while !rest.is_empty() && !rest.starts_with('}') {
                    let before = rest.len();
                    rest = tree(rest, prefix, found).trim_start();
                    // `x as y`
                    let next = rest.find([',', '}']).unwrap_or(rest.len());
                    rest = rest[next..].trim_start_matches(',').trim_start();
                    if rest.len() == before {
                        break;
                    }
                }
                rest = rest.strip_prefix('}').unwrap_or(rest);
                break;
            }
            Some(after) if end > 0 => rest = after,
            _ => {
                found.push(prefix.clone());
                break;
            }
        }
    }
    prefix.truncate(depth);
    rest
}

/// `network/tunnel/peer.rs` is `network::tunnel::peer`.
fn module(path: &str) -> Module {
    let path = Path::new(path).with_extension("");
    let mut module: Module = path
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if matches!(
        module.last().map(String::as_str),
        Some("lib" | "main" | "mod")
    ) {
        module.pop();
    }
    module
}

/// The code without comments and what only tests have, and the names of modules that are only for tests.
fn without_tests(text: &str) -> (String, Vec<String>) {
    let (mut kept, mut tests) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let mut next = lines.next().unwrap_or_default();
        while next.trim_start().starts_with("#[") {
            next = lines.next().unwrap_or_default();
        }
        if let Some(at) = next.find("mod ") {
            let name = next[at + 4..].trim_end_matches([';', '{', ' ']);
            tests.push(name.to_owned());
        }
        // The item ends where its indentation is closed.
        let indent = &next[..next.len() - next.trim_start().len()];
        let (close, close_list) = (format!("{indent}}}"), format!("{indent}}};"));
        if !next.trim_end().ends_with([';', ',', '}']) {
            for line in lines.by_ref() {
                if line == close || line == close_list {
                    break;
                }
            }
        }
    }
    (kept, tests)
}

#[test]
fn circles_are_found_in_trees_and_paths_but_not_in_tests() {
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;\nuse b::x::Y;"),
        ("a.rs", "use crate::b::{self, x::{Y, Z as W}};\n"),
        ("b.rs", "mod x;\nfn f() { x::g(super::c::h()) }\n"),
        ("b/x.rs", "//! crate::a\nfn g() { crate::a::f() }\n"),
        (
            "c.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::a;\n}\nuse std::a::b;\n",
        ),
    ];
    let graph = Graph::new(files.map(|(path, text)| (path.to_owned(), text.to_owned())));
    assert_eq!(graph.circles(), [": a b"]);
}
