//! What is shown of much that is stored: a first page takes no longer, and no more memory, than one of little.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use stopover::local::EmbeddedLedger;
use stopover::oci::{Algorithm, Digest, MediaType, Observed, Reference, Repository};
use stopover::ports::Records as _;
use stopover::records::{Holding, HoldingKey, ReferenceKey, TagRecord};
use stopover::values::time::Timestamp;
use support::program::{Installation, Stopover, UPSTREAM, binary, output};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

const KIB: u64 = 1024;

/// The first pages of what is stored: of the endpoints and of the page.
const PAGES: [&str; 5] = [
    "/_stopover/images",
    "/_stopover/images?n=1000",
    "/?view=images",
    "/_stopover/image?name=test.local/tagged",
    "/?name=test.local/tagged",
];

/// How many repositories, and how many tags of one of them: `STOPOVER_LISTED`, else as many as a test has time for.
fn many() -> Result<usize> {
    match std::env::var("STOPOVER_LISTED") {
        Ok(text) => text.parse().context("STOPOVER_LISTED is not a number"),
        Err(_) => Ok(5_000),
    }
}

/// A program that has stored so many repositories, and one with as many tags.
async fn stored(many: usize) -> Result<(Installation, Stopover)> {
    let installation = Installation::for_upstream("http://127.0.0.1:1")?;
    installation.start().await?.terminate(Duration::from_secs(30)).await?;
    let ledger = EmbeddedLedger::open(&installation.data().join("ledger.redb"))?;
    let (now, digest) = (Timestamp(7), Digest::of(Algorithm::Sha256, b""));
    let observed = Observed { digest, media_type: MediaType::OciManifest, size: 1000 };
    let put = |number: usize| {
        let (ledger, observed) = (&ledger, observed.clone());
        async move {
            let of =
                |name: String| Ok::<_, anyhow::Error>(Repository { upstream: UPSTREAM.parse()?, name: name.parse()? });
            let tag = format!("v1.{number}").parse()?;
            let holding = Holding::nothing().with_tag(&tag, now).with_bytes(7_000_000, now);
            ledger.swap(&HoldingKey(&of(format!("team-{}/app-{number}", number % 500))?), None, &holding).await?;
            let record =
                TagRecord { observed: Some(observed), previous: None, checked_at: now, fresh_until: now, lease: None };
            ledger.swap(&ReferenceKey(&of("tagged".into())?, &Reference::Tag(tag)), None, &record).await?;
            Ok::<_, anyhow::Error>(())
        }
    };
    // As many as one commit takes.
    stream::iter((0..many).map(put)).buffer_unordered(256).try_collect::<()>().await?;
    drop(ledger);
    let stopover = installation.start().await?;
    Ok((installation, stopover))
}

async fn ask(stopover: &Stopover, path: &str) -> Result<usize> {
    let request = support::http().get(format!("http://{}{path}", stopover.address())).header("accept", "text/html");
    Ok(request.send().await?.error_for_status()?.bytes().await?.len())
}

/// `stopover ls` with these options, and how long it takes to its first line.
async fn list(
    stopover: &Stopover,
    options: &[&str],
) -> Result<(tokio::process::Child, BufReader<tokio::process::ChildStdout>, Duration)> {
    let begun = Instant::now();
    let mut command = Command::new(binary()?);
    command.args(["ls", "--server", &format!("http://{}", stopover.address())]).args(options).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?);
    let mut first = String::new();
    lines.read_line(&mut first).await?;
    ensure!(first.starts_with("REPOSITORY ") || first == "{\"repositories\":[\n", "{first}");
    Ok((child, lines, begun.elapsed()))
}

