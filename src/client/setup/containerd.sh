#!/bin/sh
# containerd reads these files at every pull: run this as root on each node, nothing has to be restarted.
# It has to know of the directory, once, in /etc/containerd/config.toml (then: systemctl restart containerd):
#   containerd 1: [plugins."io.containerd.grpc.v1.cri".registry]      config_path = "/etc/containerd/certs.d"
#   containerd 2: [plugins."io.containerd.cri.v1.images".registry]    config_path = "/etc/containerd/certs.d"
# nerdctl looks there by itself, ctr only when told: ctr images pull --hosts-dir /etc/containerd/certs.d IMAGE
# Where the mirror fails, containerd asks the registry itself without a word. A `server` that is the mirror stops that.
set -eu
certs_d="${CERTS_D:-/etc/containerd/certs.d}"
@each@

mkdir -p "$certs_d/@registry@"
cat > "$certs_d/@registry@/hosts.toml" <<'END'
# server = "@server@/@upstream@"
[host."@server@/@upstream@"]
  capabilities = ["pull", "resolve"]
END
@/each@
