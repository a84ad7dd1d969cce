#!/bin/sh
# kind 0.27 and later: run this where kind runs, once the cluster is there; nothing has to be restarted.
# KIND_CLUSTER=NAME is for another cluster than `kind`. A node is a container: 127.0.0.1 is the node itself there, so name
# an address of this machine that containers reach.
set -eu
for node in $(kind get nodes --name "${KIND_CLUSTER:-kind}"); do
  # In front of several control planes: it runs no images.
  case "$node" in *-external-load-balancer) continue ;; esac
  docker exec --interactive "$node" sh <<'STOPOVER'
@containerd@
STOPOVER
done