/// The most memory that a command takes which prints all of it.
async fn memory_of(stopover: &Stopover, command: &str) -> Result<u64> {
    let program = "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
                   print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let mut python = Command::new(support::PYTHON);
    python.args(["-c", program]).arg(binary()?).args([command, "--json", "--server"]);
    let output = python.arg(format!("http://{}", stopover.address())).output().await?;
    let kibibytes = String::from_utf8(output.stdout)?;
    let kibibytes: u64 =
        kibibytes.trim().parse().with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    eprintln!("  stopover {command} --json: {kibibytes} KiB of memory");
    Ok(kibibytes * KIB)
}

/// The median of some times that each page and the first line of `ls` took, and how much memory the program took for all;
/// and that of the commands that print it.
async fn measure(stopover: &Stopover) -> Result<[u64; 3]> {
    ask(stopover, "/?view=setup").await?;
    let before = stopover.peak_resident_bytes()?;
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    for path in PAGES {
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..21 {
            let begun = Instant::now();
            bytes = ask(stopover, path).await?;
            times.push(begun.elapsed());
        }
        eprintln!("  {path}: {:?}, {bytes} bytes", median(times));
    }
    let mut times = Vec::new();
    for _ in 0..11 {
        times.push(list(stopover, &[]).await?.2);
    }
    eprintln!("  stopover ls, to its first line: {:?}", median(times));
    let taken = stopover.peak_resident_bytes()?.saturating_sub(before);
    eprintln!("  {} KiB of memory", taken / KIB);
    Ok([taken, memory_of(stopover, "ls").await?, memory_of(stopover, "du").await?])
}

/// Of 100,000: `STOPOVER_LISTED=100000`. docs/explanation/benchmarks.md has what that says.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_page_takes_no_more_memory_however_much_is_stored() -> Result<()> {
    let (few, many) = (1_000, many()?);
    let mut taken = Vec::new();
    for many in [few, many] {
        let (_installation, stopover) = stored(many).await?;
        eprintln!("{many} repositories, and a repository of {many} tags:");
        taken.push(measure(&stopover).await?);
    }
    // `du` sorts them by size, and holds a name and some numbers of each until then.
    let held = (many as u64).saturating_sub(few as u64) * KIB / 2;
    for (before, (after, more)) in taken[0].iter().zip(taken[1].iter().zip([0, 0, held])) {
        ensure!(*after <= before + 8 * KIB * KIB + more, "{taken:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_printed_page_by_page_and_ends_where_it_is_read_no_more() -> Result<()> {
    let (_installation, stopover) = stored(3_000).await?;
    let asked = || stopover.log().matches("/_stopover/images").count();
    // All of it, in one table whose head is there once.
    let (mut child, mut lines, _) = list(&stopover, &[]).await?;
    let mut rest = String::new();
    lines.read_to_string(&mut rest).await?;
    let names: Vec<&str> = rest.lines().filter_map(|line| line.split("  ").next()).collect();
    ensure!(names.len() == 3_000 && names.is_sorted() && !rest.contains("REPOSITORY"), "{} lines", names.len());
    ensure!(child.wait().await?.success());
    let pages = asked();
    ensure!(pages >= 3, "{pages} pages");
    // The first page alone, because it fills a pipe that is closed then.
    for options in [&[][..], &["--json"]] {
        let before = asked();
        let (mut child, lines, _) = list(&stopover, options).await?;
        drop(lines);
        let (status, mut said) = (child.wait().await?, String::new());
        child.stderr.take().context("no output")?.read_to_string(&mut said).await?;
        ensure!(status.success() && said.is_empty(), "{status}: {said}");
        ensure!(asked() - before < pages, "{} pages were asked for, all are {pages}", asked() - before);
    }
    // Each repository once, in an order that only all of them have.
    let used = output(&["du", "--json", "--server", &format!("http://{}", stopover.address())], &[]).await?;
    let used: serde_json::Value = serde_json::from_slice(&used.stdout)?;
    ensure!(used["repositories"].as_array().is_some_and(|all| all.len() == 3_000) && used["cut"] == false, "{used}");
    Ok(())
}
