//! What a `kill -9` leaves behind, and how much memory a large layer takes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use support::Random;
use support::clients::{WrongContent, pull_over_http};
use support::images::{Image, Recipe};
use support::program::{Installation, stored_blobs};
use support::registry::Registry;
use support::vast::{Manner, Vast};
use support::world::until;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// How many rounds: `STOPOVER_CRASH_ROUNDS`, else ten.
fn rounds() -> anyhow::Result<u64> {
    match std::env::var("STOPOVER_CRASH_ROUNDS") {
        Ok(text) => text.parse().context("STOPOVER_CRASH_ROUNDS is not a number"),
        Err(_) => Ok(10),
    }
}

/// Content that no other round has: several small layers, so that some are stored and some are not when the end comes.
async fn push_round(upstream: &Registry, round: u64) -> anyhow::Result<Image> {
    let layers = vec![4 * MIB, MIB, 300 * KIB, 2 * MIB, KIB, MIB];
    Recipe::oci(&format!("crash/round-{round}"), layers).seed(1000 + round).push(upstream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_during_cold_pulls_it_serves_complete_verified_pulls_after_every_restart() -> anyhow::Result<()> {
    let mut upstream = Registry::start().await?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let mut stopover = installation.start().await?;
    let mut random = Random::new(42);
    // The shortest cold pull seen: the moments of the kills are spread over it.
    let image = push_round(&upstream, 0).await?;
    let begun = Instant::now();
    pull_over_http(stopover.address(), &image).await?;
    let mut whole = begun.elapsed();
    let mut images = vec![image];
    let mut interrupted = 0;
    let rounds = rounds()?;
    for round in 1..=rounds {
        let image = push_round(&upstream, round).await?;
        let moment = Duration::from_micros(random.number() % u64::try_from(whole.as_micros())?);
        let pull = tokio::spawn({
            let (address, image) = (stopover.address().to_owned(), image.clone());
            let begun = Instant::now();
            async move {
                let pulled = pull_over_http(&address, &image).await;
                pulled.map(|()| begun.elapsed())
            }
        });
        // The moment is what is tested; whatever has happened by then must do no harm.
        tokio::time::sleep(moment).await;
        stopover.kill_9().await?;
        let outcome = match pull.await? {
            Ok(took) => {
                whole = whole.min(took);
                "complete"
            }
            Err(error) => {
                ensure!(!error.is::<WrongContent>(), "round {round}: {error}");
                interrupted += 1;
                "cut"
            }
        };
        // All that is visible at this moment must be whole, of this round and of every round before.
        let whole_blobs = stored_blobs(&installation.data());
        let whole_blobs = whole_blobs.with_context(|| format!("after the kill of round {round}"))?;
        stopover = installation.start().await?;
        let pulled = pull_over_http(stopover.address(), &image).await;
        pulled.with_context(|| format!("round {round}:\n{}", stopover.log()))?;
        eprintln!(
            "round {round} of {rounds}: killed after {moment:?}, pull {outcome}, {} blobs whole, then pulled again",
            whole_blobs.len(),
        );
        images.push(image);
    }
    ensure!(interrupted * 2 >= rounds, "only {interrupted} of {rounds} kills came during a pull");
    stopover.until_stored(&images).await?;
    stopover.stored_blobs()?;
    upstream.stop().await?;
    for image in &images {
        let pulled = pull_over_http(stopover.address(), image).await;
        pulled.with_context(|| format!("{} without the upstream", image.name))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_large_fill_it_goes_on_from_its_checkpoint() -> anyhow::Result<()> {
    // What a crash may cost: the bytes since the last checkpoint, and those on their way.
    const SIZE: u64 = 400 * MIB;
    const LOST: u64 = 160 * MIB;
    let vast = Vast::start(SIZE, Manner { stalls_at: Some(300 * MIB), ..Manner::default() })?;
    let installation = Installation::with_configuration(&vast.table())?;
    let stopover = installation.start().await?;
    let url = format!("http://{}/v2/vast.local/vast/manifests/1", stopover.address());
    support::http().get(&url).send().await?.error_for_status()?;
    until(|| vast.sent() >= 300 * MIB).await;
    stopover.until_logged("checkpoint written").await?;
    stopover.kill_9().await?;
    vast.manner().stalls_at = None;
    let stopover = installation.start().await?;
    stopover.until_logged("blob stored").await?;
    ensure!(vast.sent() <= SIZE + LOST, "{} MiB were sent of {}", vast.sent() / MIB, SIZE / MIB);
    let stored = stopover.stored_blobs()?;
    ensure!(stored.get(vast.digest().as_str()) == Some(&SIZE), "{stored:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_below_64_mib_while_filling_and_serving_one_gib() -> anyhow::Result<()> {
    let mut upstream = Registry::start().await?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let image = Recipe::oci("gibibyte", vec![1024 * MIB]).push(&upstream).await?;
    pull_over_http(stopover.address(), &image).await.context("cold")?;
    let cold = stopover.peak_resident_bytes()?;
    stopover.until_stored(std::slice::from_ref(&image)).await?;
    upstream.stop().await?;
    pull_over_http(stopover.address(), &image).await.context("warm")?;
    let warm = stopover.peak_resident_bytes()?;
    eprintln!("peak resident memory: {} KiB after the cold pull, {} KiB after the warm one", cold / KIB, warm / KIB);
    ensure!(warm < 64 * MIB, "{} MiB were resident", warm / MIB);
    Ok(())
}
