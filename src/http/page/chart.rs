//! A chart of the last day: how many requests were answered from the cache, and how many not.

use super::html::Html;
use crate::journal::history::{MOST, Sample};
use crate::oci::UpstreamId;

/// How high it is, and how wide one bar with its gap, in units of its own.
const HIGH: u64 = 100;
const WIDE: usize = 10;

/// What was counted between each two samples.
fn steps(samples: &[Sample], is_shown: impl Fn(&UpstreamId) -> bool) -> Vec<(u64, u64)> {
    let sums: Vec<(u64, u64)> = samples.iter().map(|sample| sample.sums(&is_shown)).collect();
    let pairs = sums.iter().zip(sums.iter().skip(1));
    pairs.map(|(before, after)| (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1))).collect()
}

/// Adds it, unless there is nothing to draw yet.
pub(super) fn add(html: &mut Html, samples: &[Sample], is_shown: impl Fn(&UpstreamId) -> bool) {
    let steps = steps(samples, is_shown);
    let Some(most) = steps.iter().map(|(stored, missed)| stored + missed).max().filter(|most| *most > 0) else {
        return;
    };
    let of_most = |count: u64| count.saturating_mul(HIGH) / most;
    let said = format!("Requests of the last day, by the quarter of an hour: at most {most}");
    html.raw(
        "<figure class=\"chart\"><svg viewBox=\"0 0 960 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"",
    );
    html.text(&said).raw("\">");
    for (class, is_stored) in [("<path class=\"stored\" d=\"", true), ("<path class=\"missed\" d=\"", false)] {
        html.raw(class);
        for (number, (stored, missed)) in steps.iter().enumerate() {
            let across = (MOST.saturating_sub(steps.len()) + number) * WIDE + WIDE / 2;
            let (from, to) =
                if is_stored { (0, of_most(*stored)) } else { (of_most(*stored), of_most(stored + missed)) };
            if from < to {
                html.text(format_args!("M{across} {}V{}", HIGH - from, HIGH - to));
            }
        }
        html.raw("\"/>");
    }
    html.raw("</svg><figcaption>").text(&said).raw(". <span class=\"key stored\"></span> from the cache, ");
    html.raw("<span class=\"key missed\"></span> not</figcaption></figure>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::time::Timestamp;

    #[test]
    fn bars_stand_at_the_right_and_misses_on_what_was_stored() {
        let sample =
            |stored, missed| Sample { at: Timestamp(0), counted: vec![("a.test".parse().unwrap(), stored, missed)] };
        let drawn = |samples: &[Sample], shown: bool| {
            let mut html = Html::default();
            add(&mut html, samples, |_| shown);
            html.finish()
        };
        let samples = [sample(0, 0), sample(3, 1), sample(3, 1), sample(4, 2)];
        let text = drawn(&samples, true);
        assert!(text.contains("<path class=\"stored\" d=\"M935 100V25M955 100V75\"/>"), "{text}");
        assert!(text.contains("<path class=\"missed\" d=\"M935 25V0M955 75V50\"/>"), "{text}");
        assert!(text.contains("at most 4\""), "{text}");
        assert_eq!((drawn(&samples, false), drawn(&samples[1..3], true)), (String::new(), String::new()));
    }
}
