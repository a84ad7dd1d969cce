//! `stopover setup CLIENT`: the configuration that has a client pull through the cache.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context as _;
use stopover::config::Config;
use stopover::oci::UpstreamId;
use stopover::setup::{MirroredUpstream, Target};

use super::Endpoint;

/// One line per client: its name, and what is printed for it.
pub(crate) fn list() -> String {
    let mut text = "stopover setup CLIENT prints the configuration of:\n".to_owned();
    for client in Target::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:15} {}", client.name(), client.place());
    }
    text
}

/// A client's configuration; and on standard error the steps it has no room for and possible mistakes.
pub(crate) fn set_up(
    client: Target,
    (config, server): &(Config, Endpoint),
    named: Vec<UpstreamId>,
) -> anyhow::Result<String> {
    let mut beside = std::io::stderr();
    for id in named.iter().filter(|id| !config.upstreams.contains_key(*id)) {
        writeln!(
            beside,
            "{id}: this configuration has no such upstream; the cache answers for it only if its own has"
        )?;
    }
    let known = |id: UpstreamId| {
        let unknown =
            format!("{id}: no upstream of this configuration is called so, and no host: name the file with --config");
        MirroredUpstream::new(id, config).context(unknown)
    };
    let upstreams: Vec<MirroredUpstream> = if named.is_empty() {
        MirroredUpstream::all(config).collect()
    } else {
        named.into_iter().map(known).collect::<anyhow::Result<_>>()?
    };
    let mirror = server.mirror();
    beside.write_all(client.advice(&mirror, &upstreams).as_bytes())?;
    Ok(client.configuration(&mirror, &upstreams))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_is_listed() {
        assert_eq!(list().lines().count(), 1 + Target::ALL.len());
        assert!(list().contains("  cri-o           /etc/containers/registries.conf.d\n"), "{}", list());
    }
}
