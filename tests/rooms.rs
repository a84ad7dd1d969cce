//! The rooms of `src`, in their order: each uses what stands below it, and nothing else. So there is no circle between rooms,
//! and a reader who knows what is below a room knows all that it can depend on.

#![expect(clippy::string_slice, clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the edges down to the ground. Rooms of one line do not know each other.
const ROOMS: [&[&str]; 16] = [
    &["http", "local"],
    &["cache"],
    &["operate"],
    &["prefetch"],
    &["pull"],
    &["fill"],
    &["membership"],
    &["core"],
    &["access", "budget", "setup", "upstream"],
    &["ports"],
    &["config"],
    &["journal", "records"],
    &["identity"],
    &["errors"],
    &["oci"],
    &["values"],
];

/// The most files of the library that belong to no room: its root, and rooms that are one file.
const LOOSE: usize = 4;

/// How far above the ground a room is.
fn height(room: &str) -> Option<usize> {
    ROOMS.iter().rev().position(|rooms| rooms.contains(&room))
}

/// A file of the library: its modules from the root down (`["pull", "blob"]`), and its text.
struct File {
    path: PathBuf,
    modules: Vec<String>,
    text: String,
}

fn library() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut directories) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // The program is another crate.
                directories.extend((path != root.join("bin")).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let modules = path.strip_prefix(&root).unwrap().with_extension("");
                let modules = modules.iter().map(|module| module.to_str().unwrap().to_owned());
                let modules = modules.filter(|module| module != "mod" && module != "lib").collect();
                files.push(File { modules, text: fs::read_to_string(&path).unwrap(), path });
            }
        }
    }
    // What only tests are made of may use what it likes.
    let tests: BTreeSet<Vec<String>> = files.iter().flat_map(test_modules).collect();
    files.retain(|file| !tests.contains(&file.modules));
    files
}

/// The modules in files of their own that a file declares for tests only.
fn test_modules(file: &File) -> Vec<Vec<String>> {
    let declared = file.text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let (_, name) = rest.lines().next()?.strip_suffix(';')?.split_once("mod ")?;
        Some(file.modules.iter().cloned().chain([name.to_owned()]).collect())
    });
    declared.collect()
}

/// The lines of a file that name a room which does not stand below the file's own.
fn upward(file: &File) -> Vec<String> {
    let Some(room) = file.modules.first() else { return Vec::new() };
    let product = file.text.split("\nmod tests {").next().unwrap_or_default();
    let mut found = Vec::new();
    for (number, line) in product.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for named in rooms_in(code, file.modules.len()) {
            // What is no room is the root, or a group of several: name each room where it is used.
            if named != *room && height(named).is_none_or(|height| Some(height) >= self::height(room)) {
                let place = format!("{}:{}", file.path.display(), number + 1);
                found.push(format!("{place}: {room} may not know {named}: {}", line.trim()));
            }
        }
    }
    found
}

/// What a line of code names in the root of the crate, in a module so deep: `crate::pull`, or `super::super::pull`.
fn rooms_in(code: &str, depth: usize) -> impl Iterator<Item = &str> {
    let by_super = "super::".repeat(depth);
    let after = |root: &str| code.match_indices(root).map(|(at, root)| at + root.len()).collect::<Vec<_>>();
    let starts = [after("crate::"), after(&by_super)].concat();
    starts.into_iter().map(|at| {
        let rest = &code[at..];
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn no_import_leads_upwards() {
    let files = library();
    assert!(files.len() > 100, "{} files were read", files.len());
    let found: Vec<String> = files.iter().flat_map(upward).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn every_room_has_its_place_in_the_order() {
    let rooms: BTreeSet<String> = library().into_iter().filter_map(|file| file.modules.into_iter().next()).collect();
    let known: BTreeSet<String> = ROOMS.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(rooms, known);
}

#[test]
fn few_files_belong_to_no_room() {
    let loose = library().into_iter().filter(|file| file.path.parent().is_some_and(|parent| parent.ends_with("src")));
    let loose: Vec<PathBuf> = loose.map(|file| file.path).collect();
    assert!(loose.len() <= LOOSE, "{loose:?}");
}

#[test]
fn an_import_that_is_turned_round_is_found_however_it_is_written() {
    let file = |modules: &[&str], text: &str| File {
        path: "a.rs".into(),
        modules: modules.iter().map(|&module| module.to_owned()).collect(),
        text: text.to_owned(),
    };
    let up = [
        (&["fill", "copy"][..], "use crate::pull::Pull;"),
        (&["fill"], "use super::pull::Pull;"),
        (&["fill", "copy"], "use super::super::http::router;"),
        (&["values", "time"], "fn f() -> crate::oci::Name {}"),
        (&["upstream", "client"], "use crate::access::Access;"),
        (&["core"], "use crate::{membership::Membership, oci::Name};"),
        (&["core"], "use crate::Cache;"),
    ];
    for (modules, text) in up {
        assert_eq!(upward(&file(modules, text)).len(), 1, "{text}");
    }
    let down = [
        (&["pull", "blob"][..], "use crate::fill::Fill;"),
        (&["pull", "blob"], "use super::Pull;"),
        (&["pull"], "// crate::http has more"),
        (&["core"], "\n#[cfg(test)]\nmod tests {\n    use crate::local::Local;\n}"),
    ];
    for (modules, text) in down {
        assert_eq!(upward(&file(modules, text)), [""; 0], "{text}");
    }
}

/// The most fields of [`WHOLES`], and the most arguments of a constructor.
const FIELDS: usize = 7;
const ARGUMENTS: usize = 6;

/// The core, and what works with it.
const WHOLES: [&str; 6] = ["Core", "Pull", "Fill", "Prefetch", "Operate", "Cache"];

/// What stands between `begin` and the first `end` after it.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    text.split_once(begin)?.1.split_once(end).map(|(inside, _)| inside)
}

#[test]
fn the_core_and_what_works_with_it_have_few_fields_and_constructors_few_arguments() {
    let files = library();
    for whole in WHOLES {
        let fields = files.iter().find_map(|file| between(&file.text, &format!("\npub struct {whole} {{\n"), "\n}"));
        let is_field = |line: &&str| !line.trim_start().starts_with("//") && line.contains(": ");
        let fields = fields.unwrap().lines().filter(is_field).count();
        assert!((1..=FIELDS).contains(&fields), "{whole} has {fields} fields");
    }
    for file in &files {
        for constructor in file.text.split("fn new(").skip(1) {
            let signature = constructor.split(" {\n").next().unwrap();
            let arguments = signature.matches(": ").count();
            assert!(arguments <= ARGUMENTS, "{} has a constructor with {arguments} arguments", file.path.display());
        }
    }
}
