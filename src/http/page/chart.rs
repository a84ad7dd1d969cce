//! A chart of a day or a month: how many requests were answered from the cache, and how many not.

use super::html::Html;
use crate::operate::tallies::{Period, Step};

/// How high it is, and how wide one bar with its gap, in units of its own.
const HIGH: u64 = 100;
const WIDE: usize = 10;

/// Adds it, unless there is nothing to draw yet. `each`: what one bar stands for.
pub(super) fn add(html: &mut Html, Period { steps, .. }: &Period, each: &'static str) {
    let all = |step: &Step| step.stored.saturating_add(step.missed);
    let Some(most) = steps.iter().map(all).max().filter(|most| *most > 0) else { return };
    let of_most = |count: u64| count.saturating_mul(HIGH) / most;
    let said = format!("Requests of the last {} {each}s: at most {most} in one", steps.len());
    html.raw("<figure class=\"chart\"><svg viewBox=\"0 0 ").text(steps.len() * WIDE);
    html.raw(" 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"").text(&said).raw("\">");
    for (class, is_stored) in [("<path class=\"stored\" d=\"", true), ("<path class=\"missed\" d=\"", false)] {
        html.raw(class);
        for (number, step) in steps.iter().enumerate() {
            let across = number * WIDE + WIDE / 2;
            let (from, to) =
                if is_stored { (0, of_most(step.stored)) } else { (of_most(step.stored), of_most(all(step))) };
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
    use crate::operate::status::Counts;

    #[test]
    fn bars_stand_in_their_order_and_misses_on_what_was_stored() {
        let drawn = |steps: &[(u64, u64)]| {
            let steps = steps.iter().map(|(stored, missed)| Step { at: 0, stored: *stored, missed: *missed });
            let mut html = Html::default();
            add(&mut html, &Period { counts: Counts::new(), hit_percent: None, steps: steps.collect() }, "hour");
            html.finish()
        };
        let text = drawn(&[(0, 0), (3, 1), (0, 0), (1, 1)]);
        assert!(text.contains("viewBox=\"0 0 40 100\""), "{text}");
        assert!(text.contains("<path class=\"stored\" d=\"M15 100V25M35 100V75\"/>"), "{text}");
        assert!(text.contains("<path class=\"missed\" d=\"M15 25V0M35 75V50\"/>"), "{text}");
        assert!(text.contains("aria-label=\"Requests of the last 4 hours: at most 4 in one\""), "{text}");
        assert_eq!(drawn(&[(0, 0), (0, 0)]), "");
        assert!(drawn(&[(u64::MAX, u64::MAX)]).contains("M5 100V"), "no number is too large");
    }
}
