//! Whatever strangers and upstreams send, and operators mistype: no panic, no hang, bounded memory, and what is understood
//! is understood as one thing.
//!
//! Cases are made of what is right by a few changes each. Some ten thousand for each target go with every run;
//! `STOPOVER_FUZZ` says how many instead (`make test`: a million). A failure names the seed that repeats it.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod config;
mod generate;
mod images;
mod issuers;
mod logins;
mod requests;
mod upstream;

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use fastrand::Rng;
use stopover::values::time::Clock;

/// How many cases there are for each target where nobody says how many.
const CASES: u64 = 20_000;
/// How long a case may take: a million times what it takes on an idle machine.
const LONGEST: Duration = Duration::from_secs(20);
/// How much memory the process may have come to need, in kibibytes: far more than a case's input, far less than what
/// an input that is read into something much larger would cost.
const MOST_MEMORY: u64 = 256 * 1024;

/// Tries a target with as many cases as there are to be, each with a generator of its own, on all processors. `case` says
/// whether it was understood: where nearly all are, or nearly none, the cases are no good.
fn run(target: &'static str, case: impl Fn(&mut Rng) -> bool + Send + Sync + 'static) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let cases = number("STOPOVER_FUZZ").unwrap_or(CASES);
    let first = number("STOPOVER_FUZZ_SEED").unwrap_or(Clock::default().now().0 << 20);
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let (case, (end, ended)) = (Arc::new(case), channel());
    let running: Arc<[AtomicU64]> = (0..workers).map(|_| AtomicU64::new(0)).collect();
    for worker in 0..workers {
        let (case, end, running) = (Arc::clone(&case), end.clone(), Arc::clone(&running));
        let seeds = (first..first + cases).skip(worker).step_by(workers);
        std::thread::spawn(move || {
            let understood = |seed| {
                running[worker].store(seed, Ordering::Relaxed);
                case(&mut Rng::with_seed(seed))
            };
            let counted = catch_unwind(AssertUnwindSafe(|| seeds.map(understood).map(u64::from).sum::<u64>()));
            // Nobody waits any more for a target that has failed.
            _ = end.send(counted.map_err(|_panicked| running[worker].load(Ordering::Relaxed)));
        });
    }
    let seeds = || running.iter().map(|seed| seed.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (mut understood, mut ends, mut before) = (0, 0, Vec::new());
    while ends < workers {
        match ended.recv_timeout(LONGEST) {
            Ok(Ok(count)) => (understood, ends) = (understood + count, ends + 1),
            Ok(Err(seed)) => panic!("{target}: repeat it with STOPOVER_FUZZ=1 STOPOVER_FUZZ_SEED={seed}"),
            Err(_) => {
                let now = seeds();
                assert!(now != before, "{target} hangs at one of these seeds: {now:?}");
                before = now;
            }
        }
    }
    let (fewest, most) = (cases / 100, cases - cases / 100);
    assert!((fewest..=most).contains(&understood), "{target}: {understood} of {cases} cases were understood");
    let peak = peak_kibibytes();
    assert!(peak < MOST_MEMORY, "{target}: {peak} KiB were needed");
}

/// The most memory that was ever resident (`VmHWM`).
fn peak_kibibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is always there");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_case_that_panics_fails_its_target() {
    let failed = catch_unwind(|| run("planted", |rng| rng.u8(..) != 7 || panic!("planted")));
    assert!(failed.is_err());
}
