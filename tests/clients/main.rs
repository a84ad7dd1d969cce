//! Real clients, real upstreams and the real program. What they do together is written down in docs/reference/clients.md.

mod faults;
mod helm;
mod newer;
mod renovate;
mod table;

use anyhow::ensure;
use support::clients::{By, Client, Containerd, Docker, OciClient, Podman, Shape, Skopeo, SkopeoToLayout};
use support::images::Recipe;
use support::registry::Registry;

/// Without the program, so that a comparison that accepts everything is found out.
#[tokio::test(flavor = "multi_thread")]
async fn the_comparison_refuses_an_image_with_other_content() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let address = upstream.url().replace("http://", "");
    // The upstream plays the cache: its repository carries the prefix that the cache's path would.
    let mut pushed = Recipe::index("test.local/image").push(&upstream).await?;
    let mut other = Recipe::index("elsewhere").seed(2).push(&upstream).await?;
    (pushed.name, other.name) = ("image".to_owned(), "image".to_owned());
    let (containerd, docker) = (Containerd::start().await?, Docker::start(&address).await?);
    let clients: [(&str, &dyn Client); 7] = [
        ("skopeo", &Skopeo),
        ("skopeo to a layout", &SkopeoToLayout),
        ("podman", &Podman),
        ("buildah", &support::clients::Buildah),
        ("containerd", &containerd),
        ("dockerd", &docker),
        ("oci-client", &OciClient),
    ];
    for (name, client) in clients {
        client.pull(&address, Shape::Name, &pushed, By::Tag).await?;
        let compared = client.pull(&address, Shape::Name, &other, By::Tag).await;
        ensure!(compared.is_err(), "{name} took one image for another");
    }
    Ok(())
}
