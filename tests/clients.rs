//! Real clients, a real upstream and the real program: each kind of image cold, warm, and without the upstream.

use anyhow::{Context, ensure};
use support::clients::{Client, Through};
use support::images::Recipe;
use support::program::{Installation, UPSTREAM};
use support::registry::Registry;
use tempfile::NamedTempFile;

const MIB: u64 = 1024 * 1024;

/// Cold, then warm by the other way of naming the image, then both ways after the upstream is gone.
async fn pulls_are_identical(client: Client, warm: Client, recipe: Recipe) -> anyhow::Result<()> {
    let mut upstream = Registry::start().await?;
    let image = recipe.push(&upstream).await?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let address = stopover.address();
    let show = || format!("the program's log:\n{}", stopover.log());
    client.pull(address, Through::Name, &image).await.context("cold").with_context(show)?;
    warm.pull(address, Through::Mirror, &image).await.context("warm").with_context(show)?;
    upstream.stop().await?;
    for through in [Through::Name, Through::Mirror] {
        let pulled = client.pull(address, through, &image).await;
        pulled.context("without the upstream").with_context(show)?;
    }
    Ok(())
}

#[tokio::test]
async fn skopeo_pulls_a_docker_image() -> anyhow::Result<()> {
    pulls_are_identical(Client::Skopeo, Client::Skopeo, Recipe::docker("team/docker")).await
}

#[tokio::test]
async fn podman_pulls_a_docker_image() -> anyhow::Result<()> {
    pulls_are_identical(Client::Podman, Client::Podman, Recipe::docker("team/docker")).await
}

#[tokio::test]
async fn skopeo_pulls_every_platform_of_an_index() -> anyhow::Result<()> {
    pulls_are_identical(Client::Skopeo, Client::SkopeoToLayout, Recipe::index("team/index")).await
}

#[tokio::test]
async fn podman_pulls_every_platform_of_an_index() -> anyhow::Result<()> {
    pulls_are_identical(Client::Podman, Client::Podman, Recipe::index("team/index")).await
}

#[tokio::test]
async fn skopeo_pulls_an_image_of_twenty_layers() -> anyhow::Result<()> {
    let recipe = Recipe::oci("twenty", vec![MIB; 20]);
    pulls_are_identical(Client::Skopeo, Client::SkopeoToLayout, recipe).await
}

#[tokio::test]
async fn podman_pulls_an_image_of_twenty_layers() -> anyhow::Result<()> {
    // podman keeps a whole copy of the tree per layer: small layers.
    let recipe = Recipe::oci("twenty", vec![MIB / 8; 20]);
    pulls_are_identical(Client::Podman, Client::Podman, recipe).await
}

#[tokio::test]
async fn skopeo_pulls_a_layer_of_200_megabytes() -> anyhow::Result<()> {
    let recipe = Recipe::oci("large", vec![200 * MIB]);
    pulls_are_identical(Client::Skopeo, Client::SkopeoToLayout, recipe).await
}

#[tokio::test]
async fn podman_pulls_a_layer_of_200_megabytes() -> anyhow::Result<()> {
    let recipe = Recipe::oci("large", vec![200 * MIB]);
    pulls_are_identical(Client::Podman, Client::Podman, recipe).await
}

#[tokio::test]
async fn skopeo_pulls_from_an_upstream_that_asks_for_a_password() -> anyhow::Result<()> {
    let upstream = Registry::start_with_password("alice", "pass word").await?;
    let image = Recipe::docker("private/docker").push(&upstream).await?;
    let password = NamedTempFile::new()?;
    std::fs::write(&password, "pass word\n")?;
    let installation = Installation::with_configuration(&format!(
        "[upstreams.\"{UPSTREAM}\"]\n\
         url = \"{}\"\n\
         credentials = {{ username = \"alice\", password_file = \"{}\" }}\n",
        upstream.url(),
        password.path().display(),
    ))?;
    let stopover = installation.start().await?;
    let pulled = Client::Skopeo.pull(stopover.address(), Through::Name, &image).await;
    pulled.with_context(|| stopover.log())?;
    ensure!(!stopover.log().contains("pass word"), "the log tells the password");
    Ok(())
}

/// Without the program, so that a comparison that accepts everything is found out.
#[tokio::test]
async fn the_comparison_refuses_an_image_with_other_content() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let address = upstream.url().replace("http://", "");
    // The upstream plays the cache: its repository carries the prefix that the cache's path would.
    let mut pushed = Recipe::index("test.local/image").push(&upstream).await?;
    let mut other = Recipe::index("elsewhere").seed(2).push(&upstream).await?;
    (pushed.name, other.name) = ("image".to_owned(), "image".to_owned());
    for client in [Client::Skopeo, Client::SkopeoToLayout, Client::Podman] {
        client.pull(&address, Through::Name, &pushed).await?;
        let compared = client.pull(&address, Through::Name, &other).await;
        ensure!(compared.is_err(), "{client:?} took one image for another");
    }
    Ok(())
}
