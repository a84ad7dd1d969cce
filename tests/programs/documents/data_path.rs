//! The data path has the same steps in the same order in README, in its explanation, and in the decision that the code makes.

use anyhow::{Result, ensure};

use super::Document;

/// The numbered titles that lines begin with: `3. Title: …`, also in bold, and in comments.
fn titles(text: &str) -> Vec<(usize, String)> {
    let title = |line: &str| {
        let line = line.trim_start().trim_start_matches(['/', '!', ' ', '*']);
        let (number, rest) = line.split_once(". ")?;
        let title = rest.split([':', '*']).next()?.trim();
        Some((number.parse().ok()?, title.to_owned()))
    };
    text.lines().filter_map(title).collect()
}

/// The steps about manifests: those before are about every request, those after about blobs.
fn about_manifests(titles: Vec<(usize, String)>) -> Vec<(usize, String)> {
    titles.into_iter().filter(|(number, _)| (3..=8).contains(number)).collect()
}

#[test]
fn the_data_path_is_the_same_in_readme_in_its_explanation_and_in_the_decision() -> Result<()> {
    let readme = Document::read("README.md")?.text;
    let path = readme.split("## The data path").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let expected = about_manifests(titles(path));
    ensure!(expected.iter().map(|(number, _)| *number).eq(3..=8), "README has the steps {expected:?}");
    let decision = Document::read("src/pull/decide.rs")?.text;
    let (comment, arms) = decision.split_once("\nuse ").unwrap_or_default();
    let arms = arms.split("fn answer_or_ask(").nth(1).and_then(|rest| rest.split("\n}\n").next()).unwrap_or_default();
    let explanation = Document::read("docs/explanation/pulls.md")?.text;
    for (whose, text) in [("the comment of decide.rs", comment), ("its arms", arms), ("pulls.md", &explanation)] {
        let found = about_manifests(titles(text));
        ensure!(found == expected, "{whose} has {found:?}, and README {expected:?}");
    }
    Ok(())
}

#[test]
fn a_step_that_is_called_otherwise_is_found() {
    let titles = titles(
        "3. One, two: three\n   4. no title but text\n//! 5. Five\n        // 6. Six: seven\n**7. Seven**: eight\n",
    );
    let titles: Vec<(usize, &str)> = titles.iter().map(|(number, title)| (*number, title.as_str())).collect();
    assert_eq!(titles, [(3, "One, two"), (4, "no title but text"), (5, "Five"), (6, "Six"), (7, "Seven")]);
}
